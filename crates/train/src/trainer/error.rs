//! Why training ends without having come to its end.

use std::path::PathBuf;

use flashlm_model::config::ConfigError;
use flashlm_model::io::IoError;
use flashlm_model::model_file::ModelError;
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
use crate::stepper::StepResult;
use crate::what::Unwanted;

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
    #[error("--from: the model is what it is ({0}); leave out the setting, or train a new model")]
    OtherModel(String),
    #[error(
        "--valid is the training text itself; name another text, leave it out to hold out a share, or validate on what is trained on \
         with --set data.holdout=0"
    )]
    ValidIsTrain,
    #[error("{spec}: the validation text holds no story; name another with --valid")]
    NoValidation { spec: String },
    #[error(
        "no story of {text} is left for validation ({left} for training); name a text for it with --valid, raise data.holdout \
         (now {holdout}), or validate on the training text itself with --set data.holdout=0"
    )]
    NothingHeldOut { text: String, left: usize, holdout: f64 },
    /// Texts that are to be counted, not fetched: what is wrong with each.
    #[error("{}", not_here(missing, *of, *files))]
    NotHere { missing: Vec<String>, of: usize, files: bool },
    #[error("step {n} of the measurement is not finite: {result:?}")]
    NotMeasured { n: u64, result: StepResult },
    #[error(transparent)]
    Unwanted(#[from] Unwanted),
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
    /// The parameters of a checkpoint were not read.
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Io(#[from] IoError),
    #[error(transparent)]
    Atomic(#[from] AtomicError),
    #[error(transparent)]
    Log(#[from] LogError),
}

fn not_here(missing: &[String], of: usize, files: bool) -> String {
    if of == 1 && files {
        return missing.join("");
    }
    format!(
        "{} of the {of} texts of this run are not here to be counted (datasets are fetched by `flashlm train` without --dry-run):\n  {}",
        missing.len(),
        missing.join("\n  ")
    )
}
