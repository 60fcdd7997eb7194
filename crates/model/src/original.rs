//! Models that the original PyTorch scripts saved with `torch.save`: v4, blockwise and Gated DeltaNet, as a checkpoint dict
//! (`model_state_dict`, `step`, ...) or a bare state dict.
//!
//! What the dict does not say is read from the shapes:
//!
//! | setting | from |
//! |---|---|
//! | `vocab_size`, `dim` | `embedding.weight` `[V, D]` |
//! | `blocks` | the names `blocks.{i}.` |
//! | `ffn_hidden` | `blocks.0.ffn.W_gate.weight` `[F, D]` |
//! | kernel | `blocks.0.mixer.conv.weight` `[D, 1, K]` |
//! | heads, expansions, `conv` of `delta` | `gk_proj` `[H, D]`, `q_proj` `[dk H, D]`, `v_proj` `[dv H, D]`, `q_conv` `[C, 1, K]` |
//! | scales of 256 elements, norm of each matrix | whether there is a `blocks.0.ffn.W_gate.norm.scale` |
//! | `block_norm` | whether there is a `blocks.0.norm1.scale` |

use std::collections::BTreeMap;
use std::path::Path;

use flashlm_kernels::Buf;

use crate::config::{DeltaConfig, DeltaForm, DeltaRule, ModelConfig, QuantConfig, ScaleKind};
use crate::io::IoError;
use crate::io::torch::{Item, TorchFile};
use crate::mixer;
use crate::model_file::{ModelError, read_params};

/// A file of more is read no further.
const MOST_BLOCKS: usize = 4096;

/// What such a file holds of a model; its tokenizer is another file.
pub struct Original {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// All parameters, flat, in the order of the config's layout.
    pub params: Buf<f32>,
    /// The step of a checkpoint.
    pub step: Option<u64>,
}

impl Original {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Original, ModelError> {
        let file = TorchFile::open(path)?;
        let root = file.root();
        let state = root.get("model_state_dict").unwrap_or(root);
        let none = |what: &str| {
            let found = format!("a file without {what}");
            IoError::Malformed { file: path.display().to_string(), format: "FlashLM v4 .pt", found }
        };
        let config = config(state).ok_or_else(|| none("the tensors of a v4, blockwise or Gated DeltaNet model"))?;
        let bad = |found| ModelError::Metadata { key: "shapes", expected: "sizes of a model", found };
        config.validate().map_err(|e| ModelError::File { path: path.into(), source: Box::new(bad(e.to_string())) })?;
        let tensors = state.to_tensors(|_| true, &BTreeMap::new())?;
        let within = |source| ModelError::File { path: path.into(), source: Box::new(source) };
        let params = read_params(&tensors, &config, "").map_err(within)?;
        let step = root.get("step").and_then(Item::int).and_then(|step| u64::try_from(step).ok());
        Ok(Original { config, params, step })
    }
}

/// The config that the shapes of a state dict are of; none where it is of another model.
fn config(state: Item) -> Option<ModelConfig> {
    let shape = |name: &str| state.get(name)?.shape();
    let [vocab_size, dim] = shape("embedding.weight")?[..] else { return None };
    let blocks = (0..MOST_BLOCKS).take_while(|i| state.get(&format!("blocks.{i}.ffn.W_gate.weight")).is_some()).count();
    let ffn_hidden = *shape("blocks.0.ffn.W_gate.weight")?.first()?;
    let base = ModelConfig::v4_small();
    let rows = |part: &str| shape(&format!("blocks.0.mixer.{part}"))?.first().copied();
    let (mixer, mixers) = match shape("blocks.0.mixer.conv.weight") {
        Some(taps) => {
            let kernel_size = *taps.last()?;
            ("conv", mixer::Settings { kernel_size, ..base.mixers })
        }
        None => {
            let expand = |part| Some(rows(part)? as f64 / dim.max(1) as f64);
            let delta = DeltaConfig {
                form: DeltaForm::Original,
                rule: DeltaRule::Undecayed,
                heads: rows("gk_proj.weight")?,
                expand_k: expand("q_proj.weight")?,
                expand_v: expand("v_proj.weight")?,
                conv: *shape("blocks.0.mixer.q_conv.weight")?.last()?,
                negative_eigenvalues: false,
                ..base.mixers.delta
            };
            ("delta", mixer::Settings { kernel_size: 1, delta, ..base.mixers })
        }
    };
    let norm = state.get("blocks.0.ffn.W_gate.norm.scale").is_some();
    let scale = if norm { ScaleKind::Block } else { ScaleKind::Tensor };
    Some(ModelConfig {
        vocab_size,
        dim,
        blocks,
        ffn_hidden,
        mixer: mixer.into(),
        mixers,
        block_norm: state.get("blocks.0.norm1.scale").is_some(),
        norm_eps: 1e-6,
        quant: QuantConfig { scale, size: 256, norm, ..base.quant },
        activation_bits: 0,
        ..base
    })
}
