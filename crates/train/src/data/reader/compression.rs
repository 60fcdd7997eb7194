//! Files of text, plain or compressed with zstd (`.zst`) or gzip (`.gz`), as a stream of bytes that counts what it has
//! taken from the file. Several frames or members in one file follow each other, as `cat a.gz b.gz` makes them.

use super::DataError;
use flate2::bufread::MultiGzDecoder;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

const BLOCK: usize = 256 << 10;

pub(super) const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
pub(super) const GZIP: &[u8] = &[0x1f, 0x8b];

/// How a file is compressed, by its name.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Compression {
    None,
    Zstd,
    Gzip,
}

impl Compression {
    /// The compression that a name in small letters tells, and the name without it.
    pub fn of(name: &str) -> (Compression, &str) {
        if let Some(inner) = name.strip_suffix(".zst") {
            (Compression::Zstd, inner)
        } else if let Some(inner) = name.strip_suffix(".gz") {
            (Compression::Gzip, inner)
        } else {
            (Compression::None, name)
        }
    }
}

/// The text of a file, and the bytes taken from the file so far.
pub(super) struct Input {
    pub text: Box<dyn BufRead>,
    pub read: Rc<Cell<u64>>,
}

pub(super) fn open(path: &Path, compression: Compression) -> Result<Input, DataError> {
    let file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
    let read = Rc::new(Cell::new(0));
    let mut file = BufReader::with_capacity(BLOCK, Counted { file, read: Rc::clone(&read) });
    let failed = |e| DataError::io("read", path, e);
    let (magic, found) = match compression {
        Compression::None => return Ok(Input { text: Box::new(file), read }),
        Compression::Zstd => (ZSTD, "it ends in .zst but is not zstd-compressed; rename it"),
        Compression::Gzip => (GZIP, "it ends in .gz but is not gzip-compressed; rename it"),
    };
    if !file.fill_buf().map_err(failed)?.starts_with(magic) {
        return Err(DataError::NotText { path: path.to_path_buf(), found });
    }
    let text: Box<dyn BufRead> = match compression {
        Compression::Gzip => Box::new(BufReader::with_capacity(BLOCK, MultiGzDecoder::new(file))),
        _ => {
            let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?;
            Box::new(BufReader::with_capacity(BLOCK, decoder))
        }
    };
    Ok(Input { text, read })
}

/// The error for a read that failed: of the disk, or of the decompressor.
pub(super) fn failed(path: &Path, compression: Compression, cause: io::Error) -> DataError {
    if compression == Compression::None || cause.raw_os_error().is_some() {
        DataError::io("read", path, cause)
    } else {
        DataError::Compressed { path: path.to_path_buf(), cause }
    }
}

struct Counted {
    file: File,
    read: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}
