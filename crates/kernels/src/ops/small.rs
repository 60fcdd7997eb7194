//! Small dense matrices that stay in the L1 cache: matmuls and triangular solves on the calling thread, nothing packed.
//!
//! `small_matmul`: `C[m,n] (+)= A[m,k] B[k,n]`, `B` and `C` row-major with a row stride, `A` with any two strides (its
//! transpose costs nothing). Each element of `C` is summed along `k` in order. `solve_unit_lower`: `X <- (I + M)^-1 X`,
//! `solve_unit_upper`: `X <- (I + M)^-T X`, for a strictly lower triangular `M`.

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd};
use crate::size::{area, strided};

/// What is known of a matmul's triangles: multiply-adds that would add zeros are left out in whole tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Triangle {
    /// Nothing.
    None,
    /// `A[i,p] = 0` for `p > i`.
    LowerA,
    /// `A[i,p] = 0` for `p < i`.
    UpperA,
    /// `C[i,j]` is not wanted for `j > i`; it is left as it was, or not.
    LowerC,
}

/// A matrix whose element `[i, p]` is `x[i * row + p * column]`.
#[derive(Clone, Copy)]
pub struct Strided<'a, E> {
    pub(super) x: &'a [E],
    pub(super) row: usize,
    pub(super) column: usize,
}

impl<'a, E> Strided<'a, E> {
    /// The matrix in `x`, its rows `ld` apart.
    pub fn rows(x: &'a [E], ld: usize) -> Self {
        Strided { x, row: ld, column: 1 }
    }

    /// The transpose of the matrix in `x`, whose rows are `ld` apart.
    pub fn transposed(x: &'a [E], ld: usize) -> Self {
        Strided { x, row: 1, column: ld }
    }
}

/// `c: [m, n]` with rows `ldc` apart, `a: [m, k]`, `b: [k, n]` with rows `ldb` apart; adds where `accumulate`.
pub fn small_matmul<E: Elem>(
    cx: &Exec,
    (c, ldc): (&mut [E], usize),
    a: Strided<E>,
    (b, ldb): (&[E], usize),
    (m, n, k): (usize, usize, usize),
    triangle: Triangle,
    accumulate: bool,
) {
    let part = if triangle == Triangle::None { 1.0 } else { 0.5 };
    let _time = time(cx, "small_matmul", (k, n), Work::Flops(2.0 * part * (m * n * k) as f64));
    product(cx, (c, ldc), a, (b, ldb), (m, n, k), triangle, accumulate);
}

/// [`small_matmul`] as a part of an op that is measured as a whole.
pub(super) fn product<E: Elem>(
    cx: &Exec,
    (c, ldc): (&mut [E], usize),
    a: Strided<E>,
    (b, ldb): (&[E], usize),
    (m, n, k): (usize, usize, usize),
    triangle: Triangle,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(c.len() >= strided(m, ldc, n), "result of a small matmul is too small");
    let inside = k == 0 || (a.x.len() >= strided(m, a.row, strided(k, a.column, 1)) && b.len() >= strided(k, ldb, n));
    assert!(inside, "operand of a small matmul is too small");
    let (c, ra, ca, a, b) = (c.as_mut_ptr(), a.row, a.column, a.x.as_ptr(), b.as_ptr());
    cx.op(Product { c, ldc, a, ra, ca, b, ldb, m, n, k, triangle, accumulate });
}

struct Product<E> {
    c: *mut E,
    ldc: usize,
    a: *const E,
    ra: usize,
    ca: usize,
    b: *const E,
    ldb: usize,
    m: usize,
    n: usize,
    k: usize,
    triangle: Triangle,
    accumulate: bool,
}

impl<E: Elem> Op<E> for Product<E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let mut i = 0;
        // SAFETY: rows `i..i + MR` are below `m`; sizes were checked by the caller.
        unsafe {
            // As many sums as registers hold: 24 of 32; of 16 twelve, six rows of two vectors (four of three leave one free, and spill).
            while S::LANES >= 16 && i + 8 <= self.m {
                self.rows::<S, 8, 3>(i);
                i += 8;
            }
            // Of eight that are left four and four, not six and two single ones.
            while S::LANES == 8 && i + 6 <= self.m && self.m - i != 8 {
                self.rows::<S, 6, 2>(i);
                i += 6;
            }
            while i + 4 <= self.m {
                if S::LANES == 8 {
                    self.rows::<S, 4, 2>(i)
                } else {
                    self.rows::<S, 4, 3>(i)
                }
                i += 4;
            }
            while i < self.m {
                self.rows::<S, 1, 3>(i);
                i += 1;
            }
        }
    }
}

impl<E: Elem> Product<E> {
    #[inline(always)]
    unsafe fn rows<S: Simd<E = E>, const MR: usize, const NV: usize>(&self, i: usize) {
        let depths = match self.triangle {
            Triangle::LowerA => 0..self.k.min(i + MR),
            Triangle::UpperA => i.min(self.k)..self.k,
            _ => 0..self.k,
        };
        let columns = if self.triangle == Triangle::LowerC { self.n.min(i + MR) } else { self.n };
        let mut j = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while j < columns {
                // Four vectors go in two and two: one alone would wait for its own sums.
                let vectors = match (columns - j).div_ceil(S::LANES) {
                    4 => 2,
                    left => left.min(NV),
                };
                match (vectors, j + vectors * S::LANES <= self.n) {
                    (1, true) => self.tile::<S, MR, 1, true>(i, j, depths.clone()),
                    (2, true) => self.tile::<S, MR, 2, true>(i, j, depths.clone()),
                    (_, true) => self.tile::<S, MR, NV, true>(i, j, depths.clone()),
                    (1, false) => self.tile::<S, MR, 1, false>(i, j, depths.clone()),
                    (2, false) => self.tile::<S, MR, 2, false>(i, j, depths.clone()),
                    (_, false) => self.tile::<S, MR, NV, false>(i, j, depths.clone()),
                }
                j += vectors * S::LANES;
            }
        }
    }

    /// `FULL`: every lane of the last vector is a column.
    #[inline(always)]
    unsafe fn tile<S: Simd<E = E>, const MR: usize, const N: usize, const FULL: bool>(
        &self,
        i: usize,
        j: usize,
        depths: std::ops::Range<usize>,
    ) {
        let last = if FULL { S::LANES } else { self.n - j - (N - 1) * S::LANES };
        let lanes = |v: usize| if v + 1 == N { last } else { S::LANES };
        // SAFETY: the tile's rows, columns and depths are inside of the operands.
        unsafe {
            let c = self.c.add(i * self.ldc + j);
            let mut acc = [[S::splat(E::ZERO); N]; MR];
            if self.accumulate {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = S::get(c.add(r * self.ldc + v * S::LANES), lanes(v));
                    }
                }
            }
            let a = self.a.add(i * self.ra);
            let mut b = [S::splat(E::ZERO); N];
            for p in depths {
                let row = self.b.add(p * self.ldb + j);
                for (v, b) in b.iter_mut().enumerate() {
                    *b = S::get(row.add(v * S::LANES), lanes(v));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = S::splat(*a.add(r * self.ra + p * self.ca));
                    for (acc, &b) in acc.iter_mut().zip(&b) {
                        *acc = S::fma(a, b, *acc);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, &acc) in acc.iter().enumerate() {
                    S::put(c.add(r * self.ldc + v * S::LANES), acc, lanes(v));
                }
            }
        }
    }
}

/// `x <- (I + M)^-1 x` for `x: [n, d]` and the strictly lower part of `m: [n, n]`.
pub fn solve_unit_lower<E: Elem>(cx: &Exec, x: &mut [E], m: &[E], (n, d): (usize, usize)) {
    assert!(x.len() >= area([n, d]) && m.len() >= area([n, n]));
    let _time = time(cx, "small_solve", (n, d), Work::Flops((n * n * d) as f64));
    cx.op(Solve { x: x.as_mut_ptr(), ld: d as isize, m: m.as_ptr(), rm: n as isize, cm: 1, n, d });
}

/// `x <- (I + M)^-T x` for `x: [n, d]` and the strictly lower part of `m: [n, n]`.
pub fn solve_unit_upper<E: Elem>(cx: &Exec, x: &mut [E], m: &[E], (n, d): (usize, usize)) {
    assert!(x.len() >= area([n, d]) && m.len() >= area([n, n]));
    if n == 0 {
        return;
    }
    let _time = time(cx, "small_solve", (n, d), Work::Flops((n * n * d) as f64));
    // The same from the last row to the first.
    // SAFETY: both are inside, as was checked above.
    let (x, m) = unsafe { (x.as_mut_ptr().add((n - 1) * d), m.as_ptr().add(n * n - 1)) };
    cx.op(Solve { x, ld: -(d as isize), m, rm: -1, cm: -(n as isize), n, d });
}

struct Solve<E> {
    x: *mut E,
    ld: isize,
    m: *const E,
    rm: isize,
    cm: isize,
    n: usize,
    d: usize,
}

/// Vectors of columns that are solved at once.
const NV: usize = 3;

impl<E: Elem> Op<E> for Solve<E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let mut j = 0;
        // SAFETY: sizes were checked by the callers.
        unsafe {
            while j < self.d {
                let left = self.d - j;
                match left.div_ceil(S::LANES) {
                    1 => self.columns::<S, 1>(j, left),
                    2 => self.columns::<S, 2>(j, left - S::LANES),
                    _ => self.columns::<S, NV>(j, S::LANES.min(left - 2 * S::LANES)),
                }
                j += NV * S::LANES;
            }
        }
    }
}

impl<E: Elem> Solve<E> {
    #[inline(always)]
    unsafe fn columns<S: Simd<E = E>, const N: usize>(&self, j: usize, last: usize) {
        let mut i = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while i + 4 <= self.n {
                self.block::<S, 4, N>(i, j, last);
                i += 4;
            }
            while i < self.n {
                self.block::<S, 1, N>(i, j, last);
                i += 1;
            }
        }
    }

    /// Rows `i..i + MR`, those before them being solved.
    #[inline(always)]
    unsafe fn block<S: Simd<E = E>, const MR: usize, const N: usize>(&self, i: usize, j: usize, last: usize) {
        let lanes = |v: usize| if v + 1 == N { last } else { S::LANES };
        // SAFETY: the caller's promise.
        unsafe {
            let x = |r: usize, v: usize| self.x.offset(r as isize * self.ld).add(j + v * S::LANES);
            let m = |r: usize, p: usize| *self.m.offset((i + r) as isize * self.rm + p as isize * self.cm);
            let mut acc = [[S::splat(E::ZERO); N]; MR];
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::get(x(i + r, v), lanes(v));
                }
            }
            let mut b = [S::splat(E::ZERO); N];
            for p in 0..i {
                for (v, b) in b.iter_mut().enumerate() {
                    *b = S::get(x(p, v), lanes(v));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = S::splat(-m(r, p));
                    for (acc, &b) in acc.iter_mut().zip(&b) {
                        *acc = S::fma(a, b, *acc);
                    }
                }
            }
            for r in 1..MR {
                let (done, rest) = acc.split_at_mut(r);
                for (p, done) in done.iter().enumerate() {
                    let a = S::splat(-m(r, i + p));
                    for (acc, &b) in rest[0].iter_mut().zip(done) {
                        *acc = S::fma(a, b, *acc);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, &acc) in acc.iter().enumerate() {
                    S::put(x(i + r, v), acc, lanes(v));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, assert_close, random};

    fn plain(c: &mut [f32], a: impl Fn(usize, usize) -> f32, b: &[f32], (m, n, k): (usize, usize, usize), add: bool) {
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k).map(|p| f64::from(a(i, p)) * f64::from(b[p * n + j])).sum();
                c[i * n + j] = (sum + if add { f64::from(c[i * n + j]) } else { 0.0 }) as f32;
            }
        }
    }

    #[test]
    fn products_equal_plain_loops() {
        all_isas(|cx| {
            let sizes = (1..40).chain([47, 48, 49, 63, 64, 65, 96, 130]);
            for (at, n) in sizes.enumerate() {
                let (m, k) = (1 + (at * 7) % 19, (at * 5) % 23);
                for add in [false, true] {
                    let (a, b): (Vec<f32>, Vec<f32>) = (random(m * k, 1), random(k * n, 2));
                    let (mut c, mut want): (Vec<f32>, Vec<f32>) = (random(m * n, 3), random(m * n, 3));
                    plain(&mut want, |i, p| a[i * k + p], &b, (m, n, k), add);
                    small_matmul(cx, (&mut c, n), Strided::rows(&a, k), (&b, n), (m, n, k), Triangle::None, add);
                    assert_close(&c, &want, 1e-6, "rows");
                    // The same values as a transposed `a`, and as rows that lie apart.
                    let turned: Vec<f32> = (0..m * k).map(|at| a[at % m * k + at / m]).collect();
                    let mut apart = vec![f32::NAN; m * (n + 3)];
                    let again: Vec<f32> = random(m * n, 3);
                    apart.chunks_mut(n + 3).zip(again.chunks(n)).for_each(|(to, from)| to[..n].copy_from_slice(from));
                    small_matmul(
                        cx,
                        (&mut apart, n + 3),
                        Strided::transposed(&turned, m),
                        (&b, n),
                        (m, n, k),
                        Triangle::None,
                        add,
                    );
                    apart.chunks(n + 3).zip(c.chunks(n)).for_each(|(got, want)| assert_eq!(&got[..n], want));
                }
            }
        });
    }

    #[test]
    fn triangles_equal_products_with_zeros() {
        all_isas(|cx| {
            for n in (1..20).chain([31, 32, 33, 64]) {
                let d = 1 + n * 3 % 41;
                let mut a: Vec<f32> = random(n * n, 1);
                let b: Vec<f32> = random(n * d, 2);
                for (i, row) in a.chunks_mut(n).enumerate() {
                    row[i + 1..].fill(0.0);
                }
                for (a, triangle) in
                    [(Strided::rows(&a, n), Triangle::LowerA), (Strided::transposed(&a, n), Triangle::UpperA)]
                {
                    let (mut got, mut want) = (vec![f32::NAN; n * d], vec![f32::NAN; n * d]);
                    small_matmul(cx, (&mut got, d), a, (&b, d), (n, d, n), triangle, false);
                    small_matmul(cx, (&mut want, d), a, (&b, d), (n, d, n), Triangle::None, false);
                    assert_eq!(got, want, "{n} {triangle:?}");
                }
                let (mut got, mut want) = (vec![f32::NAN; n * n], vec![f32::NAN; n * n]);
                let turned: Vec<f32> = random(d * n, 3);
                small_matmul(cx, (&mut got, n), Strided::rows(&b, d), (&turned, n), (n, n, d), Triangle::LowerC, false);
                small_matmul(cx, (&mut want, n), Strided::rows(&b, d), (&turned, n), (n, n, d), Triangle::None, false);
                (0..n).for_each(|i| assert_eq!(got[i * n..=i * n + i], want[i * n..=i * n + i], "{n}"));
            }
        });
    }

    #[test]
    fn solutions_give_the_right_side_back() {
        all_isas(|cx| {
            for n in (0..20).chain([31, 32, 33, 64]) {
                let d = 1 + n * 3 % 53;
                let m: Vec<f32> = random(n * n, 1).iter().map(|m: &f32| 0.3 * m).collect();
                let right: Vec<f32> = random(n * d, 2);
                for upper in [false, true] {
                    let mut x = right.clone();
                    if upper {
                        solve_unit_upper(cx, &mut x, &m, (n, d))
                    } else {
                        solve_unit_lower(cx, &mut x, &m, (n, d))
                    }
                    let below = |i: usize, p: usize| if p < i { m[i * n + p] } else { 0.0 };
                    let mut back = x.clone();
                    plain(&mut back, |i, p| if upper { below(p, i) } else { below(i, p) }, &x, (n, d, n), true);
                    assert_close(&back, &right, 1e-5, "right side");
                }
            }
        });
    }
}
