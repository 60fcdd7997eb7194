//! What a model is: sizes and switches, read from TOML (`[model]`) and JSON (checkpoints); unknown keys are errors.

use flashlm_kernels::ops::{Quant, Scale, Stat};
use serde::{Deserialize, Serialize};

use crate::mixer;

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
    /// `K`: taps of the causal convolution.
    pub kernel_size: usize,
    /// RMSNorm before each mixer and GLU.
    pub block_norm: bool,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f64,
    /// The ternary quantiser.
    pub quant: QuantConfig,
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

/// A setting that no model can have.
#[derive(Debug, thiserror::Error)]
#[error("model.{key} = {found}: must be {expected}")]
pub struct ConfigError {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// The allowed values.
    pub expected: String,
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
            kernel_size: 8,
            block_norm: true,
            norm_eps: 1e-6,
            quant: QuantConfig { scale: ScaleKind::Tensor, size: 256, stat: StatKind::Mean, norm: false },
        }
    }

    /// Checks every value; sizes are bounded, so that a hostile file cannot ask for the whole memory.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = |key, found: usize, low: usize, high: usize| {
            if (low..=high).contains(&found) {
                return Ok(());
            }
            Err(ConfigError { key, found: found.to_string(), expected: format!("between {low} and {high}") })
        };
        range("vocab_size", self.vocab_size, 2, usize::from(u16::MAX))?;
        range("dim", self.dim, 1, 8192)?;
        range("blocks", self.blocks, 1, 128)?;
        range("ffn_hidden", self.ffn_hidden, 1, 32_768)?;
        range("kernel_size", self.kernel_size, 1, 64)?;
        range("quant.size", self.quant.size, 1, 1 << 20)?;
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            let expected = "above 0 and below 1".into();
            return Err(ConfigError { key: "norm_eps", found: self.norm_eps.to_string(), expected });
        }
        if !mixer::NAMES.contains(&self.mixer.as_str()) {
            let expected = format!("one of {}", mixer::NAMES.join(", "));
            return Err(ConfigError { key: "mixer", found: format!("{:?}", self.mixer), expected });
        }
        Ok(())
    }
}
