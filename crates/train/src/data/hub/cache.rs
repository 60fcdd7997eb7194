//! The cache that programs in Python share (`huggingface_hub`), laid out as they do it:
//!
//! ```text
//! hub/datasets--OWNER--NAME/refs/main                  the commit; models--OWNER--NAME of a model, refs/REVISION
//!                          /trees/COMMIT.json          the files of that commit with their sizes and checksums
//!                          /blobs/ETAG                 contents; ETAG.incomplete while they are fetched
//!                          /snapshots/COMMIT/PATH  ->  ../../blobs/ETAG
//! hub/.locks/datasets--OWNER--NAME/ETAG.lock           held by the process that fetches the blob
//! ```
//!
//! A blob gets its name once it is whole, checked and synced; a file is used only if it has the size that the list says.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flashlm_model::io::read_limited;
use serde::{Deserialize, Serialize};

use super::HubError;
use super::address::Address;
use super::http::{TICK, Tick};
use crate::atomic::{self, AtomicError};

/// Most bytes and files that a list may have.
pub(super) const MAX_LIST: usize = 32 << 20;
pub(super) const MAX_FILES: usize = 100_000;
/// Longest path in a repository.
const MAX_PATH: usize = 1024;

/// The files of a commit.
pub(super) type Files = BTreeMap<String, Entry>;

/// What the hub says of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub size: Option<u64>,
    /// SHA-1 of the git blob: of the content, or of the pointer to it where there is a SHA-256.
    pub blob_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lfs_size: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Tree<F> {
    format_version: u32,
    files: F,
}

/// The folder of one repository.
pub(super) struct Repo {
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl Repo {
    pub fn new(cache: &Path, address: &Address) -> Repo {
        let name = address.folder();
        let revision = address.revision.clone();
        Repo { folder: cache.join(&name), locks: cache.join(".locks").join(&name), revision }
    }

    /// The commit that the revision was when it was last asked for; a commit is itself.
    pub fn commit(&self) -> Option<String> {
        if is_hex(&self.revision, 40) {
            return Some(self.revision.clone());
        }
        let text = read_limited(&self.folder.join("refs").join(&self.revision), 100).ok()?;
        let commit = String::from_utf8(text).ok()?.trim().to_string();
        is_hex(&commit, 40).then_some(commit)
    }

    /// Of what is not asked for by a revision, the commit whose files are here, if there is just one: whoever asked for a commit by
    /// its number leaves no `refs`.
    pub fn only_snapshot(&self) -> Option<String> {
        if self.revision != "main" {
            return None;
        }
        let mut all = fs::read_dir(self.folder.join("snapshots")).ok()?.flatten();
        let name = all.next()?.file_name().into_string().ok()?;
        (all.next().is_none() && is_hex(&name, 40)).then_some(name)
    }

    /// The files of a commit, if they are known; a list that is damaged is not.
    pub fn files(&self, commit: &str) -> Option<Files> {
        let text = read_limited(&self.tree(commit), MAX_LIST as u64).ok()?;
        let tree: Tree<Files> = serde_json::from_slice(&text).ok()?;
        let whole = |(path, entry): (&String, &Entry)| is_safe(path) && entry.size.is_some();
        (tree.format_version == 1 && tree.files.iter().all(whole)).then_some(tree.files)
    }

    /// Keeps what the hub said, the list first; a list with gaps is of no use to others and not kept.
    pub fn keep(&self, commit: &str, files: &Files) -> Result<(), HubError> {
        if files.values().all(|entry| entry.size.is_some() && entry.blob_id.is_some()) {
            let tree = self.tree(commit);
            make_parent(&tree)?;
            atomic::write_file(&tree, |w| Ok(serde_json::to_writer(w, &Tree { format_version: 1, files })?))?;
        }
        if self.revision == commit {
            return Ok(());
        }
        let name = self.folder.join("refs").join(&self.revision);
        make_parent(&name)?;
        Ok(atomic::write_file(&name, |w| w.write_all(commit.as_bytes()))?)
    }

    fn tree(&self, commit: &str) -> PathBuf {
        self.folder.join("trees").join(format!("{commit}.json"))
    }

    /// The folder with the files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether a file of a commit is here, of that size where one is known.
    pub fn has(&self, commit: &str, path: &str, size: Option<u64>) -> bool {
        is_whole(&self.snapshot(commit).join(path), size)
    }

    /// The paths of all files of a commit that are here.
    pub fn found(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for item in fs::read_dir(&folder).into_iter().flatten().flatten().take(MAX_FILES) {
                if item.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(item.path());
                } else if let Ok(path) = item.path().strip_prefix(&root) {
                    let parts: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
                    found.extend(parts.map(|parts| parts.join("/")).filter(|path| self.has(commit, path, None)));
                }
            }
        }
        found.sort_unstable();
        found
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Gives a whole blob its name.
    pub fn publish(&self, incomplete: &Path, etag: &str) -> Result<(), HubError> {
        let blob = self.blob(etag);
        let failed = |doing| move |e| AtomicError::new(incomplete, doing, 0, e);
        fs::rename(incomplete, &blob).map_err(failed("renaming"))?;
        Ok(atomic::sync_folder(&self.folder.join("blobs")).map_err(failed("fsync of its folder"))?)
    }

    /// Makes a blob a file of the commit.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<(), HubError> {
        let at = self.snapshot(commit).join(path);
        make_parent(&at)?;
        let failed = |e| AtomicError::new(&at, "linking", 0, e);
        // Under a name of its own and then renamed: others may link the same file at this moment, or read it.
        static LINKS: AtomicU64 = AtomicU64::new(0);
        let own = format!(".tmp-{}-{}", std::process::id(), LINKS.fetch_add(1, Relaxed));
        let temporary = at.with_file_name(own);
        let up = "../".repeat(path.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        symlink(&target, &temporary).or_else(|_| fs::hard_link(self.blob(etag), &temporary)).map_err(failed)?;
        let linked = fs::rename(&temporary, &at).map_err(failed);
        // Where both were links to one file the first is still there.
        let _ = fs::remove_file(&temporary);
        Ok(linked?)
    }

    /// Waits for the right to write a blob; it ends with the process that has it.
    pub fn lock(&self, etag: &str, tick: Tick) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let failed = |e| AtomicError::new(&path, "locking", 0, e);
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(failed(e).into()),
                Err(TryLockError::WouldBlock) if tick().is_break() => return Err(HubError::Stopped),
                Err(TryLockError::WouldBlock) => std::thread::sleep(TICK),
            }
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Creates the folder that a file is to lie in.
pub(super) fn make_parent(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    Ok(fs::create_dir_all(folder).map_err(|e| AtomicError::new(folder, "creating the folder", 0, e))?)
}

/// Whether this is a regular file of that size, or of any where none is known.
pub(super) fn is_whole(path: &Path, size: Option<u64>) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && size.is_none_or(|size| meta.len() == size))
}

/// Whether a path from the hub stays where it is put, on any system.
pub(super) fn is_safe(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    let relative = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let odd = |c: char| c.is_control() || c == '\\' || c == ':';
    relative && path.len() <= MAX_PATH && path.split('/').all(plain) && !path.contains(odd)
}

/// Whether an entity tag can be the name of a blob.
pub(super) fn is_name(etag: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=128).contains(&etag.len()) && etag.chars().all(plain)
}

pub(super) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::super::address::Kind;
    use super::*;
    use crate::data::testing::Folder;
    use std::ops::ControlFlow;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn dataset(repo: &str) -> Address {
        Address { kind: Kind::Dataset, repo: repo.into(), revision: "main".into() }
    }

    #[test]
    fn the_layout_is_that_of_python() {
        let folder = Folder::new();
        let repo = Repo::new(folder.path(), &dataset("owner/name"));
        assert_eq!((repo.commit(), repo.files(COMMIT)), (None, None));
        let pointer =
            Entry { size: Some(5), blob_id: Some("a".repeat(40)), lfs_sha256: Some("b".repeat(64)), lfs_size: Some(5) };
        let plain = Entry { size: Some(2), blob_id: Some("c".repeat(40)), ..Entry::default() };
        let files = Files::from([("data/x.txt".to_string(), pointer), ("y.txt".to_string(), plain)]);
        repo.keep(COMMIT, &files).unwrap();
        assert_eq!((repo.commit().as_deref(), repo.files(COMMIT).as_ref()), (Some(COMMIT), Some(&files)));
        // The keys that huggingface_hub writes and reads (`_tree_cache.py`).
        let tree = folder.path().join("datasets--owner--name/trees").join(format!("{COMMIT}.json"));
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&tree).unwrap()).unwrap();
        let (a, b, c) = ("a".repeat(40), "b".repeat(64), "c".repeat(40));
        assert_eq!(
            json,
            serde_json::json!({"format_version": 1, "files": {
                "data/x.txt": {"size": 5, "blob_id": a, "lfs_sha256": b, "lfs_size": 5},
                "y.txt": {"size": 2, "blob_id": c},
            }})
        );

        let blob = folder.file(&format!("datasets--owner--name/blobs/{b}"), "story");
        repo.link(COMMIT, "data/x.txt", &b).unwrap();
        repo.link(COMMIT, "data/x.txt", &b).unwrap();
        let at = repo.snapshot(COMMIT).join("data/x.txt");
        assert_eq!(
            (fs::read(&at).unwrap(), fs::canonicalize(&at).unwrap()),
            (b"story".to_vec(), fs::canonicalize(blob).unwrap())
        );
        if cfg!(unix) {
            assert_eq!(fs::read_link(&at).unwrap(), PathBuf::from(format!("../../../blobs/{b}")));
        }
        assert!(repo.has(COMMIT, "data/x.txt", Some(5)) && !repo.has(COMMIT, "data/x.txt", Some(6)));
        assert_eq!(repo.found(COMMIT), ["data/x.txt"]);

        // A cut or foreign list is as good as none.
        let text = fs::read(&tree).unwrap();
        for damaged in [
            &text[..text.len() / 2],
            b"{\"format_version\":2,\"files\":{}}",
            b"{\"format_version\":1,\"files\":{\"../x\":{\"size\":1}}}",
        ] {
            fs::write(&tree, damaged).unwrap();
            assert_eq!(repo.files(COMMIT), None);
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["a", "data/a-b_c.0.parquet", "é/ü.txt", "..a/b..", ".hidden"] {
            assert!(is_safe(path), "{path}");
        }
        let long = ["x".repeat(256), "x/".repeat(600)];
        for path in ["", "/", "/etc/passwd", "..", "a/../b", "a/..", "./a", "a//b", "a/", "a\\b", "C:x", "a\0b", "a\nb"]
        {
            assert!(!is_safe(path), "{path:?}");
        }
        assert!(long.iter().all(|path| !is_safe(path)));
        for etag in ["", ".", "..", "../x", "a/b", "a.b", &"a".repeat(129)] {
            assert!(!is_name(etag), "{etag}");
        }
    }

    #[test]
    fn one_at_a_time() {
        let folder = Folder::new();
        let repo = Repo::new(folder.path(), &dataset("a/b"));
        let held = repo.lock("x", &mut || ControlFlow::Break(())).unwrap();
        let mut ticks = 0;
        let mut twice = || {
            ticks += 1;
            if ticks == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert!(matches!(repo.lock("x", &mut twice), Err(HubError::Stopped)));
        repo.lock("y", &mut || ControlFlow::Break(())).unwrap();
        drop(held);
        repo.lock("x", &mut || ControlFlow::Break(())).unwrap();
    }
}
