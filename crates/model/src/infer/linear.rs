//! What every layer of the packed runtime is made of: `y (+)= x W^T` with `x` quantised to int8, optionally after an RMSNorm of
//! its own; RMSNorm.

use flashlm_kernels::Exec;
use flashlm_kernels::ops::{Columns, Int8Rows, PackedMatrix, exact_rmsnorm, packed_matmul};

use crate::pack::{PackError, Reader};

/// A learned scale.
pub(crate) struct Norm {
    scale: Vec<f32>,
    eps: f64,
}

impl Norm {
    pub(crate) fn read(from: &Reader, name: &str, d: usize, eps: f64) -> Result<Self, PackError> {
        Ok(Norm { scale: from.floats(name, &[d])?, eps })
    }

    /// `y, x: [rows, d]`.
    pub(crate) fn forward(&self, cx: &Exec, y: &mut [f32], x: &[f32]) {
        exact_rmsnorm(cx, y, x, &self.scale, self.eps);
    }
}

/// Working memory of one tile of rows.
pub(crate) struct Work {
    pub(crate) q: Int8Rows,
    /// Rows after a norm of a matrix's own.
    normed: Vec<f32>,
}

impl Work {
    /// For at most `rows` rows of any of `columns`.
    pub(crate) fn new(columns: &[Columns], rows: usize) -> Self {
        let widest = columns.iter().map(|c| c.inputs).max().unwrap_or(0);
        Work { q: Int8Rows::new(columns.iter().copied(), rows), normed: vec![0.0; widest * rows] }
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
pub(crate) struct Linear {
    matrix: PackedMatrix,
    norm: Option<Norm>,
}

impl Linear {
    /// A matrix `name.weight: [outputs, inputs]`.
    pub(crate) fn read(from: &Reader, name: &str, size: (usize, usize)) -> Result<Self, PackError> {
        Self::with(from, name, size, from.config().quant.norm)
    }

    /// The same for the output projection of a branch.
    pub(crate) fn output(from: &Reader, name: &str, size: (usize, usize)) -> Result<Self, PackError> {
        Self::with(from, name, size, from.config().quant.norm || from.config().sub_norm)
    }

    fn with(from: &Reader, name: &str, (outputs, inputs): (usize, usize), norm: bool) -> Result<Self, PackError> {
        let matrix = from.matrix(&format!("{name}.weight"), outputs, inputs)?;
        let eps = from.config().norm_eps;
        let norm = if norm { Some(Norm::read(from, &format!("{name}.norm.scale"), inputs, eps)?) } else { None };
        Ok(Linear { matrix, norm })
    }

    pub(crate) fn columns(&self) -> Columns {
        self.matrix.columns()
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
        work: &mut Work,
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
