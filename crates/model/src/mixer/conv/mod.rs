//! GatedConvMixer branch: `[g, v] = W_up x`, `x = norm(h)` (`D -> 2D`), `v' = causal depthwise conv(v)` with `K` float taps
//! per channel, `y = h + W_down (v' * sigmoid(g))` (`D -> D`); see [`flashlm_kernels::ops::conv_gate_forward`].
//!
//! The state of a sequence is its last `K-1` rows of `v`.

mod packed;
#[cfg(test)]
pub(crate) mod reference;
mod train;

pub(crate) use packed::{Gate, Packed, PackedConv};
pub use train::Train;

use crate::error::{ConfigError, within};
use crate::layer::branch::Branch;
use crate::layer::config::LayerConfig;
use crate::layer::linear::Linear;
use crate::layer::norm::BranchNorm;
use crate::layer::taps::Taps;

/// Checks `K`, the setting `kernel_size`.
pub(crate) fn validate(kernel_size: &usize, _: &LayerConfig, _: bool) -> Result<(), ConfigError> {
    within("kernel_size", *kernel_size, 1, 64)
}

/// Where its parameters lie.
#[derive(Clone, Debug)]
pub struct Params {
    norm: BranchNorm,
    /// `[2D, D]`.
    up: Linear,
    conv: Taps,
    /// `[D, D]`.
    down: Linear,
    /// Elements of the sums that one tile keeps.
    part: usize,
}

impl Params {
    /// Adds `up`, `conv` and `down`, with `K` taps.
    pub(crate) fn new(b: &mut Branch, kernel_size: &usize) -> Self {
        let (d, k) = (b.config().dim, *kernel_size);
        let up = b.linear("up", 2 * d, d);
        let conv = b.taps("conv.weight", d, k, (2.0 / (d * k) as f64).sqrt());
        let down = b.output("down", d);
        Params { norm: b.branch_norm(), up, conv, down, part: b.need().part }
    }

    /// Numbers in the state of one sequence in the packed runtime.
    pub(crate) fn state_len(&self) -> usize {
        (self.conv.k - 1) * self.down.outputs
    }
}
