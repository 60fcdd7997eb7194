//! What is not set.

use flashlm_model::config::{QuantConfig, ScaleKind, StatKind};
use flashlm_model::{ModelConfig, Precision};

use super::settings::{DataSettings, Settings, TokenizerSettings, TrainSettings};
use crate::comm::Sent;
use crate::data::vocab;
use crate::optim;
use crate::schedule::Shape;
use crate::stage::{Boundaries, Shuffle};

impl Default for Settings {
    fn default() -> Self {
        let quant = QuantConfig { scale: ScaleKind::Tensor, size: 256, stat: StatKind::Mean, norm: false };
        Settings {
            name: "custom".into(),
            model: ModelConfig { quant, ..ModelConfig::v4_small() },
            tokenizer: TokenizerSettings { kind: "bpe".into(), vocab: 4096, stories: vocab::STORIES },
            data: DataSettings {
                source: "tinystories".into(),
                column: String::new(),
                valid: String::new(),
                valid_column: String::new(),
                holdout: 0.01,
                documents: 0,
                keep_doubles: false,
                boundaries: Boundaries::Packed,
                shuffle: Shuffle::Windows,
            },
            train: TrainSettings {
                seed: 42,
                precision: Precision::Auto,
                seq_len: 256,
                batch: 0,
                accumulation: 1,
                pass_rows: 0,
                epochs: 10.0,
                steps: 0,
                minutes: 0.0,
                lr: 4e-3,
                min_lr: 1e-5,
                schedule: Shape::Cosine,
                warmup_steps: 500,
                decay_share: 0.2,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.01,
                clip: 1.0,
                optimizer: optim::ADAMW.into(),
                matrix_lr: 0.02,
                momentum: 0.95,
                final_momentum: 0.0,
                row_normalise: false,
                newton_schulz_steps: 5,
                matrix_beta2: 0.999,
                matrix_weight_decay: 0.0,
                frozen_embedding: 0,
                embedding_from: String::new(),
                frozen_taps: false,
                z_loss: 0.0,
                label_smoothing: 0.0,
                loss_share: 1.0,
                dropout: 0.0,
                activation_share: 1.0,
                average_share: 0.0,
                average_decay: 0.0,
                rank_sums: Sent::Whole,
                stages: Vec::new(),
                eval_every: 0,
                eval_tokens: 40_000,
                patience: 3,
                sample_every: 2000,
                sample_tokens: 200,
                prompts: ["Once upon a time", "The little girl", "One day, a boy named"].map(String::from).into(),
                checkpoint_every: 5000,
                checkpoint_seconds: 600.0,
                keep: 2,
                log_every: 10,
                threads: 0,
            },
        }
    }
}
