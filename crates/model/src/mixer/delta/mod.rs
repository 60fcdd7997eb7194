//! Gated delta rule branch: `H` heads, each with a state of `dk x dv` that a gate decays and an error corrects (arXiv 2412.06464;
//! the rule itself: [`flashlm_kernels::ops::delta_forward`]). With `x = norm(h)`:
//!
//! ```text
//! q, k, v = silu(conv(W_q x)), silu(conv(W_k x)), silu(conv(W_v x))      causal depthwise convolutions
//! q, k <- q/|q|, k/|k| in each head;   o = delta_rule(q, k, v, g, beta)
//! ```
//!
//! | | published | original |
//! |---|---|---|
//! | scale of q | `dk^-1/2` | 1 |
//! | `g` | `-exp(A_log) softplus(W_a x + dt_bias)`, float | `logsigmoid(W_gk x) / 16` |
//! | `beta` | `sigmoid(W_b x)`, float; times 2 with negative eigenvalues | `sigmoid(W_beta x)` |
//! | output | `y = h + W_o (norm(o) silu(W_g x))`, one norm scale for all heads | `y = h + W_o (o sigmoid(W_g x))` |
//!
//! Without a state, chunks of at most `CHUNK` rows run at once and end where a document does. The states before chunks are kept for
//! the backward pass, `dk dv H / CHUNK` elements per row; everything else of the rule is recomputed there. With a state, rows go
//! one by one. The state of a sequence is, for each head, `S` and the last rows of the three convolutions.

mod packed;
#[cfg(test)]
pub(crate) mod reference;
mod rows;
mod train;

use std::ops::Range;

use flashlm_kernels::ops::{Act, Rule, exact_delta_width};
use serde::{Deserialize, Serialize};

pub(crate) use packed::Packed;
pub use train::Train;

use crate::error::{ConfigError, check, epsilon, within};
use crate::layer::branch::Branch;
use crate::layer::config::LayerConfig;
use crate::layer::linear::Linear;
use crate::layer::norm::{BranchNorm, Norm};
use crate::layer::taps::Taps;
use crate::params::Init;

/// Its settings, `model.delta`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaConfig {
    /// The layer around the rule.
    pub form: DeltaForm,
    /// What a new value is compared with.
    pub rule: DeltaRule,
    /// `H`: heads, each with its own state.
    pub heads: usize,
    /// Width of all keys over `D`.
    pub expand_k: f64,
    /// Width of all values over `D`.
    pub expand_v: f64,
    /// Taps of the convolutions of queries, keys and values.
    pub conv: usize,
    /// Write strengths up to 2 instead of 1, so that eigenvalues reach below 0 (arXiv 2411.12537).
    pub negative_eigenvalues: bool,
    /// Epsilon of the published form's norm of a head's output.
    pub norm_eps: f64,
}

/// The layer around the gated delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeltaForm {
    /// As in arXiv 2412.06464: float gates, scaled queries, a norm of each head's output, SiLU output gate.
    Published,
    /// As in the first ternary models of it: ternary gates, no scale, no norm, sigmoid output gate.
    Original,
}

/// What a new value is compared with: see [`flashlm_kernels::ops::Rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeltaRule {
    /// The decayed state.
    Canonical,
    /// The state before it decays.
    Undecayed,
}

impl Default for DeltaConfig {
    fn default() -> Self {
        DeltaConfig {
            form: DeltaForm::Published,
            rule: DeltaRule::Canonical,
            heads: 4,
            expand_k: 0.75,
            expand_v: 1.5,
            conv: 4,
            negative_eigenvalues: false,
            norm_eps: 1e-5,
        }
    }
}

impl DeltaConfig {
    /// Widths of one head's key and value, for model width `d`.
    pub fn widths(&self, d: usize) -> (usize, usize) {
        let of = |expand: f64| (expand * d as f64).round() as usize / self.heads.max(1);
        (of(self.expand_k), of(self.expand_v))
    }
}

/// Checks the settings, and where the mixer is used that they fit the model's width.
pub(crate) fn validate(c: &DeltaConfig, layers: &LayerConfig, used: bool) -> Result<(), ConfigError> {
    within("delta.heads", c.heads, 1, 1024)?;
    within("delta.conv", c.conv, 1, 64)?;
    epsilon("delta.norm_eps", c.norm_eps)?;
    for (key, expand) in [("delta.expand_k", c.expand_k), ("delta.expand_v", c.expand_v)] {
        check(expand > 0.0 && expand <= 8.0, || ConfigError::new(key, expand, "above 0 and at most 8"))?;
        let (width, heads) = (expand * layers.dim as f64, c.heads);
        let whole = width.round();
        let shared = (width - whole).abs() < 1e-6 && whole >= 1.0 && (whole as usize).is_multiple_of(heads);
        let expected = || {
            let near = (width / heads as f64).round().max(1.0) * heads as f64 / layers.dim as f64;
            let near = if near <= 8.0 { format!(", such as {near}") } else { String::new() };
            format!("such that the width of all heads, now {width}, is a multiple of delta.heads = {heads}{near}")
        };
        check(shared || !used, || ConfigError::new(key, expand, expected()))?;
    }
    Ok(())
}

/// Where its parameters lie, and its sizes.
#[derive(Clone, Debug)]
pub struct Params {
    norm: BranchNorm,
    /// Of queries, keys, values, the output gate: `[H dk, D]` or `[H dv, D]`.
    inputs: [Linear; 4],
    /// Of decay and write strength: `[H, D]`.
    gates: [Linear; 2],
    /// Of queries, keys and values.
    convs: [Taps; 3],
    /// `A_log` and `dt_bias`, each `[H]`, of the published form: places among the parameters and among a tile's sums.
    decay: Option<[(Range<usize>, Range<usize>); 2]>,
    /// One scale of `dv` for all heads.
    head_norm: Option<Norm>,
    /// `[D, H dv]`.
    output: Linear,
    act: Act,
    rule: Rule,
    /// `beta` is this times a sigmoid.
    strength: f64,
    /// Epsilon and scale of queries' and keys' norms.
    units: [(f64, f64); 2],
    heads: usize,
    /// Widths of one head.
    dk: usize,
    dv: usize,
    /// Elements of the sums that one tile keeps.
    part: usize,
}

impl Params {
    /// Adds its matrices, taps, gates and norm.
    pub(crate) fn new(b: &mut Branch, c: &DeltaConfig) -> Self {
        let d = b.config().dim;
        let (heads, k, (dk, dv)) = (c.heads, c.conv, c.widths(d));
        let (keys, values) = (heads * dk, heads * dv);
        let published = c.form == DeltaForm::Published;
        let inputs = [("q_proj", keys), ("k_proj", keys), ("v_proj", values), ("g_proj", values)]
            .map(|(name, width)| b.linear(name, width, d));
        let gates = match published {
            true => ["a_proj", "b_proj"].map(|name| b.float(name, heads, d)),
            false => ["gk_proj", "beta_proj"].map(|name| b.linear(name, heads, d)),
        };
        let std = if published { (1.0 / (3 * k) as f64).sqrt() } else { 0.02 };
        let convs = [("q_conv.weight", keys), ("k_conv.weight", keys), ("v_conv.weight", values)]
            .map(|(name, width)| b.taps(name, width, k, std));
        let decay = published.then(|| {
            [("A_log", Init::LnUniform(1e-3, 16.0)), ("dt_bias", Init::InverseSoftplus(1e-3, 0.1))]
                .map(|(name, init)| b.scalars(name, heads, init))
        });
        let head_norm = published.then(|| b.norm("o_norm.scale", dv, c.norm_eps));
        let output = b.output("o_proj", values);
        Params {
            norm: b.branch_norm(),
            inputs,
            gates,
            convs,
            decay,
            head_norm,
            output,
            act: if published { Act::Silu } else { Act::Sigmoid },
            rule: match c.rule {
                DeltaRule::Canonical => Rule::Canonical,
                DeltaRule::Undecayed => Rule::Undecayed,
            },
            strength: if c.negative_eigenvalues { 2.0 } else { 1.0 },
            units: match c.form {
                DeltaForm::Published => [(1e-6, (dk as f64).powf(-0.5)), (1e-6, 1.0)],
                DeltaForm::Original => [(1e-24, 1.0); 2],
            },
            heads,
            dk,
            dv,
            part: b.need().part,
        }
    }

    /// Numbers in the state of one sequence in the packed runtime.
    pub(crate) fn state_len(&self) -> usize {
        let channels: usize = self.convs.iter().map(Taps::channels).sum();
        (self.convs[0].k - 1) * channels + self.heads * self.dk * exact_delta_width(self.dv)
    }

    /// Widths of queries, keys and values of all heads.
    fn widths(&self) -> [usize; 3] {
        [self.heads * self.dk, self.heads * self.dk, self.heads * self.dv]
    }
}
