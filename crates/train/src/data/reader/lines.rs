//! The bytes of a text, line by line or as they come, with the place for error messages. A byte-order mark at the start is
//! skipped, and what is no text by its first bytes is refused.

use super::compression::{self, Compression, Input};
use super::magic::{foreign, pointer};
use crate::data::DataError;
use memchr::{memchr, memchr_iter};
use std::cell::Cell;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// How much of the start is looked at before the rest is read.
const HEAD: u64 = 256 << 10;

pub(super) struct Lines {
    pub path: PathBuf,
    /// Longest document or record in bytes.
    pub limit: usize,
    /// The start of the text, and how much of it is given out.
    head: Vec<u8>,
    given: usize,
    input: Box<dyn BufRead>,
    compression: Compression,
    /// Bytes taken from the file (compressed, if it is).
    read: Rc<Cell<u64>>,
    /// Line ends given out.
    pub line: u64,
    /// Bytes of decompressed text given out.
    pub offset: u64,
}

impl Lines {
    pub fn open(path: &Path, compression: Compression, limit: usize) -> Result<Lines, DataError> {
        let Input { text: mut input, read } = compression::open(path, compression)?;
        let mut head = Vec::new();
        let filled = input.by_ref().take(HEAD).read_to_end(&mut head);
        filled.map_err(|e| compression::failed(path, compression, e))?;
        // Compressed or not, the same text is the same.
        let magic = foreign(&head).or(pointer(&head));
        let nul = head.contains(&0).then_some("it contains NUL bytes");
        if let Some(found) = magic.or(nul) {
            return Err(DataError::NotText { path: path.to_path_buf(), found });
        }
        let given = if head.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let (path, offset) = (path.to_path_buf(), given as u64);
        Ok(Lines { path, limit, head, given, input, compression, read, line: 0, offset })
    }

    /// The start of the text, without a mark; to be asked before anything is taken.
    pub fn head(&self) -> &[u8] {
        &self.head[self.given..]
    }

    /// Bytes taken from the file so far.
    pub fn read(&self) -> u64 {
        self.read.get()
    }

    /// Bytes that come next; none at the end.
    pub fn chunk(&mut self) -> Result<&[u8], DataError> {
        if self.given < self.head.len() {
            return Ok(&self.head[self.given..]);
        }
        self.input.fill_buf().map_err(|e| compression::failed(&self.path, self.compression, e))
    }

    /// Takes the first `n` bytes of the chunk, which has as many; they are added to `out` if there is one.
    pub fn take(&mut self, n: usize, out: Option<&mut Vec<u8>>) -> Result<(), DataError> {
        let chunk = self.chunk()?;
        let bytes = &chunk[..n.min(chunk.len())];
        let (n, ends) = (bytes.len(), memchr_iter(b'\n', bytes).count());
        if let Some(out) = out {
            out.extend_from_slice(bytes);
        }
        self.pass(n);
        self.line += ends as u64;
        Ok(())
    }

    /// Appends the next line with its line end, or as much of it as there is room for; gives the bytes appended, 0 at the end.
    pub fn next(&mut self, room: usize, out: &mut Vec<u8>) -> Result<usize, DataError> {
        let mut n = 0;
        while n < room {
            let chunk = self.chunk()?;
            let chunk = &chunk[..chunk.len().min(room - n)];
            let end = memchr(b'\n', chunk);
            let taken = end.map_or(chunk.len(), |at| at + 1);
            out.extend_from_slice(&chunk[..taken]);
            self.pass(taken);
            n += taken;
            if end.is_some() {
                self.line += 1;
                break;
            }
            if taken == 0 {
                break;
            }
        }
        Ok(n)
    }

    fn pass(&mut self, n: usize) {
        if self.given < self.head.len() {
            self.given += n;
        } else {
            self.input.consume(n);
        }
        self.offset += n as u64;
    }

    pub fn utf8<'a>(&self, bytes: &'a [u8], first_line: u64, offset: u64) -> Result<&'a str, DataError> {
        if let Some(at) = memchr(0, bytes) {
            let line = first_line + memchr_iter(b'\n', &bytes[..at]).count() as u64;
            return Err(DataError::Nul { path: self.path.clone(), line });
        }
        std::str::from_utf8(bytes).map_err(|e| {
            let valid = &bytes[..e.valid_up_to()];
            let mend = match e.error_len() {
                None => "a character is cut off; if this is the end of the file, it was cut off too: fetch it again",
                Some(_) if valid.iter().any(|byte| !byte.is_ascii()) => {
                    "everything before it is UTF-8, so this byte is damaged; `iconv -f UTF-8 -t UTF-8 -c` drops it"
                }
                Some(_) => "convert the file from its encoding first, e.g. `iconv -f CP1252 -t UTF-8`",
            };
            DataError::Utf8 {
                path: self.path.clone(),
                offset: offset + valid.len() as u64,
                line: first_line + memchr_iter(b'\n', valid).count() as u64,
                mend,
            }
        })
    }

    pub fn too_long(&self, line: u64) -> DataError {
        DataError::LongRecord { path: self.path.clone(), line, limit: self.limit }
    }
}
