//! The run folder: one timeline of checkpoints, and what a run writes beside them.
//!
//! ```text
//! RUN/run.json                                what makes the folder a run of ours
//! RUN/run.lock                                held by the process that trains, holds its process id
//! RUN/best                                    {"version":1,"step":500}
//! RUN/checkpoints/step-00000500               a checkpoint of the timeline
//! RUN/checkpoints/step-00000700.abandoned     one that a resume from an earlier step left behind; -2, -3, .. if that is taken
//! ```
//!
//! A run goes on from one of its checkpoints: those of later steps are set aside first, newest first, so that a process killed on
//! the way leaves a shorter timeline and never a mixture of two. What is set aside counts for nothing here and is never removed.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use flashlm_model::io::read_limited;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic::{self, AtomicError};
use crate::checkpoint::{self, Checkpoint, CheckpointError, Part, folder_name, parse_name, scan};

/// The resolved settings.
pub const SETTINGS: &str = "settings.toml";
/// The model card.
pub const CARD: &str = "MODEL_CARD.md";
/// One row of the log a line.
pub const METRICS: &str = "metrics.jsonl";
/// Rows of steps that were abandoned.
pub const ABANDONED_METRICS: &str = "metrics.abandoned.jsonl";
/// The curve of the log.
pub const CURVE: &str = "curve.svg";
/// What a finished run came to.
pub const RESULT: &str = "result.json";
const ABOUT: &str = "run.json";
const LOCK: &str = "run.lock";
const BEST: &str = "best";
const CHECKPOINTS: &str = "checkpoints";
const ABANDONED: &str = ".abandoned";
const VERSION: u64 = 1;
/// Longest `run.json` and `result.json` accepted.
const MAX_JSON: u64 = 1 << 20;

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A new run where one is already.
    #[error("{0} holds a run already. Go on with it by --resume {0}, or choose another folder with --save-dir", run.display())]
    Exists {
        /// The folder.
        run: PathBuf,
    },
    /// Files that no run of ours has written.
    #[error(
        "{}: {found} is there, and this is no run of FlashLM: nothing in it is written over. Choose a new or empty folder with --save-dir",
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
        "{}: a run writes its resolved settings under this name. Rename the file, or choose another folder with --save-dir",
        path.display()
    )]
    Config {
        /// The file.
        path: PathBuf,
    },
    /// Something else than a folder.
    #[error("{}: no folder, but a run needs one. Choose another path with --save-dir", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A checkpoint that is not in a run.
    #[error(
        "{}: this checkpoint is not in a run (where it would be RUN/{CHECKPOINTS}/step-N). To go on from it, name a new folder with --save-dir",
        checkpoint.display()
    )]
    Outside {
        /// Its folder.
        checkpoint: PathBuf,
    },
    /// A checkpoint that its run has set aside.
    #[error(
        "{}: this checkpoint was set aside when its run went on from an earlier step. To go on from it, name a new folder with --save-dir",
        checkpoint.display()
    )]
    SetAside {
        /// Its folder.
        checkpoint: PathBuf,
    },
    /// There are checkpoints, but none is good.
    #[error("{}: none of its {count} checkpoints is good; the newest: {newest}", run.display())]
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
    #[error("{}: expected {expected}, found {found}; remove the file, the run goes on without it", file.display())]
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Best {
    version: u64,
    step: u64,
}

/// A run folder; what changes it wants a [`Claim`].
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

    fn checkpoints(&self) -> PathBuf {
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

    /// What the run says of itself; null where it says nothing.
    pub fn about(&self) -> Result<Value, RunError> {
        self.json(ABOUT)
    }

    /// What a finished run came to; null where it is not finished.
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

    /// Whether the run here may go on: one whose marks are missing may not have files in the way of what it writes.
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
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>, RunError> {
        Ok(scan(&self.checkpoints())?.0.into_iter().collect())
    }

    /// The checkpoints that were set aside, by step.
    pub fn abandoned(&self) -> Result<Vec<(u64, PathBuf)>, RunError> {
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
            found.extend(step.filter(|_| path.is_dir()).map(|step| (step, path)));
        }
        found.sort();
        Ok(found)
    }

    /// The newest good checkpoint, and why newer ones were passed over. `None` where nothing was saved yet; an error
    /// where something was and all of it is damaged.
    pub fn latest(&self) -> Result<Option<(Checkpoint, Vec<CheckpointError>)>, RunError> {
        let all = self.list()?;
        let mut skipped = vec![];
        for (_, path) in all.iter().rev() {
            match Checkpoint::check(path) {
                Ok(checkpoint) => return Ok(Some((checkpoint, skipped))),
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
    pub fn best(&self) -> Result<Option<(u64, PathBuf)>, RunError> {
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
        Ok(self.list()?.into_iter().find(|(step, _)| *step == best.step))
    }

    /// The checkpoint that stands for the run: the best, or where none is marked or good the newest good one.
    pub fn chosen(&self) -> Result<Option<Checkpoint>, RunError> {
        let best = self.best().ok().flatten().and_then(|(_, folder)| Checkpoint::open(&folder).ok());
        match best {
            Some(best) => Ok(Some(best)),
            None => Ok(self.latest()?.map(|(latest, _)| latest)),
        }
    }
}

/// The step of the name of a checkpoint that was set aside.
fn is_abandoned(name: &str) -> Option<u64> {
    let (name, rest) = name.split_once(ABANDONED)?;
    let again = rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok());
    parse_name(name).filter(|(_, old)| again && !old).map(|(step, _)| step)
}

/// A run folder that this process alone writes to. A folder made for it goes again if nothing was kept in it.
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

    /// To go on with the run in a folder.
    pub fn resume(folder: RunFolder) -> Result<Self, RunError> {
        folder.check_resume()?;
        Ok(Claim { _lock: lock(&folder)?, folder, made: false })
    }

    /// The folder.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Says that this folder is a run, and what of.
    pub fn mark(&mut self, name: &str, entropy_bound: Option<f64>) -> Result<(), RunError> {
        let about = serde_json::json!({ "name": name, "entropy_bound": entropy_bound });
        self.write(ABOUT, about.to_string().as_bytes())
    }

    /// Writes a file of the run whole.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        self.made = false;
        Ok(atomic::write_file(&self.folder.file(name), |w| w.write_all(bytes))?)
    }

    /// Saves a checkpoint; one of the same step is replaced.
    pub fn save(&mut self, step: u64, parts: &[Part]) -> Result<(), CheckpointError> {
        self.made = false;
        checkpoint::save(&self.folder.checkpoints(), step, parts).map(drop)
    }

    /// Remembers a saved step as the best so far, or that none is.
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
        let best = self.folder.best()?.map(|(step, _)| step);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::tests::{Tmpfs, names};
    use crate::checkpoint::MANIFEST;
    use crate::checkpoint::tests::{folder, save_value, value};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    fn run() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn claim(run: &Path) -> Claim {
        Claim::resume(RunFolder::at(run)).unwrap()
    }

    fn steps(run: &Path) -> Vec<u64> {
        RunFolder::at(run).list().unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn every_state_a_kill_can_leave_is_recovered() {
        let run = run();
        let folder = folder(run.path());
        let (path, old) = (folder.join("step-00000001"), folder.join("step-00000001.old"));
        // Killed between moving the old one away and naming the new one.
        save_value(run.path(), 1, 1, 3).unwrap();
        fs::rename(&path, &old).unwrap();
        fs::create_dir(folder.join(".tmp-4294967295-1-0")).unwrap();
        let (found, skipped) = RunFolder::at(run.path()).latest().unwrap().unwrap();
        assert_eq!((found.path(), value(&found), skipped.len()), (&*old, 1, 0));
        save_value(run.path(), 1, 2, 3).unwrap();
        assert_eq!(value(&RunFolder::at(run.path()).latest().unwrap().unwrap().0), 2);
        assert!(!old.exists());
        // Killed before removing the old one: the new one counts, and saving and pruning both go on.
        for again in [true, false] {
            fs::rename(&path, &old).unwrap();
            save_value(run.path(), 2, 3, 3).unwrap();
            fs::rename(folder.join("step-00000002"), &path).unwrap();
            let manifest = fs::read_to_string(path.join(MANIFEST)).unwrap();
            let manifest = manifest.replace("\"step\":2", "\"step\":1");
            fs::write(path.join(MANIFEST), manifest).unwrap();
            assert_eq!(value(&RunFolder::at(run.path()).latest().unwrap().unwrap().0), 3);
            if again {
                save_value(run.path(), 1, 4, 3).unwrap();
            } else {
                assert_eq!(claim(run.path()).prune(1, &[]).unwrap(), [0u64; 0]);
            }
            assert!(path.exists() && !old.exists());
        }
        drop(claim(run.path()));
        assert_eq!(names(&folder), ["step-00000001"]);
    }

    const KILL: &str = "FLASHLM_TEST_KILL";

    /// Starts this very test again as a process that saves without end, kills it at some moment, and looks at
    /// what is left.
    #[test]
    fn a_killed_trainer_never_loses_a_checkpoint() {
        if let Some(run) = std::env::var_os(KILL) {
            let _claim = claim(Path::new(&run));
            for value in (2..=200).cycle() {
                save_value(Path::new(&run), 7, value, 100_000).unwrap();
            }
        }
        let run = run();
        let path = save_value(run.path(), 7, 1, 100).unwrap();
        let module = module_path!().split_once("::").unwrap().1;
        let name = format!("{module}::a_killed_trainer_never_loses_a_checkpoint");
        let mut values = std::collections::BTreeSet::new();
        for round in 0..12u8 {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args([&name, "--exact"]).env(KILL, run.path()).stdout(Stdio::null());
            let mut child = child.stderr(Stdio::null()).spawn().unwrap();
            let pid = format!("{}\n", child.id());
            // A little later in its work each time, whatever the machine is doing besides.
            let at_work = (0..15_000).any(|_| {
                std::thread::sleep(Duration::from_millis(2));
                let ours = fs::read_to_string(run.path().join("run.lock")).is_ok_and(|text| text == pid);
                let saved = || Checkpoint::open(&path).ok()?.bytes("state.bin").ok()?.first().copied();
                ours && saved().is_some_and(|value| (2 + round..=200).contains(&value) && !values.contains(&value))
            });
            assert!(at_work, "the process saves nothing");
            child.kill().unwrap();
            child.wait().unwrap();
            let (found, skipped) = RunFolder::at(run.path()).latest().unwrap().unwrap();
            assert_eq!((found.step(), skipped.len()), (7, 0));
            values.insert(value(&found));
        }
        assert!(values.len() > 6, "what was saved is not what is there: {values:?}");
        claim(run.path()).prune(1, &[]).unwrap();
        let left = names(&folder(run.path()));
        let superseded = left == ["step-00000007.old"];
        assert!(superseded || left == ["step-00000007"], "{left:?}");
    }

    #[test]
    fn an_unwritable_run_is_said() {
        let Some(disk) = Tmpfs::mount("ro") else {
            return;
        };
        let text = save_value(disk.path(), 1, 1, 1).unwrap_err().to_string();
        assert!(text.contains("cannot be written (Read-only"), "{text}");
        let text = Claim::new(disk.path(), None).unwrap_err().to_string();
        assert!(text.contains("run.lock: its folder cannot be written"), "{text}");
    }

    #[test]
    fn prune_keeps_the_newest_the_protected_and_the_best() {
        let run = run();
        for step in 1..=8 {
            save_value(run.path(), step, 1, 1).unwrap();
        }
        let (mut claim, there) = (claim(run.path()), RunFolder::at(run.path()));
        assert!(there.best().unwrap().is_none());
        claim.mark_best(Some(4)).unwrap();
        claim.mark_best(Some(3)).unwrap();
        let path = folder(run.path()).join("step-00000003");
        assert_eq!(there.best().unwrap(), Some((3, path)));
        assert_eq!(claim.prune(2, &[5, 99]).unwrap(), [6, 4, 2, 1]);
        assert_eq!(steps(run.path()), [3, 5, 7, 8]);
        assert_eq!(claim.prune(0, &[]).unwrap(), [7, 5]);
        assert_eq!(steps(run.path()), [3, 8]);
        assert_eq!(names(&folder(run.path())).len(), 2);
        // A mark of what is gone marks nothing; what cannot be read may be one of anything, and nothing is removed.
        fs::write(run.path().join("best"), b"{\"version\":1,\"step\":4}").unwrap();
        assert_eq!(there.best().unwrap(), None);
        fs::write(run.path().join("best"), b"{\"step\"").unwrap();
        let text = claim.prune(1, &[]).unwrap_err().to_string();
        assert!(text.contains("best: expected {\"version\":1,\"step\":..}"), "{text}");
        assert_eq!(steps(run.path()), [3, 8]);
        claim.mark_best(None).unwrap();
        assert_eq!(claim.prune(1, &[]).unwrap(), [3]);
    }

    #[test]
    fn one_trainer_at_a_time() {
        let run = run();
        let path = run.path().join("new/run");
        let mut first = Claim::new(&path, None).unwrap();
        first.mark("a", None).unwrap();
        let error = Claim::new(&path, None).unwrap_err();
        let RunError::Locked { pid, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(pid, Some(std::process::id()));
        drop(first);
        // A stale number longer than ours must not show through.
        fs::write(path.join("run.lock"), b"99999999999999").unwrap();
        let _claim = Claim::new(&path, None).unwrap();
        let text = fs::read_to_string(path.join("run.lock")).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[test]
    fn the_newest_good_one_is_found_and_the_others_are_told() {
        let run = run();
        let there = RunFolder::at(run.path());
        assert!(there.latest().unwrap().is_none() && there.chosen().unwrap().is_none());
        for step in 1..=3 {
            save_value(run.path(), step, 1, 1).unwrap();
        }
        fs::write(folder(run.path()).join("step-00000003/state.bin"), b"").unwrap();
        let (found, skipped) = there.latest().unwrap().unwrap();
        assert_eq!((found.step(), skipped.len()), (2, 1));
        let mut claim = claim(run.path());
        claim.mark_best(Some(1)).unwrap();
        assert_eq!(there.chosen().unwrap().unwrap().step(), 1);
        // A best that is damaged gives way to the newest good one.
        claim.mark_best(Some(3)).unwrap();
        assert_eq!(there.chosen().unwrap().unwrap().step(), 2);
        for step in 1..=2 {
            fs::write(folder(run.path()).join(format!("step-0000000{step}/checkpoint.json")), b"").unwrap();
        }
        let error = there.latest().unwrap_err();
        assert!(matches!(error, RunError::NoneGood { count: 3, .. }), "{error}");
    }

    #[test]
    fn a_step_back_leaves_one_timeline_and_removes_nothing() {
        let run = run();
        for step in [100, 200, 300] {
            save_value(run.path(), step, (step / 100) as u8, 1).unwrap();
        }
        let (mut claim, there) = (claim(run.path()), RunFolder::at(run.path()));
        let moved = claim.abandon_after(100).unwrap();
        let named = |name: &str| folder(run.path()).join(name);
        assert_eq!(moved, [named("step-00000300.abandoned"), named("step-00000200.abandoned")]);
        assert_eq!(steps(run.path()), [100]);
        // The new line is older than what was left; it is pruned among itself.
        save_value(run.path(), 150, 9, 1).unwrap();
        save_value(run.path(), 200, 9, 1).unwrap();
        assert_eq!(claim.prune(1, &[200]).unwrap(), [150, 100]);
        assert_eq!(claim.abandon_after(150).unwrap(), [named("step-00000200.abandoned-2")]);
        assert_eq!(steps(run.path()), [0u64; 0]);
        let aside = there.abandoned().unwrap();
        let values = aside.iter().map(|(step, path)| (*step, value(&Checkpoint::open(path).unwrap())));
        assert_eq!(values.collect::<Vec<_>>(), [(200, 2), (200, 9), (300, 3)]);
        let error = Claim::new(run.path(), None).unwrap_err();
        assert!(matches!(error, RunError::Locked { .. } | RunError::Exists { .. }), "{error}");
    }

    #[test]
    fn a_checkpoint_belongs_to_a_run_only_within_it() {
        let run = run();
        let path = save_value(run.path(), 5, 1, 1).unwrap();
        assert!(matches!(RunFolder::of(&path), Err(RunError::Outside { .. })), "nothing says that this is a run");
        claim(run.path()).mark("a", None).unwrap();
        assert!(RunFolder::of(&path).unwrap().is(run.path()));
        let copied = run.path().join("backup/step-00000005");
        fs::create_dir(run.path().join("backup")).unwrap();
        fs::rename(&path, &copied).unwrap();
        assert!(matches!(RunFolder::of(&copied), Err(RunError::Outside { .. })));
        let aside = path.with_extension("abandoned");
        fs::rename(&copied, &aside).unwrap();
        assert!(matches!(RunFolder::of(&aside), Err(RunError::SetAside { .. })));
    }

    #[test]
    fn nothing_of_the_users_is_taken_for_a_run() {
        let place = run();
        let at = |name: &str| place.path().join(name);
        // New, empty, or with nothing but the settings it is started with.
        assert!(RunFolder::at(&at("new")).check_new(None).is_ok());
        fs::create_dir(at("project")).unwrap();
        assert!(RunFolder::at(&at("project")).check_new(None).is_ok());
        let config = at("project/config.toml");
        fs::write(&config, b"").unwrap();
        assert!(RunFolder::at(&at("project")).check_new(Some(&config)).is_ok());
        let text = RunFolder::at(&at("project")).check_new(None).unwrap_err().to_string();
        assert!(text.contains("config.toml is there") && text.contains("--save-dir"), "{text}");
        fs::write(at("project/README.md"), b"# mine").unwrap();
        assert!(matches!(Claim::new(&at("project"), Some(&config)), Err(RunError::Occupied { .. })));
        assert_eq!(names(&at("project")), ["README.md", "config.toml"]);
        fs::create_dir(at("own")).unwrap();
        let config = at("own").join(SETTINGS);
        fs::write(&config, b"").unwrap();
        assert!(matches!(RunFolder::at(&at("own")).check_new(Some(&config)), Err(RunError::Config { .. })));
        for path in [&config, &config.join("run")] {
            assert!(matches!(RunFolder::at(path).check_new(None), Err(RunError::NotAFolder { .. })));
        }
        // Checkpoints alone may be gone on with where nothing is in the way.
        save_value(&at("copy"), 5, 1, 1).unwrap();
        assert!(RunFolder::at(&at("copy")).check_resume().is_ok());
        fs::write(at("copy").join(METRICS), b"mine").unwrap();
        assert!(matches!(RunFolder::at(&at("copy")).check_resume(), Err(RunError::Occupied { .. })));
    }

    #[test]
    fn a_folder_made_for_nothing_goes_again() {
        let place = run();
        let path = place.path().join("a/run");
        drop(Claim::new(&path, None).unwrap());
        assert!(!path.exists());
        let mut claim = Claim::new(&path, None).unwrap();
        claim.mark("a", None).unwrap();
        drop(claim);
        assert_eq!(names(&path), ["run.json", "run.lock"]);
    }
}
