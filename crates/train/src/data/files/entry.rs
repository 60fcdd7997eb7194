//! One file of a source.

use crate::data::DataError;
use flashlm_model::io::not_a_file;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use xxhash_rust::xxh3::Xxh3;

/// How much of each end of a file enters the fingerprint.
const SAMPLE: u64 = 64 << 10;
/// A file of a source.
#[derive(Clone, Debug)]
pub(in crate::data) struct FileEntry {
    pub path: PathBuf,
    /// What enters the fingerprint: the path within the folder that was named.
    pub name: PathBuf,
    pub size: u64,
}

impl FileEntry {
    /// The file at a path, which must be one with something in it.
    pub fn new(path: PathBuf, name: PathBuf) -> Result<FileEntry, DataError> {
        let meta = fs::metadata(&path).map_err(|e| DataError::io("open", &path, e))?;
        if let Some(found) = not_a_file(&meta) {
            // Data is read more than once, which a pipe does not allow.
            let about = format!("it is {found}, not a file; `--data -` reads standard input");
            let cause = io::Error::new(io::ErrorKind::InvalidInput, about);
            return Err(DataError::io("read", &path, cause));
        }
        match meta.len() {
            0 => Err(DataError::EmptyFile { path }),
            size => Ok(FileEntry { path, name, size }),
        }
    }

    /// Name, size, modification time in nanoseconds, and both ends (the whole file if they meet).
    pub fn hash(&self, hash: &mut Xxh3) -> io::Result<()> {
        for part in self.name.iter() {
            hash.update(part.to_string_lossy().as_bytes());
            hash.update(b"/");
        }
        let mut file = File::open(&self.path)?;
        let meta = file.metadata()?;
        let time = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        hash.update(&meta.len().to_le_bytes());
        hash.update(&time.as_nanos().to_le_bytes());
        hash.update(&ends(&mut file, meta.len())?);
        Ok(())
    }
}

/// First and last 64 KB of a file of `len` bytes.
fn ends(file: &mut File, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if len <= 2 * SAMPLE {
        file.take(2 * SAMPLE).read_to_end(&mut bytes)?;
    } else {
        file.take(SAMPLE).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::End(-(SAMPLE as i64)))?;
        file.take(SAMPLE).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// What makes two paths one file: where they lead, and, for hard links, device and inode.
#[derive(PartialEq, Eq, Hash)]
pub(super) enum Identity {
    Path(PathBuf),
    #[cfg(unix)]
    Inode(u64, u64),
}

pub(super) fn identities(path: &Path) -> Vec<Identity> {
    let mut all: Vec<Identity> = path.canonicalize().into_iter().map(Identity::Path).collect();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        all.extend(fs::metadata(path).map(|meta| Identity::Inode(meta.dev(), meta.ino())));
    }
    all
}
