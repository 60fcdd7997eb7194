//! The values of one column in one row group, row by row.
//!
//! ```text
//! page:        header (Thrift) | data, compressed
//! data of v1:  [length: u32 | definition levels] | values      all compressed
//! data of v2:  [definition levels] | values                    only the values compressed
//! values:      as they are, or places in the dictionary, which is the first page
//! ```
//! Memory: a page and a dictionary, both bounded before they are read, whatever their headers claim.
//! Source: parquet.thrift and Encodings.md of apache/parquet-format.

use super::Fault;
use super::meta::{Chunk, Column, Type};
use super::runs::{Delta, Hybrid};
use super::thrift::{I32, STRUCT, TRUE, Thrift};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};

/// Largest page in bytes, before and after decompression; most writers make pages of 1 MB, DuckDB of 100.
const MAX_PAGE: u64 = 128 << 20;
const MAX_DICTIONARY: u64 = 32 << 20;
/// Largest header of a page: it may hold the smallest and the largest value.
const MAX_HEADER: u64 = 1 << 20;
const BUFFER: usize = 64 << 10;

/// One value.
#[derive(Debug, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Bytes(&'a [u8]),
    Number(f64),
}

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

#[derive(Default)]
struct Header {
    kind: i64,
    size: i64,
    compressed: i64,
    values: i64,
    encoding: i64,
    level_encoding: i64,
    v2: Option<V2>,
}

struct V2 {
    levels: i64,
    repetition: i64,
    compressed: bool,
}

/// The rows of a column in a row group.
pub(super) struct Rows {
    input: BufReader<Take<File>>,
    codec: i64,
    kind: Type,
    max_def: u32,
    page: Vec<u8>,
    /// Rows left in the page.
    left: u64,
    levels: Option<Hybrid>,
    packing: Packing,
    dictionary: Vec<u8>,
    /// Where its values start.
    places: Vec<u32>,
    /// The last value, where values are made of the one before.
    last: Vec<u8>,
}

impl Rows {
    pub fn open(mut file: File, column: &Column, chunk: &Chunk) -> Result<Rows, Fault> {
        file.seek(SeekFrom::Start(chunk.start))?;
        Ok(Rows {
            input: BufReader::with_capacity(BUFFER, file.take(chunk.len)),
            codec: chunk.codec,
            kind: column.kind,
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
        match &mut self.packing {
            Packing::Plain(at) => plain(self.kind, page, at),
            Packing::Dictionary(places) => {
                let place = places.next(page)? as usize;
                let Some(at) = self.places.get(place) else {
                    let n = self.places.len();
                    return Err(Fault::damaged(format!("a value is number {place} of a dictionary of {n}")));
                };
                plain(self.kind, &self.dictionary, &mut (*at as usize))
            }
            Packing::Split(start, n, i) => {
                let size = width(self.kind);
                let mut bytes = [0; 8];
                for (k, byte) in bytes[..size].iter_mut().enumerate() {
                    *byte = *page.get(*start + k * *n + *i).filter(|_| i < n).ok_or_else(short)?;
                }
                *i += 1;
                Ok(number(self.kind, &bytes[..size]))
            }
            Packing::Delta(numbers) => Ok(Cell::Number(numbers.next(page)? as f64)),
            Packing::DeltaLength(lengths, at) => Ok(Cell::Bytes(take(page, at, lengths.next(page)?)?)),
            Packing::DeltaPrefix(prefixes, lengths, at) => {
                let prefix = usize::try_from(prefixes.next(page)?).ok().filter(|n| *n <= self.last.len());
                self.last.truncate(prefix.ok_or_else(short)?);
                self.last.extend_from_slice(take(page, at, lengths.next(page)?)?);
                if self.last.len() as u64 > MAX_PAGE {
                    return Err(Fault::damaged("a value is longer than any page"));
                }
                Ok(Cell::Bytes(&self.last))
            }
        }
    }

    /// Reads a page: of data into `page`, of the dictionary into `dictionary`; others are skipped.
    fn next_page(&mut self) -> Result<(), Fault> {
        let header = header((&mut self.input).take(MAX_HEADER))?;
        let size = |size: i64, limit: u64| match u64::try_from(size) {
            Ok(size) if size <= limit => Ok(size),
            _ => Err(Fault::Unsupported(format!(
                "a page of its column claims {size} bytes, more than {} MB: it is damaged, or to be written with \
                 smaller pages",
                limit >> 20
            ))),
        };
        let compressed = size(header.compressed, MAX_PAGE)?;
        match header.kind {
            0 | 3 => {
                let size = size(header.size, MAX_PAGE)?;
                self.left = u64::try_from(header.values).map_err(|_| short())?;
                self.page.clear();
                self.data(&header, compressed, size)
            }
            2 if self.places.is_empty() => {
                let size = size(header.size, MAX_DICTIONARY)?;
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
                if passed < compressed { Err(short()) } else { Ok(()) }
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
                    let what = "nulls are marked as only very old writers did; write it again with a newer one";
                    return Err(Fault::Unsupported(what.to_string()));
                }
                let length = take(&self.page, &mut at, 4)?.try_into().map_or(0, u32::from_le_bytes);
                let end = at.checked_add(length as usize).filter(|end| *end <= self.page.len()).ok_or_else(short)?;
                self.levels = Some(Hybrid::new(at, end, level_width)?);
                at = end;
            }
        }
        let page = &self.page;
        let bytes = self.kind == Type::Bytes;
        self.packing = match header.encoding {
            0 => Packing::Plain(at),
            2 | 8 => {
                let width = page.get(at).copied().unwrap_or(0);
                Packing::Dictionary(Hybrid::new(at + 1, page.len().max(at + 1), width.into())?)
            }
            5 if !bytes => Packing::Delta(Delta::new(page, at)?),
            6 if bytes => {
                let lengths = Delta::new(page, at)?;
                let at = lengths.end(page)?;
                Packing::DeltaLength(lengths, at)
            }
            7 if bytes => {
                self.last.clear();
                let prefixes = Delta::new(page, at)?;
                let lengths = Delta::new(page, prefixes.end(page)?)?;
                let at = lengths.end(page)?;
                Packing::DeltaPrefix(prefixes, lengths, at)
            }
            9 if !bytes => Packing::Split(at, (page.len() - at) / width(self.kind), 0),
            other => {
                return Err(Fault::Unsupported(format!(
                    "a page of its column has the encoding number {other}; write it again with plain or dictionary encoding"
                )));
            }
        };
        Ok(())
    }
}

fn short() -> Fault {
    Fault::damaged("a page ends too early")
}

/// Bytes of a number.
fn width(kind: Type) -> usize {
    if matches!(kind, Type::Int32 | Type::Float) { 4 } else { 8 }
}

fn take<'a>(page: &'a [u8], at: &mut usize, length: i64) -> Result<&'a [u8], Fault> {
    let length = usize::try_from(length).map_err(|_| short())?;
    let end = at.checked_add(length).ok_or_else(short)?;
    let bytes = page.get(*at..end).ok_or_else(short)?;
    *at = end;
    Ok(bytes)
}

/// A value as it is: numbers in their width, bytes behind their length.
fn plain<'a>(kind: Type, page: &'a [u8], at: &mut usize) -> Result<Cell<'a>, Fault> {
    if kind != Type::Bytes {
        return Ok(number(kind, take(page, at, width(kind) as i64)?));
    }
    let length = take(page, at, 4)?.try_into().map_or(0, u32::from_le_bytes);
    Ok(Cell::Bytes(take(page, at, length.into())?))
}

fn number(kind: Type, bytes: &[u8]) -> Cell<'static> {
    let four = bytes.first_chunk().copied().unwrap_or_default();
    let eight = bytes.first_chunk().copied().unwrap_or_default();
    Cell::Number(match kind {
        Type::Int32 => i32::from_le_bytes(four).into(),
        Type::Float => f32::from_le_bytes(four).into(),
        Type::Int64 => i64::from_le_bytes(eight) as f64,
        _ => f64::from_le_bytes(eight),
    })
}

fn header<R: Read>(input: R) -> Result<Header, Fault> {
    let mut h = Header::default();
    Thrift::new(input).fields(&mut |t, id, kind| match (id, kind) {
        (1, I32) => t.int().map(|n| h.kind = n),
        (2, I32) => t.int().map(|n| h.size = n),
        (3, I32) => t.int().map(|n| h.compressed = n),
        (5 | 7, STRUCT) => t.fields(&mut |t, id, kind| match (id, kind) {
            (1, I32) => t.int().map(|n| h.values = n),
            (2, I32) => t.int().map(|n| h.encoding = n),
            (3, I32) => t.int().map(|n| h.level_encoding = n),
            _ => t.skip(kind),
        }),
        (8, STRUCT) => {
            let mut v2 = V2 { levels: 0, repetition: 0, compressed: true };
            t.fields(&mut |t, id, kind| match (id, kind) {
                (1, I32) => t.int().map(|n| h.values = n),
                (4, I32) => t.int().map(|n| h.encoding = n),
                (5, I32) => t.int().map(|n| v2.levels = n),
                (6, I32) => t.int().map(|n| v2.repetition = n),
                (7, _) => {
                    v2.compressed = kind == TRUE;
                    t.skip(kind)
                }
                _ => t.skip(kind),
            })?;
            h.v2 = Some(v2);
            Ok(())
        }
        _ => t.skip(kind),
    })?;
    Ok(h)
}

/// Appends what `input` holds, which must be `size` bytes.
fn decompress<R: io::BufRead>(codec: i64, mut input: R, size: u64, out: &mut Vec<u8>) -> Result<(), Fault> {
    let before = out.len();
    out.reserve_exact(size as usize);
    match codec {
        0 => drop((&mut input).take(size + 1).read_to_end(out)?),
        1 => {
            let mut bytes = Vec::new();
            input.read_to_end(&mut bytes)?;
            let wrong = |e: snap::Error| Fault::damaged(format!("a page cannot be decompressed: {e}"));
            if snap::raw::decompress_len(&bytes).map_err(wrong)? as u64 == size {
                out.resize(before + size as usize, 0);
                snap::raw::Decoder::new().decompress(&bytes, &mut out[before..]).map_err(wrong)?;
            }
        }
        2 => drop(flate2::bufread::MultiGzDecoder::new(&mut input).take(size + 1).read_to_end(out)?),
        6 => drop(zstd::Decoder::with_buffer(&mut input)?.take(size + 1).read_to_end(out)?),
        other => {
            let names = ["LZO", "Brotli", "LZ4", "", "LZ4"];
            let name = usize::try_from(other - 3).ok().and_then(|i| names.get(i)).unwrap_or(&"an unknown method");
            return Err(Fault::Unsupported(format!(
                "its column is compressed with {name}; write it with zstd, Snappy or gzip"
            )));
        }
    }
    if (out.len() - before) as u64 != size {
        return Err(Fault::damaged(format!("a page does not hold the {size} bytes that it claims")));
    }
    // What a decoder did not need.
    io::copy(&mut input, &mut io::sink())?;
    Ok(())
}
