//! Causal attention branch: `H` heads of width `dh = D / H`, each row seeing at most `window` rows of its document, itself included
//! ([`flashlm_kernels::ops::attention_forward`]). With `x = norm(h)`:
//!
//! ```text
//! q, k, v = W_q x, W_k x, W_v x
//! q, k <- rope(norm(q)), rope(norm(k)) of each head     norms with one scale of width dh for all heads (QK-norm, arXiv 2010.04245)
//! y = h + W_o attend(q dh^-1/2, k, v)
//! ```
//!
//! A row's angles are `past * base^(-2i/dh)` (RoPE, arXiv 2104.09864), `past` the rows of its document before it; a score then
//! depends on the distance of two rows. The state of a sequence is, for each head, a ring of the last keys as they are multiplied,
//! and values: of `window` rows in training, in the packed runtime of some more. With a state or without, in pieces or at once, a row is the
//! same to the bit. The backward pass makes the probabilities again from the logarithm of their sum, which is kept for each row
//! and head.

mod angles;
mod packed;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;
mod train;

use flashlm_kernels::ops::exact_slots;
use serde::{Deserialize, Serialize};

pub(crate) use angles::turns;
pub(crate) use packed::Packed;
pub use train::Train;

use crate::error::{ConfigError, check, within};
use crate::layer::branch::Branch;
use crate::layer::config::LayerConfig;
use crate::layer::linear::Linear;
use crate::layer::norm::{BranchNorm, Norm};

/// Epsilon of the norms of queries and keys.
const NORM_EPS: f64 = 1e-6;

/// Its settings, `model.attention`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttentionConfig {
    /// `H`: heads of width `D / H`.
    pub heads: usize,
    /// Tokens that a token sees, itself included.
    pub window: usize,
    /// Longest wavelength of the rotation, over 2 pi tokens.
    pub rope_base: f64,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        AttentionConfig { heads: 4, window: 256, rope_base: 10_000.0 }
    }
}

/// Checks the settings, and where the mixer is used that they fit the model's width.
pub(crate) fn validate(c: &AttentionConfig, layers: &LayerConfig, used: bool) -> Result<(), ConfigError> {
    within("attention.heads", c.heads, 1, 1024)?;
    within("attention.window", c.window, 1, 1 << 14)?;
    let base = c.rope_base;
    check((1.0..=1e9).contains(&base), || ConfigError::new("attention.rope_base", base, "between 1 and 1e9"))?;
    let dim = layers.dim;
    let expected = || {
        let fewer = (1..c.heads).rev().find(|heads| dim.is_multiple_of(2 * heads));
        let fewer = fewer.map_or("; an odd dim has none".into(), |heads| format!(", such as {heads}"));
        format!("such that each head of dim = {dim} has an even width{fewer}")
    };
    check(dim.is_multiple_of(2 * c.heads) || !used, || ConfigError::new("attention.heads", c.heads, expected()))
}

/// Where its parameters lie, and its sizes.
#[derive(Clone, Debug)]
pub struct Params {
    norm: BranchNorm,
    /// Of queries, keys and values: `[D, D]`.
    inputs: [Linear; 3],
    /// Of queries and keys, one scale of `dh` for all heads.
    head_norms: [Norm; 2],
    /// `[D, D]`.
    output: Linear,
    heads: usize,
    window: usize,
    rope_base: f64,
    /// Elements of the sums that one tile keeps.
    part: usize,
}

impl Params {
    /// Adds its matrices and norms.
    pub(crate) fn new(b: &mut Branch, c: &AttentionConfig) -> Self {
        let d = b.config().dim;
        let inputs = ["q_proj", "k_proj", "v_proj"].map(|name| b.linear(name, d, d));
        let output = b.output("o_proj", d);
        let head_norms = ["q_norm.scale", "k_norm.scale"].map(|name| b.norm(name, d / c.heads, NORM_EPS));
        let AttentionConfig { heads, window, rope_base } = *c;
        Params { norm: b.branch_norm(), inputs, head_norms, output, heads, window, rope_base, part: b.need().part }
    }

    /// Numbers in the state of one sequence in the packed runtime.
    pub(crate) fn state_len(&self) -> usize {
        2 * exact_slots(self.window) * self.output.outputs
    }

    /// Width of a head.
    fn width(&self) -> usize {
        self.output.outputs / self.heads
    }

    /// What queries and keys are multiplied with.
    fn scales(&self) -> [f64; 2] {
        [(self.width() as f64).powf(-0.5), 1.0]
    }
}
