//! Weights as bytes: the operand `[k, n]` of an int8 matmul, in panels of 16 columns, `[ceil(n/16)][depth/4][16][4]`: four consecutive
//! depths of a column side by side. Ternary weights are `w + 1`; others `q + 128`, `q = round(127 w / m)` with `m` the largest
//! magnitude of the column. A column has a scale for each segment of its depths.

use std::ops::Range;

use super::largest::largest;
use crate::dot::CELL;
use crate::exec::{Exec, Shared};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store};
use crate::size::{area, whole};

/// Depths are filled up to whole steps of a tile register.
pub(super) const STEP: usize = 64;
/// Columns that the widest block takes at once.
const COLUMNS: usize = 2 * CELL;

/// Weights `[k, n]` as bytes.
pub struct Codes {
    data: Vec<u8>,
    /// `[segments, columns]`, with what fills up the last block.
    scales: Vec<f32>,
    ternary: bool,
    k: usize,
    n: usize,
    segment: usize,
}

/// Some columns of [`Codes`].
#[derive(Clone, Copy)]
pub struct CodeColumns<'a> {
    pub(super) data: &'a [u8],
    /// From these columns on: those of the next segment lie `apart`.
    pub(super) scales: &'a [f32],
    pub(super) apart: usize,
    pub(super) ternary: bool,
    pub(super) k: usize,
    pub(super) n: usize,
    /// Depths that share a scale.
    pub(super) segment: usize,
}

impl<'a> From<&'a Codes> for CodeColumns<'a> {
    fn from(codes: &'a Codes) -> Self {
        codes.columns(0..codes.n)
    }
}

impl CodeColumns<'_> {
    /// Bytes of one panel.
    pub(super) fn panel(&self) -> usize {
        whole(self.k, STEP) * CELL
    }
}

impl Codes {
    /// Room for `k x n`, one scale a column.
    pub fn new(k: usize, n: usize) -> Self {
        Codes::segments(k, n, k.max(1))
    }

    /// Room for `k x n`, of which `segment` depths of a column share a scale: a multiple of 4, or all.
    pub fn segments(k: usize, n: usize, segment: usize) -> Self {
        assert!(segment >= k.max(1) || segment > 0 && segment.is_multiple_of(4), "segments of {segment} depths");
        let (depth, columns, segment) = (whole(k, STEP), whole(n, COLUMNS), segment.min(k.max(1)));
        let scales = vec![0.0; area([k.div_ceil(segment), columns])];
        Codes { data: vec![0; area([depth, columns])], scales, ternary: true, k, n, segment }
    }

    /// Depths that share a scale.
    pub fn segment(&self) -> usize {
        self.segment
    }

    /// The columns `range`, which starts at a multiple of 32.
    pub fn columns(&self, range: Range<usize>) -> CodeColumns<'_> {
        assert!(range.start.is_multiple_of(COLUMNS) && range.start <= range.end && range.end <= self.n);
        let (end, depth) = (whole(range.end, COLUMNS), whole(self.k, STEP));
        let data = &self.data[range.start * depth..end * depth];
        let (scales, apart) = (&self.scales[range.start.min(self.scales.len())..], whole(self.n, COLUMNS));
        CodeColumns { data, scales, apart, ternary: self.ternary, k: self.k, n: range.len(), segment: self.segment }
    }

    /// Ternary weights from `src: [k, n]`, all of whose elements are 0 or plus or minus one number.
    pub fn pack<A: Store>(&mut self, cx: &Exec, src: &[A], k: usize, n: usize) {
        assert!(self.segment == k.max(1), "a scale for each column");
        self.ternary(cx, src, k, n, false);
        self.scales.fill(magnitude(src));
    }

    /// Ternary weights from the transpose `src: [n, k]`, elements of a segment of whose rows are 0 or plus or minus one number.
    pub fn pack_transposed<A: Store>(&mut self, cx: &Exec, src: &[A], k: usize, n: usize) {
        self.ternary(cx, src, k, n, true);
        let columns = whole(n, COLUMNS);
        for (j, row) in src.chunks_exact(k.max(1)).enumerate() {
            for (segment, w) in row.chunks(self.segment).enumerate() {
                self.scales[segment * columns + j] = magnitude(w);
            }
        }
    }

    fn ternary<A: Store>(&mut self, cx: &Exec, src: &[A], k: usize, n: usize, transposed: bool) {
        assert!((k, n) == (self.k, self.n) && src.len() == area([k, n]), "weights of another size");
        let _time = time(cx, "pack_codes", (k, n), Work::Bytes((src.len() * (size_of::<A>() + 1)) as f64));
        self.ternary = true;
        let size = whole(k, STEP) * CELL;
        let data = Shared::new(&mut self.data);
        cx.rows(n.div_ceil(CELL), |panels| {
            for panel in panels {
                // SAFETY: a panel goes to one thread.
                let codes = unsafe { data.range(panel * size..(panel + 1) * size) };
                let columns = panel * CELL..n.min((panel + 1) * CELL);
                cx.op(Fill { codes, src, size: (k, n), columns, transposed });
            }
        });
    }

    /// Rounds the transpose `src: [n, k]`, a column's weights in a row, to int8.
    pub fn round_transposed<E: Elem>(&mut self, cx: &Exec, src: &[E], k: usize, n: usize) {
        assert!((k, n) == (self.k, self.n) && src.len() == area([k, n]), "weights of another size");
        assert!(self.segment == k.max(1), "a scale for each column");
        let _time = time(cx, "round_weights", (k, n), Work::Bytes((src.len() * (size_of::<E>() + 1)) as f64));
        self.ternary = false;
        let size = whole(k, STEP) * CELL;
        let (data, scales) = (Shared::new(&mut self.data), Shared::new(&mut self.scales));
        cx.rows(n.div_ceil(CELL), |panels| {
            for panel in panels {
                let columns = panel * CELL..n.min((panel + 1) * CELL);
                // SAFETY: a panel goes to one thread.
                let (codes, scales) =
                    unsafe { (data.range(panel * size..(panel + 1) * size), scales.range(columns.clone())) };
                cx.op(Round { codes, scales, src: &src[columns.start * k..columns.end * k], k });
            }
        });
    }
}

/// The one magnitude that all elements have that are not 0.
fn magnitude<A: Store>(w: &[A]) -> f32 {
    w.iter().map(|w| w.widen()).find(|&w| w != A::E::ZERO).map_or(0.0, |w| w.abs().to_f64() as f32)
}

/// Where depth `p` of column `j` of a panel lies in it.
#[inline(always)]
fn place(p: usize, j: usize) -> usize {
    (p / 4 * CELL + j) * 4 + p % 4
}

/// One panel of ternary weights `[k, n]`.
struct Fill<'a, A> {
    codes: &'a mut [u8],
    src: &'a [A],
    size: (usize, usize),
    columns: Range<usize>,
    transposed: bool,
}

impl<A: Store> Op<A::E> for Fill<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Fill { codes, src, size: (k, n), columns, transposed } = self;
        let code = |w: A| {
            let w = w.widen();
            1 + u8::from(w > A::E::ZERO) - u8::from(w < A::E::ZERO)
        };
        if transposed {
            for (j, row) in src[columns.start * k..columns.end * k].chunks_exact(k).enumerate() {
                for (quad, w) in row.chunks(4).enumerate() {
                    codes[place(4 * quad, j)..].iter_mut().zip(w).for_each(|(to, &w)| *to = code(w));
                }
            }
        } else {
            for p in 0..k {
                let row = &src[p * n..][columns.clone()];
                codes[place(p, 0)..].iter_mut().step_by(4).zip(row).for_each(|(to, &w)| *to = code(w));
            }
        }
    }
}

/// One panel of weights to round.
struct Round<'a, E> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    /// `[columns, k]`.
    src: &'a [E],
    k: usize,
}

impl<E: Elem> Op<E> for Round<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Round { codes, scales, src, k } = self;
        for (j, (w, scale)) in src.chunks_exact(k).zip(scales).enumerate() {
            // SAFETY: the caller's promise; a row has `k` elements.
            let m = unsafe { largest::<E, S>(w.as_ptr(), k) }.to_f64() as f32;
            let by = if m > 1e-30 { 127.0 / m } else { 0.0 };
            *scale = m / 127.0;
            for (quad, w) in w.chunks(4).enumerate() {
                for (code, w) in codes[place(4 * quad, j)..][..w.len()].iter_mut().zip(w) {
                    // What is not finite becomes some code: such parameters have ended the run before.
                    *code = ((w.to_f64() as f32 * by).round_ties_even() as i32 + 128) as u8;
                }
            }
        }
    }
}
