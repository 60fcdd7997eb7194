//! The settings, as a resolved TOML has them.

use flashlm_model::{ModelConfig, Precision};
use serde::{Deserialize, Serialize};

use crate::optim;
use crate::schedule::{Schedule, Shape};
use crate::stage::{Boundaries, Stage};

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Name of the run's model, for logs and the card.
    pub name: String,
    /// Architecture.
    pub model: ModelConfig,
    /// Vocabulary.
    pub tokenizer: TokenizerSettings,
    /// Text.
    pub data: DataSettings,
    /// Everything about training.
    pub train: TrainSettings,
}

/// `[tokenizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizerSettings {
    /// `frequency`, `bpe`, `bytes`, or a file.
    pub kind: String,
    /// Tokens to aim for.
    pub vocab: usize,
    /// Stories from the first on that a frequency vocabulary counts.
    pub stories: usize,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSettings {
    /// Files, a folder, a pattern or several of these, a line each; a dataset of the hub; or `synthetic`.
    pub source: String,
    /// Field or column of the text, in `source` and `valid`; empty: `text`, or that of the dataset.
    pub column: String,
    /// The same as `source` for validation; empty: the dataset's own, else hold out a share of `source`.
    pub valid: String,
    /// Field or column of the text in `valid`; empty: as in `source`.
    pub valid_column: String,
    /// Share of the text held out, more where that would be little; 0: none, and the training text is validated on.
    pub holdout: f64,
    /// Whether to train on stories that are in the validation text, too.
    pub keep_doubles: bool,
    /// What becomes of the ends of stories; `model.reset` follows from it, and it from that: the later setting rules.
    pub boundaries: Boundaries,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TrainSettings {
    pub seed: u64,
    /// What products are computed in; `auto` is what this machine does fastest.
    pub precision: Precision,
    /// Tokens of a sequence, `T`.
    pub seq_len: usize,
    /// Sequences of a step; 0: by the hardware.
    pub batch: usize,
    /// Batches summed before a step.
    pub accumulation: usize,
    /// Passes over the data where neither `steps` nor `minutes` is given.
    pub epochs: f64,
    /// Length of the run in steps; 0: not limited.
    pub steps: u64,
    /// Length of the run in minutes; 0: not limited.
    pub minutes: f64,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end.
    pub min_lr: f64,
    pub schedule: Shape,
    /// Linear warm-up, never longer than a tenth of the run.
    pub warmup_steps: u64,
    /// Last share of the run in which the `wsd` schedule decays.
    pub decay_share: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest global norm of a gradient.
    pub clip: f64,
    /// The optimizer of the ternary matrices, by its name in `optimizers!`; the rest is AdamW's.
    pub optimizer: String,
    /// Peak learning rate of the matrices under Muon and NorMuon; it falls as `lr` does.
    pub matrix_lr: f64,
    /// Share of the past in Muon's and NorMuon's running mean of gradients.
    pub momentum: f64,
    /// Share of the past in NorMuon's running mean square of a row.
    pub matrix_beta2: f64,
    /// Weight decay of the matrices under Muon and NorMuon.
    pub matrix_weight_decay: f64,
    /// Weight of the squared logarithm of a row's sum of exponentials, added to what is minimised (PaLM, arXiv 2204.02311).
    pub z_loss: f64,
    /// Last share of the run whose steps have the model's `activation_bits`, the others 0; every validation has them.
    pub activation_share: f64,
    /// The curriculum; empty: `seq_len` and `data.source` throughout.
    pub stages: Vec<Stage>,
    /// Steps between validations; 0: none but the last.
    pub eval_every: u64,
    /// Tokens of the validation text, in whole stories, scored while training; the last validation takes all.
    pub eval_tokens: usize,
    /// Validations without improvement before the run stops; 0: never.
    pub patience: u64,
    /// Steps between samples; 0: only at the end.
    pub sample_every: u64,
    /// Tokens of a sample.
    pub sample_tokens: usize,
    pub prompts: Vec<String>,
    /// Steps between checkpoints; 0: none but the last.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints; 0: by steps only.
    pub checkpoint_seconds: f64,
    /// Checkpoints kept, besides the best.
    pub keep: usize,
    /// Steps between rows of metrics.jsonl.
    pub log_every: u64,
    /// 0: all processors. Results do not depend on it.
    pub threads: usize,
}

impl Settings {
    /// The resolved TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

impl TrainSettings {
    /// Sequences of a step.
    pub fn sequences(&self) -> usize {
        self.batch * self.accumulation
    }

    /// The learning rates of the run.
    pub fn rates(&self) -> Schedule {
        let &TrainSettings { lr, min_lr, schedule, warmup_steps, decay_share, .. } = self;
        Schedule { shape: schedule, lr, min_lr, warmup_steps, decay_share }
    }

    /// The figures of its optimizers.
    pub fn optim(&self) -> optim::Settings {
        let &TrainSettings { lr, beta1, beta2, eps, weight_decay, clip, .. } = self;
        let &TrainSettings { matrix_lr, momentum, matrix_beta2, matrix_weight_decay, .. } = self;
        optim::Settings {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            clip,
            matrix_lr,
            momentum,
            matrix_beta2,
            matrix_weight_decay,
        }
    }
}
