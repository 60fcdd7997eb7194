//! Why training ends without having come to its end.

use std::path::PathBuf;

use flashlm_model::config::ConfigError;
use flashlm_model::io::IoError;
use flashlm_model::model_file::ModelError;
use flashlm_model::pack::PackError;
use flashlm_model::sample::SampleError;

use crate::atomic::AtomicError;
use crate::checkpoint::CheckpointError;
use crate::comm::CommError;
use crate::config::SettingsError;
use crate::data::DataError;
use crate::eval::bpb::EvalError;
use crate::load::LoadError;
use crate::log::LogError;
use crate::run_folder::RunError;
use crate::stepper::StepResult;
use crate::what::Unwanted;

/// Why training cannot continue. Whatever was saved before is left as it is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrainError {
    #[error(
        "the loss is not a number at step {step} (loss {loss}, gradient norm {grad_norm}). The last good checkpoint is {}. A \
         lower learning rate usually helps: continue from there with --resume and a lower --lr",
        last_good.display()
    )]
    NotFinite { step: u64, loss: f64, grad_norm: f64, last_good: PathBuf },
    #[error(
        "this setting cannot change within a run: {0}. Leave it out, or start a new run in another folder (--from takes \
     over the weights)"
    )]
    Conflict(String),
    #[error("{path}: {what}; use an older checkpoint")]
    State { path: PathBuf, what: String },
    /// No error of anybody's: there is nothing left to train.
    #[error("{0}")]
    Finished(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("--from: the model cannot change ({0}); leave out the setting, or train a new model")]
    OtherModel(String),
    #[error(
        "--valid is the training text itself; name another text, leave --valid out to hold out part of the text, or validate \
         on the training text with --set data.holdout=0"
    )]
    ValidIsTrain,
    #[error("{spec}: the validation text holds no document; name another with --valid")]
    NoValidation { spec: String },
    #[error(
        "no document of {text} is held out for validation ({left} for training); name a validation text with --valid, raise \
         data.holdout (now {holdout}), or validate on the training text with --set data.holdout=0"
    )]
    NothingHeldOut { text: String, left: usize, holdout: f64 },
    /// Texts that are to be counted, not fetched: what is wrong with each.
    #[error("{}", not_here(missing, *of, *files))]
    NotHere { missing: Vec<String>, of: usize, files: bool },
    #[error("step {n} of the measurement is not finite: {result:?}")]
    NotMeasured { n: u64, result: StepResult },
    #[error(transparent)]
    Ranks(#[from] CommError),
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
        "{} of the {of} texts of this run are not on this machine (without --dry-run, `flashlm train` fetches datasets):\n  {}",
        missing.len(),
        missing.join("\n  ")
    )
}
