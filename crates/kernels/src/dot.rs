//! What an integer unit must offer: sums of products of unsigned weight codes with signed bytes, four at a time. The packed
//! matmul is written over this trait once ([`crate::ops::packed_matmul`]); each file of [`crate::isa`] implements it.
//!
//! Weights lie in cells of 16 outputs. A ternary cell is 16 columns in 64 bytes: byte `b` of lane `r` holds, in bits `2j` and
//! `2j + 1`, the code `w + 1` of column `4 j + b` of output `r`. A byte cell is 4 columns in 64 bytes: byte `b` of lane `r` is
//! `w + 128` of column `b` of output `r`.

use crate::simd::Simd;

/// Outputs of a cell.
pub(crate) const CELL: usize = 16;

/// Columns of a group: one ternary cell, or four byte cells.
pub(crate) const GROUP: usize = 16;

/// One kernel body, written over any [`Dot`].
pub(crate) trait DotOp {
    /// The body. Implementations are `#[inline(always)]`, so that they compile with the caller's target features.
    ///
    /// # Safety
    /// The machine supports `D`. As for [`crate::simd::Op`], pointers were checked where the op was made.
    unsafe fn run<D: Dot>(self);
}

/// A vector of `LANES` sums, and of as many quads of bytes.
///
/// # Safety
/// Who implements it promises that its functions read no memory but what is said to lie there. Who calls one promises that the
/// machine has been found to support the unit, and that pointers are valid for that.
pub(crate) unsafe trait Dot: Copy {
    type V: Copy;
    /// As many floats.
    type S: Simd<E = f32>;
    const LANES: usize;
    /// Most rows of activations at once.
    const ROWS: usize;
    /// What the unit's byte codes are above their weights.
    const BYTE_BIAS: i32;
    /// Rows of a block of a matmul of byte codes ([`crate::ops::matmul_int8`]).
    const TALL: usize;
    /// Quads that [`Dot::dot_codes`] may add up before [`Dot::add_codes`].
    const QUADS: usize = usize::MAX;
    /// Whether matmuls of many rows run on tile registers, by [`Dot::block`].
    const TILES: bool = false;

    unsafe fn zero() -> Self::V;
    /// The four quads of `LANES` lanes of a ternary cell; those of columns 4 to 7 and 12 to 15 may stand at four times their value,
    /// where [`Dot::ternary_total`] expects them so.
    unsafe fn ternary(cell: *const u8) -> [Self::V; 4];
    /// `LANES` lanes of a byte cell.
    unsafe fn bytes(cell: *const u8) -> Self::V;
    /// `acc_{j mod 2} + sum_b w_jb x_{4j+b}` in each lane, `x` of 16 bytes.
    unsafe fn dot_ternary(acc: [Self::V; 2], w: &[Self::V; 4], x: *const i8) -> [Self::V; 2];
    /// `acc + sum_b w_b x_b` in each lane, `x` of 4 bytes.
    unsafe fn dot_bytes(acc: Self::V, w: Self::V, x: *const i8) -> Self::V;
    /// `acc + sum_b w_b x_b` in each lane, codes `w` of 0 to 2, `x` of 4 bytes; sums may be of another form than others.
    unsafe fn dot_codes(acc: Self::V, w: Self::V, x: *const i8) -> Self::V;
    /// `sum + acc`, of what [`Dot::dot_codes`] has added up.
    unsafe fn add_codes(sum: Self::V, acc: Self::V) -> Self::V;
    /// The sum of the two, each by the place of its bits.
    unsafe fn ternary_total(acc: [Self::V; 2]) -> Self::V;
    /// The sum of the two.
    unsafe fn total(acc: [Self::V; 2]) -> Self::V;
    unsafe fn load(p: *const i32) -> Self::V;
    /// `v - shift` as floats.
    unsafe fn floats(v: Self::V, shift: i32) -> <Self::S as Simd>::V;

    /// `c: [32, 2, 16] = a b`: 32 rows (or 16 unless `both`) of `64 steps` signed bytes, `lda` bytes apart, with two panels of
    /// unsigned bytes `apart` bytes from each other, each `[16 steps, 16, 4]`: quads of columns of 16 outputs. Only with
    /// [`Dot::TILES`].
    unsafe fn block(
        _c: *mut i32,
        _a: *const u8,
        _lda: usize,
        _b: *const u8,
        _apart: usize,
        _steps: usize,
        _both: bool,
    ) {
        unreachable!("a unit without tiles")
    }
}
