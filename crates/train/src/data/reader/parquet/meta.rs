//! The footer of a Parquet file: the columns there are, and where the wanted ones lie in each row group.
//!
//! ```text
//! PAR1 | pages of column chunks | FileMetaData (Thrift) | its length: u32 | PAR1
//! ```
//! Source: parquet.thrift of apache/parquet-format.

use super::fault::Fault;
use super::thrift::{BINARY, FALSE, I32, I64, LIST, STRUCT, Thrift};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

pub(super) const MAGIC: &[u8] = b"PAR1";
pub(super) const ENCRYPTED: &[u8] = b"PARE";
/// A footer is some hundred bytes for each column of each row group, or megabytes where whole documents are its statistics.
const MAX_FOOTER: u64 = 256 << 20;
/// Longest name of a column in bytes.
const MAX_NAME: u64 = 4096;
/// Fields within fields.
const MAX_DEPTH: usize = 32;

/// Longest value of a column of one length, in bytes.
const MAX_FIXED: i64 = 1024;

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Type {
    Int32,
    Int64,
    Float,
    Double,
    Bytes,
    /// So many bytes.
    Fixed(usize),
    /// Truth values, 96-bit times.
    Other,
}

/// What values mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sense {
    Text,
    Number,
    Unsigned,
    /// An integer over ten to the power of this.
    Decimal(i32),
    /// A float of 16 bits.
    Half,
    /// Something else, by its name.
    Other(&'static str),
}

/// A column: a leaf of the tree of fields.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Names from the root, joined by dots.
    pub name: String,
    pub kind: Type,
    pub sense: Sense,
    /// Definition level of a value that is there; fewer: null.
    pub max_def: u32,
    /// Whether a row may hold several.
    pub list: bool,
}

/// A column of one row group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chunk {
    pub codec: i64,
    pub start: u64,
    /// Bytes in the file.
    pub len: u64,
}

pub(super) struct Group {
    pub rows: u64,
    /// Of the wanted columns, in their order.
    pub chunks: Vec<Chunk>,
}

/// The footer of the file as bytes.
pub(super) fn footer(file: &mut File) -> Result<Vec<u8>, Fault> {
    let size = file.seek(SeekFrom::End(0))?;
    let mut tail = [0; 8];
    if size < 12 {
        return Err(Fault::damaged(format!("{size} bytes are too few")));
    }
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut tail)?;
    if &tail[4..] == ENCRYPTED {
        return Err(Fault::Unsupported("the Parquet file is encrypted; write it without encryption".to_string()));
    }
    if &tail[4..] != MAGIC {
        return Err(Fault::damaged("it does not end in PAR1"));
    }
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if length > size - 12 || length > MAX_FOOTER {
        return Err(Fault::damaged(format!("its footer claims {length} bytes of a file of {size}")));
    }
    file.seek(SeekFrom::Start(size - 8 - length))?;
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A node of the tree of fields, as it is listed: parents before children.
#[derive(Default)]
struct Field {
    name: String,
    kind: Option<i64>,
    /// Bytes of a value.
    length: i64,
    repetition: i64,
    children: i64,
    scale: i64,
    /// The older and the newer note on what values mean.
    converted: i64,
    logical: Option<Sense>,
}

/// The columns, in the order of their chunks.
pub(super) fn columns(footer: &[u8]) -> Result<Vec<Column>, Fault> {
    let mut columns = Vec::new();
    // For each open parent: children to come, definition level, whether repeated, length of the path.
    let mut open: Vec<(i64, u32, bool, usize)> = Vec::new();
    let mut path = String::new();
    let mut any = false;
    Thrift::new(footer).fields(&mut |t, id, kind| match (id, kind) {
        (2, LIST) => t.list(&mut |t, _| {
            let field = field(t)?;
            while open.last().is_some_and(|(left, ..)| *left == 0) {
                open.pop();
            }
            if !any {
                any = true;
                open.push((field.children, 0, false, 0));
                return Ok(());
            }
            let depth = open.len();
            let Some((left, def, list, len)) = open.last_mut().filter(|_| depth < MAX_DEPTH) else {
                return Err(Fault::damaged("its columns do not form a tree"));
            };
            *left -= 1;
            let def = *def + u32::from(field.repetition != 0);
            let list = *list || field.repetition == 2;
            path.truncate(*len);
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&field.name);
            if path.len() > MAX_NAME as usize {
                return Err(Fault::damaged("the name of a column is too long"));
            }
            match field.kind {
                None => open.push((field.children, def, list, path.len())),
                Some(kind) => {
                    let (kind, sense) = meaning(kind, &field);
                    columns.push(Column { name: path.clone(), kind, sense, max_def: def, list });
                }
            }
            Ok(())
        }),
        _ => t.skip(kind),
    })?;
    Ok(columns)
}

/// How the values of a leaf are stored, and what they mean.
fn meaning(kind: i64, field: &Field) -> (Type, Sense) {
    let kind = match kind {
        0 => return (Type::Other, Sense::Other("booleans")),
        1 => Type::Int32,
        2 => Type::Int64,
        3 => return (Type::Other, Sense::Other("times")),
        4 => Type::Float,
        5 => Type::Double,
        6 => Type::Bytes,
        7 if (1..=MAX_FIXED).contains(&field.length) => Type::Fixed(field.length as usize),
        _ => return (Type::Other, Sense::Other("bytes")),
    };
    let noted = field.logical.unwrap_or(match field.converted {
        5 => Sense::Decimal(field.scale as i32),
        6 => Sense::Other("dates"),
        7 | 8 => Sense::Other("times of day"),
        9 | 10 => Sense::Other("times"),
        11..=14 => Sense::Unsigned,
        21 => Sense::Other("intervals"),
        _ => Sense::Number,
    });
    let sense = match (kind, noted) {
        (_, Sense::Other(_)) => noted,
        (Type::Float | Type::Double, _) => Sense::Number,
        (Type::Int32 | Type::Int64, Sense::Unsigned | Sense::Decimal(_)) => noted,
        (Type::Int32 | Type::Int64, _) => Sense::Number,
        (_, Sense::Decimal(_)) => noted,
        (Type::Fixed(2), Sense::Half) => noted,
        (Type::Bytes, _) => Sense::Text,
        _ => Sense::Other("bytes"),
    };
    (kind, sense)
}

/// What the newer note says; nothing of what it does not distinguish.
fn logical(t: &mut Thrift<&[u8]>) -> Result<Option<Sense>, Fault> {
    let mut sense = None;
    t.fields(&mut |t, id, kind| {
        match (id, kind) {
            (5, STRUCT) => {
                let mut scale = 0;
                t.fields(&mut |t, id, kind| match (id, kind) {
                    (1, I32) => t.int().map(|n| scale = n),
                    _ => t.skip(kind),
                })?;
                sense = Some(Sense::Decimal(scale as i32));
                return Ok(());
            }
            (10, STRUCT) => {
                return t.fields(&mut |t, id, kind| {
                    sense = if (id, kind) == (2, FALSE) { Some(Sense::Unsigned) } else { sense };
                    t.skip(kind)
                });
            }
            (6, _) => sense = Some(Sense::Other("dates")),
            (7, _) => sense = Some(Sense::Other("times of day")),
            (8, _) => sense = Some(Sense::Other("times")),
            (15, _) => sense = Some(Sense::Half),
            _ => {}
        }
        t.skip(kind)
    })?;
    Ok(sense)
}

fn field(t: &mut Thrift<&[u8]>) -> Result<Field, Fault> {
    let mut field = Field { converted: -1, ..Field::default() };
    t.fields(&mut |t, id, kind| {
        match (id, kind) {
            (1, I32) => field.kind = Some(t.int()?),
            (2, I32) => field.length = t.int()?,
            (3, I32) => field.repetition = t.int()?,
            (6, I32) => field.converted = t.int()?,
            (7, I32) => field.scale = t.int()?,
            (10, STRUCT) => field.logical = logical(t)?,
            (4, BINARY) => field.name = t.text(MAX_NAME)?,
            (5, I32) => field.children = t.int()?.max(0),
            _ => t.skip(kind)?,
        }
        Ok(())
    })?;
    Ok(field)
}

/// The row groups, with the chunks of the `wanted` columns, which are given by number out of `columns`.
pub(super) fn groups(footer: &[u8], columns: usize, wanted: &[usize]) -> Result<Vec<Group>, Fault> {
    let mut groups = Vec::new();
    Thrift::new(footer).fields(&mut |t, id, kind| match (id, kind) {
        (4, LIST) => t.list(&mut |t, _| {
            groups.push(group(t, columns, wanted)?);
            Ok(())
        }),
        _ => t.skip(kind),
    })?;
    Ok(groups)
}

fn group(t: &mut Thrift<&[u8]>, columns: usize, wanted: &[usize]) -> Result<Group, Fault> {
    let mut group = Group { rows: 0, chunks: vec![Chunk::default(); wanted.len()] };
    let mut found = 0;
    t.fields(&mut |t, id, kind| {
        match (id, kind) {
            (1, LIST) => t.list(&mut |t, _| {
                let chunk = chunk(t)?;
                if let Some(i) = wanted.iter().position(|wanted| *wanted == found) {
                    group.chunks[i] = chunk?;
                }
                found += 1;
                Ok(())
            })?,
            (3, I64) => {
                group.rows =
                    u64::try_from(t.int()?).map_err(|_| Fault::damaged("a row group has a negative number of rows"))?
            }
            _ => t.skip(kind)?,
        }
        Ok(())
    })?;
    if found != columns {
        return Err(Fault::damaged(format!("a row group has {found} columns instead of {columns}")));
    }
    Ok(group)
}

/// Where a column lies, or why it cannot be read, which matters if it is wanted.
fn chunk(t: &mut Thrift<&[u8]>) -> Result<Result<Chunk, Fault>, Fault> {
    let (mut codec, mut len, mut data, mut dictionary) = (0, 0, None, None);
    let mut why_not = None;
    t.fields(&mut |t, id, kind| {
        match (id, kind) {
            (1, BINARY) => why_not = Some("its columns are in other files; write it as one file"),
            (8, _) => why_not = Some("its column is encrypted; write it without encryption, or name another column"),
            (3, STRUCT) => {
                return t.fields(&mut |t, id, kind| {
                    match (id, kind) {
                        (4, I32) => codec = t.int()?,
                        (7, I64) => len = t.int()?,
                        (9, I64) => data = Some(t.int()?),
                        (11, I64) => dictionary = Some(t.int()?),
                        _ => t.skip(kind)?,
                    }
                    Ok(())
                });
            }
            _ => {}
        }
        t.skip(kind)
    })?;
    if let Some(what) = why_not {
        return Ok(Err(Fault::Unsupported(what.to_string())));
    }
    // Some writers state a dictionary at 0 where there is none.
    let start = match (data, dictionary) {
        (Some(data), Some(dictionary)) if dictionary > 0 => Some(data.min(dictionary)),
        (data, _) => data,
    };
    Ok(match (start.map(u64::try_from), u64::try_from(len)) {
        (Some(Ok(start)), Ok(len)) => Ok(Chunk { codec, start, len }),
        _ => Err(Fault::damaged("the position of a column in the file is missing")),
    })
}
