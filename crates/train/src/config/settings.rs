//! The settings, as a resolved TOML has them.

use flashlm_model::{ModelConfig, Precision};
use serde::{Deserialize, Serialize};

use crate::comm::Sent;
use crate::optim;
use crate::schedule::{Schedule, Shape};
use crate::stage::{Boundaries, Shuffle, Stage};

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
    /// `frequency`, `bpe`, `bytes`, `gpt2`, or a file.
    pub kind: String,
    /// Vocabulary size to aim for, in tokens.
    pub vocab: usize,
    /// Number of documents, from the first on, that a frequency vocabulary counts.
    pub stories: usize,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSettings {
    /// Files, a folder, a pattern or several of these, a line each; a dataset of the hub; or `synthetic`.
    pub source: String,
    /// Field or column of the text, in `source` and `valid`; empty: `text`, or that of the dataset.
    pub column: String,
    /// The validation text, like `source`; empty: the dataset's own, else part of `source` is held out.
    pub valid: String,
    /// Field or column of the text in `valid`; empty: as in `source`.
    pub valid_column: String,
    /// Fraction of the text held out, more of a small text; 0: none, validation scores the training text.
    pub holdout: f64,
    /// Most documents of `source`, from the first on, held-out ones counted; 0: all. Not of stages that name their texts.
    pub documents: u64,
    /// Whether to train on documents that are also in the validation text.
    pub keep_doubles: bool,
    /// What happens at the ends of documents. It and `model.reset` follow from each other: the later setting wins.
    pub boundaries: Boundaries,
    /// What is put in another order in every epoch; padded windows are documents whatever it is.
    pub shuffle: Shuffle,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TrainSettings {
    pub seed: u64,
    /// Precision of matmuls; `auto` is bf16 where this machine is clearly faster with it, `int8` is `int8-f32` where it is not.
    pub precision: Precision,
    /// Tokens per sequence, `T`.
    pub seq_len: usize,
    /// Sequences per step, where a stage has no number of its own; 0: chosen for the machine.
    pub batch: usize,
    /// Gradient accumulation: batches per step.
    pub accumulation: usize,
    /// Most rows (tokens) of a pass, of which a step has as many as its batch needs; at least one sequence is always taken. Part of the
    /// arithmetic; 0: chosen for the number of threads when the run starts.
    pub pass_rows: usize,
    /// Length of the run in epochs, if neither `steps` nor `minutes` is given.
    pub epochs: f64,
    /// Length of the run in steps; 0: no limit.
    pub steps: u64,
    /// Length of the run in minutes; 0: no limit.
    pub minutes: f64,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end.
    pub min_lr: f64,
    pub schedule: Shape,
    /// Steps of linear warm-up, at most a tenth of the run.
    pub warmup_steps: u64,
    /// Last fraction of the run, in which the `wsd` schedule decays.
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
    /// Decay of Muon's and NorMuon's running mean of gradients, per step.
    pub momentum: f64,
    /// The same at the end, which it reaches as the learning rate falls; 0: `momentum` throughout.
    pub final_momentum: f64,
    /// Whether Muon and NorMuon scale the rows of what goes into Newton-Schulz to equal norms (MuonEq-R).
    pub row_normalise: bool,
    /// Steps of Newton-Schulz in Muon and NorMuon.
    pub newton_schulz_steps: usize,
    /// Decay of NorMuon's running mean square of each row, per step.
    pub matrix_beta2: f64,
    /// Weight decay of the matrices under Muon and NorMuon.
    pub matrix_weight_decay: f64,
    /// First steps in which the embedding stays as it started, a tenth of the run at most.
    pub frozen_embedding: u64,
    /// A model of the hub, `hf:OWNER/NAME[@REVISION][:FILE]`, whose token embedding starts that of a fresh run, by its singular value
    /// decomposition; empty: a random start.
    pub embedding_from: String,
    /// Whether the taps of all convolutions stay as they started.
    pub frozen_taps: bool,
    /// Weight of the squared logarithm of a row's sum of exponentials, added to what is minimised (PaLM, arXiv 2204.02311).
    pub z_loss: f64,
    /// Label smoothing: the part of a target that all tokens share (arXiv 1512.00567). Not with a soft cap of logits.
    pub label_smoothing: f64,
    /// Part of the positions of a batch, drawn at random in each step, that the loss is of.
    pub loss_share: f64,
    /// Probability with which a number that a branch adds to the residual stream is dropped in training; 0: none is.
    pub dropout: f64,
    /// Last fraction of the run whose steps use the model's `activation_bits`, the others 0; validations always use them.
    pub activation_share: f64,
    /// Last fraction of the run over whose steps the weights are averaged; the better of the last weights and their mean is
    /// the result. 0: no mean.
    pub average_share: f64,
    /// Decay of that mean per step, which makes it an exponential moving average; 0: all steps count alike.
    pub average_decay: f64,
    /// As what ranks send each other their gradients: `f32`, or `bf16`, half the bytes, with bits that depend on the number of ranks.
    #[serde(default)]
    pub rank_sums: Sent,
    /// The curriculum; empty: `seq_len` and `data.source` throughout.
    pub stages: Vec<Stage>,
    /// Steps between validations; 0: ten over the run. One comes before the first step.
    pub eval_every: u64,
    /// Tokens of the validation text, in whole documents, scored while training; the last validation scores all.
    pub eval_tokens: usize,
    /// Validations in a row without improvement before the run stops early; 0: never.
    pub patience: u64,
    /// Steps between samples; 0: only at the end.
    pub sample_every: u64,
    /// Maximum tokens of a sample.
    pub sample_tokens: usize,
    /// What samples begin with. Those of the defaults are for stories: where no held-out document begins so, a new run takes the
    /// first words of held-out documents.
    pub prompts: Vec<String>,
    /// Steps between checkpoints; 0: only the last.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints; 0: by steps only.
    pub checkpoint_seconds: f64,
    /// Number of newest checkpoints to keep, besides the best.
    pub keep: usize,
    /// Steps between rows of metrics.jsonl.
    pub log_every: u64,
    /// Number of threads; 0: FLASHLM_THREADS, else all processors. Results do not depend on it.
    pub threads: usize,
}

impl Settings {
    /// The resolved TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

impl TrainSettings {
    /// Sequences per step, in stages without a batch of their own.
    pub fn sequences(&self) -> usize {
        self.batch * self.accumulation
    }

    /// The learning rates and momenta of the run.
    pub fn rates(&self) -> Schedule {
        let &TrainSettings { lr, min_lr, schedule, warmup_steps, decay_share, momentum, final_momentum, .. } = self;
        Schedule { shape: schedule, lr, min_lr, warmup_steps, decay_share, momentum, final_momentum }
    }

    /// The figures of its optimizers, with the momentum of the start.
    pub fn optim(&self) -> optim::Settings {
        let &TrainSettings { lr, beta1, beta2, eps, weight_decay, clip, .. } = self;
        let &TrainSettings { matrix_lr, momentum, row_normalise, newton_schulz_steps, .. } = self;
        let &TrainSettings { matrix_beta2, matrix_weight_decay, frozen_embedding, .. } = self;
        optim::Settings {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            clip,
            matrix_lr,
            momentum,
            row_normalise,
            newton_schulz_steps,
            matrix_beta2,
            matrix_weight_decay,
            frozen_embedding,
        }
    }
}
