//! Rows of int8 activations: `q = round(127 x / m)`, `m = max |x|` of the row, with the sums that codes above their weights need.

use super::matrix::{Columns, Line};
use crate::dot::{CELL, GROUP};
use crate::exec::Exec;
use crate::ops::exact;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};
use crate::size::{area, end};

/// Most rows of one matmul.
pub const INT8_ROWS: usize = 64;

/// At most [`INT8_ROWS`] rows of int8 activations.
pub struct Int8Rows {
    /// The buffers have room for these rows of these columns, whatever happens in between.
    pub(super) columns: Columns,
    pub(super) rows: usize,
    /// `[held rows, stride]`, and a spare line: tiles read whole lines from where a segment starts.
    pub(super) q: Vec<Line>,
    /// `m / 127` of each row.
    pub(super) scales: Vec<f32>,
    /// Sums of `q` in each segment: `[rows, segments]`.
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
        Int8Rows {
            columns,
            rows: 0,
            q: vec![Line([0; 64]); end(area([held(rows), lines]), 1)],
            scales: vec![0.0; rows],
            sums: vec![0; area([rows, segments])],
            panel: vec![Line([0; 64]); if rows == 1 { 0 } else { area([2, lines, 16]) }],
        }
    }

    /// Most rows.
    pub fn capacity(&self) -> usize {
        self.scales.len()
    }

    /// Whether the buffers hold as many rows of these columns as of those that they were made for.
    fn has_room(&self, columns: Columns) -> bool {
        let rows = self.capacity();
        area([held(rows), columns.stride() / 64]) < self.q.len() && area([rows, columns.segments()]) <= self.sums.len()
    }

    /// Overwrites the rows with those of `x: [rows, inputs]`, for matrices whose columns lie so.
    pub fn quantise(&mut self, cx: &Exec, x: &[f32], columns: Columns) {
        let rows = x.len() / columns.inputs;
        assert!(rows <= self.capacity() && x.len() == rows * columns.inputs);
        assert!(self.has_room(columns), "columns larger than those that the rows were made for");
        let _time = time(cx, "quantise_rows", (columns.inputs, 0), Work::Bytes((x.len() * 5) as f64));
        (self.columns, self.rows) = (columns, rows);
        cx.op(Quantise { rows: self, x });
    }
}

/// Rows in memory for `rows` rows: tiles read 32 at a time.
fn held(rows: usize) -> usize {
    if rows == 1 { 1 } else { rows.next_multiple_of(2 * CELL) }
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
        // Of all rows first: what one waits for at its end, the next does meanwhile.
        for (m, x) in scales.iter_mut().zip(self.x.chunks_exact(columns.inputs)) {
            *m = largest(x);
        }
        for (i, x) in self.x.chunks_exact(columns.inputs).enumerate() {
            let m = scales[i];
            let by = if m > 1e-30 { 127.0 / m } else { 0.0 };
            scales[i] = m / 127.0;
            let q = Line::bytes(&mut q[i * lines..(i + 1) * lines]);
            let sums = &mut sums[i * segments..(i + 1) * segments];
            if !m.is_finite() {
                // No number that comes of the row is one; codes would be whatever NaN rounds to.
                scales[i] = f32::NAN;
                q.fill(0);
                sums.fill(0);
                continue;
            }
            let each = columns.segment.next_multiple_of(GROUP);
            let mut rest = q;
            for (s, (sum, x)) in sums.iter_mut().zip(x.chunks(columns.segment)).enumerate() {
                let here = if s + 1 == segments { rest.len() } else { each };
                let q = rest.split_off_mut(..here).expect("groups of each segment");
                // Beside the loop: a sum in memory is one that vectors do not make.
                let mut total = 0;
                for (q, x) in q.iter_mut().zip(x) {
                    let code = exact::nearest(x * by);
                    total += code;
                    *q = code as u8;
                }
                // What fills up a segment; behind the last one, the line.
                q[x.len()..].fill(0);
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
