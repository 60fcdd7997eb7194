//! Comma- or tab-separated values: a line of column names, then a record a line, its text in one column, its score in another
//! if that is wanted. Cells in quotes may hold separators, line ends and doubled quotes (RFC 4180). What separates cells is
//! known for .tsv; of .csv it is the first of `,` `;` and the tab that the first line holds. Memory: one record.

use super::lines::Lines;
use super::{DataError, Fields, Seen, Story};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use std::ops::ControlFlow;

/// Most cells of a record.
const MAX_CELLS: usize = 100_000;

pub(super) fn read(
    lines: &mut Lines,
    separator: Option<u8>,
    fields: &Fields,
    seen: &mut Seen,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let separator = separator.unwrap_or_else(|| guessed(lines.head()));
    let mut records = Records {
        lines,
        parser: ReaderBuilder::new().delimiter(separator).build(),
        cells: vec![0; 4096],
        ends: vec![0; 16],
        columns: 0,
        line: 1,
    };
    if !records.next()? {
        return Ok(ControlFlow::Continue(()));
    }
    let names: Vec<String> =
        (0..records.columns).map(|i| String::from_utf8_lossy(records.cell(i)).trim().to_string()).collect();
    let text = find(records.lines, &names, fields.text)?;
    let score = fields.score.map(|score| find(records.lines, &names, score)).transpose()?;
    while records.next()? {
        if records.columns != names.len() {
            let separator =
                if separator == b'\t' { "tabs".to_string() } else { format!("`{}`", char::from(separator)) };
            return Err(records.bad(format!(
                "{} cells instead of {}; cells that hold {separator}, quotes or line ends must stand in quotes",
                records.columns,
                names.len()
            )));
        }
        let cell = |i: usize| {
            let not_utf8 =
                || format!("column `{}` is not UTF-8; convert the file first (`iconv -f CP1252 -t UTF-8`)", names[i]);
            std::str::from_utf8(records.cell(i)).map_err(|_| records.bad(not_utf8()))
        };
        let score = match score.map(cell).transpose()?.map(str::trim) {
            None | Some("") => None,
            Some(cell) => {
                let wrong = |_| records.bad(format!("`{cell:.40}` in the column of scores is not a number"));
                Some(cell.parse().map_err(wrong)?)
            }
        };
        let story = cell(text)?.trim_matches(['\n', '\r']);
        if story.is_empty() {
            seen.without += 1;
        } else if f(Story { text: story, score }, records.lines.read()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// What separates the cells of the first line.
fn guessed(head: &[u8]) -> u8 {
    let first = head.split(|byte| matches!(byte, b'\n' | b'\r')).find(|line| !line.is_empty()).unwrap_or_default();
    b",;\t".iter().copied().find(|separator| first.contains(separator)).unwrap_or(b',')
}

fn find(lines: &Lines, names: &[String], name: &str) -> Result<usize, DataError> {
    let mut places = names.iter().enumerate().filter(|(_, found)| *found == name).map(|(i, _)| i);
    let problem = match (places.next(), places.next()) {
        (Some(place), None) => return Ok(place),
        (Some(_), Some(_)) => format!("the first line names column `{name}` twice"),
        _ => format!("the first line, which must name the columns, has no `{name}`"),
    };
    let found = names.iter().take(50).map(|name| format!("{name:.60}")).collect::<Vec<_>>().join(", ");
    Err(DataError::Column { path: lines.path.clone(), problem, wanted: "the file", found })
}

struct Records<'l> {
    lines: &'l mut Lines,
    parser: Reader,
    /// The cells of the last record, one after the other without quotes, and where each ends; both may be longer than it.
    cells: Vec<u8>,
    ends: Vec<usize>,
    columns: usize,
    /// Where it began.
    line: u64,
}

impl Records<'_> {
    /// Reads the next record; false at the end. Blank lines are passed over.
    fn next(&mut self) -> Result<bool, DataError> {
        // The parser would take them for its own, and the record would seem to begin where they stand.
        loop {
            let chunk = self.lines.chunk()?;
            match chunk.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count() {
                0 => break,
                blank => self.lines.take(blank, None)?,
            }
        }
        self.line = self.lines.line + 1;
        let (mut bytes, mut columns) = (0, 0);
        loop {
            let chunk = self.lines.chunk()?;
            let at_end = chunk.is_empty();
            // Whatever is open ends with a line, but for a cell in quotes, to which it belongs.
            let input = if at_end { b"\n" } else { chunk };
            let (result, read, written, ended) =
                self.parser.read_record(input, &mut self.cells[bytes..], &mut self.ends[columns..]);
            bytes += written;
            columns += ended;
            if bytes > self.lines.limit {
                return Err(self.lines.too_long(self.line));
            }
            if !at_end {
                self.lines.take(read, None)?;
            }
            match result {
                ReadRecordResult::Record => {
                    self.columns = columns;
                    return Ok(true);
                }
                ReadRecordResult::InputEmpty if at_end && bytes == 0 && columns == 0 => return Ok(false),
                ReadRecordResult::InputEmpty if at_end => {
                    return Err(
                        self.bad("a cell that begins with a quote never ends; close or double the quote".to_string())
                    );
                }
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.cells.resize(self.cells.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if columns >= MAX_CELLS => {
                    return Err(self.bad(format!("more than {MAX_CELLS} cells; is it CSV?")));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::End => return Ok(false),
            }
        }
    }

    fn cell(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.cells[start..self.ends[i]]
    }

    fn bad(&self, reason: String) -> DataError {
        DataError::Record { path: self.lines.path.clone(), line: self.line, reason }
    }
}
