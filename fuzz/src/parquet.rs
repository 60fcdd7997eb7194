//! Parquet files as far as the reader looks at them: Thrift, page headers, a footer.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Types of columns.
pub const INT32: i64 = 1;
pub const INT64: i64 = 2;
pub const FLOAT: i64 = 4;
pub const DOUBLE: i64 = 5;
pub const BYTES: i64 = 6;

pub fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 128 {
        bytes.push(n as u8 | 128);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

pub fn zigzag(n: i64) -> Vec<u8> {
    varint((n << 1 ^ n >> 63) as u64)
}

/// A struct of Thrift's compact protocol; fields come in the order of their ids.
#[derive(Default)]
pub struct Struct(Vec<u8>, u8);

impl Struct {
    fn field(mut self, id: u8, kind: u8, value: &[u8]) -> Self {
        self.0.push((id - self.1) << 4 | kind);
        self.0.extend(value);
        self.1 = id;
        self
    }

    pub fn i32(self, id: u8, value: i64) -> Self {
        self.field(id, I32, &zigzag(value))
    }

    pub fn i64(self, id: u8, value: i64) -> Self {
        self.field(id, I64, &zigzag(value))
    }

    pub fn bool(self, id: u8, value: bool) -> Self {
        self.field(id, if value { 1 } else { 2 }, &[])
    }

    pub fn text(self, id: u8, value: &str) -> Self {
        self.field(id, BINARY, &[&varint(value.len() as u64), value.as_bytes()].concat())
    }

    pub fn inner(self, id: u8, value: Struct) -> Self {
        self.field(id, STRUCT, &value.end())
    }

    pub fn list(self, id: u8, values: Vec<Struct>) -> Self {
        assert!(values.len() < 15);
        let items: Vec<u8> = values.iter().len().to_le_bytes()[..1].iter().map(|n| n << 4 | STRUCT).collect();
        let items = values.into_iter().fold(items, |all, value| [all, value.end()].concat());
        self.field(id, LIST, &items)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.push(0);
        self.0
    }
}

/// A column: its name, type, and whether a row may be without a value.
pub type Column = (&'static str, i64, bool);

/// The footer of a table of one row group, whose chunks follow each other from the start of the file.
pub fn footer(columns: &[Column], codec: i64, lengths: &[usize], rows: i64) -> Vec<u8> {
    let root = Struct::default().text(4, "rows").i32(5, columns.len() as i64);
    let leaf = |&(name, kind, optional): &Column| Struct::default().i32(1, kind).i32(3, optional.into()).text(4, name);
    let mut start = 4;
    let chunk = |&length: &usize| {
        let data = Struct::default().i32(4, codec).i64(7, length as i64).i64(9, start);
        start += length as i64;
        Struct::default().inner(3, data)
    };
    let chunks: Vec<Struct> = lengths.iter().map(chunk).collect();
    let group = Struct::default().list(1, chunks).i64(3, rows);
    let schema = [root].into_iter().chain(columns.iter().map(leaf)).collect();
    Struct::default().list(2, schema).list(4, vec![group]).end()
}

/// A file of these chunks and this footer.
pub fn table(chunks: &[&[u8]], footer: &[u8]) -> Vec<u8> {
    [b"PAR1", &chunks.concat()[..], footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

/// The bytes as the codec of this number makes them; of an unknown one as they are.
pub fn compress(codec: i64, bytes: &[u8]) -> Vec<u8> {
    match codec {
        1 => snap::raw::Encoder::new().compress_vec(bytes).expect("a page that is not too large"),
        2 => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory to write to")
        }
        4 => brotli(bytes),
        5 => {
            let block = lz4(bytes);
            let length = |n: usize| (n as u32).to_be_bytes();
            [&length(bytes.len())[..], &length(block.len()), &block].concat()
        }
        6 => zstd::encode_all(bytes, 1).expect("memory to write to"),
        7 => lz4(bytes),
        _ => bytes.to_vec(),
    }
}

/// A block of literals alone: their number as 15 and bytes that are added up, the last of which is below 255.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![bytes.len().min(15) as u8 * 16];
    if let Some(more) = bytes.len().checked_sub(15) {
        block.extend(vec![255; more / 255]);
        block.push((more % 255) as u8);
    }
    [&block[..], bytes].concat()
}

/// Blocks that are not compressed (a bit 0, two bits 0, the length less one in 16 bits, a bit 1), behind a bit 0 that says how
/// large the window is; then an empty one, the last.
fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (i, block) in bytes.chunks(1 << 16).enumerate() {
        let head = ((block.len() as u32 - 1) << 3 | 1 << 19) << u32::from(i == 0);
        stream.extend_from_slice(&head.to_le_bytes()[..3]);
        stream.extend_from_slice(block);
    }
    stream.push(if bytes.is_empty() { 6 } else { 3 });
    stream
}

/// What a page says of itself; its sizes are those of `data` unless others are claimed.
#[derive(Clone, Default)]
pub struct Page<'a> {
    /// 0: data, 2: dictionary, 3: data of the second version.
    pub kind: u8,
    pub encoding: u8,
    pub values: i64,
    /// Bytes of `data` that are levels, in the second version.
    pub levels: usize,
    pub data: &'a [u8],
    pub claims: Option<(i64, i64)>,
}

impl Page<'_> {
    /// The page as it stands in the file.
    pub fn bytes(&self, codec: i64) -> Vec<u8> {
        let levels = if self.kind == 3 { self.levels.min(self.data.len()) } else { 0 };
        let (before, values) = self.data.split_at(levels);
        let data = [before, &compress(codec, values)].concat();
        let (size, compressed) = self.claims.unwrap_or((self.data.len() as i64, data.len() as i64));
        let head = Struct::default().i32(1, self.kind.into()).i32(2, size).i32(3, compressed);
        let (values, encoding) = (self.values, self.encoding.into());
        let head = match self.kind {
            0 => head.inner(5, Struct::default().i32(1, values).i32(2, encoding).i32(3, 3).i32(4, 3)),
            2 => head.inner(7, Struct::default().i32(1, values).i32(2, encoding)),
            3 => {
                let about = Struct::default().i32(1, values).i32(2, 0).i32(3, values).i32(4, encoding);
                head.inner(8, about.i32(5, levels as i64).i32(6, 0).bool(7, true))
            }
            _ => head,
        };
        [head.end(), data].concat()
    }
}

/// Texts as plain values.
pub fn plain(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()).collect()
}

/// `n` equal numbers, delta encoded.
pub fn delta(n: usize, value: i64) -> Vec<u8> {
    let mut bytes = [varint(128), varint(4), varint(n as u64), zigzag(value)].concat();
    if n > 1 {
        // The smallest delta and the widths of four parts.
        bytes.extend([0; 5]);
    }
    bytes
}

/// The stories read from a table, at most 10,000, and what went wrong: `scored` asks for the column of scores as well.
pub fn read(bytes: &[u8], scored: bool) -> usize {
    use flashlm_train::data::{filter::Filter, source::Source};
    use std::ops::ControlFlow;

    let path = crate::file("table.parquet", bytes);
    let filter = Filter { min_score: if scored { f64::MIN } else { 0.0 }, ..Filter::default() };
    let source = Source::parse(path.to_str().expect("a name in UTF-8")).and_then(|source| source.with_filter(filter));
    let mut stories = 0;
    let Ok(source) = source else { return 0 };
    let _ = source.stories(&mut |_| {
        stories += 1;
        if stories < 10_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    stories
}
