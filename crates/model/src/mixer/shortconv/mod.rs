//! Short convolution branch, LFM2's (arXiv 2511.23404): `[b, c, x] = W_up norm(h)` (`D -> 3D`), `s` the causal depthwise convolution of
//! `v = b * x` with `K` float taps per channel ([`flashlm_kernels::ops::conv_forward`]), `y = h + W_down (c * s)` (`D -> D`). The gates are
//! linear, and the convolution has neither bias nor activation.
//!
//! The state of a sequence is its last `K-1` rows of `v`.

mod packed;
#[cfg(test)]
pub(crate) mod reference;
mod train;

use serde::{Deserialize, Serialize};

pub(crate) use packed::Packed;
pub use train::Train;

use crate::error::{ConfigError, within};
use crate::layer::branch::Branch;
use crate::layer::config::LayerConfig;
use crate::layer::linear::Linear;
use crate::layer::norm::BranchNorm;
use crate::layer::taps::Taps;

/// Its settings, `model.shortconv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShortConvConfig {
    /// `K`: taps of the convolution.
    pub kernel_size: usize,
}

impl Default for ShortConvConfig {
    fn default() -> Self {
        ShortConvConfig { kernel_size: 3 }
    }
}

/// Checks the settings.
pub(crate) fn validate(c: &ShortConvConfig, _: &LayerConfig, _: bool) -> Result<(), ConfigError> {
    within("shortconv.kernel_size", c.kernel_size, 1, 64)
}

/// Where its parameters lie.
#[derive(Clone, Debug)]
pub struct Params {
    norm: BranchNorm,
    /// `[3D, D]`.
    up: Linear,
    conv: Taps,
    /// `[D, D]`.
    down: Linear,
    /// Elements of the sums that one tile keeps.
    part: usize,
}

impl Params {
    /// Adds `up`, `conv` and `down`.
    pub(crate) fn new(b: &mut Branch, c: &ShortConvConfig) -> Self {
        let (d, k) = (b.config().dim, c.kernel_size);
        let up = b.linear("up", 3 * d, d);
        // PyTorch's deviation for a depthwise convolution.
        let conv = b.taps("conv.weight", d, k, (1.0 / (3 * k) as f64).sqrt());
        let down = b.output("down", d);
        Params { norm: b.branch_norm(), up, conv, down, part: b.need().part }
    }

    /// Numbers in the state of one sequence in the packed runtime.
    pub(crate) fn state_len(&self) -> usize {
        (self.conv.k - 1) * self.down.outputs
    }
}
