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

use std::ops::Range;

use crate::dispatch::Op;
use crate::dot::{CELL, Dot, GROUP, Unit};
use crate::exec::Exec;
use crate::isa;
use crate::ops::exact;
use crate::profile::{Work, time};
use crate::simd::Simd;

/// Most rows of one product.
pub const INT8_ROWS: usize = 64;

/// 64 bytes on a cache line: a cell of weights, or columns of a row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

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

    /// Groups of a segment.
    fn groups(&self, segment: usize) -> Range<usize> {
        let each = self.segment.div_ceil(GROUP);
        let own = self.segment.min(self.inputs - segment * self.segment);
        segment * each..segment * each + own.div_ceil(GROUP)
    }

    /// Groups of a row.
    fn all_groups(&self) -> usize {
        self.groups(self.segments() - 1).end
    }

    /// Where column `i` lies.
    fn place(&self, i: usize) -> usize {
        i / self.segment * self.segment.next_multiple_of(GROUP) + i % self.segment
    }

    /// Bytes of a row of activations: whole lines, so that tiles can be loaded.
    fn stride(&self) -> usize {
        (self.all_groups() * GROUP).next_multiple_of(64)
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
        let (segments, blocks) = (columns.segments(), outputs.div_ceil(CELL));
        assert!(outputs > 0 && columns.inputs > 0 && columns.segment > 0 && scales.len() == outputs * segments);
        let mut own = vec![0.0; blocks * segments * CELL];
        for (at, &scale) in scales.iter().enumerate() {
            let (output, segment) = (at / segments, at % segments);
            own[(output / CELL * segments + segment) * CELL + output % CELL] = scale;
        }
        let (zero, group) = match kind {
            Kind::Ternary => (0b01010101, 1),
            Kind::Bytes => (128, 4),
        };
        let cells = vec![Line([zero; 64]); (blocks * columns.all_groups() + 4) * group];
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

/// At most [`INT8_ROWS`] rows of int8 activations.
pub struct Int8Rows {
    columns: Columns,
    rows: usize,
    /// `[INT8_ROWS, stride]`.
    q: Vec<Line>,
    /// `m / 127` of each row.
    scales: Vec<f32>,
    /// Sums of `q` in each segment: `[INT8_ROWS, segments]`.
    sums: Vec<i32>,
    /// Ternary weights of two blocks as bytes, for tiles.
    panel: Vec<Line>,
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
    let product = Product::new((y, ld, at), x, w, add);
    match Unit::of(cx.isa()) {
        // SAFETY: plain arithmetic runs anywhere.
        Unit::Scalar => unsafe { product.run::<isa::scalar::ScalarDot>() },
        // SAFETY: a unit is only named where its features were detected.
        #[cfg(target_arch = "x86_64")]
        Unit::Avx2 => unsafe { isa::avx2::packed(product) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Unit::AvxVnni => unsafe { isa::avx2::packed_vnni(product) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Unit::Avx512Vnni => unsafe { isa::avx512::packed(product) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Unit::Amx => unsafe { isa::avx512::packed_amx(product) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Unit::Neon => unsafe { isa::neon::packed(product) },
    }
}

/// One product, ready to run on a unit. Plain numbers and pointers: a row of activations leaves no time to look anything up.
#[derive(Clone, Copy)]
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

impl<'a> Product<'a> {
    /// `y (+)= x w^T`, `y` the columns from `at` on of `[rows, ld]`; checks all that the units rely on.
    fn new((y, ld, at): (&'a mut [f32], usize, usize), x: &'a mut Int8Rows, w: &'a PackedMatrix, add: bool) -> Self {
        assert!(x.columns == w.columns, "rows quantised for another matrix");
        assert!(y.len() == x.rows * ld && at + w.outputs <= ld);
        let (segments, stride) = (w.columns.segments(), w.columns.stride());
        assert!(x.scales.len() >= x.rows && x.sums.len() >= x.rows * segments && x.q.len() * 64 >= x.rows * stride);
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
    /// The machine supports the unit.
    #[inline(always)]
    pub(crate) unsafe fn run<D: Dot>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.w.kind {
                Kind::Ternary if self.segments == 1 => self.run_kind::<D, true, true>(),
                Kind::Ternary => self.run_kind::<D, true, false>(),
                Kind::Bytes => self.run_kind::<D, false, true>(),
            }
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
                    let mut acc = [[[D::zero(); 4]; M]; N];
                    for group in if WHOLE { 0..self.all } else { self.groups(segment) } {
                        for (n, acc) in acc.iter_mut().enumerate() {
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
                                    for (j, acc) in acc.iter_mut().enumerate() {
                                        *acc = D::dot_bytes(*acc, codes[j], x.add(4 * j));
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

#[cfg(target_arch = "x86_64")]
mod tiles {
    use super::*;
    use crate::isa::amx;

    /// Fewest rows that tiles are faster for.
    const FEW: usize = 4;
    /// Rows and outputs of one product of tiles.
    const SIDE: usize = 2 * CELL;

    impl Product<'_> {
        /// Tiles for many rows, `D` for few.
        ///
        /// # Safety
        /// The machine has AMX for int8, and supports `D`, whose lanes are a cell.
        #[inline(always)]
        pub(crate) unsafe fn run_tiles<D: Dot>(self) {
            if self.rows <= FEW {
                // SAFETY: the caller's promise.
                return unsafe { self.run::<D>() };
            }
            let w = self.w;
            let (all, stride) = (self.all, self.stride);
            let blocks = w.outputs.div_ceil(CELL);
            for first in (0..blocks).step_by(2) {
                let own = 2.min(blocks - first);
                // SAFETY: the caller's promise.
                let mut y = unsafe { [[D::S::splat(0.0); 2]; INT8_ROWS] };
                for segment in 0..self.segments {
                    let groups = self.groups(segment);
                    let steps = groups.len().div_ceil(4);
                    let (b, apart, bias) = match w.kind {
                        Kind::Ternary => {
                            // SAFETY: the memory of the rows that this product was made of.
                            let panel = unsafe { std::slice::from_raw_parts_mut(self.panel.0, self.panel.1) };
                            let panel = &mut panel[..2 * steps * 16];
                            for (i, panel) in panel.chunks_exact_mut(steps * 16).take(own).enumerate() {
                                let from = (first + i) * all;
                                // SAFETY: the caller's promise.
                                unsafe { expand(panel, &w.cells[from + groups.start..from + groups.end]) };
                            }
                            (self.panel.0.cast_const(), steps * 16, 1)
                        }
                        // What is read beyond the columns meets zeros of the rows.
                        Kind::Bytes => (w.cells[first * all * 4..].as_ptr(), if own == 2 { all * 4 } else { 0 }, 128),
                    };
                    for row in (0..self.rows).step_by(SIDE) {
                        let rows = SIDE.min(self.rows - row);
                        let mut sums = [[[0i32; CELL]; 2]; SIDE];
                        // SAFETY: rows are held in multiples of 32, `b` has two panels of whole steps.
                        unsafe {
                            let a = self.q.cast::<u8>().add(row * stride + groups.start * GROUP);
                            let b = b.cast::<u8>();
                            amx::int8_block(sums.as_mut_ptr().cast(), a, stride, b, apart * 64, steps, rows > CELL);
                        }
                        for r in 0..rows {
                            // SAFETY: the row and the segment exist.
                            let shift = unsafe { self.shift(row + r, segment, bias) };
                            for i in 0..own {
                                // SAFETY: 16 sums and scales, as many as lanes.
                                unsafe {
                                    let scales = self.scales(first + i, segment);
                                    let sums = D::load(sums[r][i].as_ptr());
                                    y[row + r][i] = scale::<D>(y[row + r][i], sums, shift, D::S::load(scales));
                                }
                            }
                        }
                    }
                }
                for (row, y) in y.iter().take(self.rows).enumerate() {
                    for (i, y) in y.iter().take(own).enumerate() {
                        // SAFETY: the caller's promise.
                        unsafe { self.finish::<D>(*y, first + i, 0, row) };
                    }
                }
            }
        }
    }

    /// Codes of ternary cells as bytes; what fills up the last step is zero.
    ///
    /// # Safety
    /// None beyond the features it is compiled with.
    #[inline(always)]
    unsafe fn expand(panel: &mut [Line], cells: &[Line]) {
        for (quads, cell) in panel.chunks_exact_mut(4).zip(cells) {
            for (j, quad) in quads.iter_mut().enumerate() {
                for i in 0..64 {
                    quad.0[i] = cell.0[i] >> (2 * j) & 3;
                }
            }
        }
        panel[cells.len() * 4..].fill(Line([0; 64]));
    }
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
    const SIZES: [(usize, usize, usize); 14] = [
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
                let scalar = Exec::new(crate::Isa::Scalar, 1);
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
