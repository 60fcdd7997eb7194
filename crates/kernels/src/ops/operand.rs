//! Small matmuls in the precision of a [`Store`], on the calling thread: `C[m,n] (+)= A[m,k] B[k,n]` as in [`super::small`]. f32 and f64
//! operands are read where they lie, a transposed `B` laid out in rows first. For bf16 both are rounded and laid out in pairs of depths,
//! `A: [m][k/2][2]` or `[k/2][m][2]`, `B: [k/2][n][2]`, and sums are f32. A `B` that several products share is laid out once.

use std::mem::take;

use super::small::{Strided, Triangle, product};
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd, Store, each};
use crate::size::{area, strided, whole};

/// Rows and columns in memory are whole numbers of this, which every ISA's tile divides.
const WHOLE: usize = 16;

/// Elements of room that an operand of `k` depths and `n` rows or columns takes.
pub(super) const fn operand_room(k: usize, n: usize) -> usize {
    (k + 1) * n.next_multiple_of(WHOLE)
}

/// Cuts the next `len` elements off.
pub(super) fn cut<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (own, left) = take(rest).split_at_mut(len);
    *rest = left;
    own
}

/// A right operand `B: [k, n]`.
#[derive(Clone, Copy)]
pub(super) struct Right<'a, A: Store> {
    x: Laid<'a, A>,
    k: usize,
    n: usize,
}

#[derive(Clone, Copy)]
enum Laid<'a, A: Store> {
    /// Rows that lie this far apart.
    Rows(&'a [A::E], usize),
    /// Pairs of rows, of this many columns.
    Pairs(&'a [A], usize),
}

impl<'a, A: Store> Right<'a, A> {
    /// `b: [k, n]`, laid out at the front of `room` where that is needed.
    pub fn new(cx: &Exec, room: &mut &'a mut [A], b: Strided<'a, A::E>, (k, n): (usize, usize)) -> Self {
        let x = if A::DEPTH > 1 {
            let width = whole(n, WHOLE);
            let to = cut(room, area([whole(k, 2), width]));
            cx.op(Lay::<A>::new(to, b, (k, n), width));
            Laid::Pairs(to, width)
        } else if b.column == 1 {
            Laid::Rows(b.x, b.row)
        } else {
            let to = cut(room, area([k, n]));
            cx.op(Lay::<A>::new(to, b, (k, n), n));
            Laid::Rows(elements(to), n)
        };
        Right { x, k, n }
    }

    /// `c: [m, n]` with rows `ldc` apart, from `a: [m, k]`; adds where `accumulate`. `room` is for `a`.
    pub fn product(
        self,
        cx: &Exec,
        (c, ldc): (&mut [A::E], usize),
        a: Strided<A::E>,
        m: usize,
        triangle: Triangle,
        accumulate: bool,
        room: &mut [A],
    ) {
        let Right { x, k, n } = self;
        match x {
            Laid::Rows(b, ldb) => product(cx, (c, ldc), a, (b, ldb), (m, n, k), triangle, accumulate),
            Laid::Pairs(b, width) => {
                if m == 0 || n == 0 {
                    return;
                }
                assert!(k > 0 && c.len() >= strided(m, ldc, n), "result of a small matmul is too small");
                let height = whole(m, WHOLE);
                let laid = &mut room[..area([whole(k, 2), height])];
                let (row, group) = match a.column {
                    1 => (whole(k, 2), 2),
                    _ => (2, 2 * height),
                };
                cx.op(Left { to: laid, x: a, m, k, height });
                let (c, a, b) = (c.as_mut_ptr(), laid.as_ptr(), b.as_ptr());
                cx.op(Product { c, ldc, a, row, group, b, width, m, n, k, triangle, accumulate });
            }
        }
    }

    /// [`Right::product`] as an op of its own.
    pub fn timed(
        self,
        cx: &Exec,
        c: (&mut [A::E], usize),
        a: Strided<A::E>,
        m: usize,
        triangle: Triangle,
        accumulate: bool,
        room: &mut [A],
    ) {
        let part = if triangle == Triangle::None { 1.0 } else { 0.5 };
        let _time = time(cx, "small_matmul", (self.k, self.n), Work::Flops(2.0 * part * (m * self.n * self.k) as f64));
        self.product(cx, c, a, m, triangle, accumulate, room);
    }
}

/// What is its own element, as that.
fn elements<A: Store>(x: &[A]) -> &[A::E] {
    assert!(A::DEPTH == 1 && size_of::<A>() == size_of::<A::E>());
    // SAFETY: a store that is not bf16 is its own element.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) }
}

/// `to: [k/DEPTH][width][DEPTH]` from `x: [k, n]`; zeros fill the last depths, nothing the last columns.
struct Lay<'a, A: Store> {
    to: &'a mut [A],
    x: Strided<'a, A::E>,
    k: usize,
    n: usize,
    width: usize,
}

impl<'a, A: Store> Lay<'a, A> {
    fn new(to: &'a mut [A], x: Strided<'a, A::E>, (k, n): (usize, usize), width: usize) -> Self {
        assert!(to.len() >= area([whole(k, A::DEPTH), width]) && width >= n);
        assert!(A::DEPTH == 1 || width.is_multiple_of(WHOLE));
        assert!(k == 0 || n == 0 || x.x.len() >= strided(k, x.row, strided(n, x.column, 1)), "operand is too small");
        Lay { to, x, k, n, width }
    }
}

impl<A: Store> Op<A::E> for Lay<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        const { assert!(size_of::<A>() * A::DEPTH == size_of::<A::E>() && S::LANES <= WHOLE) };
        let Lay { to, x: Strided { x, row, column }, k, n, width } = self;
        let (to, x) = (to.as_mut_ptr(), x.as_ptr());
        if column == 1 {
            for p in (0..k).step_by(A::DEPTH) {
                // SAFETY: sizes were checked when this was made; whole vectors fit the width.
                each!(S, n, |j, lanes| unsafe {
                    let first = S::get(x.add(p * row + j), lanes);
                    let zero = S::splat(A::E::ZERO);
                    let next = if p + 1 < k { S::get(x.add((p + 1) * row + j), lanes) } else { zero };
                    A::put_groups::<S>(to.add((p * width) + j * A::DEPTH), first, next);
                });
            }
            return;
        }
        // Depths lie next to each other: squares of groups, each as wide as an element, are turned.
        let groups = k.div_ceil(A::DEPTH);
        let mut some = [[A::ZERO; 2 * WHOLE]; WHOLE];
        for (j, group) in (0..n).step_by(S::LANES).flat_map(|j| (0..groups).step_by(S::LANES).map(move |p| (j, p))) {
            let (columns, first) = (S::LANES.min(n - j), group * A::DEPTH);
            let depths = (A::DEPTH * S::LANES).min(k - first);
            // SAFETY: sizes were checked when this was made.
            unsafe {
                for (i, row) in some.iter_mut().enumerate().take(columns) {
                    row[depths - 1..].fill(A::ZERO);
                    each!(S, depths, |p, n| {
                        A::put::<S>(row.as_mut_ptr().add(p), S::get(x.add((j + i) * column + first + p), n), n);
                    });
                }
                let mut square = [S::splat(A::E::ZERO); WHOLE];
                for (v, row) in square.iter_mut().zip(&some).take(S::LANES) {
                    *v = S::load(row.as_ptr().cast());
                }
                S::turn(&mut square);
                for (i, &v) in square.iter().enumerate() {
                    if i < S::LANES.min(groups - group) {
                        S::put(to.add(((group + i) * width + j) * A::DEPTH).cast(), v, columns);
                    }
                }
            }
        }
    }
}

/// `to: [m][k/2][2]` from rows, `[k/2][height][2]` from a transpose.
struct Left<'a, A: Store> {
    to: &'a mut [A],
    x: Strided<'a, A::E>,
    m: usize,
    k: usize,
    height: usize,
}

impl<A: Store> Op<A::E> for Left<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Left { to, x, m, k, height } = self;
        if x.column != 1 {
            let turned = Strided { row: x.column, column: x.row, ..x };
            // SAFETY: the caller's promise.
            return unsafe { Lay::new(to, turned, (k, m), height).run::<S>() };
        }
        for (i, to) in to.chunks_exact_mut(whole(k, 2)).enumerate().take(m) {
            let x = &x.x[i * x.row..][..k];
            to[k - 1..].fill(A::ZERO);
            // SAFETY: both have at least `k` elements.
            each!(S, k, |p, n| unsafe { A::put::<S>(to.as_mut_ptr().add(p), S::get(x.as_ptr().add(p), n), n) });
        }
    }
}

/// Both operands in pairs of depths, rows and columns of both whole numbers of [`WHOLE`].
struct Product<A: Store> {
    c: *mut A::E,
    ldc: usize,
    a: *const A,
    /// From one row of `a` to the next, and from one pair of depths.
    row: usize,
    group: usize,
    b: *const A,
    width: usize,
    m: usize,
    n: usize,
    k: usize,
    triangle: Triangle,
    accumulate: bool,
}

impl<A: Store> Op<A::E> for Product<A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        // SAFETY: sizes were checked by the caller.
        unsafe {
            match S::LANES {
                16.. => self.all::<S, 8, 3>(),
                // Each pair is taken apart there, which takes registers too.
                8 if A::DEPTH == 2 => self.all::<S, 4, 2>(),
                _ => self.all::<S, 4, 3>(),
            }
        }
    }
}

impl<A: Store> Product<A> {
    #[inline(always)]
    unsafe fn all<S: Simd<E = A::E>, const MR: usize, const NV: usize>(&self) {
        for i in (0..self.m).step_by(MR) {
            let depths = match self.triangle {
                Triangle::LowerA => 0..self.k.min(i + MR),
                Triangle::UpperA => i.min(self.k)..self.k,
                _ => 0..self.k,
            };
            let groups = depths.start / 2..depths.end.div_ceil(2);
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
                    match vectors {
                        1 => self.tile::<S, MR, 1>(i, j, groups.clone()),
                        2 => self.tile::<S, MR, 2>(i, j, groups.clone()),
                        _ => self.tile::<S, MR, NV>(i, j, groups.clone()),
                    }
                    j += vectors * S::LANES;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd<E = A::E>, const MR: usize, const N: usize>(
        &self,
        i: usize,
        j: usize,
        groups: std::ops::Range<usize>,
    ) {
        let rows = MR.min(self.m - i);
        let lanes = |v: usize| S::LANES.min((self.n - j).saturating_sub(v * S::LANES));
        // SAFETY: operands hold whole tiles; of `c` only what lies in it is touched.
        unsafe {
            let c = self.c.add(i * self.ldc + j);
            let mut acc = [[S::splat(A::E::ZERO); N]; MR];
            if self.accumulate {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        if r < rows {
                            *acc = S::get(c.add(r * self.ldc + v * S::LANES), lanes(v));
                        }
                    }
                }
            }
            let a = self.a.add(i * self.row);
            for p in groups {
                let b = self.b.add((p * self.width + j) * A::DEPTH);
                let mut columns = [A::load::<S>(b); N];
                for (v, columns) in columns.iter_mut().enumerate().skip(1) {
                    *columns = A::load::<S>(b.add(v * S::LANES * A::DEPTH));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = A::splat::<S>(a.add(r * self.row + p * self.group));
                    for (acc, &b) in acc.iter_mut().zip(&columns) {
                        *acc = A::dot::<S>(a, b, *acc);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, &acc) in acc.iter().enumerate() {
                    if r < rows {
                        S::put(c.add(r * self.ldc + v * S::LANES), acc, lanes(v));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, assert_close, random};

    /// Both operands as rows and as transposes, sums that are added to, triangles of zeros.
    fn equals_plain_loops<A: Store<E = f32>>() {
        all_isas(|cx| {
            let sizes = (1..40).chain([47, 48, 49, 63, 64, 65, 96, 130]);
            for (at, n) in sizes.enumerate() {
                let (m, k) = (1 + (at * 7) % 37, 1 + (at * 5) % 39);
                let of = |len, seed| random::<f32>(len, seed).into_iter().map(|x| A::narrow(x).widen()).collect();
                let (mut a, b, before): (Vec<f32>, Vec<f32>, Vec<f32>) = (of(m * k, 1), of(k * n, 2), of(m * n, 3));
                for (triangle, add) in [(Triangle::None, false), (Triangle::LowerA, true), (Triangle::UpperA, false)] {
                    for (i, row) in a.chunks_mut(k).enumerate() {
                        match triangle {
                            Triangle::LowerA => row[k.min(i + 1)..].fill(0.0),
                            Triangle::UpperA => row[..k.min(i)].fill(0.0),
                            _ => {}
                        }
                    }
                    let turn = |x: &[f32], rows: usize| -> Vec<f32> {
                        let columns = x.len() / rows;
                        (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
                    };
                    let (a_turned, b_turned) = (turn(&a, m), turn(&b, k));
                    let want: Vec<f32> = (0..m * n)
                        .map(|at| {
                            let (i, j) = (at / n, at % n);
                            let sum: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                            (sum + if add { f64::from(before[at]) } else { 0.0 }) as f32
                        })
                        .collect();
                    for a in [Strided::rows(&a, k), Strided::transposed(&a_turned, m)] {
                        for b in [Strided::rows(&b, n), Strided::transposed(&b_turned, k)] {
                            let mut room = vec![A::NAN; operand_room(k, n)];
                            let mut for_a = vec![A::NAN; operand_room(k, m)];
                            let right = Right::new(cx, &mut &mut room[..], b, (k, n));
                            let mut c = before.clone();
                            right.product(cx, (&mut c, n), a, m, triangle, add, &mut for_a);
                            assert_close(&c, &want, 1e-6, &format!("{m} {n} {k} {triangle:?}"));
                            let mut lower = vec![f32::NAN; m * n];
                            if !add {
                                right.product(cx, (&mut lower, n), a, m, Triangle::LowerC, false, &mut for_a);
                                for i in 0..m {
                                    let row = i * n..i * n + n.min(i + 1);
                                    assert_close(&lower[row.clone()], &c[row], 1e-5, "lower");
                                }
                            }
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn products_equal_plain_loops() {
        equals_plain_loops::<f32>();
        equals_plain_loops::<Bf16>();
    }
}
