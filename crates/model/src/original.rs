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
use crate::params::{Group, Layout};

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
    /// First updates in which the embedding stayed as it was.
    pub frozen: u64,
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

    /// The same with the state of AdamW; none of a bare state dict, nor where it cannot be told which parameter is which.
    pub fn with_optimizer(path: &Path) -> Result<(Original, Option<AdamW>), ModelError> {
        let file = TorchFile::open(path)?;
        let original = Self::read(&file, path)?;
        let key = if original.config.family == "v3" { "adamw_state_dict" } else { "optimizer_state_dict" };
        let optimizer = file.root().get(key);
        let within = |source| match source {
            ModelError::Io(_) => source,
            source => ModelError::File { path: path.into(), source: Box::new(source) },
        };
        let adamw = optimizer.map(|optimizer| adamw(&file, optimizer, &original.config)).transpose().map_err(within)?;
        Ok((original, adamw.flatten()))
    }

    fn read(file: &TorchFile, path: &Path) -> Result<Original, ModelError> {
        let root = file.root();
        let state = root.get("model_state_dict").unwrap_or(root);
        let none =
            |found: String| IoError::Malformed { file: path.display().to_string(), format: "FlashLM .pt", found };
        let found = match config(state) {
            None => v3(state, root).map_err(none)?,
            found => found,
        };
        let without = "a file without the tensors of a v4, blockwise, Gated DeltaNet or v3 model";
        let config = found.ok_or_else(|| none(without.into()))?;
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
/// state dict in its order, a tied head left out; of v3 group by group ([`of_v3`]), and none where they are grouped in another way.
fn adamw(file: &TorchFile, optimizer: Item, config: &ModelConfig) -> Result<Option<AdamW>, ModelError> {
    let wrong = |name: &str, expected: &str, found: &str| wrong(name, expected.into(), found.into());
    let root = file.root();
    let model = root.get("model_state_dict").unwrap_or(root);
    let layout = Layout::of(config);
    let names: Vec<&str> =
        model.tensors().into_iter().filter(|name| !["head.weight", "lm_head.weight"].contains(name)).collect();
    let groups = optimizer.get("param_groups");
    let group = |i| groups.and_then(|groups| groups.nth(i));
    let v3 = config.family == "v3";
    let (names, decaying) = match groups {
        Some(groups) if v3 => match of_v3(groups, &layout, &names) {
            Some(found) => found,
            None => return Ok(None),
        },
        _ => (names, 0),
    };
    if !v3 && group(1).is_some() {
        // Their parameters are numbered group by group, in an order that the file does not tell.
        return Err(wrong("optimizer_state_dict", "one group of parameters, as the original scripts have", "several"));
    }
    let group = group(decaying).ok_or_else(|| wrong("optimizer_state_dict", "one group of parameters", "none"))?;
    let state = optimizer.get("state").ok_or_else(|| wrong("optimizer_state_dict", "a state", "none"))?;
    let number = |item: Option<Item>, key: &str| {
        let value = item.and_then(Item::float).filter(|value| value.is_finite());
        value.ok_or_else(|| wrong(key, "a number, as AdamW has it", "none"))
    };
    let (mut m, mut v) = (Buf::zeros(layout.len()), Buf::zeros(layout.len()));
    // Of the embedding of v3, which is frozen at first, and of all else.
    let [mut late, mut updates] = [None; 2];
    for (i, name) in names.into_iter().enumerate() {
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
        let count = if v3 && spec.group == Group::Embedding { &mut late } else { &mut updates };
        if !(0.0..9e15).contains(&steps) || count.is_some_and(|before| before != steps) {
            return Err(wrong(name, "the same number of updates of each parameter", &steps.to_string()));
        }
        *count = Some(steps);
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
    let all = updates.or(late).unwrap_or(0.0);
    let frozen = if v3 { all - late.unwrap_or(0.0) } else { 0.0 };
    if frozen < 0.0 {
        return Err(wrong("embedding.weight", "no more updates than other parameters have", "more"));
    }
    Ok(Some(AdamW {
        m,
        v,
        updates: all as u64,
        frozen: frozen as u64,
        betas: [beta(0)?, beta(1)?],
        eps: number(group.get("eps"), "eps")?,
        weight_decay: number(group.get("weight_decay"), "weight_decay")?,
    }))
}

/// The parameters of v3 in the order of their numbers, and which group decays. One group has all of the model, or all that is no matrix of a
/// linear layer; of two one has those that decay, the embedding and the convolutions, and one the others. None of other groups.
fn of_v3<'a>(groups: Item, layout: &Layout, names: &[&'a str]) -> Option<(Vec<&'a str>, usize)> {
    let kind = |name: &str| layout.find(name).map(|spec| (spec.group, spec.shape.len()));
    let decays = |name: &&&str| matches!(kind(name), Some((Group::Embedding | Group::Conv, _)));
    let scalars = |name: &&&str| matches!(kind(name), Some((_, 1)));
    let all = (0..groups.len()).map(|i| groups.nth(i)).collect::<Option<Vec<Item>>>()?;
    let decaying =
        all.iter().position(|group| group.get("weight_decay").and_then(Item::float).is_some_and(|d| d > 0.0));
    let decaying = decaying.unwrap_or(0);
    let those = |of: &dyn Fn(&&&str) -> bool| names.iter().filter(of).copied().collect::<Vec<&str>>();
    let own = match all[..] {
        [one] if one.get("params")?.len() == names.len() => vec![names.to_vec()],
        [_] => vec![those(&|name| decays(name) || scalars(name))],
        [_, _] if decaying == 0 => vec![those(&decays), those(&scalars)],
        [_, _] => vec![those(&scalars), those(&decays)],
        _ => return None,
    };
    let whole = own.iter().zip(&all).all(|(own, group)| group.get("params").is_some_and(|all| all.len() == own.len()));
    whole.then(|| (own.concat(), decaying))
}

/// The config of v3 that the shapes of a state dict are of; none where it is of another model, an error where it says what no v3 has.
fn v3(state: Item, root: Item) -> Result<Option<ModelConfig>, String> {
    const DILATIONS: [usize; 3] = [1, 4, 64];
    let conv = |i: usize| format!("block.token_mixer.layers.{i}.conv_gate.conv.weight");
    let sizes = || {
        let shape = |name: &str| state.get(name)?.shape();
        let [vocab_size, dim] = shape("embedding.weight")?[..] else { return None };
        let ffn_hidden = *shape("block.glu.gate_proj.weight")?.first()?;
        let [_, group, kernel_size] = shape(&conv(0))?[..] else { return None };
        Some((vocab_size, dim, ffn_hidden, group, kernel_size))
    };
    let Some((vocab_size, dim, ffn_hidden, group, kernel_size)) = sizes() else { return Ok(None) };
    let layers = (0..=DILATIONS.len()).take_while(|&i| state.get(&conv(i)).is_some()).count();
    let dilations = DILATIONS.get(..layers);
    let dilations = dilations.ok_or_else(|| format!("`{}`, and no file says its dilation", conv(DILATIONS.len())))?;
    let passes = root.get("config").and_then(|config| config.get("n_recursions"));
    let passes =
        passes.map_or(Some(2), |n| n.int().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=128).contains(n)));
    let blocks = passes.ok_or("`n_recursions` in its `config` that is no number from 1 to 128")?;
    let base = ModelConfig::v4_small();
    Ok(Some(ModelConfig {
        family: "v3".into(),
        vocab_size,
        dim,
        blocks,
        ffn_hidden,
        norm_eps: 1e-8,
        activation: ActivationKind::Relu2,
        dilated: DilatedConfig { groups: dim / group.max(1), dilations: dilations.to_vec() },
        quant: QuantConfig { scale: ScaleKind::Unit, size: 256, norm: false, ..base.quant },
        mixers: mixer::Settings { kernel_size, ..base.mixers },
        ..base
    }))
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
