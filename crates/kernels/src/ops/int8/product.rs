//! One int8 matmul, over the trait [`Dot`] and on tiles. Panels outside, rows inside: a panel's codes stay in L1 for all rows. Sums of
//! `MR` rows with `NV` vectors of columns are in registers.

use std::mem::MaybeUninit;

use super::codes::{CodeColumns, STEP};
use super::rows::{CodeRows, HELD};
use crate::dot::{CELL, Dot, DotOp};
use crate::simd::Simd;
use crate::size::{area, whole};

/// Most rows that vectors are faster for than tiles.
const FEW: usize = 4;

/// One matmul, ready to run on a unit.
pub(super) struct Product<'a> {
    c: &'a mut [f32],
    x: &'a CodeRows<'a>,
    w: CodeColumns<'a>,
    add: bool,
}

impl<'a> Product<'a> {
    /// Checks all that the units rely on: what is held of `x` and `w` follows from their sizes.
    pub fn new(c: &'a mut [f32], x: &'a CodeRows<'a>, w: CodeColumns<'a>, add: bool) -> Self {
        assert!(x.width == w.k && x.segment.min(x.width) == w.segment, "rows rounded for other weights");
        assert!(c.len() == area([x.rows(), w.n]), "operand of an int8 matmul is of another size");
        Product { c, x, w, add }
    }
}

impl DotOp for Product<'_> {
    #[inline(always)]
    unsafe fn run<D: Dot>(mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            if D::TILES && self.x.rows() > FEW && self.whole() {
                return self.tiles::<D>();
            }
            match (self.w.ternary, self.whole()) {
                (true, true) => self.kind::<D, true, true>(),
                (true, false) => self.kind::<D, true, false>(),
                (false, _) => self.kind::<D, false, true>(),
            }
        }
    }
}

impl Product<'_> {
    /// Whether a column has one scale.
    fn whole(&self) -> bool {
        self.w.segment == self.w.k
    }

    /// # Safety
    /// The machine supports the unit; weights are `TERNARY` or not, and a column has one scale where it is `WHOLE`.
    #[inline(always)]
    unsafe fn kind<D: Dot, const TERNARY: bool, const WHOLE: bool>(&mut self) {
        // Associated constants cannot size arrays; the match is folded at compile time. Where there are segments, sums of
        // floats take half of the registers.
        // SAFETY: the caller's promise.
        unsafe {
            match (D::TALL, WHOLE) {
                (14, true) => self.blocks::<D, TERNARY, WHOLE, 14, 2>(),
                (14, false) => self.blocks::<D, TERNARY, WHOLE, 7, 2>(),
                (6, true) => self.blocks::<D, TERNARY, WHOLE, 6, 2>(),
                (5, true) => self.blocks::<D, TERNARY, WHOLE, 5, 4>(),
                (5, false) => self.blocks::<D, TERNARY, WHOLE, 3, 4>(),
                (_, true) => self.blocks::<D, TERNARY, WHOLE, 4, 2>(),
                (_, false) => self.blocks::<D, TERNARY, WHOLE, 3, 2>(),
            }
        }
    }

    /// # Safety
    /// As for [`Self::kind`].
    #[inline(always)]
    unsafe fn blocks<D: Dot, const TERNARY: bool, const WHOLE: bool, const MR: usize, const NV: usize>(&mut self) {
        for column in (0..self.w.n).step_by(NV * D::LANES) {
            for row in (0..self.x.rows()).step_by(MR) {
                // SAFETY: the caller's promise; row and column exist.
                unsafe { self.block::<D, TERNARY, WHOLE, MR, NV>(row, column) };
            }
        }
    }

    /// # Safety
    /// As for [`Self::kind`]; the row exists, and the column, a multiple of `NV * LANES`.
    #[inline(always)]
    unsafe fn block<D: Dot, const TERNARY: bool, const WHOLE: bool, const MR: usize, const NV: usize>(
        &mut self,
        row: usize,
        column: usize,
    ) {
        assert!(NV * D::LANES <= 2 * CELL);
        let (stride, panel) = (whole(self.x.width, STEP), self.w.panel());
        let (quads, segments) = (self.x.width.div_ceil(4), self.w.k.div_ceil(self.w.segment));
        let each = if WHOLE { quads } else { self.w.segment / 4 };
        let bias = if TERNARY { 1 } else { D::BYTE_BIAS };
        // SAFETY: rows are held in multiples of HELD, columns in multiples of two cells, and depths in whole steps.
        unsafe {
            let mut q = [self.x.q.as_ptr(); MR];
            for (i, q) in q.iter_mut().enumerate() {
                // The last rows again, where there are no others; their sums are thrown away.
                *q = q.add(self.last(row + i) * stride);
            }
            let mut w = [self.w.data.as_ptr(); NV];
            for (j, w) in w.iter_mut().enumerate() {
                let at = column + j * D::LANES;
                *w = w.add(at / CELL * panel + at % CELL * 4);
            }
            let mut y = [[D::S::splat(0.0); NV]; MR];
            for segment in 0..if WHOLE { 1 } else { segments } {
                let (mut first, last) = (segment * each, quads.min((segment + 1) * each));
                let mut sums = [[D::zero(); NV]; MR];
                while first < last {
                    let end = if TERNARY { last.min(first.saturating_add(D::QUADS)) } else { last };
                    let mut acc = [[D::zero(); NV]; MR];
                    for p in first..end {
                        let mut codes = [D::zero(); NV];
                        for (codes, w) in codes.iter_mut().zip(&w) {
                            let w = w.add(p * CELL * 4);
                            *codes = if TERNARY { D::load(w.cast()) } else { D::bytes(w) };
                        }
                        for (acc, q) in acc.iter_mut().zip(&q) {
                            for (acc, codes) in acc.iter_mut().zip(&codes) {
                                let q = q.add(4 * p);
                                *acc =
                                    if TERNARY { D::dot_codes(*acc, *codes, q) } else { D::dot_bytes(*acc, *codes, q) };
                            }
                        }
                    }
                    for (sums, acc) in sums.iter_mut().zip(&acc) {
                        for (sum, acc) in sums.iter_mut().zip(acc) {
                            *sum = if TERNARY { D::add_codes(*sum, *acc) } else { *acc };
                        }
                    }
                    first = end;
                }
                for (i, (y, sums)) in y.iter_mut().zip(&sums).enumerate() {
                    let shift = bias * self.x.sums[self.last(row + i) * segments + segment];
                    for (j, (y, &sum)) in y.iter_mut().zip(sums).enumerate() {
                        let own = self.scaled::<D>(sum, shift, segment, column + j * D::LANES);
                        *y = if WHOLE { own } else { D::S::add(*y, own) };
                    }
                }
            }
            for (i, y) in y.iter().enumerate() {
                for (j, &y) in y.iter().enumerate() {
                    if row + i < self.x.rows() {
                        self.finish::<D>(y, row + i, column + j * D::LANES);
                    }
                }
            }
        }
    }

    /// The row itself, or the last one.
    #[inline(always)]
    fn last(&self, row: usize) -> usize {
        row.min(self.x.rows() - 1)
    }

    /// What sums of codes `shift` above those of weights come to.
    ///
    /// # Safety
    /// The machine supports the unit; the segment exists, and the column or one of a last block.
    #[inline(always)]
    unsafe fn scaled<D: Dot>(&self, sum: D::V, shift: i32, segment: usize, column: usize) -> <D::S as Simd>::V {
        // SAFETY: scales are held in multiples of two cells.
        unsafe {
            let scales = D::S::load(self.w.scales.as_ptr().add(segment * self.w.apart + column));
            D::S::mul(D::floats(sum, shift), scales)
        }
    }

    /// Puts outputs in their place.
    ///
    /// # Safety
    /// The machine supports the unit; the row exists.
    #[inline(always)]
    unsafe fn finish<D: Dot>(&mut self, y: <D::S as Simd>::V, row: usize, column: usize) {
        let n = self.w.n;
        if column >= n {
            return;
        }
        // SAFETY: `c` has these rows and columns.
        unsafe {
            let y = D::S::mul(y, D::S::splat(self.x.scales[row]));
            let c = self.c.as_mut_ptr().add(row * n + column);
            if column + D::LANES <= n {
                D::S::store(c, if self.add { D::S::add(D::S::load(c), y) } else { y });
            } else {
                D::S::store_n(c, if self.add { D::S::add(D::S::load_n(c, n - column), y) } else { y }, n - column);
            }
        }
    }

    /// All rows on tiles.
    ///
    /// # Safety
    /// The machine has AMX for int8, and supports `D`, whose lanes are a cell; a column has one scale.
    #[inline(always)]
    unsafe fn tiles<D: Dot>(mut self) {
        let (stride, panel, rows) = (whole(self.x.width, STEP), self.w.panel(), self.x.rows());
        let bias = if self.w.ternary { 1 } else { 128 };
        for column in (0..self.w.n).step_by(2 * CELL) {
            for row in (0..rows).step_by(HELD) {
                let mut sums = MaybeUninit::<[[[i32; CELL]; 2]; HELD]>::uninit();
                let sums: *mut i32 = sums.as_mut_ptr().cast();
                // SAFETY: rows are held in multiples of 32, columns in multiples of two panels, and depths in whole steps; the block has
                // stored 16 sums for each of its rows and panels.
                unsafe {
                    let a = self.x.q.as_ptr().cast::<u8>().add(row * stride);
                    let b = self.w.data.as_ptr().add(column / CELL * panel);
                    D::block(sums, a, stride, b, panel, stride / STEP, rows - row > CELL);
                    for i in 0..HELD.min(rows - row) {
                        for j in 0..2 {
                            let shift = bias * self.x.sums[row + i];
                            let sums = D::load(sums.add((2 * i + j) * CELL));
                            let y = self.scaled::<D>(sums, shift, 0, column + j * CELL);
                            self.finish::<D>(y, row + i, column + j * CELL);
                        }
                    }
                }
            }
        }
    }
}
