//! The packed operand of a matmul: `B: [k, n]` in panels of columns, `[ceil(n/NR)][k/DEPTH][NR][DEPTH]`, so that a tile reads it
//! from front to end. Zeros fill the last panel, and the last depths where they go in pairs.

use std::ops::Range;

use crate::buf::Buf;
use crate::exec::{Exec, Shared};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store};
use crate::size::{area, strided, whole};

/// Widest panel of any ISA, in columns.
pub(super) const MAX_NR: usize = 32;
/// Packed depths are a multiple of this where groups have two: the depths of one tile register.
const PAIRED_DEPTHS: usize = 32;

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
    pub(super) data: &'a [A],
    /// Depths of one panel in memory.
    pub(super) depth: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) nr: usize,
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

/// Asks an ISA for [`panel_width`].
pub(super) struct PanelWidth;
impl<E: Elem> Op<E> for PanelWidth {
    type Out = usize;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> usize {
        panel_width::<S>()
    }
}

/// Columns of a panel.
#[inline(always)]
pub(super) const fn panel_width<S: Simd>() -> usize {
    if S::LANES == 1 { 4 } else { 2 * S::LANES }
}
