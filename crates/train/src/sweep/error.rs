//! Why a sweep cannot be made, or cannot continue.

use std::path::PathBuf;

use flashlm_model::io::IoError;

use crate::atomic::AtomicError;
use crate::run_folder::RunError;
use crate::trainer::TrainError;

/// Why a sweep cannot be made, or cannot continue.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SweepError {
    /// Of the file of the sweep.
    #[error("{}: {what}", path.display())]
    Spec { path: PathBuf, what: String },
    /// Settings that no run can have, or what ended a run.
    #[error("arm {arm:?}: {source}")]
    Arm { arm: String, source: Box<TrainError> },
    #[error(
        "{}: this run was made with other settings: {what}. Delete the folder to train it anew, rename the arm, or name \
         another folder with --save-dir",
        run.display()
    )]
    Changed { run: PathBuf, what: String },
    #[error("{}: line {line} is not one of a sweep's ({what}); delete the file, it is written anew from the runs", path.display())]
    Results { path: PathBuf, line: usize, what: String },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Io(#[from] IoError),
    #[error(transparent)]
    Atomic(#[from] AtomicError),
}
