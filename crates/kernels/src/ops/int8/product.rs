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
        assert!(x.width == w.k && c.len() == area([x.rows(), w.n]), "operand of an int8 matmul is of another size");
        Product { c, x, w, add }
    }
}

impl DotOp for Product<'_> {
    #[inline(always)]
    unsafe fn run<D: Dot>(mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            if D::TILES && self.x.rows() > FEW {
                return self.tiles::<D>();
            }
            if self.w.ternary { self.kind::<D, true>() } else { self.kind::<D, false>() }
        }
    }
}

impl Product<'_> {
    /// # Safety
    /// The machine supports the unit; weights are ternary or not.
    #[inline(always)]
    unsafe fn kind<D: Dot, const TERNARY: bool>(&mut self) {
        // Associated constants cannot size arrays; the match is folded at compile time.
        // SAFETY: the caller's promise.
        unsafe {
            match D::TALL {
                14 => self.blocks::<D, TERNARY, 14, 2>(),
                6 => self.blocks::<D, TERNARY, 6, 2>(),
                5 => self.blocks::<D, TERNARY, 5, 4>(),
                _ => self.blocks::<D, TERNARY, 4, 2>(),
            }
        }
    }

    /// # Safety
    /// As for [`Self::kind`].
    #[inline(always)]
    unsafe fn blocks<D: Dot, const TERNARY: bool, const MR: usize, const NV: usize>(&mut self) {
        for column in (0..self.w.n).step_by(NV * D::LANES) {
            for row in (0..self.x.rows()).step_by(MR) {
                // SAFETY: the caller's promise; row and column exist.
                unsafe { self.block::<D, TERNARY, MR, NV>(row, column) };
            }
        }
    }

    /// # Safety
    /// As for [`Self::kind`]; the row exists, and the column, a multiple of `NV * LANES`.
    #[inline(always)]
    unsafe fn block<D: Dot, const TERNARY: bool, const MR: usize, const NV: usize>(
        &mut self,
        row: usize,
        column: usize,
    ) {
        assert!(NV * D::LANES <= 2 * CELL);
        let (stride, panel) = (whole(self.x.width, STEP), self.w.panel());
        let quads = self.x.width.div_ceil(4);
        // SAFETY: rows are held in multiples of HELD, columns in multiples of two cells, and depths in whole steps.
        unsafe {
            let mut q = [self.x.q.as_ptr(); MR];
            for (i, q) in q.iter_mut().enumerate() {
                // The last rows again, where there are no others; their sums are thrown away.
                *q = q.add((row + i).min(self.x.rows() - 1) * stride);
            }
            let mut w = [self.w.data.as_ptr(); NV];
            for (j, w) in w.iter_mut().enumerate() {
                let at = column + j * D::LANES;
                *w = w.add(at / CELL * panel + at % CELL * 4);
            }
            let mut sums = [[D::zero(); NV]; MR];
            let mut first = 0;
            while first < quads {
                let end = if TERNARY { quads.min(first.saturating_add(D::QUADS)) } else { quads };
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
                            *acc = if TERNARY { D::dot_codes(*acc, *codes, q) } else { D::dot_bytes(*acc, *codes, q) };
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
            for (i, sums) in sums.iter().enumerate() {
                for (j, &sum) in sums.iter().enumerate() {
                    if row + i < self.x.rows() {
                        let bias = if TERNARY { 1 } else { D::BYTE_BIAS };
                        self.finish::<D>(sum, bias, row + i, column + j * D::LANES);
                    }
                }
            }
        }
    }

    /// Puts sums of codes `bias` above their weights in their place.
    ///
    /// # Safety
    /// The machine supports the unit; the row exists.
    #[inline(always)]
    unsafe fn finish<D: Dot>(&mut self, sum: D::V, bias: i32, row: usize, column: usize) {
        let n = self.w.n;
        if column >= n {
            return;
        }
        // SAFETY: `c` has these rows and columns, and scales are held in multiples of two cells.
        unsafe {
            let scales = D::S::load(self.w.scales.as_ptr().add(column));
            let y = D::S::mul(D::floats(sum, bias * self.x.sums[row]), scales);
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
    /// The machine has AMX for int8, and supports `D`, whose lanes are a cell.
    #[inline(always)]
    unsafe fn tiles<D: Dot>(mut self) {
        let (stride, panel, rows) = (whole(self.x.width, STEP), self.w.panel(), self.x.rows());
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
                            let sums = D::load(sums.add((2 * i + j) * CELL));
                            let bias = if self.w.ternary { 1 } else { 128 };
                            self.finish::<D>(sums, bias, row + i, column + j * CELL);
                        }
                    }
                }
            }
        }
    }
}
