//! Matrix products of one [`Store`], summed in its element. `matmul`: `C[m,n] (+)= A[m,k] B[k,n]` with `B` packed
//! beforehand (weights, once a step); `matmul_tn`: `C[m,n] (+)= A[k,m]^T X[k,n]` (weight gradients), which packs `X` first.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): `B` in panels of
//! `NR` columns, `A` copied in blocks of `MC x KC` that stay in L2, an `MR x NR` tile of `C` in registers. Each element of
//! `C` is summed along `k` in order, in blocks of `KC`, whatever the tile, the number of rows or of threads: results are
//! bit-identical for all of them. bf16 goes in pairs of depths, on tile registers where the ISA has them.

use std::cell::RefCell;
use std::ops::Range;

use crate::buf::Buf;
use crate::exec::{Exec, Shared};
use crate::part::{AHEAD, BLOCK, Part, prefetch};
use crate::profile::{Work, time};
use crate::simd::{Op, Simd, Store};
use crate::size::{area, strided, whole};

/// Groups of depths in one block: 32 f32 columns of `B` are then 32 KB.
const KC: usize = 256;
/// Most rows of `A` in one block.
const BLOCK_ROWS: usize = 112;
const _: () = assert!(BLOCK_ROWS * KC <= BLOCK);
/// Largest `MR` of any ISA's vectors.
const MAX_MR: usize = 14;
/// Widest panel of any ISA, in columns.
const MAX_NR: usize = 32;
/// Packed depths are a multiple of this where groups have two: the depths of one tile register.
const PAIRED_DEPTHS: usize = 32;

thread_local! {
    /// The block of `A` of this thread, large and aligned enough for every store.
    static BLOCKS: RefCell<Buf<f64>> = RefCell::new(Buf::zeros(BLOCK));
}

/// Depths in memory for `k` depths; zeros fill the rest.
fn padded<A: Store>(k: usize) -> usize {
    if A::DEPTH == 1 { k } else { whole(k, PAIRED_DEPTHS) }
}

/// `B` in panels `[ceil(n/NR)][k/DEPTH][NR][DEPTH]`, zero beyond depth `k` and column `n`.
pub struct Packed<A: Store> {
    data: Buf<A>,
    k: usize,
    n: usize,
    /// Columns of a panel.
    nr: usize,
}

/// Whole panels of a [`Packed`], or a stretch of depths of them.
#[derive(Clone, Copy)]
pub struct Panels<'a, A> {
    data: &'a [A],
    /// Depths of one panel in memory.
    depth: usize,
    k: usize,
    n: usize,
    nr: usize,
}

impl<'a, A: Store> From<&'a Packed<A>> for Panels<'a, A> {
    fn from(packed: &'a Packed<A>) -> Self {
        Panels { data: &packed.data, depth: padded::<A>(packed.k), k: packed.k, n: packed.n, nr: packed.nr }
    }
}

impl<A: Store> Packed<A> {
    /// Room for `k x n` and for every smaller matrix with as many or fewer elements in its panels.
    pub fn new(k: usize, n: usize) -> Self {
        Packed { data: Buf::zeros(area([padded::<A>(k), whole(n, MAX_NR)])), k: 0, n: 0, nr: 1 }
    }

    /// Columns of the matrix in it.
    pub fn width(&self) -> usize {
        self.n
    }

    /// The columns `range`, which starts at a multiple of the panel's width: 32 always is one.
    pub fn columns(&self, range: Range<usize>) -> Panels<'_, A> {
        assert!(range.start.is_multiple_of(self.nr) && range.start <= range.end && range.end <= self.n);
        let depth = padded::<A>(self.k);
        let end = range.end.next_multiple_of(self.nr) * depth;
        Panels { data: &self.data[range.start * depth..end], depth, k: self.k, n: range.len(), nr: self.nr }
    }

    /// The depths `range`, which starts at a multiple of 32, of all panels.
    pub fn depths(&self, range: Range<usize>) -> Panels<'_, A> {
        assert!(range.start.is_multiple_of(PAIRED_DEPTHS) && range.start <= range.end && range.end <= self.k);
        // A stretch that ends inside a group would take its neighbour in.
        assert!(range.end.is_multiple_of(PAIRED_DEPTHS) || range.end == self.k);
        let data = &self.data[range.start * self.nr..];
        Panels { data, depth: padded::<A>(self.k), k: range.len(), n: self.n, nr: self.nr }
    }

    /// Packs the row-major `src: [k, n]` with rows `ld` apart.
    pub fn pack(&mut self, cx: &Exec, src: &[A], ld: usize, k: usize, n: usize) {
        assert!(src.len() >= strided(k, ld, n), "matrix to pack is too small");
        self.fill(cx, src, ld, false, k, n);
    }

    /// Packs the transpose of the row-major `src: [n, k]`.
    pub fn pack_transposed(&mut self, cx: &Exec, src: &[A], k: usize, n: usize) {
        assert!(src.len() >= area([k, n]), "matrix to pack is too small");
        self.fill(cx, src, k, true, k, n);
    }

    fn fill(&mut self, cx: &Exec, src: &[A], ld: usize, transposed: bool, k: usize, n: usize) {
        let nr = cx.op::<A::E, _>(PanelWidth);
        let depth = padded::<A>(k);
        assert!(area([depth, whole(n, nr)]) <= self.data.len(), "matrix to pack is larger than its room");
        (self.k, self.n, self.nr) = (k, n, nr);
        let _time = time(cx, if transposed { "pack_transposed" } else { "pack" }, (k, n), bytes::<A>(2 * k * n));
        let (data, panels) = (Shared::new(&mut self.data), n.div_ceil(nr));
        let fill = |panels: Range<usize>, depths: Range<usize>| {
            for panel in panels {
                let at = panel * depth * nr;
                // SAFETY: a part of a panel goes to one thread.
                let dst = unsafe { data.range(at + depths.start * nr..at + depths.end * nr) };
                let first = panel * nr;
                cx.op(Fill { dst, src, ld, transposed, start: depths.start, k, nr, first, cols: nr.min(n - first) });
            }
        };
        // Each thread reads rows of `src`: those that it wrote itself, where it made the matrix in tiles.
        match transposed {
            true => cx.rows(panels, |panels| fill(panels, 0..depth)),
            false => cx.pool().split(depth, PAIRED_DEPTHS, |depths| fill(0..panels, depths)),
        }
    }
}

fn bytes<A>(elements: usize) -> Work {
    Work::Bytes((elements * size_of::<A>()) as f64)
}

/// Depths from `start` on of one panel.
struct Fill<'a, A> {
    dst: &'a mut [A],
    src: &'a [A],
    ld: usize,
    transposed: bool,
    start: usize,
    k: usize,
    nr: usize,
    first: usize,
    cols: usize,
}

impl<A: Store> Op<A::E> for Fill<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Fill { dst, src, ld, transposed, start, k, nr, first, cols } = self;
        if cols < nr || start * nr + dst.len() > k * nr {
            dst.fill(A::ZERO);
        }
        if transposed {
            assert!(start == 0 && cols <= nr && dst.len() >= k * nr);
            for j in 0..cols {
                let groups = src[(first + j) * ld..][..k].chunks_exact(A::DEPTH);
                if let Some(&odd) = groups.remainder().first() {
                    dst[(k / A::DEPTH * nr + j) * A::DEPTH] = odd;
                }
                for (p, group) in groups.enumerate() {
                    let at = (p * nr + j) * A::DEPTH;
                    // SAFETY: the panel holds `nr` groups for each group of depths, as was just checked, of which this is number
                    // `j < nr`. The size is a constant, so this is one move.
                    unsafe { std::ptr::copy_nonoverlapping(group.as_ptr(), dst.as_mut_ptr().add(at), A::DEPTH) };
                }
            }
            return;
        }
        for (group, p) in dst.chunks_exact_mut(nr * A::DEPTH).zip((start..k).step_by(A::DEPTH)) {
            let row = &src[p * ld + first..][..cols];
            if A::DEPTH == 1 {
                group[..cols].copy_from_slice(row);
            } else if p + 1 < k {
                let next = &src[(p + 1) * ld + first..][..cols];
                for ((pair, &a), &b) in group.chunks_exact_mut(2).zip(row).zip(next) {
                    (pair[0], pair[1]) = (a, b);
                }
            } else {
                group.chunks_exact_mut(2).zip(row).for_each(|(pair, &a)| pair[0] = a);
            }
        }
    }
}

/// `c[m,n] (+)= a[m,k] b`, rows of `a` `lda` apart, `c` dense; adds where `accumulate`.
pub fn matmul<'b, A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    a: &[A],
    lda: usize,
    b: impl Into<Panels<'b, A>>,
    m: usize,
    accumulate: bool,
) {
    let b = b.into();
    assert!(c.len() >= area([m, b.n]) && a.len() >= strided(m, lda, b.k), "operand of a product is too small");
    let _time = time(cx, "matmul", (b.k, b.n), Work::Flops(2.0 * (m * b.n * b.k) as f64));
    product(cx, c, a, lda, false, b, m, accumulate);
}

/// `c[m,n] (+)= a[k,m]^T x[k,n]`, rows of `a` `lda` and of `x` `ldx` apart; `scratch` holds the packed `x`.
pub fn matmul_tn<A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    scratch: &mut Packed<A>,
    a: &[A],
    lda: usize,
    x: &[A],
    ldx: usize,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
) {
    scratch.pack(cx, x, ldx, k, n);
    matmul_transposed(cx, c, a, lda, &*scratch, m, accumulate);
}

/// `c[m,n] (+)= a[k,m]^T b`, rows of `a` `lda` apart.
pub fn matmul_transposed<'b, A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    a: &[A],
    lda: usize,
    b: impl Into<Panels<'b, A>>,
    m: usize,
    accumulate: bool,
) {
    let b = b.into();
    assert!(c.len() >= area([m, b.n]) && a.len() >= strided(b.k, lda, m), "operand of a product is too small");
    let _time = time(cx, "matmul_tn", (m, b.n), Work::Flops(2.0 * (m * b.n * b.k) as f64));
    product(cx, c, a, lda, true, b, m, accumulate);
}

fn product<A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    a: &[A],
    lda: usize,
    transposed: bool,
    b: Panels<A>,
    m: usize,
    accumulate: bool,
) {
    let (mr, nr) = (cx.op::<A::E, _>(TileHeight { paired: A::DEPTH == 2 }), cx.op::<A::E, _>(PanelWidth));
    assert!(b.nr == nr || b.n * b.k == 0, "packed for another instruction set");
    let panels = b.n.div_ceil(nr);
    let c = Shared::new(c);
    let part = |rows: Range<usize>, panels: Range<usize>| {
        // Taken out of the cell here: a closure around the body would be compiled without the ISA's features.
        let block = BLOCKS.with_borrow_mut(|block| block.as_mut_ptr().cast::<A>());
        let (c, a, b, depth, k, n) = (c.as_ptr(), a.as_ptr(), b.data.as_ptr(), b.depth, b.k, b.n);
        cx.op(Part { block, c, a, lda, transposed, b, depth, k, n, rows, panels, accumulate });
    };
    if m.div_ceil(mr) >= 2 * cx.pool().threads() {
        cx.pool().split(m, mr, |rows| part(rows, 0..panels));
    } else {
        cx.pool().split(panels, 1, |panels| part(0..m, panels));
    }
}

struct PanelWidth;
impl<E: crate::Elem> Op<E> for PanelWidth {
    type Out = usize;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> usize {
        panel_width::<S>()
    }
}

/// Columns of a panel.
#[inline(always)]
const fn panel_width<S: Simd>() -> usize {
    if S::LANES == 1 { 4 } else { 2 * S::LANES }
}

struct TileHeight {
    paired: bool,
}
impl<E: crate::Elem> Op<E> for TileHeight {
    type Out = usize;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> usize {
        if self.paired && S::TILES { 32 } else { S::MR }
    }
}

impl<A: Store> Op<A::E> for Part<A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        if self.k == 0 {
            let nr = panel_width::<S>();
            for i in self.rows.clone().filter(|_| !self.accumulate) {
                let cols = self.panels.start * nr..(self.panels.end * nr).min(self.n);
                // SAFETY: inside this part of `c`.
                cols.for_each(|j| unsafe { *self.c.add(i * self.n + j) = A::E::ZERO });
            }
            return;
        }
        // SAFETY: sizes were checked by the callers; rows and panels of different threads are disjoint in `c`.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if A::DEPTH == 2 && S::TILES {
                return crate::isa::amx::product(self.cast());
            }
            // Associated constants cannot size arrays; the match is folded at compile time.
            match S::MR {
                14 => self.blocks::<S, 14, 2>(),
                6 => self.blocks::<S, 6, 2>(),
                8 => self.blocks::<S, 8, 2>(),
                _ => self.blocks::<S, 4, 4>(),
            }
        }
    }
}

impl<A: Store> Part<A> {
    #[inline(always)]
    unsafe fn blocks<S: Simd<E = A::E>, const MR: usize, const NV: usize>(&self) {
        let nr = NV * S::LANES;
        let step = KC * A::DEPTH;
        let depth = self.depth;
        // A single row is read where it lies.
        let one_row = self.rows.len() == 1 && !self.transposed && self.k.is_multiple_of(A::DEPTH);
        let block = self.block;
        let mut i0 = self.rows.start;
        while i0 < self.rows.end {
            let rows = (BLOCK_ROWS / MR * MR).min(self.rows.end - i0);
            let mut p0 = 0;
            while p0 < self.k {
                let kc = step.min(self.k - p0);
                // SAFETY: the block holds BLOCK_ROWS * KC groups; `a` covers the rows and depths named.
                unsafe {
                    if !one_row {
                        self.copy_block(block, i0, rows, p0, kc);
                    }
                    for panel in self.panels.clone() {
                        let b = self.b.add(panel * depth * nr + p0 * nr);
                        let cols = nr.min(self.n - panel * nr);
                        let mut t = 0;
                        while t < rows {
                            let c = self.c.add((i0 + t) * self.n + panel * nr);
                            let rows = MR.min(rows - t);
                            let add = self.accumulate || p0 > 0;
                            let tile = Tile { c, ldc: self.n, b, groups: kc.div_ceil(A::DEPTH), rows, cols, add };
                            let a = block.add(t * step);
                            if one_row {
                                tile.run::<S, 1, NV>(self.a.add(i0 * self.lda + p0), 0, A::DEPTH);
                            } else if self.transposed {
                                tile.run::<S, MR, NV>(block.add(t * A::DEPTH), A::DEPTH, BLOCK_ROWS * A::DEPTH);
                            } else {
                                tile.run::<S, MR, NV>(a, step, A::DEPTH);
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

    /// Copies rows `i0..i0+rows` and depths `p0..p0+kc` of `A`: `[tile][MR][step]`, or from a transposed one
    /// `[kc/DEPTH][BLOCK_ROWS][DEPTH]`. An odd depth is filled up with zero.
    #[inline(always)]
    unsafe fn copy_block(&self, block: *mut A, i0: usize, rows: usize, p0: usize, kc: usize) {
        let step = KC * A::DEPTH;
        // SAFETY: the caller's promise.
        unsafe {
            if !self.transposed {
                for i in 0..rows {
                    let dst = block.add(i * step);
                    std::ptr::copy_nonoverlapping(self.a.add((i0 + i) * self.lda + p0), dst, kc);
                    if !kc.is_multiple_of(A::DEPTH) {
                        *dst.add(kc) = A::ZERO;
                    }
                }
                return;
            }
            // What a last tile reads beyond `rows` only reaches rows of `C` that are thrown away.
            for p in 0..kc.div_ceil(A::DEPTH) {
                let src = self.a.add((p0 + p * A::DEPTH) * self.lda + i0);
                for q in 0..A::DEPTH {
                    prefetch(src.wrapping_add((AHEAD + q) * self.lda), rows);
                }
                let dst = block.add(p * BLOCK_ROWS * A::DEPTH);
                if A::DEPTH == 1 {
                    std::ptr::copy_nonoverlapping(src, dst, rows);
                } else if p * A::DEPTH + 1 < kc {
                    for i in 0..rows {
                        *dst.add(2 * i) = *src.add(i);
                        *dst.add(2 * i + 1) = *src.add(self.lda + i);
                    }
                } else {
                    for i in 0..rows {
                        *dst.add(2 * i) = *src.add(i);
                        *dst.add(2 * i + 1) = A::ZERO;
                    }
                }
            }
        }
    }
}

/// One tile of `C`: `rows x cols` of `MR x NR`.
struct Tile<A: Store> {
    c: *mut A::E,
    ldc: usize,
    b: *const A,
    groups: usize,
    rows: usize,
    cols: usize,
    add: bool,
}

impl<A: Store> Tile<A> {
    /// `A` with group `p` of row `i` at `i * rs + p * cs`.
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>, const MR: usize, const NV: usize>(&self, a: *const A, rs: usize, cs: usize) {
        // SAFETY: the caller's promise: `a` and `b` cover the groups, `c` covers `rows x cols`.
        unsafe {
            let mut acc = [[S::splat(A::E::ZERO); NV]; MR];
            for p in 0..self.groups {
                let mut b = [A::load::<S>(self.b.add(p * NV * S::LANES * A::DEPTH)); NV];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = A::load::<S>(self.b.add((p * NV + j) * S::LANES * A::DEPTH));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = A::splat::<S>(a.add(i * rs + p * cs));
                    for j in 0..NV {
                        acc[j] = A::dot::<S>(x, b[j], acc[j]);
                    }
                }
            }
            self.write::<S, MR, NV>(&acc);
        }
    }

    /// Only constant indices into `acc`: a variable one would keep the accumulators in memory through the loop above.
    #[inline(always)]
    unsafe fn write<S: Simd<E = A::E>, const MR: usize, const NV: usize>(&self, acc: &[[S::V; NV]; MR]) {
        const { assert!(MR * NV * S::LANES <= MAX_MR * MAX_NR) };
        // SAFETY: a full tile lies in `c`; the edge buffer holds a whole one, of which the part written lies in `c`.
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
            let mut edge = [A::E::ZERO; MAX_MR * MAX_NR];
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
    use crate::bf16::Bf16;
    use crate::ops::testing::{all_isas, assert_close, random};
    use crate::simd::Elem;

    fn values<A: Store>(n: usize, seed: u64) -> Vec<A> {
        random::<A::E>(n, seed).into_iter().map(A::narrow).collect()
    }

    fn naive<A: Store>(
        a: impl Fn(usize, usize) -> A,
        b: impl Fn(usize, usize) -> A,
        (m, n, k): (usize, usize, usize),
    ) -> Vec<A::E> {
        let wide = |x: A| x.widen().to_f64();
        let sum = |i: usize| (0..k).map(|p| wide(a(i / n, p)) * wide(b(p, i % n))).sum::<f64>();
        (0..m * n).map(|i| A::E::from_f64(sum(i))).collect()
    }

    fn sizes() -> Vec<(usize, usize, usize)> {
        let mut all: Vec<_> = (1..=34).map(|i| (i, 131 - i, 7 * i + 1)).collect();
        all.extend((35..=130).step_by(5).map(|i| (i, 1 + i * 37 % 130, 1 + i * 53 % 130)));
        all.extend([(1, 1, 1), (15, 33, 300), (130, 65, 257), (29, 31, 513), (113, 129, 64), (3, 5, 0)]);
        all.extend([(64, 64, 64), (96, 32, 1030), (33, 31, 1023)]);
        all
    }

    fn plain_loop<A: Store>() {
        all_isas(|cx| {
            for (m, n, k) in sizes() {
                let lda = k + 3;
                // What lies between the rows must not matter.
                let mut a = values::<A>(m * lda, 1);
                a.chunks_mut(lda).for_each(|row| row[k..].fill(A::NAN));
                let b = values::<A>(k * n, 2);
                let bt: Vec<A> = (0..k * n).map(|i| b[i % k * n + i / k]).collect();
                let want = naive(|i, p| a[i * lda + p], |p, j| b[p * n + j], (m, n, k));
                for transposed in [false, true] {
                    let mut packed = Packed::new(k, n);
                    if transposed {
                        packed.pack_transposed(cx, &bt, k, n);
                    } else {
                        packed.pack(cx, &b, n, k, n);
                    }
                    let what = format!("{} {:?} {m}x{n}x{k}", A::NAME, cx.isa());
                    let mut c = vec![A::E::NAN; m * n];
                    matmul(cx, &mut c, &a, lda, &packed, m, false);
                    assert_close(&c, &want, 1e-6, &what);
                    matmul(cx, &mut c, &a, lda, &packed, m, true);
                    let twice: Vec<A::E> = want.iter().map(|&x| x + x).collect();
                    assert_close(&c, &twice, 1e-6, &format!("{what} accumulated"));
                    if k > 64 {
                        matmul(cx, &mut c, &a, lda, packed.depths(0..64), m, false);
                        matmul(cx, &mut c, &a[64..], lda, packed.depths(64..k), m, true);
                        assert_close(&c, &want, 1e-6, &format!("{what} in two stretches"));
                    }
                    if n > 64 {
                        let mut c = vec![A::E::NAN; m * (n - 64)];
                        matmul(cx, &mut c, &a, lda, packed.columns(64..n), m, false);
                        let part: Vec<A::E> = want.chunks(n).flat_map(|row| row[64..].to_vec()).collect();
                        assert_close(&c, &part, 1e-6, &format!("{what} last columns"));
                    }
                }
            }
        });
    }

    fn transposed_a<A: Store>() {
        all_isas(|cx| {
            for (m, n, k) in sizes() {
                let (lda, ldx) = (m + 5, n + 2);
                let mut a = values::<A>(k * lda, 3);
                a.chunks_mut(lda).for_each(|row| row[m..].fill(A::NAN));
                let x = values::<A>(k * ldx, 4);
                let want = naive(|i, p| a[p * lda + i], |p, j| x[p * ldx + j], (m, n, k));
                let mut scratch = Packed::new(k, n);
                let mut c = vec![A::E::ONE; m * n];
                matmul_tn(cx, &mut c, &mut scratch, &a, lda, &x, ldx, (m, n, k), true);
                c.iter_mut().for_each(|c| *c += -A::E::ONE);
                let mut again = vec![A::E::NAN; m * n];
                matmul_transposed(cx, &mut again, &a, lda, &scratch, m, false);
                assert_close(&again, &want, 2e-6, "packed before");
                assert_close(&c, &want, 2e-6, &format!("{} {:?} {m}x{n}x{k}", A::NAME, cx.isa()));
            }
        });
    }

    fn same_bits<A: Store>() {
        for isa in crate::Isa::available() {
            let (m, n, k) = (61, 97, 1130);
            let a = values::<A>(m * k, 5);
            let b = values::<A>(k * n, 6);
            let mut all = Vec::new();
            for threads in [1, 2, 3, 5] {
                let cx = &Exec::new(isa, threads);
                let mut packed = Packed::new(k, n);
                packed.pack(cx, &b, n, k, n);
                let mut c = vec![A::E::ZERO; m * n];
                matmul(cx, &mut c, &a, k, &packed, m, false);
                let mut rows = vec![A::E::ZERO; m * n];
                for i in 0..m {
                    matmul(cx, &mut rows[i * n..], &a[i * k..], k, &packed, 1, false);
                }
                assert_eq!(c, rows, "row by row on {isa:?}");
                matmul(cx, &mut c, &a, k, &packed, m, true);
                for i in 0..m {
                    matmul(cx, &mut rows[i * n..], &a[i * k..], k, &packed, 1, true);
                }
                assert_eq!(c, rows, "added row by row on {isa:?}");
                all.push(c);
            }
            assert!(all.windows(2).all(|w| w[0] == w[1]), "{isa:?}");
        }
    }

    #[test]
    fn equals_the_plain_loop() {
        plain_loop::<f32>();
        plain_loop::<Bf16>();
    }

    #[test]
    fn transposed_a_equals_the_plain_loop() {
        transposed_a::<f32>();
        transposed_a::<Bf16>();
    }

    #[test]
    fn bits_do_not_depend_on_rows_or_threads() {
        same_bits::<f32>();
        same_bits::<Bf16>();
    }
}
