//! `run.lock`: one process trains a run at a time. The file holds the process id for people; what counts is the operating
//! system's lock on it, which ends with the process, however that ends.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::atomic::{self, AtomicError};
use crate::checkpoint::{CheckpointError, folder};

/// Held by the one process that trains a run; the operating system takes it back when that process ends, however.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of a run folder, which is made if missing, and removes what killed processes left in it.
    pub fn acquire(run: &Path) -> Result<Self, CheckpointError> {
        let lock = run.join("run.lock");
        let failed = |e| AtomicError::new(&lock, "locking", 0, e);
        fs::create_dir_all(run).map_err(failed)?;
        // Not truncated: until the lock is ours, the process id in it is another's.
        let options = File::options().read(true).write(true).create(true).truncate(false).open(&lock);
        let mut file = options.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = file.take(16).read_to_string(&mut text);
                let pid = read.ok().and_then(|_| text.trim().parse().ok());
                return Err(CheckpointError::Locked { lock, pid });
            }
            Err(TryLockError::Error(e)) => return Err(failed(e).into()),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        atomic::clean_leftovers(run)?;
        atomic::clean_leftovers(&folder(run))?;
        Ok(Self { _file: file })
    }
}
