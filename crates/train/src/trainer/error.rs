//! Why training ends without having come to its end.

use std::path::PathBuf;

use flashlm_model::config::ConfigError;
use flashlm_model::io::IoError;
use flashlm_model::pack::PackError;
use flashlm_model::sample::SampleError;

use crate::atomic::AtomicError;
use crate::checkpoint::CheckpointError;
use crate::config::SettingsError;
use crate::data::DataError;
use crate::eval::bpb::EvalError;
use crate::load::LoadError;
use crate::log::LogError;
use crate::run_folder::RunError;

/// Why training cannot go on. Whatever was saved before is left as it is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrainError {
    #[error(
        "the loss is not a number at step {step} (loss {loss}, gradient norm {grad_norm}). The last good checkpoint is {}. A lower learning rate usually helps: --resume with a lower --lr goes on from there",
        last_good.display()
    )]
    NotFinite { step: u64, loss: f64, grad_norm: f64, last_good: PathBuf },
    #[error("checkpoint of another config: {0}. Leave out the setting, or start a new run in another folder")]
    Conflict(String),
    #[error("{path}: {what}; use an older checkpoint")]
    State { path: PathBuf, what: String },
    /// No error of anybody's: there is nothing left to train.
    #[error("{0}")]
    Finished(String),
    #[error("{0}")]
    TooLarge(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Io(#[from] IoError),
    #[error(transparent)]
    Atomic(#[from] AtomicError),
    #[error(transparent)]
    Log(#[from] LogError),
}
