//! Products of the packed runtime: rows of int8 activations with ternary or int8 weights, summed as integers.
//!
//! ```text
//! quantise: m = max |x| of a row;  q = round(127 x / m), halves to even;  x is about q m / 127
//! product:  y_o (+)= (sum over segments s: (sum of w_oi q_i over the columns i of s) scale_os) m / 127
//! ```
//!
//! Integer sums are exact and float operations are those of [`super::exact`], so that every ISA gives the same bits. A segment
//! is a run of columns that share one scale; each starts at a whole group of 16 columns, filled up with zeros. What each unit
//! executes is in its file of [`crate::isa`]: additions on one lane, `vpmaddubsw`, `vpdpbusd`, `sdot` or tiles elsewhere.

mod product;
mod rows;

use crate::dot::{CELL, GROUP};
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::size::{area, end, whole};
use product::Product;
pub use rows::Int8Rows;

/// Most rows of one product.
pub const INT8_ROWS: usize = 64;

/// 64 bytes on a cache line: a cell of weights, or columns of a row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Line {
    /// The bytes of all lines.
    fn bytes(lines: &mut [Line]) -> &mut [u8] {
        // SAFETY: a line is 64 bytes and nothing else, and so many bytes are there already.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
    }
}

/// How the columns of a matrix lie: segments of `segment` columns (the last may be shorter), each filled up to whole groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Columns of the matrix.
    pub inputs: usize,
    /// Columns that share a scale.
    pub segment: usize,
}

impl Columns {
    /// All columns of a row share a scale.
    pub fn whole(inputs: usize) -> Self {
        Columns { inputs, segment: inputs }
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        // Most have one, and a division takes as long as 16 outputs of a row.
        if self.segment >= self.inputs { 1 } else { self.inputs.div_ceil(self.segment) }
    }

    /// Groups of a row.
    fn all_groups(&self) -> usize {
        let before = self.segments() - 1;
        before * self.segment.div_ceil(GROUP) + (self.inputs - before * self.segment).div_ceil(GROUP)
    }

    /// Where column `i` lies.
    fn place(&self, i: usize) -> usize {
        i / self.segment * self.segment.next_multiple_of(GROUP) + i % self.segment
    }

    /// Bytes of a row of activations: whole lines, so that tiles can be loaded.
    fn stride(&self) -> usize {
        whole(area([self.all_groups(), GROUP]), 64)
    }
}

/// What the weights of a [`PackedMatrix`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ternary,
    Bytes,
}

/// A matrix `[outputs, inputs]` in cells.
pub struct PackedMatrix {
    kind: Kind,
    outputs: usize,
    columns: Columns,
    /// `[blocks of 16 outputs, groups, 1 or 4]`, and a spare block that tiles may read.
    cells: Vec<Line>,
    /// `[blocks, segments, 16]`.
    scales: Vec<f32>,
}

impl PackedMatrix {
    /// From weights -1, 0, 1 in rows and `scales: [outputs, segments]`.
    ///
    /// # Panics
    /// If sizes do not fit or a weight is another.
    pub fn ternary(weights: impl Iterator<Item = i8>, scales: &[f32], outputs: usize, columns: Columns) -> Self {
        let mut new = Self::empty(Kind::Ternary, scales, outputs, columns);
        let groups = columns.all_groups();
        new.fill(weights, |cells, output, column, w| {
            assert!((-1..=1).contains(&w), "a ternary weight of {w}");
            let at = column % GROUP;
            let byte = &mut cells[output / CELL * groups + column / GROUP].0[output % CELL * 4 + at % 4];
            // Cells start as zeros, whose code is 1.
            *byte = byte.wrapping_add((w as u8) << (at / 4 * 2));
        });
        new
    }

    /// From weights of -127 to 127 in rows and `scales: [outputs]`.
    ///
    /// # Panics
    /// If sizes do not fit or a weight is -128.
    pub fn bytes(weights: impl Iterator<Item = i8>, scales: &[f32], outputs: usize, inputs: usize) -> Self {
        let columns = Columns::whole(inputs);
        let mut new = Self::empty(Kind::Bytes, scales, outputs, columns);
        let groups = columns.all_groups();
        new.fill(weights, |cells, output, column, w| {
            assert!(w != i8::MIN, "a byte weight of -128");
            let cell = (output / CELL * groups + column / GROUP) * 4 + column % GROUP / 4;
            cells[cell].0[output % CELL * 4 + column % 4] = (w as u8).wrapping_add(128);
        });
        new
    }

    fn empty(kind: Kind, scales: &[f32], outputs: usize, columns: Columns) -> Self {
        assert!(columns.inputs > 0 && columns.segment > 0);
        let (segments, blocks) = (columns.segments(), outputs.div_ceil(CELL));
        assert!(outputs > 0 && scales.len() == area([outputs, segments]));
        let mut own = vec![0.0; area([blocks, segments, CELL])];
        for (at, &scale) in scales.iter().enumerate() {
            let (output, segment) = (at / segments, at % segments);
            own[(output / CELL * segments + segment) * CELL + output % CELL] = scale;
        }
        let (zero, group) = match kind {
            Kind::Ternary => (0b01010101, 1),
            Kind::Bytes => (128, 4),
        };
        let cells = vec![Line([zero; 64]); area([end(area([blocks, columns.all_groups()]), 4), group])];
        PackedMatrix { kind, outputs, columns, cells, scales: own }
    }

    fn fill(&mut self, mut weights: impl Iterator<Item = i8>, mut put: impl FnMut(&mut [Line], usize, usize, i8)) {
        for output in 0..self.outputs {
            for i in 0..self.columns.inputs {
                let w = weights.next().expect("a weight for each cell");
                put(&mut self.cells, output, self.columns.place(i), w);
            }
        }
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// How its columns lie.
    pub fn columns(&self) -> Columns {
        self.columns
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.cells.len() * size_of::<Line>() + self.scales.len() * size_of::<f32>()
    }

    /// Row `output` as floats, of a matrix of bytes: `y: [inputs]`.
    pub fn row(&self, y: &mut [f32], output: usize) {
        assert!(self.kind == Kind::Bytes && output < self.outputs && y.len() == self.columns.inputs);
        let scale = self.scales[output / CELL * CELL + output % CELL];
        let cells = &self.cells[output / CELL * self.columns.all_groups() * 4..];
        let at = output % CELL * 4;
        for (y, cell) in y.chunks_mut(4).zip(cells) {
            for (y, code) in y.iter_mut().zip(&cell.0[at..at + 4]) {
                *y = (f32::from(*code) - 128.0) * scale;
            }
        }
    }
}

/// `y (+)= x w^T` on the calling thread, `y` the columns from `at` on of `[rows, ld]`.
pub fn packed_matmul(
    cx: &Exec,
    (y, ld, at): (&mut [f32], usize, usize),
    x: &mut Int8Rows,
    w: &PackedMatrix,
    add: bool,
) {
    let flops = 2 * x.rows * w.outputs * w.columns.inputs;
    let _time = time(cx, "packed_matmul", (w.columns.inputs, w.outputs), Work::Flops(flops as f64));
    cx.isa().dot(Product::new((y, ld, at), x, w, add));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{all_isas, random};

    fn integers(n: usize, seed: u64, most: f32) -> Vec<i8> {
        random::<f32>(n, seed).into_iter().map(|x| (x * (most + 0.49)).round() as i8).collect()
    }

    /// The definition in plain loops, with f64 for the scales.
    fn reference(x: &[f32], w: &[i8], scales: &[f32], outputs: usize, columns: Columns) -> Vec<f64> {
        let (k, segments) = (columns.inputs, columns.segments());
        let mut y = Vec::new();
        for x in x.chunks(k) {
            let m = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let by = if m > 0.0 { 127.0 / m } else { 0.0 };
            let q: Vec<i64> = x.iter().map(|x| (x * by).round_ties_even() as i64).collect();
            for o in 0..outputs {
                let mut sum = vec![0i64; segments];
                (0..k).for_each(|i| sum[i / columns.segment] += q[i] * i64::from(w[o * k + i]));
                let scaled = sum.iter().zip(&scales[o * segments..]).map(|(&sum, &s)| sum as f64 * f64::from(s));
                y.push(scaled.sum::<f64>() * f64::from(m) / 127.0);
            }
        }
        y
    }

    /// `(outputs, inputs, segment)`: odd sizes, whole tiles, and segments that are no whole groups.
    const SIZES: [(usize, usize, usize); 16] = [
        (1, 1, 1),
        (3, 15, 15),
        (16, 16, 16),
        (17, 33, 33),
        (40, 64, 64),
        (31, 100, 100),
        (64, 192, 192),
        (50, 288, 288),
        (192, 512, 512),
        (33, 192, 64),
        (20, 200, 64),
        (19, 90, 30),
        (5, 40, 4),
        (33, 70, 1),
        (7, 65, 2),
        (48, 256, 16),
    ];

    #[test]
    fn equals_the_plain_loop_and_has_the_same_bits_on_every_isa() {
        for (outputs, inputs, segment) in SIZES {
            let columns = Columns { inputs, segment };
            let scales: Vec<f32> = random(outputs * columns.segments(), 3);
            let w = integers(outputs * inputs, 5, 1.0);
            let ternary = PackedMatrix::ternary(w.iter().copied(), &scales, outputs, columns);
            let wide = integers(outputs * inputs, 6, 127.0);
            let row_scales = &scales[..outputs];
            let bytes = PackedMatrix::bytes(wide.iter().copied(), row_scales, outputs, inputs);
            for rows in [1, 2, 3, 4, 5, 7, 16, 17, 31, 32, 33, 64] {
                let x: Vec<f32> = random(rows * inputs, rows as u64);
                let start: Vec<f32> = random(rows * outputs, 9);
                let run = |cx: &Exec, w: &PackedMatrix, add| {
                    let mut q = Int8Rows::new([columns, Columns::whole(inputs)].into_iter(), rows);
                    // What was there before must not matter.
                    let other: Vec<f32> = random(rows * inputs, 77);
                    let columns = if w.kind == Kind::Ternary { Columns::whole(inputs) } else { columns };
                    q.quantise(cx, &other, columns);
                    q.quantise(cx, &x, w.columns());
                    let mut y = start.clone();
                    packed_matmul(cx, (&mut y, outputs, 0), &mut q, w, add);
                    y
                };
                let scalar = Exec::new(crate::Isa::SCALAR, 1);
                for (w, plain, scales) in [(&ternary, &w, &scales[..]), (&bytes, &wide, row_scales)] {
                    let want = reference(&x, plain, scales, outputs, w.columns());
                    let (set, added) = (run(&scalar, w, false), run(&scalar, w, true));
                    for (i, want) in want.iter().enumerate() {
                        let bound = 1e-5 * (1.0 + want.abs());
                        assert!((f64::from(set[i]) - want).abs() < bound, "{outputs}x{inputs}: {} for {want}", set[i]);
                        let sum = start[i] + set[i];
                        assert!((added[i] - sum).abs() <= 1e-6 * sum.abs(), "{} for {sum}", added[i]);
                    }
                    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                    all_isas(|cx| {
                        let what = format!("{outputs}x{inputs} by {segment}, {rows} rows, {:?} {:?}", w.kind, cx.isa());
                        assert!(bits(&run(cx, w, false)) == bits(&set), "{what}");
                        assert!(bits(&run(cx, w, true)) == bits(&added), "{what}, added");
                    });
                }
            }
        }
    }

    /// Largest activations and weights at once, on the units that saturate in between.
    #[test]
    fn extremes_do_not_saturate() {
        let k = 4096;
        let columns = Columns::whole(k);
        for (sign, w) in [(1.0, 127i8), (-1.0, 127), (1.0, -127), (-1.0, -127)] {
            let x = vec![sign; k];
            let ternary = PackedMatrix::ternary((0..k).map(|_| w.signum()), &[1.0], 1, columns);
            let bytes = PackedMatrix::bytes((0..k).map(|_| w), &[1.0], 1, k);
            all_isas(|cx| {
                let mut q = Int8Rows::new([columns].into_iter(), 1);
                q.quantise(cx, &x, columns);
                let mut y = [0.0];
                packed_matmul(cx, (&mut y, 1, 0), &mut q, &ternary, false);
                assert_eq!(y[0], sign * f32::from(w.signum()) * k as f32, "{:?}", cx.isa());
                packed_matmul(cx, (&mut y, 1, 0), &mut q, &bytes, false);
                assert_eq!(y[0], sign * f32::from(w) * k as f32, "{:?}", cx.isa());
            });
        }
    }

    #[test]
    fn rows_of_zeros_and_strange_numbers_are_no_trouble() {
        let columns = Columns::whole(20);
        let w = PackedMatrix::ternary((0..20 * 4).map(|i| (i % 3) as i8 - 1), &[0.5; 4], 4, columns);
        all_isas(|cx| {
            let mut q = Int8Rows::new([columns].into_iter(), 4);
            let mut x = vec![0.0; 80];
            x[20] = f32::MIN_POSITIVE / 4.0;
            x[40..60].fill(f32::INFINITY);
            x[60..80].fill(f32::NAN);
            q.quantise(cx, &x, columns);
            let mut y = vec![1.0; 16];
            packed_matmul(cx, (&mut y, 4, 0), &mut q, &w, false);
            assert!(y[..8].iter().all(|y| y.abs() < 1e-30), "{y:?}");
            assert!(y[8..].iter().all(|y| !y.is_finite()), "{y:?}");
        });
    }

    #[test]
    fn a_row_of_bytes_is_its_weights() {
        let (outputs, inputs) = (37, 27);
        let w = integers(outputs * inputs, 4, 127.0);
        let scales: Vec<f32> = random(outputs, 8);
        let packed = PackedMatrix::bytes(w.iter().copied(), &scales, outputs, inputs);
        let mut y = vec![0.0; inputs];
        for (o, own) in w.chunks(inputs).enumerate() {
            packed.row(&mut y, o);
            assert!(y.iter().zip(own).all(|(y, &w)| *y == f32::from(w) * scales[o]));
        }
    }
}
