//! Files and folders that appear whole or not at all.
//!
//! ```text
//! write to folder/.tmp-<pid>-<start>-<n>  ->  fsync  ->  rename to folder/name  ->  fsync folder
//! ```
//!
//! A process killed at any point leaves the old content or the new one under the name, never a mixture; after a
//! loss of power the same holds on file systems that keep the order of fsync and rename. What a killed process
//! leaves is a `.tmp-` entry, told from one in use by the process id and the start time of that process
//! (Linux, `/proc/<pid>/stat`; where there is no `/proc`, leftovers stay). Source: rename(2), fsync(2), proc(5).

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::units::bytes;

/// Why a file or folder was not written. What is under its name is whole: the old content, or (where only the last
/// fsync failed) the new.
#[derive(Debug, thiserror::Error)]
pub enum AtomicError {
    /// No space or quota left.
    #[error(
        "{}: the disk is full ({} could be written); what was saved before is untouched; free some space or \
         choose another folder", path.display(), bytes(*written)
    )]
    DiskFull {
        /// What was to be written.
        path: PathBuf,
        /// How much of it fitted.
        written: u64,
    },
    /// No permission, or a file system mounted read-only.
    #[error(
        "{}: cannot write to its folder ({source}); change the permissions or choose another folder", path.display()
    )]
    NotWritable {
        /// What was to be written.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The folder to write in is missing.
    #[error("{}: its folder does not exist; create it or correct the path", path.display())]
    NoFolder {
        /// What was to be written.
        path: PathBuf,
    },
    /// A folder is never written over another.
    #[error("{}: already exists; choose another name or move it away", path.display())]
    Exists {
        /// What was to be written.
        path: PathBuf,
    },
    /// Anything else.
    #[error(
        "{}: {doing} failed ({source}); the file of that name, if any, is unchanged", path.display()
    )]
    Other {
        /// What was to be written.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

impl AtomicError {
    /// Sorts an error of the operating system into its case.
    pub(crate) fn new(path: &Path, doing: &'static str, written: u64, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull { path, written },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::NotWritable { path, source },
            _ => Self::Other { path, doing, source },
        }
    }
}

/// Replaces or creates the file `path` with what `fill` writes.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), AtomicError> {
    let (staged, file) = Staged::create(path, |at| File::create_new(at))?;
    let mut writer = BufWriter::new(file);
    fill(&mut writer).map_err(|e| staged.error("writing", e))?;
    let file = writer.into_inner().map_err(|e| staged.error("writing", e.into_error()))?;
    file.sync_all().map_err(|e| staged.error("fsync", e))?;
    drop(file);
    staged.publish()
}

/// Creates the folder `path`, which must not exist, with the files that `fill` writes into the folder given to it.
pub fn write_dir(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), AtomicError> {
    Staged::folder(path, fill)?.publish()
}

/// Removes what killed processes left in `folder`; returns how many entries. A missing folder has none.
pub fn clean_leftovers(folder: &Path) -> Result<usize, AtomicError> {
    let failed = |e| AtomicError::new(folder, "removing leftovers", 0, e);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(failed)?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_str().is_some_and(is_leftover) {
            remove(&entry.path()).map_err(failed)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Makes a folder disappear at once, so that a kill in the middle of removing it leaves no half folder.
pub(crate) fn discard(folder: &Path) -> Result<(), AtomicError> {
    let failed = |e| AtomicError::new(folder, "removing", 0, e);
    let aside = folder.with_file_name(temporary_name());
    fs::rename(folder, &aside).map_err(failed)?;
    remove(&aside).map_err(failed)
}

/// Whole, synced content beside its target, not yet under its name. Removed when dropped.
pub(crate) struct Staged {
    temporary: PathBuf,
    target: PathBuf,
}

impl Staged {
    fn create<T>(target: &Path, make: impl Fn(&Path) -> io::Result<T>) -> Result<(Self, T), AtomicError> {
        let staged = Self { temporary: target.with_file_name(temporary_name()), target: target.to_owned() };
        let made =
            if target.file_name().is_some() { make(&staged.temporary) } else { Err(ErrorKind::InvalidFilename.into()) };
        match made {
            Ok(made) => Ok((staged, made)),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(AtomicError::NoFolder { path: target.to_owned() }),
            Err(e) => Err(staged.error("creating a temporary file beside it", e)),
        }
    }

    /// A folder filled by `fill`, every file in it synced.
    pub(crate) fn folder(target: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<Self, AtomicError> {
        let (staged, ()) = Self::create(target, |at| fs::create_dir(at))?;
        fill(&staged.temporary).map_err(|e| staged.error("writing", e))?;
        sync_tree(&staged.temporary).map_err(|e| staged.error("fsync", e))?;
        Ok(staged)
    }

    /// Gives the content its name. Replaces a file, but never a folder.
    pub(crate) fn publish(self) -> Result<(), AtomicError> {
        if self.temporary.is_dir() && self.target.symlink_metadata().is_ok() {
            return Err(AtomicError::Exists { path: self.target.clone() });
        }
        fs::rename(&self.temporary, &self.target).map_err(|e| self.error("renaming", e))?;
        sync_folder(parent(&self.target)).map_err(|e| self.error("fsync of its folder", e))
    }

    fn error(&self, doing: &'static str, source: io::Error) -> AtomicError {
        AtomicError::new(&self.target, doing, size(&self.temporary), source)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After `publish` there is nothing left. A failure leaves a leftover, which is what leftovers are for.
        let _ = remove(&self.temporary);
    }
}

pub(crate) fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Bytes of a file, or of the files in a folder; 0 where nothing can be read.
fn size(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|e| size(&e.path())).sum(),
        Err(_) => path.symlink_metadata().map_or(0, |m| m.len()),
    }
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            // Windows syncs only what is open for writing.
            File::options().read(true).write(cfg!(windows)).open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Makes the names in a folder durable. Only Unix can; some file systems answer EINVAL for "not here".
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(e) if e.kind() == ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// `.tmp-<pid>-<start>-<n>`: never the same twice.
fn temporary_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    // Without `/proc` a random number stands in: it only has to differ from other processes' names.
    // Asked each time: a process that was forked has another.
    let start = start_time(pid).unwrap_or_else(|| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(pid)
    });
    format!(".tmp-{pid}-{start}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Whether this is the name of a temporary, whoever makes it.
pub(crate) fn is_temporary(name: &str) -> bool {
    owner(name).is_some()
}

/// Whether this is the name of a temporary whose process is gone.
fn is_leftover(name: &str) -> bool {
    // Only where we can see ourselves does not seeing the owner mean that it is gone.
    let gone = |(pid, start)| start_time(std::process::id()).is_some() && start_time(pid) != Some(start);
    owner(name).is_some_and(gone)
}

/// The process that a temporary's name tells of, and when it started.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut fields = name.strip_prefix(".tmp-")?.split('-');
    let pid = fields.next()?.parse().ok()?;
    let start = fields.next()?.parse().ok()?;
    let _count: u64 = fields.next()?.parse().ok()?;
    fields.next().is_none().then_some((pid, start))
}

/// When a living process started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2 is the program's name in parentheses and may hold anything; field 3 is the state.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X");
    let start = fields.nth(18)?.parse().ok()?;
    (!dead).then_some(start)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Command;

    /// A small file system in memory; `None`, with a message, where mounting is not allowed.
    pub(crate) struct Tmpfs(tempfile::TempDir);

    impl Tmpfs {
        pub(crate) fn mount(options: &str) -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", options, "flashlm-test"]);
            match mount.arg(dir.path()).output() {
                Ok(output) if output.status.success() => Some(Self(dir)),
                _ => {
                    eprintln!("skipped: mounting a tmpfs is not allowed here");
                    None
                }
            }
        }

        pub(crate) fn path(&self) -> &Path {
            self.0.path()
        }
    }

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    /// The names in a folder, sorted.
    pub(crate) fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn write(path: &Path, bytes: &[u8]) -> Result<(), AtomicError> {
        write_file(path, |w| w.write_all(bytes))
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"old").unwrap();
        let error = write_file(&path, |w| {
            // Both are there while the new one is written: the old under its name, the new beside it.
            w.write_all(b"half")?;
            w.flush()?;
            assert_eq!(fs::read(&path)?, b"old");
            assert!(names(dir.path())[0].starts_with(".tmp-"));
            Err(io::Error::other("stop"))
        });
        let text = error.unwrap_err().to_string();
        assert!(text.contains("writing failed (stop)"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_panic_in_the_middle_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let result = std::panic::catch_unwind(|| {
            write_dir(&path, |at| {
                fs::write(at.join("x"), b"x")?;
                panic!("in the middle");
            })
        });
        assert!(result.is_err());
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        write_dir(&path, |at| {
            assert!(!path.exists());
            fs::create_dir(at.join("sub"))?;
            fs::write(at.join("sub/x"), b"1")
        })
        .unwrap();
        assert_eq!(fs::read(path.join("sub/x")).unwrap(), b"1");
        let again = write_dir(&path, |at| fs::write(at.join("y"), b"2"));
        assert!(matches!(again, Err(AtomicError::Exists { .. })));
        assert_eq!(names(&path), ["sub"]);
        assert_eq!(names(dir.path()), ["d"]);
    }

    #[test]
    fn a_missing_folder_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/a");
        assert!(matches!(write(&path, b""), Err(AtomicError::NoFolder { .. })));
        // A file that `fill` misses is another matter.
        let inner = write_file(&dir.path().join("a"), |_| File::open(&path).map(|_| ()));
        assert!(matches!(inner, Err(AtomicError::Other { .. })));
        assert!(write(Path::new("/"), b"").is_err());
    }

    #[test]
    fn a_full_disk_keeps_the_old_file() {
        let Some(disk) = Tmpfs::mount("size=128k") else {
            return;
        };
        let path = disk.path().join("a");
        write(&path, b"old").unwrap();
        for result in [
            write(&path, &vec![7; 1 << 20]),
            write_dir(&disk.path().join("d"), |at| fs::write(at.join("x"), vec![7; 1 << 20])),
        ] {
            let error = result.unwrap_err();
            let AtomicError::DiskFull { written, .. } = &error else {
                panic!("{error}");
            };
            assert!((64 << 10..=128 << 10).contains(written), "{written}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(disk.path()), ["a"]);
    }

    #[test]
    fn an_unwritable_folder_is_said() {
        // Permissions do not stop root, a read-only file system does.
        let Some(disk) = Tmpfs::mount("ro") else {
            return;
        };
        let error = write(&disk.path().join("a"), b"").unwrap_err();
        assert!(matches!(error, AtomicError::NotWritable { .. }), "{error}");
        let error = AtomicError::new(Path::new("a"), "", 0, ErrorKind::PermissionDenied.into());
        assert!(matches!(error, AtomicError::NotWritable { .. }), "{error}");
    }

    #[test]
    fn leftovers_of_the_dead_go_and_of_the_living_stay() {
        let Some(own) = start_time(std::process::id()) else {
            eprintln!("skipped: there is no /proc here");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let living = start_time(child.id()).unwrap();
        let keep = [
            format!(".tmp-{}-{own}-0", std::process::id()),
            format!(".tmp-{}-{living}-5", child.id()),
            ".tmp-notes".to_owned(),
            "step-1".to_owned(),
        ];
        let drop = [
            // No such process; and ours, but of a process that started at another time.
            ".tmp-4294967295-1-0".to_owned(),
            format!(".tmp-{}-{}-0", std::process::id(), own + 1),
        ];
        for name in keep.iter().chain(&drop) {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("x"), b"x").unwrap();
        }
        let file = ".tmp-4294967295-1-1";
        fs::write(dir.path().join(file), b"x").unwrap();
        assert_eq!(clean_leftovers(dir.path()).unwrap(), 3);
        let mut left = keep.clone();
        left.sort();
        assert_eq!(names(dir.path()), left);
        // Killed but not yet waited for: a zombie is dead.
        child.kill().unwrap();
        let gone = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            start_time(child.id()).is_none()
        });
        assert!(gone);
        assert_eq!(clean_leftovers(dir.path()).unwrap(), 1);
        child.wait().unwrap();
        assert_eq!(clean_leftovers(&dir.path().join("none")).unwrap(), 0);
    }
}
