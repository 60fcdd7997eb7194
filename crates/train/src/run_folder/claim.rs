//! The right to write to a run folder.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::RunError;
use super::folder::{Best, RunFolder};
use super::names::{ABANDONED, ABOUT, BEST, LOCK, VERSION};
use crate::atomic::{self, AtomicError};
use crate::checkpoint::{self, CheckpointError, Part, folder_name, scan};

/// The exclusive right of this process to write to a run folder. A folder created for it is removed again if nothing was kept in
/// it.
#[derive(Debug)]
pub struct Claim {
    folder: RunFolder,
    made: bool,
    _lock: File,
}

impl Claim {
    /// For a new run, started with the settings of `config`.
    pub fn new(path: &Path, config: Option<&Path>) -> Result<Self, RunError> {
        let folder = RunFolder::at(path);
        folder.check_new(config)?;
        let made = !path.exists();
        fs::create_dir_all(path).map_err(|e| AtomicError::new(path, "creating", 0, e))?;
        let claim = Claim { _lock: lock(&folder)?, folder, made };
        // Another process may have come between.
        claim.folder.check_new(config)?;
        Ok(claim)
    }

    /// To resume the run in a folder.
    pub fn resume(folder: RunFolder) -> Result<Self, RunError> {
        folder.check_resume()?;
        Ok(Claim { _lock: lock(&folder)?, folder, made: false })
    }

    /// The folder.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Marks the folder as a run, with its name and entropy bound.
    pub fn mark(&mut self, name: &str, entropy_bound: Option<f64>) -> Result<(), RunError> {
        let about = serde_json::json!({ "name": name, "entropy_bound": entropy_bound });
        self.write(ABOUT, about.to_string().as_bytes())
    }

    /// Writes a file of the run, atomically.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        self.made = false;
        Ok(atomic::write_file(&self.folder.file(name), |w| w.write_all(bytes))?)
    }

    /// Saves a checkpoint; one of the same step is replaced.
    pub fn save(&mut self, step: u64, parts: &[Part]) -> Result<(), CheckpointError> {
        self.made = false;
        checkpoint::save(&self.folder.checkpoints(), step, parts).map(drop)
    }

    /// Marks a saved step as the best so far, or none.
    pub fn mark_best(&mut self, step: Option<u64>) -> Result<(), RunError> {
        match step {
            Some(step) => self.write(BEST, &serde_json::to_vec(&Best { version: VERSION, step }).unwrap_or_default()),
            None => self.remove(BEST),
        }
    }

    /// Removes a file of the run, where there is one.
    pub fn remove(&mut self, name: &str) -> Result<(), RunError> {
        let path = self.folder.file(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(AtomicError::new(&path, "removing", 0, e).into()),
            _ => Ok(()),
        }
    }

    /// Removes all but the newest `keep` checkpoints (at least one), the steps in `protect` and the best. Returns what was removed.
    pub fn prune(&mut self, keep: usize, protect: &[u64]) -> Result<Vec<u64>, RunError> {
        let best = self.folder.best()?.map(|best| best.step);
        let found = self.tidy()?;
        let mut removed = vec![];
        let older = found.into_iter().rev().skip(keep.max(1));
        for (step, path) in older.filter(|(step, _)| best != Some(*step) && !protect.contains(step)) {
            atomic::discard(&path)?;
            removed.push(step);
        }
        Ok(removed)
    }

    /// The checkpoints, without superseded `.old` ones.
    fn tidy(&self) -> Result<BTreeMap<u64, PathBuf>, RunError> {
        let (found, superseded) = scan(&self.folder.checkpoints())?;
        superseded.iter().try_for_each(|path| atomic::discard(path))?;
        Ok(found)
    }

    /// Sets aside every checkpoint of a later step, the newest first, and returns where they are now.
    pub fn abandon_after(&mut self, step: u64) -> Result<Vec<PathBuf>, RunError> {
        let mut moved = vec![];
        for (later, path) in self.tidy()?.into_iter().rev().take_while(|(later, _)| *later > step) {
            let name = folder_name(later) + ABANDONED;
            let names = (1..).map(|n| if n == 1 { name.clone() } else { format!("{name}-{n}") });
            let aside = names.map(|name| path.with_file_name(name)).find(|aside| aside.symlink_metadata().is_err());
            let aside = aside.expect("one of all numbers is free");
            fs::rename(&path, &aside).map_err(|e| AtomicError::new(&path, "setting it aside", 0, e))?;
            moved.push(aside);
        }
        if !moved.is_empty() {
            let folder = self.folder.checkpoints();
            atomic::sync_folder(&folder).map_err(|e| AtomicError::new(&folder, "fsync", 0, e))?;
        }
        Ok(moved)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.made {
            // Fails where there is something in it, which then stays.
            let _ = fs::remove_file(self.folder.file(LOCK));
            let _ = fs::remove_dir(self.folder.path());
        }
    }
}

/// Takes the lock of a run folder and removes what killed processes left in it. What counts is the operating system's lock on the
/// file, which ends with the process, however that ends; the process id in it is for people.
fn lock(folder: &RunFolder) -> Result<File, RunError> {
    let path = folder.file(LOCK);
    let failed = |e| AtomicError::new(&path, "locking", 0, e);
    // Not truncated: until the lock is ours, the process id in it is another's.
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = options.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let read = file.take(16).read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Err(RunError::Locked { lock: path, pid });
        }
        Err(TryLockError::Error(e)) => return Err(failed(e).into()),
    }
    // Neither is worth a run: the lock holds without the number, and leftovers are in nobody's way.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    let _ = atomic::clean_leftovers(folder.path());
    let _ = atomic::clean_leftovers(&folder.checkpoints());
    Ok(file)
}
