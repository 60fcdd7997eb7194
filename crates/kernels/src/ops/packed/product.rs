//! One matmul of int8 rows with packed weights, over the trait [`Dot`] and on tiles.
//!
//! Blocks of 16 outputs outside, rows inside: a block's weights stay in L1 for all rows. Sums of `M` rows of `N` blocks are
//! in registers, and become floats there.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::matrix::{Kind, Line, PackedMatrix};
use super::rows::{INT8_ROWS, Int8Rows};
use crate::dot::{CELL, Dot, DotOp, GROUP};
use crate::part::prefetch;
use crate::simd::Simd;
use crate::size::{area, end};

/// Most rows that vectors are faster for than tiles.
const FEW: usize = 4;
/// Rows and outputs of one matmul of tiles.
const SIDE: usize = 2 * CELL;

/// One matmul, ready to run on a unit. Plain numbers and pointers: a row of activations leaves no time to look anything up.
pub(crate) struct Product<'a> {
    w: &'a PackedMatrix,
    /// `[rows, ld]`, from the first column on.
    y: *mut f32,
    ld: usize,
    add: bool,
    rows: usize,
    /// `[rows, stride]`, with their scales and sums.
    q: *const i8,
    stride: usize,
    scales: *const f32,
    sums: *const i32,
    panel: (*mut Line, usize),
    segments: usize,
    /// Groups of a segment, and of all.
    each: usize,
    all: usize,
}

impl DotOp for Product<'_> {
    #[inline(always)]
    unsafe fn run<D: Dot>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            if D::TILES && self.rows > FEW {
                return self.run_tiles::<D>();
            }
            match self.w.kind {
                Kind::Ternary if self.segments == 1 => self.run_kind::<D, true, true>(),
                Kind::Ternary => self.run_kind::<D, true, false>(),
                Kind::Bytes => self.run_kind::<D, false, true>(),
            }
        }
    }
}

impl<'a> Product<'a> {
    /// `y (+)= x w^T`, `y` the columns from `at` on of `[rows, ld]`; checks all that the units rely on. What `x` holds is as large
    /// as its columns and rows say: [`Int8Rows::quantise`] has checked that.
    pub(super) fn new(
        (y, ld, at): (&'a mut [f32], usize, usize),
        x: &'a mut Int8Rows,
        w: &'a PackedMatrix,
        add: bool,
    ) -> Self {
        assert!(x.columns == w.columns, "rows quantised for another matrix");
        assert!(y.len() == area([x.rows, ld]) && end(at, w.outputs) <= ld);
        let (segments, stride) = (w.columns.segments(), w.columns.stride());
        Product {
            w,
            y: y.as_mut_ptr().wrapping_add(at),
            ld,
            add,
            rows: x.rows,
            q: x.q.as_ptr().cast(),
            stride,
            scales: x.scales.as_ptr(),
            sums: x.sums.as_ptr(),
            panel: (x.panel.as_mut_ptr(), x.panel.len()),
            segments,
            each: w.columns.segment.div_ceil(GROUP),
            all: w.columns.all_groups(),
        }
    }

    /// # Safety
    /// The machine supports the unit; the matrix is `TERNARY` or of bytes, and has one segment where it is `WHOLE`.
    #[inline(always)]
    unsafe fn run_kind<D: Dot, const TERNARY: bool, const WHOLE: bool>(&self) {
        let (rows, blocks) = (self.rows, self.w.outputs.div_ceil(CELL));
        let mut block = 0;
        // SAFETY: the caller's promise; blocks and rows exist.
        unsafe {
            // What a row costs to read and a loop to begin, for four blocks at once. Bytes come from too far for that to matter.
            while TERNARY && D::ROWS >= 4 && rows == 1 && block + 4 <= blocks {
                self.block::<D, TERNARY, WHOLE, 1, 4>(block, 0);
                block += 4;
            }
            while block < blocks {
                let mut row = 0;
                while D::ROWS >= 8 && row + 8 <= rows {
                    self.block::<D, TERNARY, WHOLE, 8, 1>(block, row);
                    row += 8;
                }
                while D::ROWS >= 4 && row + 4 <= rows {
                    self.block::<D, TERNARY, WHOLE, 4, 1>(block, row);
                    row += 4;
                }
                while D::ROWS >= 2 && row + 2 <= rows {
                    self.block::<D, TERNARY, WHOLE, 2, 1>(block, row);
                    row += 2;
                }
                while row < rows {
                    self.block::<D, TERNARY, WHOLE, 1, 1>(block, row);
                    row += 1;
                }
                block += 1;
            }
        }
    }

    /// The outputs of `N` blocks for `M` rows.
    ///
    /// # Safety
    /// As for [`Self::run_kind`]; there are rows `row .. row + M` and blocks `block .. block + N`.
    #[inline(always)]
    unsafe fn block<D: Dot, const TERNARY: bool, const WHOLE: bool, const M: usize, const N: usize>(
        &self,
        block: usize,
        row: usize,
    ) {
        let size = self.all * if TERNARY { 64 } else { 256 };
        let bias = if TERNARY { 1 } else { D::BYTE_BIAS };
        for lane in (0..CELL).step_by(D::LANES) {
            // SAFETY: cells hold all groups of the blocks, and rows all their columns.
            unsafe {
                let q = self.q.add(row * self.stride);
                let cells = self.w.cells.as_ptr().cast::<u8>().add(block * size + lane * 4);
                let mut y = [[D::S::splat(0.0); M]; N];
                for segment in 0..if WHOLE { 1 } else { self.segments } {
                    let mut acc = [[[D::zero(); 2]; M]; N];
                    for group in if WHOLE { 0..self.all } else { self.groups(segment) } {
                        for (n, acc) in acc.iter_mut().enumerate() {
                            if TERNARY && M == 1 && N > 1 {
                                prefetch(cells.wrapping_add((n + N) * size + group * 64), 1);
                            }
                            let codes = if TERNARY {
                                D::ternary(cells.add(n * size + group * 64))
                            } else {
                                let cell = cells.add(n * size + group * 256);
                                [
                                    D::bytes(cell),
                                    D::bytes(cell.add(64)),
                                    D::bytes(cell.add(128)),
                                    D::bytes(cell.add(192)),
                                ]
                            };
                            for (m, acc) in acc.iter_mut().enumerate() {
                                let x = q.add(m * self.stride + group * GROUP);
                                if TERNARY {
                                    *acc = D::dot_ternary(*acc, &codes, x);
                                } else {
                                    for (j, code) in codes.into_iter().enumerate() {
                                        acc[j % 2] = D::dot_bytes(acc[j % 2], code, x.add(4 * j));
                                    }
                                }
                            }
                        }
                    }
                    for (n, (y, acc)) in y.iter_mut().zip(acc).enumerate() {
                        let scales = D::S::load(self.scales(block + n, segment).add(lane));
                        for (m, (y, acc)) in y.iter_mut().zip(acc).enumerate() {
                            let total = if TERNARY { D::ternary_total(acc) } else { D::total(acc) };
                            *y = scale::<D>(*y, total, self.shift(row + m, segment, bias), scales);
                        }
                    }
                }
                for (n, y) in y.into_iter().enumerate() {
                    for (m, y) in y.into_iter().enumerate() {
                        self.finish::<D>(y, block + n, lane, row + m);
                    }
                }
            }
        }
    }

    /// Groups of a segment: as many in each but the last.
    #[inline(always)]
    fn groups(&self, segment: usize) -> Range<usize> {
        segment * self.each..self.all.min((segment + 1) * self.each)
    }

    /// What codes `bias` above their weights add to a sum.
    ///
    /// # Safety
    /// The row and the segment exist.
    #[inline(always)]
    unsafe fn shift(&self, row: usize, segment: usize, bias: i32) -> i32 {
        // SAFETY: each row has a sum for each segment.
        bias * unsafe { *self.sums.add(row * self.segments + segment) }
    }

    /// The 16 scales of a block and segment.
    ///
    /// # Safety
    /// There are such.
    #[inline(always)]
    unsafe fn scales(&self, block: usize, segment: usize) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe { self.w.scales.as_ptr().add((block * self.segments + segment) * CELL) }
    }

    /// Puts outputs of one block from `lane` on in their place.
    ///
    /// # Safety
    /// The machine supports the unit; block and row exist.
    #[inline(always)]
    unsafe fn finish<D: Dot>(&self, y: <D::S as Simd>::V, block: usize, lane: usize, row: usize) {
        let first = block * CELL + lane;
        // SAFETY: `y` has these rows and columns.
        unsafe {
            let out = self.y.add(row * self.ld + first);
            let y = D::S::mul(y, D::S::splat(*self.scales.add(row)));
            if first + D::LANES <= self.w.outputs {
                D::S::store(out, if self.add { D::S::add(D::S::load(out), y) } else { y });
            } else if first < self.w.outputs {
                let n = self.w.outputs - first;
                D::S::store_n(out, if self.add { D::S::add(D::S::load_n(out, n), y) } else { y }, n);
            }
        }
    }
}

/// `y + (sums - shift) scales`.
///
/// # Safety
/// The machine supports the unit.
#[inline(always)]
unsafe fn scale<D: Dot>(y: <D::S as Simd>::V, sums: D::V, shift: i32, scales: <D::S as Simd>::V) -> <D::S as Simd>::V {
    // SAFETY: the caller's promise.
    unsafe { D::S::add(y, D::S::mul(D::floats(sums, shift), scales)) }
}

impl Product<'_> {
    /// All rows on tiles.
    ///
    /// # Safety
    /// The machine has AMX for int8, and supports `D`, whose lanes are a cell.
    #[inline(always)]
    unsafe fn run_tiles<D: Dot>(self) {
        let w = self.w;
        let (all, stride) = (self.all, self.stride);
        let blocks = w.outputs.div_ceil(CELL);
        for first in (0..blocks).step_by(2) {
            let own = 2.min(blocks - first);
            // What segments come to so far, of rows that there are: to clear all takes as long as their matmuls.
            let mut y = [[MaybeUninit::uninit(); 2]; INT8_ROWS];
            for segment in 0..self.segments {
                let groups = self.groups(segment);
                let steps = groups.len().div_ceil(4);
                let (b, apart, bias) = match w.kind {
                    Kind::Ternary => {
                        // SAFETY: the memory of the rows that this matmul was made of.
                        let panel = unsafe { std::slice::from_raw_parts_mut(self.panel.0, self.panel.1) };
                        let panel = &mut panel[..2 * steps * 16];
                        for (i, panel) in panel.chunks_exact_mut(steps * 16).take(own).enumerate() {
                            let from = (first + i) * all;
                            expand(panel, &w.cells[from + groups.start..from + groups.end]);
                        }
                        (self.panel.0.cast_const(), steps * 16, 1)
                    }
                    // What is read beyond the columns meets zeros of the rows.
                    Kind::Bytes => (w.cells[first * all * 4..].as_ptr(), if own == 2 { all * 4 } else { 0 }, 128),
                };
                for row in (0..self.rows).step_by(SIDE) {
                    let rows = SIDE.min(self.rows - row);
                    let mut sums = MaybeUninit::<[[[i32; CELL]; 2]; SIDE]>::uninit();
                    let sums: *mut i32 = sums.as_mut_ptr().cast();
                    // SAFETY: rows are held in multiples of 32 and a line behind them, `b` has two panels of whole steps.
                    unsafe {
                        let a = self.q.cast::<u8>().add(row * stride + groups.start * GROUP);
                        D::block(sums, a, stride, b.cast(), apart * 64, steps, rows > CELL);
                    }
                    for (r, y) in y[row..row + rows].iter_mut().enumerate() {
                        // SAFETY: the row and the segment exist; the block has stored 16 sums for each of its rows and
                        // columns, as many as lanes; the segment before has left what it came to.
                        unsafe {
                            let shift = self.shift(row + r, segment, bias);
                            for (i, y) in y.iter_mut().take(own).enumerate() {
                                let scales = D::S::load(self.scales(first + i, segment));
                                let before = if segment == 0 { D::S::splat(0.0) } else { y.assume_init() };
                                let sum = scale::<D>(before, D::load(sums.add(r * SIDE + i * CELL)), shift, scales);
                                if segment + 1 == self.segments {
                                    self.finish::<D>(sum, first + i, 0, row + r);
                                } else {
                                    y.write(sum);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Codes of ternary cells as bytes; what fills up the last step is zero.
#[inline(always)]
fn expand(panel: &mut [Line], cells: &[Line]) {
    for (quads, cell) in panel.chunks_exact_mut(4).zip(cells) {
        for (j, quad) in quads.iter_mut().enumerate() {
            for i in 0..64 {
                quad.0[i] = cell.0[i] >> (2 * j) & 3;
            }
        }
    }
    panel[cells.len() * 4..].fill(Line([0; 64]));
}
