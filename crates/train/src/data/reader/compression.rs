//! Files of text, plain or compressed with zstd (`.zst`) or gzip (`.gz`), as a stream of bytes that counts what it has
//! taken from the file. Several frames or members in one file follow each other, as `cat a.gz b.gz` makes them; zeros behind
//! the last member of gzip are padding. A frame of zstd wants the memory of its window, which is 8 MB at most unless it was
//! compressed with `--long`, and then up to 2 GB.

use super::magic::{GZIP, ZSTD, markup, pointer};
use crate::data::DataError;
use flate2::bufread::GzDecoder;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::rc::Rc;

const BLOCK: usize = 256 << 10;
/// Largest window of zstd, as a power of two.
const MAX_WINDOW: u32 = 31;

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
    let start = file.fill_buf().map_err(failed)?;
    let not_text = |found| Err(DataError::NotText { path: path.to_path_buf(), found });
    if let Some(found) = pointer(start) {
        return not_text(found);
    }
    // A frame, or one to be skipped, which some writers begin with.
    let zstd = start.starts_with(ZSTD) || matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    let text: Box<dyn BufRead> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip if start.starts_with(GZIP) => {
            Box::new(BufReader::with_capacity(BLOCK, Members::Within(GzDecoder::new(file))))
        }
        Compression::Zstd if zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?;
            decoder.window_log_max(MAX_WINDOW).map_err(failed)?;
            Box::new(BufReader::with_capacity(BLOCK, decoder))
        }
        _ => {
            let named = match compression {
                Compression::Gzip => "its name ends in .gz but it is not gzip-compressed; rename it",
                _ => "its name ends in .zst but it is not zstd-compressed; rename it",
            };
            return not_text(markup(start).unwrap_or(named));
        }
    };
    Ok(Input { text, read })
}

/// The error for a read that failed: of the disk, or of the decompressor.
pub(super) fn failed(path: &Path, compression: Compression, cause: io::Error) -> DataError {
    if compression == Compression::None || cause.raw_os_error().is_some() {
        return DataError::io("read", path, cause);
    }
    let said = cause.to_string();
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let reason = if cause.kind() == ErrorKind::UnexpectedEof {
        "it ends too early: it was cut off; fetch or compress it again".to_string()
    } else if says(&["too much memory", "not enough memory"]) {
        "it was compressed with a window larger than the memory here; decompress it elsewhere (`zstd -d --long=31`)"
            .to_string()
    } else if says(&["Dictionary mismatch"]) {
        "it was compressed with a dictionary; decompress it first (`zstd -d -D DICTIONARY`)".to_string()
    } else if says(&["Unknown frame descriptor", OTHER]) {
        "other data follows the compressed text; remove it, or fetch or compress the file again".to_string()
    } else {
        format!("it is damaged ({said}); fetch or compress it again")
    };
    DataError::Compressed { path: path.to_path_buf(), reason }
}

/// What is said of bytes behind a member of gzip that begin no other.
const OTHER: &str = "bytes of another kind";

/// The members of a gzip file, one after the other.
enum Members<R> {
    Within(GzDecoder<R>),
    End,
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Members::Within(member) = self {
            let n = member.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            let Members::Within(member) = std::mem::replace(self, Members::End) else { break };
            let mut file = member.into_inner();
            let mut padded = false;
            loop {
                let rest = file.fill_buf()?;
                let zeros = rest.iter().take_while(|byte| **byte == 0).count();
                if zeros == 0 {
                    break;
                }
                padded = true;
                file.consume(zeros);
            }
            match file.fill_buf()? {
                [] => {}
                // The magic may be cut in two by the buffer; the decoder sees to the rest.
                [0x1f, ..] if !padded => *self = Members::Within(GzDecoder::new(file)),
                _ => return Err(io::Error::new(ErrorKind::InvalidData, OTHER)),
            }
        }
        Ok(0)
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
