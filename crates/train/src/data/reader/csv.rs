//! Comma- or tab-separated values: a line of column names, then a record a line, its text in one column, its score in another
//! if that is wanted. Cells in quotes may hold separators, line ends and doubled quotes (RFC 4180). What separates cells is
//! known for .tsv; of .csv it is the first of `,` `;` and the tab that the first line holds. Memory: one record.

use super::lines::Lines;
use super::oddities::Oddities;
use super::story::{Fields, Story};
use crate::data::DataError;
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use std::ops::ControlFlow;

const BAD_QUOTE: &str = "text follows the quote that ends a cell; quotes inside a quoted cell must be doubled (`\"\"`, not \
 `\\\"`). If the program that wrote it cannot do that, let it write JSON lines";
/// Most cells of a record.
const MAX_CELLS: usize = 100_000;

pub(super) fn read(
    lines: &mut Lines,
    separator: Option<u8>,
    fields: &Fields,
    oddities: &mut Oddities,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    // A first line of Excel's, which names the separator.
    let named = match lines.head() {
        [b's', b'e', b'p', b'=', separator, b'\n' | b'\r', ..] => Some(*separator),
        _ => None,
    };
    if named.is_some() {
        lines.take(5, None)?;
    }
    let separator = named.or(separator).unwrap_or_else(|| guessed(lines.head()));
    let mut records = Records {
        lines,
        parser: ReaderBuilder::new().delimiter(separator).build(),
        cells: vec![0; 4096],
        ends: vec![0; 16],
        columns: 0,
        line: 1,
        separator,
        quote: Quote::Start,
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
                "{} cells instead of {}; cells that contain {separator}, quotes or line ends must be quoted",
                records.columns,
                names.len()
            )));
        }
        let cell = |i: usize| {
            let not_utf8 =
                || format!("column `{}` is not UTF-8; convert the file first (`iconv -f CP1252 -t UTF-8`)", names[i]);
            let cell = std::str::from_utf8(records.cell(i)).map_err(|_| records.bad(not_utf8()))?;
            match memchr::memchr(0, cell.as_bytes()) {
                Some(_) => Err(records.bad("NUL bytes, as in a file that was cut off while being written".to_string())),
                None => Ok(cell),
            }
        };
        let score = match score.map(cell).transpose()?.map(str::trim) {
            None | Some("") => None,
            Some(cell) => {
                let wrong = |_| records.bad(format!("the score `{cell:.40}` is not a number"));
                Some(cell.parse().map_err(wrong)?)
            }
        };
        let story = cell(text)?.trim_matches(['\n', '\r']);
        if story.is_empty() {
            oddities.without += 1;
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
    separator: u8,
    quote: Quote,
}

/// Where in a cell a byte stands. The parser takes whatever comes; what it would make another text of is an error.
#[derive(Clone, Copy, PartialEq)]
enum Quote {
    /// A cell begins.
    Start,
    /// In a cell without quotes.
    Bare,
    /// Between quotes.
    Within,
    /// Behind a quote that ends the cell, or is the first of two.
    Behind,
}

impl Quote {
    /// Behind `bytes`; none where something follows the quote that ends a cell.
    fn after(self, bytes: &[u8], separator: u8) -> Option<Quote> {
        bytes.iter().try_fold(self, |quote, &byte| {
            let ends = byte == separator || matches!(byte, b'\n' | b'\r');
            Some(match (quote, byte) {
                (Quote::Within, b'"') => Quote::Behind,
                (Quote::Within, _) => Quote::Within,
                (Quote::Start, b'"') | (Quote::Behind, b'"') => Quote::Within,
                _ if ends => Quote::Start,
                (Quote::Behind, _) => return None,
                _ => Quote::Bare,
            })
        })
    }
}

impl Records<'_> {
    /// Reads the next record; false at the end. Blank lines are skipped.
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
            let quote = self.quote.after(&input[..read], self.separator);
            bytes += written;
            columns += ended;
            if bytes > self.lines.limit {
                return Err(self.lines.too_long(self.line));
            }
            if !at_end {
                self.quote = quote.ok_or_else(|| self.bad(BAD_QUOTE.to_string()))?;
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

#[cfg(test)]
mod tests {
    use super::super::testing::{message, read, scored, stories};
    use crate::data::testing::Folder;

    const STORIES: [&str; 3] = ["One, and \"two\".", "Three;\nfour\t", "naïve 😀"];

    /// As Python's module `csv` writes these, with its default and with `quoting=QUOTE_ALL`.
    #[test]
    fn what_python_writes() {
        let folder = Folder::new();
        let comma = "id,text,score\r\n0,\"One, and \"\"two\"\".\",2.5\r\n1,\"Three;\nfour\t\",\r\n2,naïve 😀,-1e1\r\n";
        let semicolon = "id;text;score\n0;\"One, and \"\"two\"\".\";2.5\n1;\"Three;\nfour\t\";\n2;naïve 😀;-1e1";
        let tabs = "\u{feff}id\ttext\tscore\r\n\
            0\t\"One, and \"\"two\"\".\"\t2.5\r\n1\t\"Three;\nfour\t\"\t\r\n2\tnaïve 😀\t-1e1\r\n";
        let all =
            "\"score\",\"text\"\n\"2.5\",\"One, and \"\"two\"\".\"\n\n\"\",\"Three;\nfour\t\"\n\" -10 \",\"naïve 😀\"";
        let expected: Vec<_> = STORIES.iter().map(|s| s.to_string()).zip([Some(2.5), None, Some(-10.0)]).collect();
        for (name, text) in [("a.csv", comma), ("b.csv", semicolon), ("c.csv", tabs), ("d.TSV", tabs), ("e.csv", all)] {
            let path = folder.file(name, text);
            assert_eq!(read(&path).unwrap(), STORIES, "{name}");
            assert_eq!(scored(&path, "text", "score").unwrap(), expected, "{name}");
        }
        assert_eq!(read(&folder.file("mac.csv", "text\ra\r\"b\rc\"\r")).unwrap(), ["a", "b\rc"]);
        assert_eq!(read(&folder.file("excel.csv", "sep=|\r\nid|text\r\n1|a,b\r\n")).unwrap(), ["a,b"]);
        assert_eq!(read(&folder.file("bare.csv", "id,text\n1,5\" wide\n2,\"\"\"\"\n")).unwrap(), ["5\" wide", "\""]);
        assert_eq!(read(&folder.file("cells.csv", "a,text,\n,x,\n\"\",y,\"\"")).unwrap(), ["x", "y"]);
    }

    #[test]
    fn columns_by_name_and_cells_without_text() {
        let folder = Folder::new();
        let path = folder.file("a.csv", "title, body \n1,a\n2,\n\n3,\"\n\"\n4,b");
        let (found, oddities) = stories(&path, "body", 100).unwrap();
        assert_eq!((found, oddities.without), (vec!["a".to_string(), "b".to_string()], 2));
        let text = message(&path);
        assert!(
            text.contains("must name the columns, has no `text`; columns of the file: title, body; choose"),
            "{text}"
        );
        assert!(message(&folder.file("twice.csv", "text,text\na,b")).contains("`text` twice"));
        assert_eq!(read(&folder.file("blank.csv", "\n\r\n")).unwrap(), [""; 0]);
    }

    #[test]
    fn bad_records_are_told_by_their_line() {
        let folder = Folder::new();
        for (text, line, word) in [
            ("id,text\n1,\"a\nb\"\n\n2,b,c\n", 5, "3 cells instead of 2"),
            ("id,text\r\n1,a\r\n2\r\n", 3, "1 cells instead of 2"),
            ("id,text\n1,\"a\"\n2,\"b\n3,c\n4,d\n", 3, "never ends"),
            ("id,text\n1,\"", 2, "never ends"),
            ("id,text\n1,a\n2,\"He said \\\"hi\\\" to me.\"\n", 3, "text follows the quote"),
            ("id,text\n1,\"Hello\" she said\n", 2, "text follows the quote"),
            ("id,text\n1,\"She said \"hi\" to me\"\n", 2, "text follows the quote"),
        ] {
            let message = message(&folder.file("a.csv", text));
            assert!(message.contains(&format!("line {line}: ")) && message.contains(word), "{message}");
        }
        let latin = message(&folder.file("a.csv", b"id,text\n1,ok\n2,caf\xe9\n"));
        assert!(latin.contains("line 3: column `text` is not UTF-8"), "{latin}");
        assert_eq!(read(&folder.file("a.csv", b"text,other\nok,caf\xe9\n")).unwrap(), ["ok"]);
        let path = folder.file("a.csv", "score,text\n1,a\nmany,b");
        let error = scored(&path, "text", "score").unwrap_err().to_string();
        assert!(error.contains("line 3: the score `many`") && error.contains("not a number"), "{error}");
        let long = folder.file("a.csv", format!("text\n{}\n\"{}", "x".repeat(1000), "y\n".repeat(50_000)));
        let error = stories(&long, "text", 1000).unwrap_err().to_string();
        assert!(error.contains("the record that starts at line 3 is longer"), "{error}");
        let wide = folder.file("a.csv", format!("text\n{}", ",".repeat(1 << 20)));
        assert!(message(&wide).contains("more than 100000 cells"));
    }
}
