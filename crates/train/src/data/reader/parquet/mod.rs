//! The documents of a Parquet file: one column of text, and its scores if they are wanted.
//!
//! Row group by row group, page by page: memory is that of a page and a dictionary of each column (most writers make 1 MB of
//! each; 1 GB is the most), and grows with what is really there. Our own reader, because those at hand believe the sizes
//! that a file claims. Rows without a value are skipped. Columns in structs are named by their path (`meta.text`);
//! lists of texts are not documents. Scores are numbers of any type, decimals too.
//! Plain, dictionary, delta and byte-split encoding; zstd, Snappy, gzip, Brotli, LZ4 or no compression.

mod cell;
mod decompress;
mod fault;
mod header;
mod meta;
mod page;
mod runs;
mod thrift;

use super::magic::{POINTER, markup, pointer};
use super::oddities::Oddities;
use super::story::{Fields, Story};
use crate::data::DataError;
use cell::Cell;
use fault::Fault;
use meta::{Column, Sense};
use page::Rows;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

/// Most rows without text that may follow each other: a few bytes can claim any number of them, and nothing could stop it.
const MAX_EMPTY: u64 = 1 << 26;

/// Calls `f(story, bytes of the file read so far)` for each row until it breaks.
pub(super) fn read(
    path: &Path,
    fields: &Fields,
    limit: usize,
    oddities: &mut Oddities,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let told = |fault: Fault| fault.told(path);
    let open = || File::open(path).map_err(|e| DataError::io("open", path, e));
    let mut file = open()?;
    let size = file.metadata().map_err(|e| DataError::io("read", path, e))?.len();
    let mut head = Vec::new();
    let filled = file.by_ref().take(POINTER as u64 + 1).read_to_end(&mut head);
    filled.map_err(|e| DataError::io("read", path, e))?;
    if !head.starts_with(meta::MAGIC) && !head.starts_with(meta::ENCRYPTED) {
        let named = "its name ends in .parquet but it is not a Parquet table; rename it";
        let found = pointer(&head).or(markup(&head)).unwrap_or(named);
        return Err(DataError::NotText { path: path.to_path_buf(), found });
    }
    let footer = meta::footer(&mut file).map_err(told)?;
    let columns = meta::columns(&footer).map_err(told)?;
    let text = find(path, &columns, fields.text, "text")?;
    let score = fields.score.map(|score| find(path, &columns, score, "numbers")).transpose()?;
    let wanted: Vec<usize> = [text].into_iter().chain(score).collect();
    let groups = meta::groups(&footer, columns.len(), &wanted).map_err(told)?;
    drop(footer);
    let total = groups.iter().fold(0u64, |sum, group| sum.saturating_add(group.rows)).max(1);
    let (mut row, mut told_last) = (0u64, 0);
    for group in groups {
        let mut rows = Vec::with_capacity(wanted.len());
        for (column, chunk) in wanted.iter().zip(&group.chunks) {
            rows.push(Rows::open(open()?, &columns[*column], chunk).map_err(told)?);
        }
        let Some((texts, scores)) = rows.split_first_mut() else { break };
        for _ in 0..group.rows {
            row += 1;
            let at = |reason: String| DataError::Parquet {
                path: path.to_path_buf(),
                reason: format!("row {row}: {reason}"),
            };
            if row - told_last > MAX_EMPTY {
                let column = fields.text;
                return Err(at(format!(
                    "{MAX_EMPTY} rows of column `{column}` hold no text; name another column, or leave these rows out"
                )));
            }
            let score = match scores.first_mut().map(Rows::next).transpose().map_err(told)? {
                Some(Cell::Number(score)) => Some(score),
                _ => None,
            };
            let Cell::Bytes(bytes) = texts.next().map_err(told)? else {
                oddities.without += 1;
                continue;
            };
            if bytes.len() > limit {
                return Err(at(format!("the document is longer than {} MB; split it or leave it out", limit >> 20)));
            }
            let Ok(text) = std::str::from_utf8(bytes) else {
                return Err(at(format!("column `{}` is not UTF-8 text; write it as a column of strings", fields.text)));
            };
            let text = text.trim_matches(['\n', '\r']);
            let read = (size as f64 * (row as f64 / total as f64)) as u64;
            if text.is_empty() {
                oddities.without += 1;
                continue;
            }
            told_last = row;
            if f(Story { text, score }, read).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The number of the column, which must hold one text, or one number, a row.
fn find(path: &Path, columns: &[Column], name: &str, wanted: &'static str) -> Result<usize, DataError> {
    let fits = |c: &Column| match c.sense {
        Sense::Text => wanted == "text" && !c.list,
        Sense::Other(_) => false,
        _ => wanted == "numbers" && !c.list,
    };
    // A list is a group, whose name the names of its columns begin with.
    let within = |c: &&Column| c.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let found = columns.iter().position(|column| column.name == name);
    let problem = match (found.map(|i| &columns[i]), columns.iter().find(within)) {
        (Some(column), _) if fits(column) => return Ok(found.unwrap_or_default()),
        (_, Some(_)) if columns.iter().filter(within).all(|c| c.list) => format!("column `{name}` holds lists"),
        (Some(Column { sense: Sense::Other(what), .. }), _) => format!("column `{name}` holds {what}, not {wanted}"),
        (Some(_), _) => format!("column `{name}` does not hold {wanted}"),
        (None, Some(_)) => format!("column `{name}` is a group of columns"),
        (None, None) => format!("there is no column `{name}`"),
    };
    let names: Vec<&str> = columns.iter().filter(|c| fits(c)).take(50).map(|c| c.name.as_str()).collect();
    let found = if names.is_empty() { "none".to_string() } else { names.join(", ") };
    Err(DataError::Column { path: path.to_path_buf(), problem, wanted, found })
}

#[cfg(test)]
mod tests;
