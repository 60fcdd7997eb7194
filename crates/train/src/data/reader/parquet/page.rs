//! The values of one column in one row group, row by row.
//!
//! ```text
//! page:        header (Thrift) | data, compressed
//! data of v1:  [length: u32 | definition levels] | values      all compressed
//! data of v2:  [definition levels] | values                    only the values compressed
//! values:      as they are, or places in the dictionary, which is the first page
//! ```
//! Memory: a page and a dictionary, which grow as their bytes arrive, whatever their headers claim. Statistics in a header,
//! which may be whole documents, are skipped.
//! Source: parquet.thrift and Encodings.md of apache/parquet-format.

use super::cell::{Cell, number};
use super::decompress::{MAX_PAGE, decompress};
use super::fault::Fault;
use super::header::{self, Header};
use super::meta::{Chunk, Column, Sense, Type};
use super::runs::{Delta, Hybrid};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};

const BUFFER: usize = 64 << 10;

/// How the values of a page are packed; positions are in `Rows::page`.
enum Packing {
    Plain(usize),
    /// Numbers by their first bytes, then all second bytes, ...: where they start, how many, and the next.
    Split(usize, usize, usize),
    Dictionary(Hybrid),
    Delta(Delta),
    /// All lengths, then all bytes.
    DeltaLength(Delta, usize),
    /// The bytes shared with the value before, then the others like the above.
    DeltaPrefix(Delta, Delta, usize),
}

/// The rows of a column in a row group.
pub(super) struct Rows {
    input: BufReader<Take<File>>,
    codec: i64,
    kind: Type,
    sense: Sense,
    max_def: u32,
    page: Vec<u8>,
    /// Rows left in the page.
    left: u64,
    levels: Option<Hybrid>,
    packing: Packing,
    dictionary: Vec<u8>,
    /// Where its values start.
    places: Vec<u32>,
    /// The last value, where it is put together, perhaps of the one before.
    last: Vec<u8>,
}

impl Rows {
    pub fn open(mut file: File, column: &Column, chunk: &Chunk) -> Result<Rows, Fault> {
        file.seek(SeekFrom::Start(chunk.start))?;
        Ok(Rows {
            input: BufReader::with_capacity(BUFFER, file.take(chunk.len)),
            codec: chunk.codec,
            kind: column.kind,
            sense: column.sense,
            max_def: column.max_def,
            page: Vec::new(),
            left: 0,
            levels: None,
            packing: Packing::Plain(0),
            dictionary: Vec::new(),
            places: Vec::new(),
            last: Vec::new(),
        })
    }

    /// The value of the next row, which the caller knows to be there.
    pub fn next(&mut self) -> Result<Cell<'_>, Fault> {
        while self.left == 0 {
            self.next_page()?;
        }
        self.left -= 1;
        if let Some(levels) = &mut self.levels
            && levels.next(&self.page)? != self.max_def
        {
            return Ok(Cell::Null);
        }
        let page = &self.page;
        let bytes = match &mut self.packing {
            Packing::Plain(at) => plain(self.kind, page, at)?,
            Packing::Dictionary(places) => {
                let place = places.next(page)? as usize;
                let Some(at) = self.places.get(place) else {
                    let n = self.places.len();
                    return Err(Fault::damaged(format!("a value has index {place} in a dictionary of {n}")));
                };
                plain(self.kind, &self.dictionary, &mut (*at as usize))?
            }
            Packing::Split(start, n, i) => {
                self.last.clear();
                for k in 0..width(self.kind) {
                    self.last.push(*page.get(*start + k * *n + *i).filter(|_| i < n).ok_or_else(Fault::short)?);
                }
                *i += 1;
                &self.last
            }
            Packing::Delta(numbers) => {
                self.last.clear();
                // Sums wrap at the width of the column.
                self.last.extend_from_slice(&numbers.next(page)?.to_le_bytes()[..width(self.kind)]);
                &self.last
            }
            Packing::DeltaLength(lengths, at) => take(page, at, lengths.next(page)?)?,
            Packing::DeltaPrefix(prefixes, lengths, at) => {
                let prefix = usize::try_from(prefixes.next(page)?).ok().filter(|n| *n <= self.last.len());
                self.last.truncate(prefix.ok_or_else(Fault::short)?);
                self.last.extend_from_slice(take(page, at, lengths.next(page)?)?);
                &self.last
            }
        };
        Ok(if self.sense == Sense::Text {
            Cell::Bytes(bytes)
        } else {
            Cell::Number(number(self.kind, self.sense, bytes))
        })
    }

    /// Reads a page: of data into `page`, of the dictionary into `dictionary`; others are skipped.
    fn next_page(&mut self) -> Result<(), Fault> {
        let header = header::read(&mut self.input)?;
        let size = |size: i64| match u64::try_from(size) {
            Ok(size) if size <= MAX_PAGE => Ok(size),
            _ => Err(Fault::Unsupported(format!(
                "a page of its column claims {size} bytes, more than {} MB: the file is damaged, or must be written with \
                 smaller row groups",
                MAX_PAGE >> 20
            ))),
        };
        let compressed = size(header.compressed)?;
        match header.kind {
            0 | 3 => {
                let size = size(header.size)?;
                self.left = u64::try_from(header.values).map_err(|_| Fault::short())?;
                self.page.clear();
                self.data(&header, compressed, size)
            }
            2 if self.places.is_empty() => {
                let size = size(header.size)?;
                self.dictionary.clear();
                decompress(self.codec, (&mut self.input).take(compressed), size, &mut self.dictionary)?;
                // Both old and new writers leave them as they are, under two names.
                let mut at = 0;
                while at < self.dictionary.len() {
                    self.places.push(at as u32);
                    plain(self.kind, &self.dictionary, &mut at)?;
                }
                Ok(())
            }
            _ => {
                let passed = io::copy(&mut (&mut self.input).take(compressed), &mut io::sink())?;
                if passed < compressed { Err(Fault::short()) } else { Ok(()) }
            }
        }
    }

    fn data(&mut self, header: &Header, compressed: u64, size: u64) -> Result<(), Fault> {
        let mut at = 0;
        self.levels = None;
        let level_width = 32 - self.max_def.leading_zeros();
        if let Some(v2) = &header.v2 {
            let levels = u64::try_from(v2.levels).ok().filter(|n| v2.repetition == 0 && *n <= size.min(compressed));
            let levels = levels.ok_or_else(|| Fault::damaged("the levels of a page are longer than the page"))?;
            decompress(0, (&mut self.input).take(levels), levels, &mut self.page)?;
            let codec = if v2.compressed { self.codec } else { 0 };
            let (compressed, size) = (compressed - levels, size - levels);
            // A page of nulls alone holds nothing, not even a compressed nothing.
            if size == 0 {
                io::copy(&mut (&mut self.input).take(compressed), &mut io::sink())?;
            } else {
                decompress(codec, (&mut self.input).take(compressed), size, &mut self.page)?;
            }
            at = levels as usize;
            if self.max_def > 0 {
                self.levels = Some(Hybrid::new(0, at, level_width)?);
            }
        } else {
            decompress(self.codec, (&mut self.input).take(compressed), size, &mut self.page)?;
            if self.max_def > 0 {
                if header.level_encoding != 3 {
                    let what = "nulls are marked as only very old programs did; write it again with a newer one";
                    return Err(Fault::Unsupported(what.to_string()));
                }
                let length = take(&self.page, &mut at, 4)?.try_into().map_or(0, u32::from_le_bytes);
                let end =
                    at.checked_add(length as usize).filter(|end| *end <= self.page.len()).ok_or_else(Fault::short)?;
                self.levels = Some(Hybrid::new(at, end, level_width)?);
                at = end;
            }
        }
        let page = &self.page;
        self.packing = match header.encoding {
            0 => Packing::Plain(at),
            2 | 8 => {
                let width = page.get(at).copied().unwrap_or(0);
                Packing::Dictionary(Hybrid::new(at + 1, page.len().max(at + 1), width.into())?)
            }
            5 if matches!(self.kind, Type::Int32 | Type::Int64) => Packing::Delta(Delta::new(page, at)?),
            6 if self.kind == Type::Bytes => {
                let lengths = Delta::new(page, at)?;
                let at = lengths.end(page)?;
                Packing::DeltaLength(lengths, at)
            }
            7 if matches!(self.kind, Type::Bytes | Type::Fixed(_)) => {
                self.last.clear();
                let prefixes = Delta::new(page, at)?;
                let lengths = Delta::new(page, prefixes.end(page)?)?;
                let at = lengths.end(page)?;
                Packing::DeltaPrefix(prefixes, lengths, at)
            }
            9 if self.kind != Type::Bytes => Packing::Split(at, (page.len() - at) / width(self.kind), 0),
            other => {
                return Err(Fault::Unsupported(format!(
                    "a page of its column has the unknown encoding {other}; write it again with plain or dictionary encoding"
                )));
            }
        };
        Ok(())
    }
}

/// Bytes of a value of a column that has one length.
fn width(kind: Type) -> usize {
    match kind {
        Type::Int32 | Type::Float => 4,
        Type::Fixed(n) => n,
        _ => 8,
    }
}

fn take<'a>(page: &'a [u8], at: &mut usize, length: i64) -> Result<&'a [u8], Fault> {
    let length = usize::try_from(length).map_err(|_| Fault::short())?;
    let end = at.checked_add(length).ok_or_else(Fault::short)?;
    let bytes = page.get(*at..end).ok_or_else(Fault::short)?;
    *at = end;
    Ok(bytes)
}

/// A value as it is: of one length, or behind its length.
fn plain<'a>(kind: Type, page: &'a [u8], at: &mut usize) -> Result<&'a [u8], Fault> {
    let length = match kind {
        Type::Bytes => take(page, at, 4)?.try_into().map_or(0, u32::from_le_bytes).into(),
        _ => width(kind) as i64,
    };
    take(page, at, length)
}
