//! One checkpoint: a folder that is saved whole, checked on loading, and replaced atomically.
//!
//! ```text
//! step-00000500/       the parts, and checkpoint.json:
//!     {"version":1,"step":500,"files":{"model.safetensors":{"bytes":8,"xxh3":"0123456789abcdef"},..}}
//! step-00000500.old    the one before, while step 500 is saved a second time
//! ```
//!
//! `xxh3` is XXH3-64 (github.com/Cyan4973/xxHash) of the whole file: it detects damage, not forgery. Extra files are
//! left alone. A process killed at any point leaves at least the checkpoints that were whole before.

use crate::atomic::{self, AtomicError};
use flashlm_model::io::safetensors::{TensorFile, TensorRef, write_tensors};
use flashlm_model::io::{IoError, read_limited};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, btree_map::Entry as MapEntry};
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

pub(crate) const MANIFEST: &str = "checkpoint.json";
const VERSION: u64 = 1;
/// Longest manifest accepted: several thousand parts.
const MAX_MANIFEST: u64 = 1 << 20;

/// Why a checkpoint was not saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nothing was saved; what was there before is still there.
    #[error("the checkpoint of step {step} ({bytes} bytes) was not saved: {source}")]
    Save {
        /// The step.
        step: u64,
        /// How much was to be written, without the headers.
        bytes: u64,
        /// Why.
        source: AtomicError,
    },
    /// A part with a name that cannot be one.
    #[error(
        "part `{name}`: expected a unique name of letters, digits, `-`, `_` and `.`, not starting with `.`, and not \
         checkpoint.json"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Damaged, incomplete or not there.
    #[error("{}: expected {expected}, found {found}; {mend}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        mend: String,
    },
    /// The operating system would not let us read.
    #[error("{}: cannot be read ({source}); check the path and the permissions", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A part is intact, but not what it should be.
    #[error(transparent)]
    Content(#[from] IoError),
}

/// One file of a checkpoint to be saved.
#[derive(Debug, Clone)]
pub enum Part<'a> {
    /// A safetensors file.
    Tensors {
        /// Its name.
        file: &'a str,
        /// Its tensors.
        tensors: Vec<TensorRef<'a>>,
        /// Its metadata.
        metadata: BTreeMap<String, String>,
    },
    /// Any other file.
    Bytes {
        /// Its name.
        file: &'a str,
        /// Its content.
        data: &'a [u8],
    },
}

impl Part<'_> {
    fn file(&self) -> &str {
        match self {
            Part::Tensors { file, .. } | Part::Bytes { file, .. } => file,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Part::Tensors { tensors, .. } => tensors.iter().map(|t| size_of_val(t.data) as u64).sum(),
            Part::Bytes { data, .. } => data.len() as u64,
        }
    }

    fn write(&self, w: &mut dyn Write) -> io::Result<()> {
        match self {
            Part::Tensors { tensors, metadata, .. } => write_tensors(w, tensors, metadata),
            Part::Bytes { data, .. } => w.write_all(data),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u64,
    step: u64,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    xxh3: String,
}

fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

fn safe_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=200).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.') && name != MANIFEST
}

/// The name of a step's folder.
pub(crate) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step of a folder name, and whether it is the `.old` one.
pub(crate) fn parse_name(name: &str) -> Option<(u64, bool)> {
    let (name, old) = name.strip_suffix(".old").map_or((name, false), |n| (n, true));
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some((step, old))
}

/// Counts and hashes what passes through.
struct Hashing<W> {
    inner: W,
    hash: Xxh3,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_parts(at: &Path, step: u64, parts: &[Part]) -> io::Result<()> {
    let mut files = BTreeMap::new();
    for part in parts {
        let mut w =
            Hashing { inner: BufWriter::new(File::create_new(at.join(part.file()))?), hash: Xxh3::new(), bytes: 0 };
        part.write(&mut w)?;
        w.flush()?;
        let xxh3 = hex(w.hash.digest());
        files.insert(part.file().to_owned(), Entry { bytes: w.bytes, xxh3 });
    }
    let version = VERSION;
    let manifest = serde_json::to_vec(&Manifest { version, step, files })?;
    fs::write(at.join(MANIFEST), manifest)
}

/// Saves a checkpoint of `step` as `folder/step-N` and returns that. The folder is made; one of the same step is replaced.
pub fn save(folder: &Path, step: u64, parts: &[Part]) -> Result<PathBuf, CheckpointError> {
    for (i, part) in parts.iter().enumerate() {
        let name = part.file();
        let twice = parts[..i].iter().any(|p| p.file().eq_ignore_ascii_case(name));
        if twice || !safe_name(name) {
            return Err(CheckpointError::Name { name: name.to_owned() });
        }
    }
    let bytes = parts.iter().map(Part::bytes).sum();
    let target = folder.join(folder_name(step));
    match replace(folder, &target, |at| write_parts(at, step, parts)) {
        Ok(()) => Ok(target),
        Err(source) => Err(CheckpointError::Save { step, bytes, source }),
    }
}

fn replace(folder: &Path, target: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), AtomicError> {
    let made = fs::create_dir_all(folder).and_then(|()| atomic::sync_folder(atomic::parent(folder)));
    made.map_err(|e| AtomicError::new(folder, "creating", 0, e))?;
    let staged = atomic::Staged::folder(target, fill)?;
    let old = target.with_extension("old");
    // With both there, a kill came between the two last steps below: the target is whole and newer.
    if target.exists() && old.exists() {
        atomic::discard(&old)?;
    }
    if target.exists() {
        fs::rename(target, &old).map_err(|e| AtomicError::new(target, "moving the old one away", 0, e))?;
    }
    // A kill here leaves only the old one, and `scan` takes it for the step.
    if let Err(error) = staged.publish() {
        // Fails if the new one is in place and only the last fsync was refused; then the new one stays.
        let _ = fs::rename(&old, target);
        return Err(error);
    }
    if old.exists() {
        // Saved already; what is left of the old one is removed when the run is next pruned.
        let _ = atomic::discard(&old);
    }
    Ok(())
}

/// Finished checkpoints by step, and superseded `.old` folders. Damage is not looked for; a missing folder has none.
pub(crate) fn scan(folder: &Path) -> Result<(BTreeMap<u64, PathBuf>, Vec<PathBuf>), CheckpointError> {
    let failed = |source| CheckpointError::Read { path: folder.to_owned(), source };
    let (mut found, mut old) = (BTreeMap::new(), BTreeMap::new());
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((found, vec![])),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if let Some((step, is_old)) = name.and_then(parse_name)
            && path.is_dir()
        {
            if is_old { &mut old } else { &mut found }.insert(step, path);
        }
    }
    let mut superseded = vec![];
    for (step, path) in old {
        match found.entry(step) {
            MapEntry::Occupied(_) => superseded.push(path),
            MapEntry::Vacant(free) => {
                free.insert(path);
            }
        }
    }
    Ok((found, superseded))
}

fn damaged(file: &Path, expected: impl Into<String>, found: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged {
        file: file.to_owned(),
        expected: expected.into(),
        found: found.into(),
        mend: "use another checkpoint".to_owned(),
    }
}

/// A checkpoint whose every file was found whole.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
    /// Of one that was made in memory: its parts.
    made: Option<Arc<BTreeMap<String, Vec<u8>>>>,
}

impl Checkpoint {
    /// Checks the manifest, and the size and checksum of every file. The error names the newest other good
    /// checkpoint beside this one.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::check(path).map_err(|mut error| {
            if let CheckpointError::Damaged { mend, .. } = &mut error {
                *mend = match Self::other(path) {
                    Some(other) => format!("use {} instead", other.display()),
                    None => "there is no other good checkpoint beside it: start a new run".to_owned(),
                };
            }
            error
        })
    }

    fn other(path: &Path) -> Option<PathBuf> {
        let mut all = scan(path.parent()?).ok()?.0;
        all.retain(|_, other| other.file_name() != path.file_name());
        all.into_values().rev().find(|other| Self::check(other).is_ok())
    }

    pub(crate) fn check(path: &Path) -> Result<Self, CheckpointError> {
        let file = path.join(MANIFEST);
        if !file.is_file() {
            return Err(damaged(&file, "the manifest of a checkpoint", "no such file"));
        }
        let bytes = read_limited(&file, MAX_MANIFEST)?;
        let bad = |e: serde_json::Error| damaged(&file, "the manifest of a checkpoint", e.to_string());
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(bad)?;
        if let Some(version) = value["version"].as_u64().filter(|v| *v != VERSION) {
            return Err(damaged(&file, format!("version {VERSION}"), format!("version {version}")));
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(bad)?;
        let named = path.file_name().and_then(|n| n.to_str()).and_then(parse_name);
        if let Some((step, _)) = named.filter(|(step, _)| *step != manifest.step) {
            let found = format!("step {}", manifest.step);
            return Err(damaged(&file, format!("step {step}"), found));
        }
        for (name, entry) in &manifest.files {
            if !safe_name(name) {
                return Err(damaged(&file, "plain file names", format!("{name:?}")));
            }
            check_file(&path.join(name), entry)?;
        }
        let path = path.to_owned();
        Ok(Self { path, manifest, made: None })
    }

    /// One that no folder holds, made of the file at `path`.
    pub(crate) fn made(path: &Path, step: u64, parts: &[Part]) -> io::Result<Self> {
        let write = |part: &Part| {
            let mut bytes = Vec::new();
            part.write(&mut bytes)?;
            Ok((part.file().to_owned(), bytes))
        };
        let made = parts.iter().map(write).collect::<io::Result<BTreeMap<_, _>>>()?;
        let manifest = Manifest { version: VERSION, step, files: BTreeMap::new() };
        Ok(Self { path: path.to_owned(), manifest, made: Some(made.into()) })
    }

    /// Whether it was made in memory, so that it lies in no run.
    pub(crate) fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// Its folder, or the file that it was made of.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The step it was saved at.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// The content of a part, checked once more.
    pub fn bytes(&self, file: &str) -> Result<Vec<u8>, CheckpointError> {
        let path = self.path.join(file);
        let none = || damaged(&path, "a part of the checkpoint", "no such part");
        if let Some(made) = &self.made {
            return made.get(file).cloned().ok_or_else(none);
        }
        let entry = self.manifest.files.get(file).ok_or_else(none)?;
        let bytes = read_limited(&path, entry.bytes)?;
        let found = (bytes.len() as u64, hex(xxh3_64(&bytes)));
        compare(&path, entry, found)?;
        Ok(bytes)
    }

    /// The tensors of a part.
    pub fn tensors(&self, file: &str) -> Result<TensorFile, CheckpointError> {
        let label = self.path.join(file).display().to_string();
        Ok(TensorFile::from_bytes(self.bytes(file)?, &label)?)
    }
}

fn compare(path: &Path, entry: &Entry, (bytes, xxh3): (u64, String)) -> Result<(), CheckpointError> {
    if bytes != entry.bytes {
        let found = format!("{bytes}: it was cut short or written to");
        return Err(damaged(path, format!("{} bytes", entry.bytes), found));
    }
    if xxh3 != entry.xxh3 {
        return Err(damaged(path, format!("checksum {}", entry.xxh3), xxh3));
    }
    Ok(())
}

fn check_file(path: &Path, entry: &Entry) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
    let about = match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(damaged(path, format!("{} bytes", entry.bytes), "no such file"));
        }
        about => about.map_err(failed)?,
    };
    if !about.is_file() {
        return Err(damaged(path, "a file", "a folder, a link or a device"));
    }
    if about.len() != entry.bytes {
        return compare(path, entry, (about.len(), String::new()));
    }
    let mut file = File::open(path).map_err(failed)?.take(entry.bytes);
    let (mut hash, mut piece, mut bytes) = (Xxh3::new(), vec![0; 1 << 16], 0);
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => return compare(path, entry, (bytes, hex(hash.digest()))),
            n => {
                hash.update(&piece[..n]);
                bytes += n as u64;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::atomic::tests::{Tmpfs, names};

    /// A checkpoint whose tensors and bytes all say `value`.
    pub(crate) fn save_value(run: &Path, step: u64, value: u8, size: usize) -> Result<PathBuf, CheckpointError> {
        let (shape, numbers) = ([size], vec![f32::from(value); size]);
        let (name, data) = ("w", numbers.as_slice());
        let tensors = vec![TensorRef { name, shape: &shape, data }];
        let metadata = BTreeMap::from([("config".to_owned(), "{}".to_owned())]);
        let parts = [
            Part::Tensors { file: "model.safetensors", tensors, metadata },
            Part::Bytes { file: "state.bin", data: &vec![value; size] },
        ];
        save(&folder(run), step, &parts)
    }

    pub(crate) fn folder(run: &Path) -> PathBuf {
        run.join("checkpoints")
    }

    pub(crate) fn value(checkpoint: &Checkpoint) -> u8 {
        let bytes = checkpoint.bytes("state.bin").unwrap();
        let numbers = checkpoint.tensors("model.safetensors").unwrap().f32("w").unwrap();
        assert!(bytes.iter().all(|b| *b == bytes[0]));
        assert!(numbers.iter().all(|x| *x == f32::from(bytes[0])));
        bytes[0]
    }

    fn steps(run: &Path) -> Vec<u64> {
        scan(&folder(run)).unwrap().0.into_keys().collect()
    }

    fn run() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let run = run();
        let path = save_value(run.path(), 500, 3, 10).unwrap();
        assert_eq!(path, run.path().join("checkpoints/step-00000500"));
        save_value(run.path(), 123_456_789_012, 4, 10).unwrap();
        // Names that only look like checkpoints.
        for name in ["step-5", "step-000000x0", "step-+0000005", ".tmp-1-2-3", "notes"] {
            fs::create_dir(folder(run.path()).join(name)).unwrap();
        }
        fs::write(folder(run.path()).join("step-00000007"), b"a file").unwrap();
        assert_eq!(steps(run.path()), [500, 123_456_789_012]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!((checkpoint.step(), value(&checkpoint)), (500, 3));
        let tensors = checkpoint.tensors("model.safetensors").unwrap();
        assert_eq!(tensors.metadata("config"), Some("{}"));
        assert!(checkpoint.bytes("../../best").is_err());
        fs::write(path.join("notes.txt"), b"extra").unwrap();
        Checkpoint::open(&path).unwrap();
    }

    #[test]
    fn the_manifest_is_the_documented_one() {
        let run = run();
        let path = save(&folder(run.path()), 5, &[Part::Bytes { file: "a.txt", data: b"a" }]).unwrap();
        // XXH3-64 of "a" with seed 0, from the reference implementation (python-xxhash).
        let expected = r#"{"version":1,"step":5,"files":{"a.txt":{"bytes":1,"xxh3":"e6c632b61e964e1f"}}}"#;
        assert_eq!(fs::read_to_string(path.join(MANIFEST)).unwrap(), expected);
    }

    #[test]
    fn any_flipped_bit_is_found_and_the_way_out_is_named() {
        let run = run();
        save_value(run.path(), 1, 1, 3).unwrap();
        let good = save_value(run.path(), 2, 2, 3).unwrap();
        let bad = save_value(run.path(), 3, 3, 3).unwrap();
        for name in ["model.safetensors", "state.bin", MANIFEST] {
            let whole = fs::read(bad.join(name)).unwrap();
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                fs::write(bad.join(name), &bytes).unwrap();
                let text = Checkpoint::open(&bad).unwrap_err().to_string();
                assert!(text.contains(&format!("use {} instead", good.display())), "{text}");
            }
            for cut in 0..whole.len() {
                fs::write(bad.join(name), &whole[..cut]).unwrap();
                Checkpoint::open(&bad).unwrap_err();
            }
            fs::remove_file(bad.join(name)).unwrap();
            let text = Checkpoint::open(&bad).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("found no such file"), "{text}");
            fs::write(bad.join(name), &whole).unwrap();
            Checkpoint::open(&bad).unwrap();
        }
    }

    #[test]
    fn damage_after_opening_is_found_too() {
        let run = run();
        let path = save_value(run.path(), 1, 1, 3).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        for data in [&b"\x01\x01\x02"[..], b"\x01", b"\x01\x01\x01\x01"] {
            fs::write(path.join("state.bin"), data).unwrap();
            assert!(checkpoint.bytes("state.bin").is_err());
        }
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let run = run();
        let path = save_value(run.path(), 1, 1, 3).unwrap();
        fs::write(run.path().join("secret"), b"a").unwrap();
        let entry = r#"{"bytes":1,"xxh3":"e6c632b61e964e1f"}"#;
        let one = |name: &str| format!(r#"{{"version":1,"step":1,"files":{{"{name}":{entry}}}}}"#);
        let secret = run.path().join("secret").display().to_string();
        for (manifest, says) in [
            (one("../../secret"), "plain file names"),
            (one(&secret), "plain file names"),
            (one("..\\\\secret"), "plain file names"),
            (one(".."), "plain file names"),
            (one(""), "plain file names"),
            (one("con\\u0000"), "plain file names"),
            (one("link"), "a link"),
            (one("folder"), "a folder"),
            (one("a").replace("\"version\":1", "\"version\":2"), "found version 2"),
            (one("a").replace("\"step\":1", "\"step\":2"), "expected step 1, found step 2"),
            (one("a").replace("\"step\":1", "\"step\":-1"), "manifest"),
            (one("a").replace("\"step\":1", "\"step\":1,\"x\":1"), "unknown field"),
            (String::new(), "manifest"),
            ("[".repeat(1000), "recursion"),
            ("[]".to_owned(), "manifest"),
            (" ".repeat(2 << 20), "expected at most 1048576"),
        ] {
            #[cfg(unix)]
            let _ = std::os::unix::fs::symlink("../../secret", path.join("link"));
            let _ = fs::create_dir(path.join("folder"));
            fs::write(path.join(MANIFEST), &manifest).unwrap();
            let text = Checkpoint::open(&path).unwrap_err().to_string();
            assert!(text.contains(says), "{says}: {text}");
        }
        for name in ["", ".x", "a/b", "..", "a\\b", MANIFEST, "é"] {
            let error = save(&folder(run.path()), 9, &[Part::Bytes { file: name, data: b"" }]);
            assert!(matches!(error, Err(CheckpointError::Name { .. })), "{name}");
        }
        let twice = [Part::Bytes { file: "a", data: b"" }, Part::Bytes { file: "A", data: b"" }];
        assert!(matches!(save(&folder(run.path()), 9, &twice), Err(CheckpointError::Name { .. })));
        assert_eq!(steps(run.path()), [1]);
    }

    #[test]
    fn saving_a_step_again_replaces_it() {
        let run = run();
        let path = save_value(run.path(), 1, 1, 3).unwrap();
        save_value(run.path(), 1, 2, 3).unwrap();
        assert_eq!(value(&Checkpoint::open(&path).unwrap()), 2);
        assert_eq!(names(&folder(run.path())), ["step-00000001"]);
        // A save that fails leaves the old one.
        let wrong = TensorRef { name: "w", shape: &[2], data: &[1.0] };
        let tensors = vec![wrong];
        let metadata = BTreeMap::new();
        let part = Part::Tensors { file: "m", tensors, metadata };
        let text = save(&folder(run.path()), 1, &[part]).unwrap_err().to_string();
        assert!(text.contains("step 1 (4 bytes) was not saved"), "{text}");
        assert_eq!(value(&Checkpoint::open(&path).unwrap()), 2);
        assert_eq!(names(&folder(run.path())), ["step-00000001"]);
    }

    #[test]
    fn a_full_disk_loses_nothing() {
        let Some(disk) = Tmpfs::mount("size=512k") else {
            return;
        };
        let path = save_value(disk.path(), 1, 1, 10_000).unwrap();
        for step in [1, 2] {
            let error = save_value(disk.path(), step, 2, 1 << 20).unwrap_err();
            let text = error.to_string();
            let CheckpointError::Save { bytes, source, .. } = error else {
                panic!("{text}");
            };
            assert_eq!(bytes, 5 << 20);
            assert!(matches!(source, AtomicError::DiskFull { .. }), "{text}");
            assert_eq!(names(&folder(disk.path())), ["step-00000001"]);
            assert_eq!(value(&Checkpoint::open(&path).unwrap()), 1);
        }
    }
}
