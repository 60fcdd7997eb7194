//! What a model is: sizes and switches, read from TOML (`[model]`) and JSON (checkpoints); unknown keys are errors.

mod validate;

use flashlm_kernels::ops::{Act, Quant, Scale, Stat};
use serde::{Deserialize, Serialize};

pub use validate::{ConfigError, MAX_NUMBERS};

/// The sizes and switches of a language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// `V`: tokens in the vocabulary.
    pub vocab_size: usize,
    /// `D`: model width.
    pub dim: usize,
    /// `N`: blocks, each a mixer and a GLU.
    pub blocks: usize,
    /// `F`: hidden width of the GLU.
    pub ffn_hidden: usize,
    /// Token mixer, by its name in `mixers!`.
    pub mixer: String,
    /// The mixers of the blocks in turn, repeated; empty: `mixer` in each.
    #[serde(default)]
    pub pattern: Vec<String>,
    /// Whether mixers start anew where a story does, at each `eos`.
    #[serde(default)]
    pub reset: bool,
    /// The token between stories; a run takes it from its tokenizer.
    #[serde(default)]
    pub eos: usize,
    /// `K`: taps of the causal convolution.
    pub kernel_size: usize,
    /// RMSNorm before each mixer and GLU.
    pub block_norm: bool,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f64,
    /// What the gate of the GLU goes through.
    #[serde(default)]
    pub activation: ActivationKind,
    /// RMSNorm before the output projection of each mixer and GLU (sub-LN, arXiv 2210.06423).
    #[serde(default)]
    pub sub_norm: bool,
    /// Output projections start at zero, so that each branch starts as nothing.
    #[serde(default)]
    pub zero_init: bool,
    /// `c` of the soft cap of logits, `c tanh(z / c)`; 0: none.
    #[serde(default)]
    pub logit_softcap: f64,
    /// 8: the inputs of ternary matrices and of the head are rounded to int8, as the packed runtime always does; 0: they are not.
    #[serde(default)]
    pub activation_bits: u32,
    /// The ternary quantiser.
    pub quant: QuantConfig,
    /// Settings of the mixer `delta`.
    #[serde(default)]
    pub delta: DeltaConfig,
    /// Settings of the mixer `attention`.
    #[serde(default)]
    pub attention: AttentionConfig,
}

/// The gated delta rule: see [`crate::mixer::delta`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaConfig {
    /// The layer around the rule.
    pub form: DeltaForm,
    /// What a new value is compared with.
    pub rule: DeltaRule,
    /// `H`: heads, each with a state of its own.
    pub heads: usize,
    /// Width of all keys over `D`.
    pub expand_k: f64,
    /// Width of all values over `D`.
    pub expand_v: f64,
    /// Taps of the convolutions of queries, keys and values.
    pub conv: usize,
    /// Write strengths up to 2 instead of 1, so that eigenvalues reach below 0 (arXiv 2411.12537).
    pub negative_eigenvalues: bool,
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

/// Causal attention: see [`crate::mixer::attention`].
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

/// The quantiser of every BitLinear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantConfig {
    /// Which weights share one `alpha`.
    pub scale: ScaleKind,
    /// `N` of `block` and `group`.
    pub size: usize,
    /// How `alpha` summarises `|w|`.
    pub stat: StatKind,
    /// An RMSNorm of its own before each BitLinear.
    pub norm: bool,
}

/// Which weights share one `alpha`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleKind {
    /// Weights stay float: the baseline of ablations.
    None,
    /// One a matrix.
    Tensor,
    /// One for `size` elements of the flattened matrix.
    Block,
    /// One for `size` elements of a row.
    Group,
}

/// How `alpha` summarises `|w|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatKind {
    /// Arithmetic mean.
    Mean,
    /// Lower median.
    Median,
}

/// What the gate of the GLU goes through; models saved before there was a choice have SiLU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationKind {
    /// `g sigmoid(g)`.
    #[default]
    Silu,
    /// `max(g, 0)^2`.
    Relu2,
}

impl ActivationKind {
    /// The kernel's setting.
    pub fn activation(self) -> Act {
        match self {
            ActivationKind::Silu => Act::Silu,
            ActivationKind::Relu2 => Act::Relu2,
        }
    }
}

impl QuantConfig {
    /// The kernel's settings; `None` where weights stay float.
    pub fn quant(&self) -> Option<Quant> {
        let scale = match self.scale {
            ScaleKind::None => return None,
            ScaleKind::Tensor => Scale::Tensor,
            ScaleKind::Block => Scale::Block(self.size),
            ScaleKind::Group => Scale::Group(self.size),
        };
        let stat = match self.stat {
            StatKind::Mean => Stat::Mean,
            StatKind::Median => Stat::Median,
        };
        Some(Quant { scale, stat })
    }
}

impl ModelConfig {
    /// v4-small: 4,364,736 parameters.
    pub fn v4_small() -> Self {
        ModelConfig {
            vocab_size: 10_000,
            dim: 192,
            blocks: 6,
            ffn_hidden: 512,
            mixer: "conv".into(),
            pattern: Vec::new(),
            reset: false,
            eos: 0,
            kernel_size: 8,
            block_norm: true,
            norm_eps: 1e-6,
            activation: ActivationKind::Silu,
            sub_norm: false,
            zero_init: false,
            logit_softcap: 0.0,
            activation_bits: 0,
            quant: QuantConfig { scale: ScaleKind::Tensor, size: 256, stat: StatKind::Mean, norm: false },
            delta: DeltaConfig::default(),
            attention: AttentionConfig::default(),
        }
    }

    /// The mixer of block `i`.
    pub fn mixer_of(&self, i: usize) -> &str {
        match self.pattern.as_slice() {
            [] => &self.mixer,
            pattern => &pattern[i % pattern.len()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_saved_before_there_were_switches_has_them_off() {
        let older = r#"{"vocab_size":10000,"dim":192,"blocks":6,"ffn_hidden":512,"mixer":"conv","kernel_size":8,
            "block_norm":true,"norm_eps":1e-6,"quant":{"scale":"tensor","size":256,"stat":"mean","norm":false}}"#;
        assert_eq!(serde_json::from_str::<ModelConfig>(older).unwrap(), ModelConfig::v4_small());
        let all = ModelConfig {
            activation: ActivationKind::Relu2,
            sub_norm: true,
            zero_init: true,
            logit_softcap: 15.0,
            ..ModelConfig::v4_small()
        };
        let json = serde_json::to_string(&all).unwrap();
        assert!(
            json.contains(r#""activation":"relu2","sub_norm":true,"zero_init":true,"logit_softcap":15.0"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), all);
    }
}
