//! The lines of a text, with the place for error messages. A byte-order mark at the start is skipped, and what is no
//! text by its first bytes is refused.

use super::compression::{self, Compression, Input};
use super::{DataError, SEPARATOR};
use std::cell::Cell;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub(super) struct Lines {
    pub path: PathBuf,
    input: Box<dyn BufRead>,
    compression: Compression,
    limit: usize,
    /// Bytes taken from the file (compressed, if it is).
    read: Rc<Cell<u64>>,
    /// Lines given out.
    pub line: u64,
    /// Bytes of decompressed text given out.
    pub offset: u64,
}

impl Lines {
    pub fn open(path: &Path, compression: Compression, limit: usize) -> Result<Lines, DataError> {
        let Input { text: mut input, read } = compression::open(path, compression)?;
        let block = input.fill_buf().map_err(|e| compression::failed(path, compression, e))?;
        let magic = super::foreign(block);
        let nul = block.contains(&0).then_some("it contains NUL bytes");
        if let Some(found) = magic.or(nul) {
            return Err(DataError::NotText { path: path.to_path_buf(), found });
        }
        let mark = if block.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        input.consume(mark);
        Ok(Lines { path: path.to_path_buf(), input, compression, limit, read, line: 0, offset: mark as u64 })
    }

    /// Bytes taken from the file so far.
    pub fn read(&self) -> u64 {
        self.read.get()
    }

    /// Appends the next line with its line end to `story`, which began at `first_line`; false at the end.
    pub fn next(&mut self, story: &mut Vec<u8>, first_line: u64) -> Result<bool, DataError> {
        // Room for a story of exactly the limit and the separator after it.
        let room = (self.limit + SEPARATOR.len() + 4).saturating_sub(story.len());
        let n = (&mut self.input)
            .take(room as u64 + 1)
            .read_until(b'\n', story)
            .map_err(|e| compression::failed(&self.path, self.compression, e))?;
        if n > room {
            return Err(DataError::LongStory { path: self.path.clone(), line: first_line, limit: self.limit });
        }
        self.line += u64::from(n > 0);
        self.offset += n as u64;
        Ok(n > 0)
    }

    pub fn utf8<'a>(&self, bytes: &'a [u8], first_line: u64, offset: u64) -> Result<&'a str, DataError> {
        std::str::from_utf8(bytes).map_err(|e| {
            let valid = &bytes[..e.valid_up_to()];
            DataError::Utf8 {
                path: self.path.clone(),
                offset: offset + valid.len() as u64,
                line: first_line + valid.iter().filter(|b| **b == b'\n').count() as u64,
            }
        })
    }
}
