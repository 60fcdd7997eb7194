//! Rows of int8 activations: `q = round(127 x / m)`, `m = max |x|` of the row, with the sums that codes above their weights need.

use super::{Columns, INT8_ROWS, Line};
use crate::dot::{CELL, GROUP};
use crate::exec::Exec;
use crate::ops::exact;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};

/// At most [`INT8_ROWS`] rows of int8 activations.
pub struct Int8Rows {
    pub(super) columns: Columns,
    pub(super) rows: usize,
    /// `[INT8_ROWS, stride]`.
    pub(super) q: Vec<Line>,
    /// `m / 127` of each row.
    pub(super) scales: Vec<f32>,
    /// Sums of `q` in each segment: `[INT8_ROWS, segments]`.
    pub(super) sums: Vec<i32>,
    /// Ternary weights of two blocks as bytes, for tiles.
    pub(super) panel: Vec<Line>,
}

impl Int8Rows {
    /// Room for any of `columns`, and at most `rows` rows.
    ///
    /// # Panics
    /// If there is none, or more than [`INT8_ROWS`] rows.
    pub fn new(columns: impl Iterator<Item = Columns>, rows: usize) -> Self {
        let (mut lines, mut segments, mut first) = (0, 0, None);
        for c in columns {
            lines = lines.max(c.stride() / 64);
            segments = segments.max(c.segments());
            first = first.or(Some(c));
        }
        let columns = first.expect("the columns of a matrix");
        assert!((1..=INT8_ROWS).contains(&rows));
        // Tiles read 16 rows at a time.
        let held = if rows == 1 { 1 } else { rows.next_multiple_of(2 * CELL) };
        Int8Rows {
            columns,
            rows: 0,
            q: vec![Line([0; 64]); held * lines],
            scales: vec![0.0; rows],
            sums: vec![0; rows * segments],
            panel: vec![Line([0; 64]); if rows == 1 { 0 } else { 2 * lines * 16 }],
        }
    }

    /// Most rows.
    pub fn capacity(&self) -> usize {
        self.scales.len()
    }

    /// Overwrites the rows with those of `x: [rows, inputs]`, for matrices whose columns lie so.
    pub fn quantise(&mut self, cx: &Exec, x: &[f32], columns: Columns) {
        let rows = x.len() / columns.inputs;
        assert!(rows <= self.capacity() && x.len() == rows * columns.inputs);
        let _time = time(cx, "quantise_rows", (columns.inputs, 0), Work::Bytes((x.len() * 5) as f64));
        if self.columns != columns && columns.stride() > columns.inputs {
            // What fills up segments must be zero, and lies elsewhere now.
            self.q.fill(Line([0; 64]));
        }
        (self.columns, self.rows) = (columns, rows);
        cx.op(Quantise { rows: self, x });
    }
}

struct Quantise<'a> {
    rows: &'a mut Int8Rows,
    x: &'a [f32],
}

impl Op<f32> for Quantise<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Int8Rows { columns, q, scales, sums, .. } = self.rows;
        let (segments, lines) = (columns.segments(), columns.stride() / 64);
        for (i, x) in self.x.chunks_exact(columns.inputs).enumerate() {
            let m = largest(x);
            let by = if m > 1e-30 { 127.0 / m } else { 0.0 };
            scales[i] = m / 127.0;
            let q = q[i * lines..(i + 1) * lines].as_mut_ptr().cast::<u8>();
            // SAFETY: the bytes of whole lines.
            let q = unsafe { std::slice::from_raw_parts_mut(q, lines * 64) };
            let sums = &mut sums[i * segments..(i + 1) * segments];
            if !m.is_finite() {
                // No number that comes of the row is one; codes would be whatever NaN rounds to.
                scales[i] = f32::NAN;
                q.fill(0);
                sums.fill(0);
                continue;
            }
            let each = columns.segment.next_multiple_of(GROUP);
            for ((sum, x), q) in sums.iter_mut().zip(x.chunks(columns.segment)).zip(q.chunks_mut(each)) {
                // Beside the loop: a sum in memory is one that vectors do not make.
                let mut total = 0;
                for (q, x) in q.iter_mut().zip(x) {
                    let code = exact::nearest(x * by);
                    total += code;
                    *q = code as u8;
                }
                *sum = total;
            }
        }
    }
}

/// `max |x|`; NaN where one is: the bits of numbers without their sign lie in the order of the numbers, those of NaN above all.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut most = 0;
    for x in x {
        most = most.max(x.abs().to_bits());
    }
    f32::from_bits(most)
}
