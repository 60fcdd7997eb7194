//! Weights of the packed runtime: ternary or bytes, in cells of 16 outputs ([`crate::dot`]), each with its scale.
//!
//! A segment is a run of columns that share one scale; each starts at a whole group of 16 columns, filled up with zeros.

use crate::dot::{CELL, GROUP};
use crate::size::{area, end, whole};

/// 64 bytes on a cache line: a cell of weights, or columns of a row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

impl Line {
    /// The bytes of all lines.
    pub(super) fn bytes(lines: &mut [Line]) -> &mut [u8] {
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
    pub(super) fn all_groups(&self) -> usize {
        let before = self.segments() - 1;
        before * self.segment.div_ceil(GROUP) + (self.inputs - before * self.segment).div_ceil(GROUP)
    }

    /// Where column `i` lies.
    fn place(&self, i: usize) -> usize {
        i / self.segment * self.segment.next_multiple_of(GROUP) + i % self.segment
    }

    /// Bytes of a row of activations: whole lines, so that tiles can be loaded.
    pub(super) fn stride(&self) -> usize {
        whole(area([self.all_groups(), GROUP]), 64)
    }
}

/// What the weights of a [`PackedMatrix`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ternary,
    Bytes,
}

/// A matrix `[outputs, inputs]` in cells.
pub struct PackedMatrix {
    pub(super) kind: Kind,
    pub(super) outputs: usize,
    pub(super) columns: Columns,
    /// `[blocks of 16 outputs, groups, 1 or 4]`, and a spare block that tiles may read.
    pub(super) cells: Vec<Line>,
    /// `[blocks, segments, 16]`.
    pub(super) scales: Vec<f32>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{integers, random};

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
