//! Leaky integrator branch, the smallest mixer there is and the example to start a new one from. With `x = norm(h)`:
//!
//! ```text
//! v = W_up x;   s_t = a * s_{t-1} + (1 - a) * v_t,   a = sigmoid(decay) in each channel;   y = h + W_down s
//! ```
//!
//! The state of a sequence is `s: [D]`. Like every mixer it starts anew with a document, where `past` is 0.
//!
//! This file has the parameters; `train.rs` the forward and backward pass, `packed.rs` the packed form, `reference.rs` one row in
//! plain loops for the tests. Its name in `mixers!` (`mixer/mod.rs`) is all that the rest of the program needs. A mixer with
//! settings names their key and type there too, and checks them in `validate`: see `attention`.

mod packed;
#[cfg(test)]
pub(crate) mod reference;
mod train;

pub(crate) use packed::Packed;
pub use train::Train;

use std::ops::Range;

use crate::error::ConfigError;
use crate::layer::branch::Branch;
use crate::layer::config::LayerConfig;
use crate::layer::linear::Linear;
use crate::layer::norm::BranchNorm;
use crate::params::Init;

/// It has no settings that could be wrong.
pub(crate) fn validate(_: &(), _: &LayerConfig, _used: bool) -> Result<(), ConfigError> {
    Ok(())
}

/// Where its parameters lie.
#[derive(Clone, Debug)]
pub struct Params {
    norm: BranchNorm,
    /// `[D, D]`.
    up: Linear,
    /// `[D]`: places among the parameters, and among the sums that one tile of rows keeps for gradients.
    decay: (Range<usize>, Range<usize>),
    /// `[D, D]`.
    down: Linear,
    /// Elements of the sums that one tile keeps.
    part: usize,
}

impl Params {
    /// Adds `up`, `decay` and `down`. The matrix back to the residual stream is an `output`, for the switches that concern it; `part` is
    /// read last, when every parameter has its place.
    pub(crate) fn new(b: &mut Branch, _: &()) -> Self {
        let d = b.config().dim;
        let up = b.linear("up", d, d);
        // `a` from 1/2 to 16/17: half of a token is forgotten after 1 to 11 tokens.
        let decay = b.scalars("decay", d, Init::LnUniform(1.0, 16.0));
        let down = b.output("down", d);
        Params { norm: b.branch_norm(), up, decay, down, part: b.need().part }
    }

    /// Numbers in the state of one sequence in the packed runtime.
    pub(crate) fn state_len(&self) -> usize {
        self.down.outputs
    }
}
