//! Matrix products. `matmul`: `C[m,n] (+)= A[m,k] B[k,n]` with `B` packed beforehand (weights, once a step);
//! `matmul_tn`: `C[m,n] (+)= A[k,m]^T X[k,n]` (weight gradients), which packs `X` into a scratch first.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): `B` in panels of
//! `NR` columns, `A` copied in blocks of `MC x KC` that stay in L2, an `MR x NR` tile of `C` in registers. Each element of
//! `C` is summed along `k` in order, in blocks of `KC`, whatever the tile, the number of rows or of threads: results are
//! bit-identical for all of them.

use std::cell::RefCell;
use std::ops::Range;

use crate::buf::Buf;
use crate::dispatch::Op;
use crate::elem::Elem;
use crate::exec::{Exec, Shared};
use crate::simd::Simd;

/// Rows of `B` in one block: a panel of 32 f32 columns is 32 KB.
const KC: usize = 256;
/// Tiles of `A` in one block.
const TILES: usize = 8;
/// Largest `MR` of any ISA.
const MAX_MR: usize = 14;
/// Widest panel of any ISA, in columns.
const MAX_NR: usize = 32;

thread_local! {
    /// The block of `A` of this thread; f64 so that it is large and aligned enough for both element types.
    static BLOCK: RefCell<Buf<f64>> = RefCell::new(Buf::zeros(MAX_MR * TILES * KC));
}

/// `B` in panels `[ceil(n/NR)][k][NR]`, zero beyond column `n`.
pub struct Packed<E: Elem> {
    data: Buf<E>,
    k: usize,
    n: usize,
}

impl<E: Elem> Packed<E> {
    /// Room for `k x n` and for every smaller matrix with as many or fewer elements in its panels.
    pub fn new(k: usize, n: usize) -> Self {
        Packed { data: Buf::zeros(k * n.next_multiple_of(MAX_NR)), k: 0, n: 0 }
    }

    /// Packs the row-major `src: [k, n]` with rows `ld` apart.
    pub fn pack(&mut self, cx: &Exec, src: &[E], ld: usize, k: usize, n: usize) {
        assert!(k == 0 || src.len() >= (k - 1) * ld + n, "matrix to pack is too small");
        self.fill(cx, src, ld, 1, k, n);
    }

    /// Packs the transpose of the row-major `src: [n, k]`.
    pub fn pack_transposed(&mut self, cx: &Exec, src: &[E], k: usize, n: usize) {
        assert!(src.len() >= k * n, "matrix to pack is too small");
        self.fill(cx, src, 1, k, k, n);
    }

    fn fill(&mut self, cx: &Exec, src: &[E], rs: usize, cs: usize, k: usize, n: usize) {
        let nr = cx.op::<E, _>(PanelWidth);
        assert!(k * n.next_multiple_of(nr) <= self.data.len(), "matrix to pack is larger than its room");
        (self.k, self.n) = (k, n);
        let data = Shared::new(&mut self.data);
        cx.rows(n.div_ceil(nr), |panels| {
            for panel in panels {
                // SAFETY: one panel is one range, and panels go to one thread each.
                let dst = unsafe { data.range(panel * k * nr..(panel + 1) * k * nr) };
                let first = panel * nr;
                let cols = nr.min(n - first);
                if cs == 1 {
                    for (p, row) in dst.chunks_exact_mut(nr).enumerate() {
                        row[..cols].copy_from_slice(&src[p * rs + first..][..cols]);
                        row[cols..].fill(E::ZERO);
                    }
                } else {
                    if cols < nr {
                        dst.fill(E::ZERO);
                    }
                    for j in 0..cols {
                        let column = &src[(first + j) * cs..][..k];
                        for (p, &x) in column.iter().enumerate() {
                            dst[p * nr + j] = x;
                        }
                    }
                }
            }
        });
    }
}

/// `c[m,n] (+)= a[m,k] b`, rows of `a` `lda` apart, `c` dense; adds where `accumulate`.
pub fn matmul<E: Elem>(cx: &Exec, c: &mut [E], a: &[E], lda: usize, b: &Packed<E>, m: usize, accumulate: bool) {
    assert!(m == 0 || (c.len() >= m * b.n && a.len() >= (m - 1) * lda + b.k), "operand of a product is too small");
    product(cx, c, a, lda, false, b, m, accumulate);
}

/// `c[m,n] (+)= a[k,m]^T x[k,n]`, rows of `a` `lda` and of `x` `ldx` apart; `scratch` holds the packed `x`.
pub fn matmul_tn<E: Elem>(
    cx: &Exec,
    c: &mut [E],
    scratch: &mut Packed<E>,
    a: &[E],
    lda: usize,
    x: &[E],
    ldx: usize,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
) {
    assert!(c.len() >= m * n && (k == 0 || a.len() >= (k - 1) * lda + m), "operand of a product is too small");
    scratch.pack(cx, x, ldx, k, n);
    product(cx, c, a, lda, true, scratch, m, accumulate);
}

fn product<E: Elem>(
    cx: &Exec,
    c: &mut [E],
    a: &[E],
    lda: usize,
    transposed: bool,
    b: &Packed<E>,
    m: usize,
    accumulate: bool,
) {
    let (mr, nr) = (cx.op::<E, _>(TileHeight), cx.op::<E, _>(PanelWidth));
    let panels = b.n.div_ceil(nr);
    let c = Shared::new(c);
    let part = |rows: Range<usize>, panels: Range<usize>| {
        // Taken out of the cell here: a closure around the body would be compiled without the ISA's features.
        let block = BLOCK.with_borrow_mut(|block| block.as_mut_ptr().cast::<E>());
        cx.op(Part {
            block,
            c: c.as_ptr(),
            a: a.as_ptr(),
            lda,
            transposed,
            b: b.data.as_ptr(),
            k: b.k,
            n: b.n,
            rows,
            panels,
            accumulate,
        });
    };
    if m.div_ceil(mr) >= 2 * cx.pool().threads() {
        cx.pool().split(m, mr, |rows| part(rows, 0..panels));
    } else {
        cx.pool().split(panels, 1, |panels| part(0..m, panels));
    }
}

struct PanelWidth;
impl<E: Elem> Op<E> for PanelWidth {
    type Out = usize;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> usize {
        if S::LANES == 1 { 4 } else { 2 * S::LANES }
    }
}

struct TileHeight;
impl<E: Elem> Op<E> for TileHeight {
    type Out = usize;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> usize {
        S::MR
    }
}

/// The rows and panels of one thread.
struct Part<E> {
    block: *mut E,
    c: *mut E,
    a: *const E,
    lda: usize,
    transposed: bool,
    b: *const E,
    k: usize,
    n: usize,
    rows: Range<usize>,
    panels: Range<usize>,
    accumulate: bool,
}

impl<E: Elem> Op<E> for Part<E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: sizes were checked by the callers; rows and panels of different threads are disjoint in `c`.
        unsafe {
            // Associated constants cannot size arrays; the match is folded at compile time.
            match S::MR {
                14 => self.blocks::<S, 14, 2>(),
                6 => self.blocks::<S, 6, 2>(),
                _ => self.blocks::<S, 4, 4>(),
            }
        }
    }
}

impl<E: Elem> Part<E> {
    #[inline(always)]
    unsafe fn blocks<S: Simd<E = E>, const MR: usize, const NV: usize>(&self) {
        let nr = NV * S::LANES;
        if self.k == 0 && !self.accumulate {
            for i in self.rows.clone() {
                let cols = self.panels.start * nr..(self.panels.end * nr).min(self.n);
                // SAFETY: inside this part of `c`.
                cols.for_each(|j| unsafe { *self.c.add(i * self.n + j) = E::ZERO });
            }
        }
        let one_row = self.rows.len() == 1 && !self.transposed;
        {
            let block = self.block;
            let mut i0 = self.rows.start;
            while i0 < self.rows.end {
                let rows = (MR * TILES).min(self.rows.end - i0);
                let mut p0 = 0;
                while p0 < self.k {
                    let kc = KC.min(self.k - p0);
                    // SAFETY: the block holds MAX_MR * TILES * KC elements; `a` covers the rows and depths named.
                    unsafe {
                        if !one_row {
                            self.copy_block(block, MR, i0, rows, p0, kc);
                        }
                        for panel in self.panels.clone() {
                            let b = self.b.add(panel * self.k * nr + p0 * nr);
                            let cols = nr.min(self.n - panel * nr);
                            let mut t = 0;
                            while t < rows {
                                let c = self.c.add((i0 + t) * self.n + panel * nr);
                                let tile = Tile {
                                    c,
                                    ldc: self.n,
                                    b,
                                    k: kc,
                                    rows: MR.min(rows - t),
                                    cols,
                                    add: self.accumulate || p0 > 0,
                                };
                                let a = block.add(t * KC);
                                if one_row {
                                    tile.run::<S, 1, NV, 0, 1>(self.a.add(i0 * self.lda + p0));
                                } else if self.transposed {
                                    tile.run_k_major::<S, MR, NV>(a);
                                } else {
                                    tile.run::<S, MR, NV, KC, 1>(a);
                                }
                                t += MR;
                            }
                        }
                    }
                    p0 += kc;
                }
                i0 += rows;
            }
        }
    }

    /// Copies rows `i0..i0+rows` and depths `p0..p0+kc` of `A`: `[tile][MR][KC]`, or `[tile][kc][MR]` from a transposed one.
    #[inline(always)]
    unsafe fn copy_block(&self, block: *mut E, mr: usize, i0: usize, rows: usize, p0: usize, kc: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.transposed {
                for p in 0..kc {
                    let src = self.a.add((p0 + p) * self.lda + i0);
                    let mut t = 0;
                    while t < rows {
                        let dst = block.add(t * KC + p * mr);
                        if rows - t >= mr {
                            for i in 0..mr {
                                *dst.add(i) = *src.add(t + i);
                            }
                        } else {
                            for i in 0..mr {
                                *dst.add(i) = if t + i < rows { *src.add(t + i) } else { E::ZERO };
                            }
                        }
                        t += mr;
                    }
                }
            } else {
                for i in 0..rows {
                    std::ptr::copy_nonoverlapping(self.a.add((i0 + i) * self.lda + p0), block.add(i * KC), kc);
                }
            }
        }
    }
}

/// One tile of `C`: `rows x cols` of `MR x NR`.
struct Tile<E> {
    c: *mut E,
    ldc: usize,
    b: *const E,
    k: usize,
    rows: usize,
    cols: usize,
    add: bool,
}

impl<E: Elem> Tile<E> {
    /// `A` with element `(i, p)` at `i * RS + p * CS`.
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>, const MR: usize, const NV: usize, const RS: usize, const CS: usize>(
        &self,
        a: *const E,
    ) {
        // SAFETY: the caller's promise: `a` and `b` cover `k` depths, `c` covers `rows x cols`.
        unsafe {
            let mut acc = [[S::splat(E::ZERO); NV]; MR];
            for p in 0..self.k {
                let mut b = [S::splat(E::ZERO); NV];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = S::load(self.b.add((p * NV + j) * S::LANES));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = S::splat(*a.add(i * RS + p * CS));
                    for j in 0..NV {
                        acc[j] = S::fma(x, b[j], acc[j]);
                    }
                }
            }
            self.write::<S, MR, NV>(&acc);
        }
    }

    #[inline(always)]
    unsafe fn run_k_major<S: Simd<E = E>, const MR: usize, const NV: usize>(&self, a: *const E) {
        // SAFETY: the caller's promise.
        unsafe {
            match MR {
                14 => self.run::<S, MR, NV, 1, 14>(a),
                6 => self.run::<S, MR, NV, 1, 6>(a),
                _ => self.run::<S, MR, NV, 1, 4>(a),
            }
        }
    }

    /// Only constant indices into `acc`: a variable one would keep the accumulators in memory through the loop above.
    #[inline(always)]
    unsafe fn write<S: Simd<E = E>, const MR: usize, const NV: usize>(&self, acc: &[[S::V; NV]; MR]) {
        // SAFETY: a full tile lies in `c`; the edge buffer holds the largest tile of any ISA, its part lies in `c`.
        unsafe {
            if self.rows == MR && self.cols == NV * S::LANES {
                for (i, acc) in acc.iter().enumerate() {
                    for (j, &v) in acc.iter().enumerate() {
                        let c = self.c.add(i * self.ldc + j * S::LANES);
                        S::store(c, if self.add { S::add(S::load(c), v) } else { v });
                    }
                }
                return;
            }
            let mut edge = [E::ZERO; MAX_MR * MAX_NR];
            for (i, acc) in acc.iter().enumerate() {
                for (j, &v) in acc.iter().enumerate() {
                    S::store(edge.as_mut_ptr().add((i * NV + j) * S::LANES), v);
                }
            }
            for i in 0..self.rows {
                for j in 0..self.cols {
                    let (c, v) = (self.c.add(i * self.ldc + j), edge[i * NV * S::LANES + j]);
                    *c = if self.add { *c + v } else { v };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{all_isas, assert_close, random};

    fn naive(
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        (m, n, k): (usize, usize, usize),
    ) -> Vec<f32> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|p| f64::from(a(i, p)) * f64::from(b(p, j))).sum::<f64>() as f32;
            }
        }
        c
    }

    fn sizes() -> Vec<(usize, usize, usize)> {
        let mut all: Vec<_> = (1..=34).map(|i| (i, 131 - i, 7 * i + 1)).collect();
        all.extend([(1, 1, 1), (15, 33, 300), (130, 65, 257), (29, 31, 513), (113, 129, 64), (3, 5, 0)]);
        all
    }

    #[test]
    fn equals_the_plain_loop() {
        all_isas(|cx| {
            for (m, n, k) in sizes() {
                let lda = k + 3;
                let a = random(m * lda, 1);
                let b = random(k * n, 2);
                let bt: Vec<f32> = (0..k * n).map(|i| b[i % k * n + i / k]).collect();
                let want = naive(|i, p| a[i * lda + p], |p, j| b[p * n + j], (m, n, k));
                for transposed in [false, true] {
                    let mut packed = Packed::new(k, n);
                    if transposed {
                        packed.pack_transposed(cx, &bt, k, n);
                    } else {
                        packed.pack(cx, &b, n, k, n);
                    }
                    let mut c = vec![f32::NAN; m * n];
                    matmul(cx, &mut c, &a, lda, &packed, m, false);
                    assert_close(&c, &want, 1e-6, &format!("{m}x{n}x{k}"));
                    matmul(cx, &mut c, &a, lda, &packed, m, true);
                    let twice: Vec<f32> = want.iter().map(|x| 2.0 * x).collect();
                    assert_close(&c, &twice, 1e-6, "accumulated");
                }
            }
        });
    }

    #[test]
    fn transposed_a_equals_the_plain_loop() {
        all_isas(|cx| {
            for (m, n, k) in sizes() {
                let (lda, ldx) = (m + 5, n + 2);
                let a = random(k * lda, 3);
                let x = random(k * ldx, 4);
                let want = naive(|i, p| a[p * lda + i], |p, j| x[p * ldx + j], (m, n, k));
                let mut scratch = Packed::new(k, n);
                let mut c = vec![1.0; m * n];
                matmul_tn(cx, &mut c, &mut scratch, &a, lda, &x, ldx, (m, n, k), true);
                c.iter_mut().for_each(|c| *c -= 1.0);
                assert_close(&c, &want, 2e-6, &format!("{m}x{n}x{k}"));
            }
        });
    }

    #[test]
    fn bits_do_not_depend_on_rows_or_threads() {
        for isa in crate::Isa::available() {
            let (m, n, k) = (61, 97, 530);
            let a = random(m * k, 5);
            let b = random(k * n, 6);
            let mut all = Vec::new();
            for threads in [1, 2, 3, 5] {
                let cx = &Exec::new(isa, threads);
                let mut packed = Packed::new(k, n);
                packed.pack(cx, &b, n, k, n);
                let mut c = vec![0.0; m * n];
                matmul(cx, &mut c, &a, k, &packed, m, false);
                let mut rows = vec![0.0; m * n];
                for i in 0..m {
                    matmul(cx, &mut rows[i * n..], &a[i * k..], k, &packed, 1, false);
                }
                assert_eq!(c, rows, "row by row on {isa:?}");
                all.push(c);
            }
            assert!(all.windows(2).all(|w| w[0] == w[1]), "{isa:?}");
        }
    }
}
