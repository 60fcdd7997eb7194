//! What every layer of the packed runtime is made of: `y (+)= x W^T` with `x` quantised to int8, optionally after an RMSNorm of
//! its own; RMSNorm; the GLU.

use std::ops::Range;

use flashlm_kernels::ops::{Act, Columns, Int8Rows, PackedMatrix, exact_gate, exact_rmsnorm, packed_matmul};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Buf, Exec};

use super::ffn::FfnParams;
use super::linear::Linear;
use super::norm::{BranchNorm, Norm};
use super::taps::{self, Taps};
use crate::codes::error::PackError;
use crate::codes::reader::Reader;

/// A learned scale.
pub(crate) struct PackedNorm {
    scale: Vec<f32>,
    eps: f64,
}

impl PackedNorm {
    pub(crate) fn read(from: &Reader, of: &Norm) -> Result<Self, PackError> {
        Ok(PackedNorm { scale: from.floats(&of.scale)?, eps: of.eps })
    }

    /// `y, x: [rows, d]`.
    pub(crate) fn forward(&self, cx: &Exec, y: &mut [f32], x: &[f32]) {
        exact_rmsnorm(cx, y, x, &self.scale, self.eps);
    }
}

/// The norm before a branch, where the model has one.
pub(crate) struct PackedBranchNorm(Option<PackedNorm>);

impl PackedBranchNorm {
    pub(crate) fn read(from: &Reader, of: &BranchNorm) -> Result<Self, PackError> {
        let norm = of.0.as_ref().map(|norm| PackedNorm::read(from, norm)).transpose()?;
        Ok(PackedBranchNorm(norm))
    }

    /// The input of the branch, from `h: [rows, d]`.
    pub(crate) fn forward<'a>(&self, cx: &Exec, h: &'a [f32], local: &'a Local) -> &'a [f32] {
        let Some(norm) = &self.0 else { return h };
        let x = local.take::<f32>(h.len());
        norm.forward(cx, x, h);
        x
    }
}

/// Taps of a convolution: `[K, C]`.
pub(crate) fn packed_taps(from: &Reader, of: &Taps) -> Result<Buf<f32>, PackError> {
    Ok(taps::turned(&from.floats(&of.weight)?, of.k))
}

/// A table whose rows are looked up: `[rows, d]` as bytes, a scale each.
pub(crate) struct PackedTable {
    codes: Vec<i8>,
    scales: Vec<f32>,
    d: usize,
}

impl PackedTable {
    /// The table at this place in the layout.
    pub(crate) fn read(from: &Reader, place: &Range<usize>) -> Result<Self, PackError> {
        let (codes, scales) = from.table_rows(place)?;
        Ok(PackedTable { d: codes.len() / scales.len(), codes, scales })
    }

    /// Number of its rows.
    pub(crate) fn rows(&self) -> usize {
        self.scales.len()
    }

    pub(crate) fn memory(&self) -> usize {
        self.codes.len() + size_of_val(&self.scales[..])
    }

    /// Adds row `at` to `h: [d]`.
    pub(crate) fn add_row(&self, h: &mut [f32], at: usize) {
        let scale = self.scales[at];
        let codes = &self.codes[at * self.d..(at + 1) * self.d];
        h.iter_mut().zip(codes).for_each(|(h, &code)| *h += f32::from(code) * scale);
    }
}

/// Working memory of one tile of rows.
pub(crate) struct PackedScratch {
    pub(crate) q: Int8Rows,
    /// Rows after a norm of a matrix's own.
    normed: Vec<f32>,
}

impl PackedScratch {
    /// For at most `rows` rows of any of `columns`.
    pub(crate) fn new(columns: &[Columns], rows: usize) -> Self {
        let widest = columns.iter().map(|c| c.inputs).max().unwrap_or(0);
        PackedScratch { q: Int8Rows::new(columns.iter().copied(), rows), normed: vec![0.0; widest * rows] }
    }
}

/// Rows on their way into one matrix or several, quantised once for all that lie alike.
pub(crate) struct Input<'a> {
    x: &'a [f32],
    held: Option<Columns>,
}

impl<'a> Input<'a> {
    pub(crate) fn new(x: &'a [f32]) -> Self {
        Input { x, held: None }
    }
}

/// One matrix.
pub(crate) struct PackedLinear {
    matrix: PackedMatrix,
    norm: Option<PackedNorm>,
}

impl PackedLinear {
    pub(crate) fn read(from: &Reader, of: &Linear) -> Result<Self, PackError> {
        let norm = of.norm.as_ref().map(|norm| PackedNorm::read(from, norm)).transpose()?;
        Ok(PackedLinear { matrix: from.matrix(&of.weight, of.quant)?, norm })
    }

    pub(crate) fn columns(&self) -> Columns {
        self.matrix.columns()
    }

    pub(crate) fn outputs(&self) -> usize {
        self.matrix.outputs()
    }

    pub(crate) fn memory(&self) -> usize {
        self.matrix.memory()
    }

    /// `y (+)= x W^T`, `y` the columns from `at` on of `[rows, ld]`.
    pub(crate) fn forward(
        &self,
        cx: &Exec,
        y: (&mut [f32], usize, usize),
        input: &mut Input,
        work: &mut PackedScratch,
        add: bool,
    ) {
        let columns = self.columns();
        if let Some(norm) = &self.norm {
            let normed = &mut work.normed[..input.x.len()];
            norm.forward(cx, normed, input.x);
            work.q.quantise(cx, normed, columns);
            input.held = None;
        } else if input.held != Some(columns) {
            work.q.quantise(cx, input.x, columns);
            input.held = Some(columns);
        }
        packed_matmul(cx, y, &mut work.q, &self.matrix, add);
    }
}

/// GLU branch: `h += W_down (act(W_gate x) * (W_up x))`, `x = norm(h)`.
pub(crate) struct PackedFfn {
    norm: PackedBranchNorm,
    gate: PackedLinear,
    up: PackedLinear,
    down: PackedLinear,
    act: Act,
    hidden: usize,
}

impl PackedFfn {
    pub(crate) fn read(from: &Reader, of: &FfnParams) -> Result<Self, PackError> {
        Ok(PackedFfn {
            norm: PackedBranchNorm::read(from, &of.norm)?,
            gate: PackedLinear::read(from, &of.gate)?,
            up: PackedLinear::read(from, &of.up)?,
            down: PackedLinear::read(from, &of.down)?,
            act: of.act,
            hidden: of.down.inputs,
        })
    }

    /// All its matrices.
    pub(crate) fn linears(&self) -> [&PackedLinear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// `h: [rows, D]` of one tile.
    pub(crate) fn forward(&self, cx: &Exec, h: &mut [f32], work: &mut PackedScratch, local: &Local) {
        let (d, f) = (self.gate.columns().inputs, self.hidden);
        let rows = h.len() / d;
        let (g, u) = (local.take::<f32>(rows * f), local.take::<f32>(rows * f));
        let mut input = Input::new(self.norm.forward(cx, h, local));
        self.gate.forward(cx, (&mut *g, f, 0), &mut input, work, false);
        self.up.forward(cx, (&mut *u, f, 0), &mut input, work, false);
        let a = local.take::<f32>(rows * f);
        exact_gate(cx, a, g, u, self.act);
        self.down.forward(cx, (h, d, 0), &mut Input::new(a), work, true);
    }
}
