//! File formats of the model crate: one format, one file.
//!
//! Whatever is read here may come from anywhere. A parser checks every length against the bytes that are really
//! there before it allocates, never panics, and says in an [`IoError`] which file it was, what was expected, what
//! was found and how to mend it.

mod pickle;
pub mod protobuf;
pub mod safetensors;
pub mod torch;
mod zip;

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;

use flashlm_kernels::map::Map;

/// How what git has in the place of a large file begins.
pub const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The operating system said no.
    #[error("{file}: cannot be read: {source}; check the path and the permissions")]
    Read {
        /// The file.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is something else than a regular file.
    #[error("{file}: expected a file, found {found}; name a file instead")]
    NotAFile {
        /// The path.
        file: String,
        /// What is there.
        found: &'static str,
    },
    /// A part of the file, or all of it, is larger than this program accepts.
    #[error(
        "{file}: {what} of {found} bytes, expected at most {limit}; the file was not made by this program, or is damaged"
    )]
    TooLarge {
        /// The file.
        file: String,
        /// Which part of the file.
        what: &'static str,
        /// The largest size accepted.
        limit: u64,
        /// The size found.
        found: u64,
    },
    /// The file is shorter or longer than its own header says.
    #[error(
        "{file}: expected {expected} bytes, found {found}; it was cut short or damaged: copy it again from its source"
    )]
    Length {
        /// The file.
        file: String,
        /// The length that the header asks for.
        expected: u64,
        /// The length found.
        found: u64,
    },
    /// The content is not of the format.
    #[error("{file}: expected a {format} file, found {found}; is it the right file, and complete?")]
    Malformed {
        /// The file.
        file: String,
        /// The format expected.
        format: &'static str,
        /// What is wrong with it.
        found: String,
    },
    /// The file is fine, but a tensor is missing.
    #[error("{file}: expected a tensor `{name}`, found {found}; is it a file of another architecture?")]
    NoTensor {
        /// The file.
        file: String,
        /// The tensor asked for.
        name: String,
        /// What is there instead.
        found: String,
    },
    /// A tensor has another element type than asked for. Nothing is converted silently.
    #[error("{file}: tensor `{name}`: expected elements of type {expected}, found {found}; convert the file first")]
    ElementType {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// The type asked for.
        expected: String,
        /// The type found.
        found: String,
    },
}

/// A number of 16 bits, IEEE 754 binary16, as f32.
fn half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if sign == 1 { -size } else { size }
}

/// What is at a path in the place of a regular file; none where it is one.
pub fn not_a_file(about: &Metadata) -> Option<&'static str> {
    let kind = about.file_type();
    if kind.is_file() {
        return None;
    }
    if kind.is_dir() {
        return Some("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("a named pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
        if kind.is_block_device() || kind.is_char_device() {
            return Some("a device");
        }
    }
    Some("neither a file nor a folder")
}

/// Opens a regular file for reading. Whatever else is there is an error, and is not opened: opening a named pipe would wait
/// for ever.
pub fn open(path: &Path) -> Result<(File, Metadata), IoError> {
    let failed = |source| IoError::Read { file: path.display().to_string(), source };
    let about = std::fs::metadata(path).map_err(failed)?;
    match not_a_file(&about) {
        Some(found) => Err(IoError::NotAFile { file: path.display().to_string(), found }),
        None => Ok((File::open(path).map_err(failed)?, about)),
    }
}

/// The same of a file of at most `limit` bytes.
fn open_limited(path: &Path, limit: u64) -> Result<(File, Metadata), IoError> {
    let (file, about) = open(path)?;
    if about.len() > limit {
        let file = path.display().to_string();
        return Err(IoError::TooLarge { file, what: "a file", limit, found: about.len() });
    }
    Ok((file, about))
}

/// Maps a whole regular file of at most `limit` bytes.
pub fn map_limited(path: &Path, limit: u64) -> Result<Map, IoError> {
    open_limited(path, limit)?;
    Map::open(path).map_err(|source| IoError::Read { file: path.display().to_string(), source })
}

/// Reads a whole regular file of at most `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, IoError> {
    let failed = |source| IoError::Read { file: path.display().to_string(), source };
    let (file, about) = open_limited(path, limit)?;
    let mut bytes = Vec::new();
    let reserve = usize::try_from(about.len()).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(reserve).map_err(|_| failed(std::io::ErrorKind::OutOfMemory.into()))?;
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_exactly_what_is_there_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        let text = read_limited(&path, 4).unwrap_err().to_string();
        assert!(text.contains("of 5 bytes, expected at most 4"), "{text}");
        let text = read_limited(dir.path(), 5).unwrap_err().to_string();
        assert!(text.contains("expected a file, found a folder"), "{text}");
        let missing = dir.path().join("none");
        let text = read_limited(&missing, 5).unwrap_err().to_string();
        assert!(text.starts_with(&missing.display().to_string()), "{text}");
    }
    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_named_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, found) in [(pipe, "a named pipe"), (socket, "a socket"), ("/dev/null".into(), "a device")] {
            for error in [open(&path).map(drop), map_limited(&path, 9).map(drop), read_limited(&path, 9).map(drop)] {
                let text = error.unwrap_err().to_string();
                assert_eq!(text, format!("{}: expected a file, found {found}; name a file instead", path.display()));
            }
        }
    }
}
