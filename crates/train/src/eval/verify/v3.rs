//! The settings of vectors of FlashLM v3, whose optimizers have a part each.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config;
use crate::optim;
use flashlm_model::ModelConfig;
use flashlm_model::config::{ActivationKind, DilatedConfig, QuantConfig, ScaleKind, StatKind};
use flashlm_model::mixer;

/// Epsilon of RMSNorm.
const NORM_EPS: f64 = 1e-8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(rename = "arch")]
    _arch: String,
    dim: usize,
    vocab: usize,
    inner: usize,
    dilations: Vec<usize>,
    kernel: usize,
    groups: usize,
    recursions: usize,
    label_smoothing: f64,
    z_loss: f64,
    /// `all`: the loss is of every row.
    positions: String,
    normuon: NorMuon,
    adamw: AdamW,
    clip: f64,
    steps: usize,
    #[serde(rename = "seed")]
    _seed: Option<u64>,
    #[serde(rename = "made_with")]
    _made_with: Option<String>,
}

/// Which parameters each gets follows from the model.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NorMuon {
    lr: f64,
    momentum: f64,
    beta2: f64,
    #[serde(rename = "params")]
    _params: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdamW {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    decay: f64,
    #[serde(rename = "decay_params")]
    _decay: Option<IgnoredAny>,
    #[serde(rename = "no_decay_params")]
    _no_decay: Option<IgnoredAny>,
}

/// A model, and how it is trained.
pub(super) struct Trained {
    pub model: ModelConfig,
    pub optim: optim::Settings,
    pub z_loss: f64,
    pub smoothing: f64,
    pub steps: usize,
}

/// What these settings ask for, or what is wrong with them.
pub(super) fn read(value: serde_json::Value) -> Result<Trained, String> {
    let s: Settings = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if s.positions != "all" {
        return Err(format!("positions {:?}, expected \"all\"", s.positions));
    }
    let smooth = (0.0..1.0).contains(&s.label_smoothing) && (0.0..=1.0).contains(&s.z_loss);
    if !smooth {
        return Err("label_smoothing or z_loss is not between 0 and 1".into());
    }
    let base = ModelConfig::v4_small();
    let model = ModelConfig {
        family: "v3".into(),
        vocab_size: s.vocab,
        dim: s.dim,
        blocks: s.recursions,
        ffn_hidden: s.inner,
        norm_eps: NORM_EPS,
        activation: ActivationKind::Relu2,
        dilated: DilatedConfig { groups: s.groups, dilations: s.dilations },
        quant: QuantConfig { scale: ScaleKind::Unit, size: 256, stat: StatKind::Mean, norm: false },
        mixers: mixer::Settings { kernel_size: s.kernel, ..base.mixers.clone() },
        ..base
    };
    let optim = optim::Settings {
        lr: s.adamw.lr,
        beta1: s.adamw.betas[0],
        beta2: s.adamw.betas[1],
        eps: s.adamw.eps,
        weight_decay: s.adamw.decay,
        clip: s.clip,
        matrix_lr: s.normuon.lr,
        momentum: s.normuon.momentum,
        matrix_beta2: s.normuon.beta2,
        matrix_weight_decay: 0.0,
        ..config::Settings::default().train.optim()
    };
    Ok(Trained { model, optim, z_loss: s.z_loss, smoothing: s.label_smoothing, steps: s.steps })
}
