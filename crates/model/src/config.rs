//! Sizes and switches of a model, read from TOML (`[model]`) and JSON (checkpoints); unknown keys are errors.

use flashlm_kernels::Token;
use flashlm_kernels::ops::{Act, Quant, Scale, Statistic};
use serde::{Deserialize, Serialize};

pub use crate::error::ConfigError;
use crate::layer::config::LayerConfig;
use crate::mixer;
pub use crate::mixer::attention::AttentionConfig;
pub use crate::mixer::delta::{DeltaConfig, DeltaForm, DeltaRule};
pub use crate::mixer::shortconv::ShortConvConfig;

/// The sizes and switches of a language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The model family, by its name in `families!`.
    #[serde(default = "default_family", skip_serializing_if = "is_default_family")]
    pub family: String,
    /// `V`: tokens in the vocabulary.
    pub vocab_size: usize,
    /// `D`: model width.
    pub dim: usize,
    /// `N`: blocks, each a mixer and a GLU; of the family `v3` how often its block is applied.
    pub blocks: usize,
    /// `F`: hidden width of the GLU.
    pub ffn_hidden: usize,
    /// Token mixer, by its name in `mixers!`.
    pub mixer: String,
    /// Mixers of the blocks in order, repeated; empty: `mixer` in each.
    #[serde(default)]
    pub pattern: Vec<String>,
    /// Whether mixers start from a fresh state at each `eos`, so that no token sees another document (intra-document masking).
    #[serde(default)]
    pub reset: bool,
    /// The token that ends a document; a run takes it from its tokenizer.
    #[serde(default)]
    pub eos: usize,
    /// The ternary quantiser.
    pub quant: QuantConfig,
    /// Settings of the mixers: `kernel_size`, `delta`, `attention`, `shortconv`.
    #[serde(flatten)]
    pub mixers: mixer::Settings,
    /// Of the family `v3`: its dilated convolutions.
    #[serde(default, skip_serializing_if = "DilatedConfig::is_default")]
    pub dilated: DilatedConfig,
    /// RMSNorm before each mixer and GLU.
    pub block_norm: bool,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f64,
    /// Activation of the gate of the GLU.
    #[serde(default)]
    pub activation: ActivationKind,
    /// RMSNorm before the output projection of each mixer and GLU (sub-LN, arXiv 2210.06423).
    #[serde(default)]
    pub sub_norm: bool,
    /// Output projections start at zero, so that each branch starts as the identity.
    #[serde(default)]
    pub zero_init: bool,
    /// A residual from the embedding: before each block `h = r h + s x0` with learned numbers `r` and `s`.
    #[serde(default)]
    pub x0: bool,
    /// Rows of a second table, looked up by the token and the one before, whose rows are added to those of the embedding; 0: none.
    #[serde(default)]
    pub bigram: usize,
    /// A table of its own for each block, looked up by the token: its row is added to the stream before the block.
    #[serde(default)]
    pub layer_embeddings: bool,
    /// Rows before a row whose next tokens the head may point at; 0: none.
    #[serde(default)]
    pub pointer: usize,
    /// Whether pointers take a word after a space, and the same after a quotation mark or at the start of a line, for one.
    #[serde(default)]
    pub pointer_words: bool,
    /// `c` of the soft cap of logits, `c tanh(z / c)`; 0: none.
    #[serde(default)]
    pub logit_softcap: f64,
    /// 8: the inputs of ternary matrices and of the head are rounded to int8, as the packed runtime always does; 0: they are not.
    #[serde(default)]
    pub activation_bits: u32,
}

/// The dilated convolutions of the family `v3`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DilatedConfig {
    /// `G`: groups of channels, a divisor of `D`.
    pub groups: usize,
    /// Rows between two taps, of each layer of the mixer.
    pub dilations: Vec<usize>,
}

impl Default for DilatedConfig {
    fn default() -> Self {
        DilatedConfig { groups: 16, dilations: vec![1, 4, 64] }
    }
}

impl DilatedConfig {
    fn is_default(&self) -> bool {
        *self == DilatedConfig::default()
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
    /// Its own RMSNorm before each BitLinear.
    pub norm: bool,
}

/// Which weights share one `alpha`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleKind {
    /// Weights stay float: the baseline of ablations.
    None,
    /// One per matrix.
    Tensor,
    /// One per `size` elements of the flattened matrix.
    Block,
    /// One per `size` elements of a row.
    Group,
    /// None: `1` and `-1` where `|w|` is above `alpha` of the whole matrix.
    Unit,
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

/// Activation of the gate of the GLU; models saved before there was a choice have SiLU.
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
    pub fn act(self) -> Act {
        match self {
            ActivationKind::Silu => Act::Silu,
            ActivationKind::Relu2 => Act::Relu2,
        }
    }
}

fn default_family() -> String {
    "flash".into()
}

fn is_default_family(family: &String) -> bool {
    *family == default_family()
}

impl QuantConfig {
    /// The kernel's settings; `None` where weights stay float.
    pub fn quant(&self) -> Option<Quant> {
        let scale = match self.scale {
            ScaleKind::None => return None,
            ScaleKind::Tensor => Scale::Tensor,
            ScaleKind::Block => Scale::Block(self.size),
            ScaleKind::Group => Scale::Group(self.size),
            ScaleKind::Unit => Scale::Unit,
        };
        let stat = match self.stat {
            StatKind::Mean => Statistic::Mean,
            StatKind::Median => Statistic::Median,
        };
        Some(Quant { scale, stat })
    }
}

impl ModelConfig {
    /// v4-small: 4,364,736 parameters.
    pub fn v4_small() -> Self {
        ModelConfig {
            family: default_family(),
            vocab_size: 10_000,
            dim: 192,
            blocks: 6,
            ffn_hidden: 512,
            mixer: "conv".into(),
            pattern: Vec::new(),
            reset: false,
            eos: 0,
            dilated: DilatedConfig::default(),
            block_norm: true,
            norm_eps: 1e-6,
            activation: ActivationKind::Silu,
            sub_norm: false,
            zero_init: false,
            x0: false,
            bigram: 0,
            layer_embeddings: false,
            pointer: 0,
            pointer_words: false,
            logit_softcap: 0.0,
            activation_bits: 0,
            quant: QuantConfig { scale: ScaleKind::Tensor, size: 256, stat: StatKind::Mean, norm: false },
            mixers: mixer::Settings {
                kernel_size: 8,
                delta: DeltaConfig::default(),
                attention: AttentionConfig::default(),
                shortconv: ShortConvConfig::default(),
            },
        }
    }

    /// The token at which mixers start anew, if they do.
    pub fn document_start(&self) -> Option<Token> {
        if self.reset { Token::try_from(self.eos).ok() } else { None }
    }

    /// What layers need to know.
    pub fn layers(&self) -> LayerConfig {
        LayerConfig {
            dim: self.dim,
            eps: self.norm_eps,
            int8: false,
            quant: self.quant.quant(),
            block_norm: self.block_norm,
            matrix_norm: self.quant.norm,
            sub_norm: self.sub_norm,
            zero_init: self.zero_init,
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
        let older: DeltaConfig = serde_json::from_str(r#"{"heads":3}"#).unwrap();
        assert_eq!(older.norm_eps, 1e-5, "the one there was");
        let all = ModelConfig {
            activation: ActivationKind::Relu2,
            sub_norm: true,
            zero_init: true,
            x0: true,
            bigram: 5,
            layer_embeddings: true,
            logit_softcap: 15.0,
            ..ModelConfig::v4_small()
        };
        let json = serde_json::to_string(&all).unwrap();
        assert!(
            json.contains(
                r#""activation":"relu2","sub_norm":true,"zero_init":true,"x0":true,"bigram":5,"layer_embeddings":true,"pointer":0,"pointer_words":false,"logit_softcap":15.0"#
            ),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), all);
    }
}
