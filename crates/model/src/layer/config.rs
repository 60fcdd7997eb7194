//! What layers need to know of a model, and what scratch they ask for.

use flashlm_kernels::ops::Quant;

/// What layers need to know of a model.
#[derive(Clone, Copy, Debug)]
pub struct LayerConfig {
    /// `D`: width of the residual stream.
    pub dim: usize,
    /// Epsilon of RMSNorms.
    pub eps: f64,
    /// The ternary quantiser; `None` where weights stay float.
    pub quant: Option<Quant>,
    /// An RMSNorm before each branch.
    pub block_norm: bool,
    /// Its own RMSNorm before each ternary matrix.
    pub matrix_norm: bool,
    /// The same before output projections alone.
    pub sub_norm: bool,
    /// Output projections start at zero.
    pub zero_init: bool,
    /// Ternary matrices are multiplied in int8 where their scales allow it.
    pub int8: bool,
}

/// Scratch that the layers of a branch ask for, in elements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Need {
    /// Of the largest matrix.
    pub matrix: usize,
    /// Of the widest input of a matrix.
    pub input: usize,
    /// Of the taps of the widest convolution.
    pub taps: usize,
    /// Of the sums that one tile keeps.
    pub part: usize,
}

impl Need {
    /// Enough for either.
    pub fn max(self, other: Need) -> Need {
        Need {
            matrix: self.matrix.max(other.matrix),
            input: self.input.max(other.input),
            taps: self.taps.max(other.taps),
            part: self.part.max(other.part),
        }
    }
}
