//! Why a run folder cannot be used.

use std::io;
use std::path::PathBuf;

use super::names::CHECKPOINTS;
use crate::atomic::AtomicError;
use crate::checkpoint::CheckpointError;

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A new run where one is already.
    #[error("{0} already holds a run. Continue it with --resume {0}, or choose another folder with --save-dir", run.display())]
    Exists {
        /// The folder.
        run: PathBuf,
    },
    /// Files that no run of ours has written.
    #[error(
        "{}: the folder holds {found} and is not a FlashLM run, so nothing is written to it. Choose a new or empty folder \
         with --save-dir",
        folder.display()
    )]
    Occupied {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The settings given have the name of those that the run writes.
    #[error(
        "{}: a run writes its resolved settings to a file of this name. Rename yours, or choose another folder with --save-dir",
        path.display()
    )]
    Config {
        /// The file.
        path: PathBuf,
    },
    /// Something else than a folder.
    #[error("{}: not a folder, but a run needs one. Choose another path with --save-dir", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A checkpoint that is not in a run.
    #[error(
        "{}: this checkpoint is not inside a run (at RUN/{CHECKPOINTS}/step-N). To continue from it, name a new folder with \
         --save-dir",
        checkpoint.display()
    )]
    Outside {
        /// Its folder.
        checkpoint: PathBuf,
    },
    /// A checkpoint that its run has set aside.
    #[error(
        "{}: this checkpoint was set aside when its run was resumed from an earlier step. To continue from it, name a new \
         folder with --save-dir",
        checkpoint.display()
    )]
    SetAside {
        /// Its folder.
        checkpoint: PathBuf,
    },
    /// There are checkpoints, but none is good.
    #[error("{}: no undamaged checkpoint among {count}; the newest: {newest}", run.display())]
    NoneGood {
        /// The run folder.
        run: PathBuf,
        /// How many were tried.
        count: usize,
        /// What is wrong with the newest.
        newest: Box<CheckpointError>,
    },
    /// Another process trains this run.
    #[error(
        "{}: another process{} is training this run; wait for it, stop it, or choose another folder with --save-dir",
        lock.display(), pid.map(|p| format!(" ({p})")).unwrap_or_default()
    )]
    Locked {
        /// The lock file.
        lock: PathBuf,
        /// The process that holds it, if known.
        pid: Option<u32>,
    },
    /// A file of the run that is not what it should be.
    #[error("{}: expected {expected}, found {found}; remove the file, the run does not need it", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is.
        found: String,
    },
    /// The operating system would not let us read.
    #[error("{}: cannot be read ({source}); check the path and the permissions", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// One of its checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file or folder of the run could not be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
}
