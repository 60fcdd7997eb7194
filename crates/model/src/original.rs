//! Models that the original PyTorch scripts saved with `torch.save`: v4, blockwise, Gated DeltaNet and v3, as a checkpoint dict
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
//!
//! and of v3, which is told by its `block.glu.gate_proj.weight` `[F, D]`:
//!
//! | setting | from |
//! |---|---|
//! | `blocks` | `n_recursions` of the dict's `config`, else 2 |
//! | kernel, `dilated.groups` | `block.token_mixer.layers.0.conv_gate.conv.weight` `[D, D/G, K]` |
//! | `dilated.dilations` | 1, 4 and 64 for the layers that there are: no file says more |

use std::collections::BTreeMap;
use std::path::Path;

use flashlm_kernels::Buf;

use crate::config::{
    ActivationKind, DeltaConfig, DeltaForm, DeltaRule, DilatedConfig, ModelConfig, QuantConfig, ScaleKind,
};
use crate::io::IoError;
use crate::io::torch::{Item, TorchFile};
use crate::mixer;
use crate::model_file::{ModelError, read_params, wrong};
use crate::params::Layout;

/// A file of more is read no further.
const MOST_BLOCKS: usize = 4096;

/// AdamW as `optimizer_state_dict` has it.
pub struct AdamW {
    /// Running mean of gradients, in the order of the parameters.
    pub m: Buf<f32>,
    /// Running mean of squared gradients.
    pub v: Buf<f32>,
    /// Updates made.
    pub updates: u64,
    /// Decay of `m` and of `v`.
    pub betas: [f64; 2],
    /// What is added to the root of `v`.
    pub eps: f64,
    /// Decay of the parameters.
    pub weight_decay: f64,
}

/// What such a file holds of a model; its tokenizer is another file.
pub struct Original {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// All parameters, flat, in the order of the config's layout.
    pub params: Buf<f32>,
    /// The step of a checkpoint.
    pub step: Option<u64>,
    /// Tokens that it was trained on, where it says so.
    pub tokens: Option<u64>,
    /// Tokens of a sequence, where it says so.
    pub seq_len: Option<usize>,
}

impl Original {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Original, ModelError> {
        Self::read(&TorchFile::open(path)?, path)
    }

    /// The same with the state of its optimizer; none of a bare state dict.
    pub fn with_optimizer(path: &Path) -> Result<(Original, Option<AdamW>), ModelError> {
        let file = TorchFile::open(path)?;
        let original = Self::read(&file, path)?;
        let optimizer = file.root().get("optimizer_state_dict");
        let within = |source| match source {
            ModelError::Io(_) => source,
            source => ModelError::File { path: path.into(), source: Box::new(source) },
        };
        let adamw = optimizer.map(|optimizer| adamw(&file, optimizer, &original.config)).transpose().map_err(within)?;
        Ok((original, adamw))
    }

    fn read(file: &TorchFile, path: &Path) -> Result<Original, ModelError> {
        let root = file.root();
        let state = root.get("model_state_dict").unwrap_or(root);
        let none = |what: &str| {
            let found = format!("a file without {what}");
            IoError::Malformed { file: path.display().to_string(), format: "FlashLM v4 .pt", found }
        };
        let config = config(state).or_else(|| v3(state, root));
        let config = config.ok_or_else(|| none("the tensors of a v4, blockwise, Gated DeltaNet or v3 model"))?;
        let bad = |found| ModelError::Metadata { key: "shapes", expected: "sizes of a model", found };
        config.validate().map_err(|e| ModelError::File { path: path.into(), source: Box::new(bad(e.to_string())) })?;
        let tensors = state.to_tensors(|_| true, &BTreeMap::new())?;
        let within = |source| ModelError::File { path: path.into(), source: Box::new(source) };
        let params = read_params(&tensors, &config, "").map_err(within)?;
        let number = |item: Option<Item>| item.and_then(Item::int).and_then(|n| u64::try_from(n).ok());
        let (step, tokens) = (number(root.get("step")), number(root.get("tokens_seen")));
        let seq_len = number(root.get("config").and_then(|config| config.get("seq_len")));
        let seq_len = seq_len.and_then(|n| usize::try_from(n).ok());
        Ok(Original { config, params, step, tokens, seq_len })
    }
}

/// The moments, by the numbers of the parameters: `state` is `{number: {step, exp_avg, exp_avg_sq}}`, numbers count the tensors of the
/// state dict in its order, a tied head left out.
fn adamw(file: &TorchFile, optimizer: Item, config: &ModelConfig) -> Result<AdamW, ModelError> {
    let wrong = |name: &str, expected: &str, found: &str| wrong(name, expected.into(), found.into());
    let root = file.root();
    let model = root.get("model_state_dict").unwrap_or(root);
    let groups = optimizer.get("param_groups");
    let group = |i| groups.and_then(|groups| groups.nth(i));
    if group(1).is_some() {
        // Their parameters are numbered group by group, in an order that the file does not tell.
        return Err(wrong("optimizer_state_dict", "one group of parameters, as the original scripts have", "several"));
    }
    let group = group(0).ok_or_else(|| wrong("optimizer_state_dict", "one group of parameters", "none"))?;
    let state = optimizer.get("state").ok_or_else(|| wrong("optimizer_state_dict", "a state", "none"))?;
    let number = |item: Option<Item>, key: &str| {
        let value = item.and_then(Item::float).filter(|value| value.is_finite());
        value.ok_or_else(|| wrong(key, "a number, as AdamW has it", "none"))
    };
    let layout = Layout::of(config);
    let (mut m, mut v, mut updates) = (Buf::zeros(layout.len()), Buf::zeros(layout.len()), None);
    let names = model.tensors().into_iter().filter(|name| *name != "head.weight");
    for (i, name) in names.enumerate() {
        let Some(spec) = layout.find(name) else { continue };
        // A parameter that never had a gradient has no state.
        let Some(own) = state.at(i as i64) else { continue };
        let step = own.get("step");
        let one = step.filter(|step| step.shape().is_some_and(|shape| shape.iter().all(|&n| n == 1)));
        let steps = match (step.and_then(Item::float), one) {
            (Some(steps), _) => steps,
            (None, Some(tensor)) => tensor.numbers()?.first().copied().map_or(-1.0, f64::from),
            (None, None) => -1.0,
        };
        if !(0.0..9e15).contains(&steps) || updates.is_some_and(|before| before != steps) {
            return Err(wrong(name, "the same number of updates of each parameter", &steps.to_string()));
        }
        updates = Some(steps);
        for (key, moments) in [("exp_avg", &mut m), ("exp_avg_sq", &mut v)] {
            let tensor = own.get(key).filter(|tensor| tensor.shape().as_ref() == Some(&spec.shape));
            let tensor = tensor.ok_or_else(|| wrong(name, &format!("`{key}` of shape {:?}", spec.shape), "another"))?;
            let values = tensor.numbers()?;
            if values.iter().any(|value| !value.is_finite()) {
                return Err(wrong(name, &format!("finite numbers in `{key}`"), "others"));
            }
            moments[spec.range.clone()].copy_from_slice(&values);
        }
    }
    let betas = group.get("betas");
    let beta = |i| number(betas.and_then(|betas| betas.nth(i)), "betas");
    Ok(AdamW {
        m,
        v,
        updates: updates.unwrap_or(0.0) as u64,
        betas: [beta(0)?, beta(1)?],
        eps: number(group.get("eps"), "eps")?,
        weight_decay: number(group.get("weight_decay"), "weight_decay")?,
    })
}

/// The config of v3 that the shapes of a state dict are of; none where it is of another model.
fn v3(state: Item, root: Item) -> Option<ModelConfig> {
    const DILATIONS: [usize; 3] = [1, 4, 64];
    let shape = |name: &str| state.get(name)?.shape();
    let [vocab_size, dim] = shape("embedding.weight")?[..] else { return None };
    let ffn_hidden = *shape("block.glu.gate_proj.weight")?.first()?;
    let conv = |i: usize| format!("block.token_mixer.layers.{i}.conv_gate.conv.weight");
    let [_, group, kernel_size] = shape(&conv(0))?[..] else { return None };
    let layers = (0..=DILATIONS.len()).take_while(|&i| state.get(&conv(i)).is_some()).count();
    let passes = root.get("config").and_then(|config| config.get("n_recursions")).and_then(Item::int);
    let base = ModelConfig::v4_small();
    Some(ModelConfig {
        family: "v3".into(),
        vocab_size,
        dim,
        blocks: passes.map_or(Some(2), |n| usize::try_from(n).ok())?,
        ffn_hidden,
        norm_eps: 1e-8,
        activation: ActivationKind::Relu2,
        dilated: DilatedConfig { groups: dim / group.max(1), dilations: DILATIONS.get(..layers)?.to_vec() },
        quant: QuantConfig { scale: ScaleKind::Unit, size: 256, norm: false, ..base.quant },
        mixers: mixer::Settings { kernel_size, ..base.mixers },
        ..base
    })
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
