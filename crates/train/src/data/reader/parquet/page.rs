//! The values of one column in one row group, row by row.
//!
//! ```text
//! page:        header (Thrift) | data, compressed
//! data of v1:  [length: u32 | definition levels] | values      all compressed
//! data of v2:  [definition levels] | values                    only the values compressed
//! values:      as they are, or places in the dictionary, which is the first page
//! ```
//! Memory: a page and a dictionary, which grow as their bytes arrive, whatever their headers claim. Statistics in a header,
//! which may be whole stories, are passed over.
//! Source: parquet.thrift and Encodings.md of apache/parquet-format.

use super::Fault;
use super::meta::{Chunk, Column, Sense, Type};
use super::runs::{Delta, Hybrid};
use super::thrift::{I32, STRUCT, TRUE, Thrift};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};

/// Largest page in bytes, before and after decompression: most writers make pages of 1 MB, DuckDB of 100, others one of a row
/// group; their dictionaries may be as large.
const MAX_PAGE: u64 = 1 << 30;
/// What is set aside for a page before its bytes are there.
const STEP: usize = 1 << 20;
/// No block of Snappy or LZ4 becomes longer than so many times its length.
const MAX_RATIO: u64 = 255;
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
                    return Err(Fault::damaged(format!("a value is number {place} of a dictionary of {n}")));
                };
                plain(self.kind, &self.dictionary, &mut (*at as usize))?
            }
            Packing::Split(start, n, i) => {
                self.last.clear();
                for k in 0..width(self.kind) {
                    self.last.push(*page.get(*start + k * *n + *i).filter(|_| i < n).ok_or_else(short)?);
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
                self.last.truncate(prefix.ok_or_else(short)?);
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
        let header = header(&mut self.input)?;
        let size = |size: i64| match u64::try_from(size) {
            Ok(size) if size <= MAX_PAGE => Ok(size),
            _ => Err(Fault::Unsupported(format!(
                "a page of its column claims {size} bytes, more than {} MB: it is damaged, or to be written with \
                 smaller row groups",
                MAX_PAGE >> 20
            ))),
        };
        let compressed = size(header.compressed)?;
        match header.kind {
            0 | 3 => {
                let size = size(header.size)?;
                self.left = u64::try_from(header.values).map_err(|_| short())?;
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

/// Bytes of a value of a column that has one length.
fn width(kind: Type) -> usize {
    match kind {
        Type::Int32 | Type::Float => 4,
        Type::Fixed(n) => n,
        _ => 8,
    }
}

fn take<'a>(page: &'a [u8], at: &mut usize, length: i64) -> Result<&'a [u8], Fault> {
    let length = usize::try_from(length).map_err(|_| short())?;
    let end = at.checked_add(length).ok_or_else(short)?;
    let bytes = page.get(*at..end).ok_or_else(short)?;
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

fn number(kind: Type, sense: Sense, bytes: &[u8]) -> f64 {
    let two = bytes.first_chunk().copied().unwrap_or_default();
    let four = bytes.first_chunk().copied().unwrap_or_default();
    let eight = bytes.first_chunk().copied().unwrap_or_default();
    let (whole, more) = match (kind, sense) {
        (Type::Float, _) => return f32::from_le_bytes(four).into(),
        (Type::Double, _) => return f64::from_le_bytes(eight),
        (_, Sense::Half) => return half(u16::from_le_bytes(two)),
        (Type::Int32, Sense::Unsigned) => (u32::from_le_bytes(four).into(), 0),
        (Type::Int32, _) => (i32::from_le_bytes(four).into(), 0),
        (Type::Int64, Sense::Unsigned) => (u64::from_le_bytes(eight).into(), 0),
        (Type::Int64, _) => (i64::from_le_bytes(eight).into(), 0),
        _ => big_endian(bytes),
    };
    match sense {
        // Through its digits, which are rounded once.
        Sense::Decimal(scale) if more == 0 => format!("{whole}e{}", -i64::from(scale)).parse().unwrap_or(f64::NAN),
        Sense::Decimal(scale) => whole as f64 * 256f64.powi(more) / 10f64.powi(scale),
        _ => whole as f64,
    }
}

/// A signed integer of any length, highest byte first: its first 16 bytes, which are more than a float has, and the number of
/// those left out.
fn big_endian(bytes: &[u8]) -> (i128, i32) {
    let sign = bytes.first().map_or(0, |first| if *first < 128 { 0 } else { 255 });
    let filling = bytes.windows(2).take_while(|two| two[0] == sign && (two[1] ^ sign) < 128).count();
    let (head, tail) = bytes[filling..].split_at((bytes.len() - filling).min(16));
    let head = head.iter().fold(-i128::from(sign == 255), |n, byte| n << 8 | i128::from(*byte));
    (head, tail.len() as i32)
}

/// Sign, 5 bits of exponent, 10 of the fraction.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
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
    match codec {
        0 => fill(&mut input, size, out)?,
        2 => fill(flate2::bufread::MultiGzDecoder::new(&mut input), size, out)?,
        4 => fill(brotli_decompressor::Decompressor::new(&mut input, 4096), size, out)?,
        6 => {
            let mut decoder = zstd::Decoder::with_buffer(&mut input)?;
            // The window of a page is at most the page; 128 MB is what zstd takes by itself.
            decoder.window_log_max(size.max(1 << 27).next_power_of_two().ilog2())?;
            fill(decoder, size, out)?
        }
        1 | 5 | 7 => {
            let mut bytes = Vec::new();
            input.read_to_end(&mut bytes)?;
            if size > MAX_RATIO * bytes.len() as u64 {
                return Err(wrong_size(size));
            }
            let before = out.len();
            out.resize(before + size as usize, 0);
            let out = &mut out[before..];
            let done = match codec {
                1 => snap::raw::Decoder::new().decompress(&bytes, out).ok(),
                5 => hadoop(&bytes, out).or_else(|| lz4_flex::block::decompress_into(&bytes, out).ok()),
                _ => lz4_flex::block::decompress_into(&bytes, out).ok(),
            };
            if done != Some(out.len()) {
                return Err(wrong_size(size));
            }
        }
        other => {
            let name = if other == 3 { "LZO" } else { "an unknown method" };
            return Err(Fault::Unsupported(format!(
                "its column is compressed with {name}; write it with zstd or Snappy"
            )));
        }
    }
    // What a decoder did not need.
    io::copy(&mut input, &mut io::sink())?;
    Ok(())
}

fn wrong_size(size: u64) -> Fault {
    Fault::damaged(format!("a page does not hold the {size} bytes that it claims"))
}

/// Appends all of `input`, which must be `size` bytes; room is made as they come.
fn fill<R: Read>(mut input: R, size: u64, out: &mut Vec<u8>) -> Result<(), Fault> {
    let end = out.len() + size as usize;
    while out.len() < end {
        let step = out.len().max(STEP).min(end - out.len());
        out.reserve_exact(step);
        if input.by_ref().take(step as u64).read_to_end(out)? < step {
            return Err(wrong_size(size));
        }
    }
    if input.read(&mut [0])? > 0 { Err(wrong_size(size)) } else { Ok(()) }
}

/// LZ4 as Hadoop frames it: a length, then blocks behind their own lengths until it is reached, and so on (u32, highest byte
/// first). None if it is not that: other writers of this codec left the frames out.
fn hadoop(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut from, mut at) = (0, 0);
    let length = |from: &mut usize| {
        let length = bytes.get(*from..)?.first_chunk().copied().map(u32::from_be_bytes)?;
        *from += 4;
        Some(length as usize)
    };
    while from < bytes.len() {
        let end = length(&mut from)?.checked_add(at)?;
        while at < end {
            let packed = length(&mut from)?;
            let block = bytes.get(from..from.checked_add(packed)?)?;
            at += lz4_flex::block::decompress_into(block, out.get_mut(at..end)?).ok()?;
            from += packed;
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"Once upon a time, once upon a time, there was a kite. ";

    fn unpacked(codec: i64, bytes: &[u8], size: usize) -> Option<Vec<u8>> {
        let mut out = b"before".to_vec();
        decompress(codec, bytes, size as u64, &mut out).ok()?;
        Some(out.split_off(6))
    }

    /// The text four times by Python's `brotli.compress`, and LZ4 as literals alone: 15 and 39 more of them behind their count.
    #[test]
    fn brotli_and_lz4_in_all_its_frames() {
        let brotli =
            b"\x1b\xd7\x00\x00\x9c\x07\x76\x83\x75\x33\x71\x47\x49\x9e\x3d\x46\x09\xf2\x54\xd6\x63\x69\x6e\x6f\x2a\
            \x6c\xad\x41\x58\x5c\xe8\xc0\x06\x9c\x88\x07\x98\x50\xc2\x93\xe0\x49\x5d\x9b\xc5\x74\x00\
            \xb6\xd6\xde\x3e\xa7\x9f\x12";
        assert_eq!(unpacked(4, brotli, 4 * TEXT.len()), Some(TEXT.repeat(4)));
        assert_eq!(unpacked(4, &brotli[..40], 4 * TEXT.len()), None);
        let raw = [&[0xf0, 39][..], TEXT].concat();
        let n = TEXT.len() as u8;
        let block = [&[0, 0, 0, raw.len() as u8][..], &raw].concat();
        let framed = [&[0, 0, 0, n][..], &block].concat();
        // Two frames; one frame of two blocks.
        let two = [&framed[..], &framed].concat();
        let parts = [&[0, 0, 0, 2 * n][..], &block, &block].concat();
        assert_eq!(unpacked(7, &raw, TEXT.len()).as_deref(), Some(TEXT));
        assert_eq!(unpacked(5, &raw, TEXT.len()).as_deref(), Some(TEXT));
        assert_eq!(unpacked(5, &framed, TEXT.len()).as_deref(), Some(TEXT));
        assert_eq!(unpacked(5, &two, 2 * TEXT.len()), Some(TEXT.repeat(2)));
        assert_eq!(unpacked(5, &parts, 2 * TEXT.len()), Some(TEXT.repeat(2)));
        for end in 0..two.len() {
            assert_eq!(unpacked(5, &two[..end], 2 * TEXT.len()), None, "{end}");
        }
        for codec in 0..9 {
            assert_eq!(unpacked(codec, &raw, TEXT.len() + 1), None, "{codec}");
            assert_eq!(unpacked(codec, &raw, MAX_PAGE as usize), None, "{codec}");
        }
    }

    /// Python: `int.from_bytes(..., 'big', signed=True)`.
    #[test]
    fn integers_of_any_length() {
        for (bytes, n) in [
            (&[][..], 0.0),
            (&[0x7f], 127.0),
            (&[0x80], -128.0),
            (&[0, 0x80], 128.0),
            (&[0xff, 0xff, 0xff], -1.0),
            (&[0xff; 32], -1.0),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 3.402823669209385e38),
            (&[0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], -1.1237484885197072e43),
        ] {
            let (whole, more) = big_endian(bytes);
            assert_eq!(whole as f64 * 256f64.powi(more), n, "{bytes:?}");
        }
    }
}
