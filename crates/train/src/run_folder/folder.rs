//! Reads a run folder.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use flashlm_model::io::read_limited;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunError;
use super::names::*;
use crate::atomic;
use crate::checkpoint::{Checkpoint, CheckpointError, parse_name, scan};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Best {
    pub version: u64,
    pub step: u64,
}

/// A checkpoint of a run, as its name tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

/// The newest good checkpoint of a run.
#[derive(Debug)]
pub struct Latest {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Why newer ones were skipped.
    pub skipped: Vec<CheckpointError>,
}

/// A run folder for reading; changing it needs a [`Claim`](super::Claim).
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The run folder at a path, whether or not there is one.
    pub fn at(path: &Path) -> Self {
        RunFolder { path: path.to_owned() }
    }

    /// The run that a checkpoint folder belongs to: only where it is RUN/checkpoints/step-N and RUN says that it is a run.
    pub fn of(checkpoint: &Path) -> Result<Self, RunError> {
        let full =
            checkpoint.canonicalize().map_err(|source| RunError::Read { path: checkpoint.to_owned(), source })?;
        let outside = || RunError::Outside { checkpoint: checkpoint.to_owned() };
        let (name, folder) = (full.file_name().and_then(|n| n.to_str()).unwrap_or_default(), full.parent());
        let folder = folder.filter(|f| f.file_name().is_some_and(|n| n == CHECKPOINTS)).ok_or_else(outside)?;
        if is_abandoned(name).is_some() {
            return Err(RunError::SetAside { checkpoint: checkpoint.to_owned() });
        }
        let run = RunFolder::at(folder.parent().ok_or_else(outside)?);
        if parse_name(name).is_some() && run.is_marked() { Ok(run) } else { Err(outside()) }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where its checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Whether this is the same folder by another name.
    pub fn is(&self, other: &Path) -> bool {
        self.path.canonicalize().ok().is_some_and(|own| other.canonicalize().is_ok_and(|other| own == other))
    }

    /// Whether a run of ours has begun here, if only just.
    pub fn is_marked(&self) -> bool {
        self.about().is_ok_and(|about| about.get("entropy_bound").is_some())
    }

    /// The contents of `run.json`; null if there is none.
    pub fn about(&self) -> Result<Value, RunError> {
        self.json(ABOUT)
    }

    /// The result of a finished run; null if it is not finished.
    pub fn result(&self) -> Result<Value, RunError> {
        self.json(RESULT)
    }

    fn json(&self, name: &str) -> Result<Value, RunError> {
        let file = self.file(name);
        if file.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            return Ok(Value::Null);
        }
        let bad = |found: String| RunError::File { file: file.clone(), expected: "JSON", found };
        let bytes = read_limited(&file, MAX_JSON).map_err(|e| bad(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))
    }

    /// Whether a new run may begin here: in a folder that is not there, or empty but for the settings it is started with, or that
    /// holds a run of ours without a checkpoint.
    pub fn check_new(&self, config: Option<&Path>) -> Result<(), RunError> {
        let failed = |source| RunError::Read { path: self.path.clone(), source };
        let not_a_folder = || Err(RunError::NotAFolder { path: self.path.clone() });
        match self.path.metadata() {
            Ok(about) if about.is_dir() => {}
            Ok(_) => return not_a_folder(),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotADirectory => return not_a_folder(),
            Err(e) => return Err(failed(e)),
        }
        let settings = self.file(SETTINGS);
        let given = config.and_then(|config| config.canonicalize().ok());
        if given.is_some() && settings.canonicalize().ok() == given {
            return Err(RunError::Config { path: settings });
        }
        if !self.list()?.is_empty() || !self.abandoned()?.is_empty() {
            return Err(RunError::Exists { run: self.path.clone() });
        }
        if self.is_marked() {
            return Ok(());
        }
        let mut names = vec![];
        for entry in self.path.read_dir().map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let own = name == LOCK || atomic::is_temporary(&name);
            if !own && (given.is_none() || path.canonicalize().ok() != given) {
                names.push(name);
            }
        }
        match names.into_iter().min() {
            Some(found) => Err(RunError::Occupied { folder: self.path.clone(), found }),
            None => Ok(()),
        }
    }

    /// Whether the run here may be resumed: if its `run.json` is missing, no foreign file may be in the way of what it writes.
    pub fn check_resume(&self) -> Result<(), RunError> {
        let there = [ABOUT, SETTINGS, CARD, METRICS, CURVE, RESULT].into_iter().find(|name| self.file(name).exists());
        match there {
            Some(found) if !self.is_marked() => {
                Err(RunError::Occupied { folder: self.path.clone(), found: found.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// The finished checkpoints by step. Damage is not looked for. A run without any is fine.
    pub fn list(&self) -> Result<Vec<Listed>, RunError> {
        Ok(scan(&self.checkpoints())?.0.into_iter().map(|(step, path)| Listed { step, path }).collect())
    }

    /// The checkpoints that were set aside, by step.
    pub fn abandoned(&self) -> Result<Vec<Listed>, RunError> {
        let folder = self.checkpoints();
        let failed = |source| RunError::Read { path: folder.clone(), source };
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(failed)?,
        };
        let mut found = vec![];
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let step = path.file_name().and_then(|n| n.to_str()).and_then(is_abandoned);
            found.extend(step.filter(|_| path.is_dir()).map(|step| Listed { step, path }));
        }
        found.sort();
        Ok(found)
    }

    /// The newest good checkpoint. `None` where nothing was saved yet; an error
    /// where something was and all of it is damaged.
    pub fn latest(&self) -> Result<Option<Latest>, RunError> {
        let all = self.list()?;
        let mut skipped = vec![];
        for Listed { path, .. } in all.iter().rev() {
            match Checkpoint::check(path) {
                Ok(checkpoint) => return Ok(Some(Latest { checkpoint, skipped })),
                Err(error) => skipped.push(error),
            }
        }
        match skipped.into_iter().next() {
            None => Ok(None),
            Some(newest) => {
                Err(RunError::NoneGood { run: self.path.clone(), count: all.len(), newest: Box::new(newest) })
            }
        }
    }

    /// The best step and its folder, if one is marked and there.
    pub fn best(&self) -> Result<Option<Listed>, RunError> {
        let file = self.file(BEST);
        if file.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            return Ok(None);
        }
        let bad = |found: String| RunError::File { file: file.clone(), expected: "{\"version\":1,\"step\":..}", found };
        let bytes = read_limited(&file, 4096).map_err(|e| bad(e.to_string()))?;
        let best: Best = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if best.version != VERSION {
            return Err(bad(format!("version {}", best.version)));
        }
        Ok(self.list()?.into_iter().find(|listed| listed.step == best.step))
    }

    /// The checkpoint that stands for the run: the best, or where none is marked or good the newest good one.
    pub fn chosen(&self) -> Result<Option<Checkpoint>, RunError> {
        let best = self.best().ok().flatten().and_then(|best| Checkpoint::open(&best.path).ok());
        match best {
            Some(best) => Ok(Some(best)),
            None => Ok(self.latest()?.map(|latest| latest.checkpoint)),
        }
    }
}

/// The step of the name of a checkpoint that was set aside.
fn is_abandoned(name: &str) -> Option<u64> {
    let (name, rest) = name.split_once(ABANDONED)?;
    let again = rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok());
    parse_name(name).filter(|(_, old)| again && !old).map(|(step, _)| step)
}
