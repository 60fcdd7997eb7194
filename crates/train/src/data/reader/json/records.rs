//! Where the records of a file of JSON begin and end: brackets and quotes are counted, no more, and the parser finds what is
//! wrong.

use super::python::mended;
use crate::data::DataError;
use crate::data::reader::lines::Lines;
use memchr::memchr3;
use serde::de::IgnoredAny;

/// How records follow each other.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Layout {
    Unknown,
    Lines,
    Values,
    Array,
}

pub(super) struct Records<'l> {
    pub lines: &'l mut Lines,
    pub layout: Layout,
    /// Where the last record began.
    pub line: u64,
    pub offset: u64,
    /// Elements of the array so far.
    count: u64,
}

impl<'l> Records<'l> {
    pub fn new(lines: &'l mut Lines) -> Records<'l> {
        Records { lines, layout: Layout::Unknown, line: 1, offset: 0, count: 0 }
    }

    /// Puts the next record into `record`; false at the end. What it gives of lines may be blank.
    pub fn next(&mut self, record: &mut Vec<u8>) -> Result<bool, DataError> {
        record.clear();
        match self.layout {
            Layout::Lines => {
                self.begin();
                let n = self.lines.next(self.lines.limit.saturating_add(1), record)?;
                if n > self.lines.limit { Err(self.lines.too_long(self.line)) } else { Ok(n > 0) }
            }
            Layout::Array => self.element(record),
            Layout::Values => match self.peek(true)? {
                None => Ok(false),
                Some(_) => self.value(record).map(|()| true),
            },
            Layout::Unknown => match self.peek(true)? {
                None => Ok(false),
                Some(b'[') => {
                    self.lines.take(1, None)?;
                    self.layout = Layout::Array;
                    self.element(record)
                }
                Some(b'{') => {
                    self.value(record)?;
                    let one_line = !record.contains(&b'\n') && matches!(self.peek(false)?, None | Some(b'\n'));
                    self.layout = if one_line { Layout::Lines } else { Layout::Values };
                    Ok(true)
                }
                Some(_) => {
                    self.layout = Layout::Lines;
                    self.next(record)
                }
            },
        }
    }

    fn element(&mut self, record: &mut Vec<u8>) -> Result<bool, DataError> {
        let mut next = self.peek(true)?;
        if next == Some(b',') && self.count > 0 {
            self.lines.take(1, None)?;
            next = self.peek(true)?;
        } else if self.count > 0 && !matches!(next, None | Some(b']')) {
            self.begin();
            return Err(self.bad(0, "a comma is missing before it".to_string()));
        }
        self.count += 1;
        self.begin();
        match next {
            None => {
                Err(self.bad(0, "the array does not end: the file was cut off; fetch or write it again".to_string()))
            }
            Some(b']') => {
                self.lines.take(1, None)?;
                if self.peek(true)?.is_none() {
                    return Ok(false);
                }
                self.begin();
                self.layout = Layout::Values;
                Err(self.bad(0, "something follows the array; put each array into its own file".to_string()))
            }
            Some(_) => self.value(record).map(|()| true),
        }
    }

    /// The next byte that is not blank, or with `lines` also no line end; blanks and marks before it are taken.
    fn peek(&mut self, lines: bool) -> Result<Option<u8>, DataError> {
        loop {
            let blank =
                |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\r' | 0xef | 0xbb | 0xbf) || lines && **byte == b'\n';
            let chunk = self.lines.chunk()?;
            let blanks = chunk.iter().take_while(blank).count();
            if blanks == 0 {
                return Ok(chunk.first().copied());
            }
            self.lines.take(blanks, None)?;
        }
    }

    fn begin(&mut self) {
        (self.line, self.offset) = (self.lines.line + 1, self.lines.offset);
    }

    /// Appends the value that begins at the next byte.
    fn value(&mut self, record: &mut Vec<u8>) -> Result<(), DataError> {
        self.begin();
        let mut open = Open::default();
        loop {
            let chunk = self.lines.chunk()?;
            if chunk.is_empty() {
                return Ok(());
            }
            let end = open.end(chunk);
            let n = end.unwrap_or(chunk.len());
            let room = self.lines.limit - record.len();
            self.lines.take(n.min(room), Some(record))?;
            if n > room {
                return Err(self.too_long(record));
            }
            if end.is_some() {
                return Ok(());
            }
        }
    }

    /// The error for a record that does not end within the limit: perhaps a bracket is missing.
    fn too_long(&self, start: &[u8]) -> DataError {
        let start = String::from_utf8_lossy(start);
        let start = mended(&start).map_or(start, |(strict, _)| strict.into());
        match serde_json::from_str::<IgnoredAny>(&start) {
            Err(e) if !e.is_eof() => self.syntax(&e),
            _ => self.lines.too_long(self.line),
        }
    }

    /// The error for a record that the parser refuses.
    pub fn syntax(&self, e: &serde_json::Error) -> DataError {
        let what = without_place(e);
        if e.is_data() {
            return self.bad(0, what);
        }
        // serde_json counts lines within the record.
        self.bad((e.line() as u64).saturating_sub(1), format!("bad JSON: {what} (column {})", e.column()))
    }

    /// The error for the record, `below` lines after it began.
    pub fn bad(&self, below: u64, reason: String) -> DataError {
        let place =
            if self.layout == Layout::Array { format!("element {} of the array: ", self.count) } else { String::new() };
        DataError::Record { path: self.lines.path.clone(), line: self.line + below, reason: place + &reason }
    }
}

/// What serde_json says, without the place that it adds.
fn without_place(e: &serde_json::Error) -> String {
    e.to_string().split(" at line ").next().unwrap_or_default().to_string()
}

/// What is open where a value goes on.
#[derive(Default)]
struct Open {
    depth: u64,
    string: bool,
    escaped: bool,
}

impl Open {
    /// Where the value ends in the bytes that follow, if it does.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut i = 0;
        while i < bytes.len() {
            if std::mem::take(&mut self.escaped) {
                i += 1;
                continue;
            }
            if self.string {
                i += memchr3(b'"', b'\\', b'\n', &bytes[i..])?;
            }
            match bytes[i] {
                b'\\' if self.string => self.escaped = true,
                b'"' => self.string = !self.string,
                // No string holds a line end: the record is broken, and the lines after it may be whole.
                b'\n' if self.string => return Some(i + 1),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => self.depth -= 1,
                b'}' | b']' | b',' | b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => return Some(i),
                _ => {}
            }
            i += 1;
            if self.depth == 0 && !self.string && matches!(bytes[i - 1], b'}' | b']' | b'"') {
                return Some(i);
            }
        }
        None
    }
}
