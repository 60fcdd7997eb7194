//! The footer of a Parquet file: the columns there are, and where the wanted ones lie in each row group.
//!
//! ```text
//! PAR1 | pages of column chunks | FileMetaData (Thrift) | its length: u32 | PAR1
//! ```
//! Source: parquet.thrift of apache/parquet-format.

use super::Fault;
use super::thrift::{BINARY, I32, I64, LIST, STRUCT, Thrift};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

pub(super) const MAGIC: &[u8] = b"PAR1";
pub(super) const ENCRYPTED: &[u8] = b"PARE";
/// A footer is some hundred bytes for each column of each row group; this is room for 100,000 of them.
const MAX_FOOTER: u64 = 16 << 20;
/// Longest name of a column in bytes.
const MAX_NAME: u64 = 4096;
/// Fields within fields.
const MAX_DEPTH: usize = 32;

/// What the values of a column are, as far as anything here wants them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Type {
    Int32,
    Int64,
    Float,
    Double,
    Bytes,
    /// Truth values, 96-bit times, byte arrays of one length.
    Other,
}

/// A column: a leaf of the tree of fields.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Names from the root, joined by dots.
    pub name: String,
    pub kind: Type,
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
    repetition: i64,
    children: i64,
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
                return Err(Fault::damaged("its columns are no tree"));
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
                    let kind = match kind {
                        1 => Type::Int32,
                        2 => Type::Int64,
                        4 => Type::Float,
                        5 => Type::Double,
                        6 => Type::Bytes,
                        _ => Type::Other,
                    };
                    columns.push(Column { name: path.clone(), kind, max_def: def, list });
                }
            }
            Ok(())
        }),
        _ => t.skip(kind),
    })?;
    Ok(columns)
}

fn field(t: &mut Thrift<&[u8]>) -> Result<Field, Fault> {
    let mut field = Field::default();
    t.fields(&mut |t, id, kind| {
        match (id, kind) {
            (1, I32) => field.kind = Some(t.int()?),
            (3, I32) => field.repetition = t.int()?,
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
                for (place, _) in group.chunks.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted == found) {
                    *place = chunk;
                }
                found += 1;
                Ok(())
            })?,
            (3, I64) => {
                group.rows = u64::try_from(t.int()?).map_err(|_| Fault::damaged("a row group has less than no rows"))?
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

fn chunk(t: &mut Thrift<&[u8]>) -> Result<Chunk, Fault> {
    let (mut codec, mut len, mut data, mut dictionary) = (0, 0, None, None);
    t.fields(&mut |t, id, kind| match (id, kind) {
        (1, BINARY) => Err(Fault::Unsupported("its columns lie in other files; write it as one file".to_string())),
        (3, STRUCT) => t.fields(&mut |t, id, kind| {
            match (id, kind) {
                (4, I32) => codec = t.int()?,
                (7, I64) => len = t.int()?,
                (9, I64) => data = Some(t.int()?),
                (11, I64) => dictionary = Some(t.int()?),
                _ => t.skip(kind)?,
            }
            Ok(())
        }),
        _ => t.skip(kind),
    })?;
    // Some writers state a dictionary at 0 where there is none.
    let start = match (data, dictionary) {
        (Some(data), Some(dictionary)) if dictionary > 0 => Some(data.min(dictionary)),
        (data, _) => data,
    };
    match (start.map(u64::try_from), u64::try_from(len)) {
        (Some(Ok(start)), Ok(len)) => Ok(Chunk { codec, start, len }),
        _ => Err(Fault::damaged("a column has no place in the file")),
    }
}
