//! The stories of one file, streamed: text with lines `<|endoftext|>` between stories, or .jsonl with a `text` field;
//! either may be compressed with zstd (`.zst`).
//!
//! A story is stripped of the newlines around it ('\n' and '\r'), its inner text is kept to the byte, and it is
//! dropped if nothing is left. A byte-order mark at the start of a file is skipped. Memory: one story.

use super::DataError;
use serde::Deserialize;
use std::borrow::Cow;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The line between two stories, without its line end.
pub(super) const SEPARATOR: &[u8] = b"<|endoftext|>";

const BLOCK: usize = 256 << 10;

/// First bytes of formats that are often mistaken for text.
const MAGICS: [(&[u8], &str); 14] = [
    (b"\x7fELF", "it is an ELF program"),
    (b"\x89PNG", "it is a PNG image"),
    (b"\xff\xd8\xff", "it is a JPEG image"),
    (b"%PDF", "it is a PDF document; extract the text first"),
    (b"\x1f\x8b", "it is gzip-compressed; decompress it first (`gunzip`)"),
    (b"BZh", "it is bzip2-compressed; decompress it first (`bunzip2`)"),
    (b"\xfd7zXZ\0", "it is xz-compressed; decompress it first (`unxz`)"),
    (b"PK\x03\x04", "it is a zip archive (or a .pt file); unpack it first"),
    (ZSTD, "it is zstd-compressed; rename it to end in .zst"),
    (b"PAR1", "it is a Parquet table; write its text column as .jsonl first"),
    (b"GGUF", "it is a GGUF model"),
    (b"\xff\xfe", "it is UTF-16; convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)"),
    (b"\xfe\xff", "it is UTF-16; convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)"),
    (b"FLMTOKS\0", "it is a token cache"),
];

const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Calls `f(story, bytes of the file read so far)` for each story of the file, in order, until it breaks.
pub(super) fn read_file(
    path: &Path,
    limit: usize,
    f: &mut dyn FnMut(&str, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (compressed, inner) = match name.strip_suffix(".zst") {
        Some(inner) => (true, inner),
        None => (false, name.as_str()),
    };
    let mut lines = Lines::open(path, compressed, limit)?;
    if inner.ends_with(".jsonl") { jsonl(&mut lines, f) } else { text(&mut lines, f) }
}

fn text(lines: &mut Lines, f: &mut dyn FnMut(&str, u64) -> ControlFlow<()>) -> Result<ControlFlow<()>, DataError> {
    let mut story = Vec::new();
    loop {
        let (first_line, offset) = (lines.line + 1, lines.offset);
        let end = loop {
            let start = story.len();
            if !lines.next(&mut story, first_line)? {
                break true;
            }
            if trim_line_end(&story[start..]) == SEPARATOR {
                story.truncate(start);
                break false;
            }
        };
        let text = lines.utf8(&story, first_line, offset)?.trim_matches(['\n', '\r']);
        if !text.is_empty() && f(text, lines.read.get()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if end {
            return Ok(ControlFlow::Continue(()));
        }
        story.clear();
    }
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

fn jsonl(lines: &mut Lines, f: &mut dyn FnMut(&str, u64) -> ControlFlow<()>) -> Result<ControlFlow<()>, DataError> {
    let mut line = Vec::new();
    loop {
        let (number, offset) = (lines.line + 1, lines.offset);
        line.clear();
        if !lines.next(&mut line, number)? {
            return Ok(ControlFlow::Continue(()));
        }
        let json = lines.utf8(&line, number, offset)?.trim();
        if json.is_empty() {
            continue;
        }
        let bad = |reason| DataError::Jsonl { path: lines.path.clone(), line: number, reason };
        if !json.starts_with('{') {
            return Err(bad("not a JSON object".to_string()));
        }
        let record: Record = serde_json::from_str(json).map_err(|e| {
            // serde_json counts lines within this one.
            let message = e.to_string();
            let what = message.split(" at line ").next().unwrap_or_default();
            bad(if e.is_data() { what.to_string() } else { format!("bad JSON: {what} (column {})", e.column()) })
        })?;
        let text = record.text.trim_matches(['\n', '\r']);
        if !text.is_empty() && f(text, lines.read.get()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

fn trim_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Lines of the decompressed text, with the place for error messages.
struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead>,
    limit: usize,
    /// Bytes taken from the file (compressed, if it is).
    read: Rc<Cell<u64>>,
    /// Lines given out.
    line: u64,
    /// Bytes of decompressed text given out.
    offset: u64,
}

impl Lines {
    fn open(path: &Path, compressed: bool, limit: usize) -> Result<Lines, DataError> {
        let file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
        let read = Rc::new(Cell::new(0));
        let mut file = BufReader::with_capacity(BLOCK, Counted { file, read: Rc::clone(&read) });
        let failed = |e| DataError::io("read", path, e);
        let mut input: Box<dyn BufRead> = if compressed {
            if !file.fill_buf().map_err(failed)?.starts_with(ZSTD) {
                return Err(DataError::NotText {
                    path: path.to_path_buf(),
                    found: "it ends in .zst but is not zstd-compressed",
                });
            }
            let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?;
            Box::new(BufReader::with_capacity(BLOCK, decoder))
        } else {
            Box::new(file)
        };
        let block = input.fill_buf().map_err(failed)?;
        let magic = MAGICS.iter().find(|(magic, _)| block.starts_with(magic)).map(|(_, found)| *found);
        let nul = block.contains(&0).then_some("it contains NUL bytes");
        if let Some(found) = magic.or(nul) {
            return Err(DataError::NotText { path: path.to_path_buf(), found });
        }
        let mark = if block.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        input.consume(mark);
        Ok(Lines { path: path.to_path_buf(), input, limit, read, line: 0, offset: mark as u64 })
    }

    /// Appends the next line with its line end to `story`, which began at `first_line`; false at the end.
    fn next(&mut self, story: &mut Vec<u8>, first_line: u64) -> Result<bool, DataError> {
        // Room for a story of exactly the limit and the separator after it.
        let room = (self.limit + SEPARATOR.len() + 4).saturating_sub(story.len());
        let n = (&mut self.input)
            .take(room as u64 + 1)
            .read_until(b'\n', story)
            .map_err(|e| DataError::io("read", &self.path, e))?;
        if n > room {
            return Err(DataError::LongStory { path: self.path.clone(), line: first_line, limit: self.limit });
        }
        self.line += u64::from(n > 0);
        self.offset += n as u64;
        Ok(n > 0)
    }

    fn utf8<'a>(&self, bytes: &'a [u8], first_line: u64, offset: u64) -> Result<&'a str, DataError> {
        std::str::from_utf8(bytes).map_err(|e| {
            let valid = &bytes[..e.valid_up_to()];
            DataError::Utf8 {
                path: self.path.clone(),
                offset: offset + valid.len() as u64,
                line: first_line + valid.iter().filter(|b| **b == b'\n').count() as u64,
            }
        })
    }
}

struct Counted {
    file: File,
    read: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Folder;

    fn read_limited(path: &Path, limit: usize) -> Result<Vec<String>, DataError> {
        let mut stories = Vec::new();
        let flow = read_file(path, limit, &mut |story, _| {
            stories.push(story.to_string());
            ControlFlow::Continue(())
        })?;
        assert!(flow.is_continue());
        Ok(stories)
    }

    fn read(path: &Path) -> Result<Vec<String>, DataError> {
        read_limited(path, 1 << 20)
    }

    fn message(path: &Path) -> String {
        let text = read(path).unwrap_err().to_string();
        assert!(text.contains(&path.display().to_string()), "the message names the file: {text}");
        text
    }

    const TEXT: &str = "\n\nOne day.\n\nThe end. \n\n<|endoftext|>\n<|endoftext|>\n\n<|endoftext|>\n  Two\t\n<|endoftext|> \n\
        <|endoftext|>\nlast <|endoftext|>";
    const STORIES: [&str; 3] = ["One day.\n\nThe end. ", "  Two\t\n<|endoftext|> ", "last <|endoftext|>"];

    #[test]
    fn stories_are_split_stripped_and_otherwise_exact() {
        let folder = Folder::new();
        assert_eq!(read(&folder.file("a.txt", TEXT)).unwrap(), STORIES);
        assert_eq!(read(&folder.file("end.txt", format!("{TEXT}\n<|endoftext|>"))).unwrap(), STORIES);
        let crlf = TEXT.replace('\n', "\r\n");
        let expected = STORIES.map(|s| s.replace('\n', "\r\n"));
        assert_eq!(read(&folder.file("crlf.txt", crlf)).unwrap(), expected);
        assert_eq!(read(&folder.file("mark.txt", format!("\u{feff}{TEXT}"))).unwrap(), STORIES);
    }

    #[test]
    fn text_without_a_separator_is_one_story() {
        let folder = Folder::new();
        let book = "Chapter 1\n\n".to_string() + &"It went on.\n".repeat(50_000);
        assert_eq!(read(&folder.file("book.txt", &book)).unwrap(), [book.trim_end()]);
        assert_eq!(read(&folder.file("blank.txt", "\n\r\n<|endoftext|>\n\n")).unwrap(), [""; 0]);
    }

    #[test]
    fn zst_and_jsonl_give_what_the_text_gives() {
        let folder = Folder::new();
        let zst = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
        let jsonl: String = STORIES
            .iter()
            .map(|s| serde_json::json!({"id": [1, {"text": 2}], "text": format!("\n{s}\n")}).to_string() + "\n\n")
            .collect();
        // Two frames in one file, as `cat a.zst b.zst` makes them.
        let (left, right) = TEXT.split_at(20);
        for path in [
            folder.file("a.zst", zst(TEXT)),
            folder.file("a.txt.zst", [zst(left), zst(right)].concat()),
            folder.file("a.jsonl", &jsonl),
            folder.file("a.JSONL.ZST", zst(&jsonl)),
        ] {
            assert_eq!(read(&path).unwrap(), STORIES, "{}", path.display());
        }
    }

    #[test]
    fn invalid_utf8_is_located() {
        let folder = Folder::new();
        let text = b"ab\ncd\n<|endoftext|>\nx\ny\xffz\n";
        let place = text.iter().position(|b| *b == 0xff).unwrap();
        for path in [folder.file("bad.txt", text), folder.file("bad.zst", zstd::encode_all(&text[..], 0).unwrap())] {
            let DataError::Utf8 { offset, line, .. } = read(&path).unwrap_err() else { panic!() };
            assert_eq!((offset, line), (place as u64, 5));
        }
        let cut = folder.file("cut.txt", b"\xef\xbb\xbfcaf\xc3");
        assert!(matches!(read(&cut).unwrap_err(), DataError::Utf8 { offset: 6, line: 1, .. }));
        let line = folder.file("bad.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n");
        assert!(matches!(read(&line).unwrap_err(), DataError::Utf8 { offset: 24, line: 2, .. }));
    }

    #[test]
    fn binary_files_are_not_text() {
        let folder = Folder::new();
        let gzip = b"\x1f\x8b\x08\x00abc";
        for (name, bytes, word) in [
            ("a", &b"\x7fELF\x02"[..], "ELF"),
            ("a.txt", b"\x89PNG\r\n", "PNG"),
            ("b.txt", gzip, "gunzip"),
            ("c.txt", b"PK\x03\x04", "zip"),
            ("d.txt", b"PAR1abc", "Parquet"),
            ("e.txt", b"\xff\xfeO\0n\0", "UTF-16"),
            ("f.txt", b"some text and \0", "NUL"),
            ("g.txt", &zstd::encode_all(&b"text"[..], 0).unwrap(), "rename"),
            ("h.zst", b"plain text", "not zstd"),
            ("i.zst", &zstd::encode_all(&gzip[..], 0).unwrap(), "gunzip"),
        ] {
            let text = message(&folder.file(name, bytes));
            assert!(text.contains("not text") && text.contains(word), "{text}");
        }
    }

    #[test]
    fn damaged_compression_is_an_error() {
        let folder = Folder::new();
        let noise: String = (0..200_000u64).map(|i| char::from(b'a' + (i * i % 23 * i % 26) as u8)).collect();
        let whole = zstd::encode_all(noise.as_bytes(), 1).unwrap();
        assert_eq!(read(&folder.file("whole.zst", &whole)).unwrap(), [noise]);
        message(&folder.file("cut.zst", &whole[..whole.len() - 3]));
        message(&folder.file("head.zst", &whole[..5]));
        let mut altered = whole.clone();
        altered[6] ^= 0xff;
        message(&folder.file("altered.zst", altered));
    }

    #[test]
    fn bad_json_lines_are_numbered() {
        let folder = Folder::new();
        for (line, word) in [
            ("{\"text\": \"cut", "EOF"),
            ("{\"text\": \"a\"} x", "trailing"),
            ("{\"text\": 3}", "invalid type"),
            ("{\"body\": \"a\"}", "missing field `text`"),
            ("[\"a\"]", "object"),
            ("{\"text\": \"\\ud800\"}", "hex escape"),
        ] {
            let text = message(&folder.file("a.jsonl", format!("{{\"text\":\"fine\"}}\n\n{line}\n")));
            assert!(text.contains("line 3") && text.contains(word), "{text}");
        }
        let deep = format!("{{\"x\": {}", "[".repeat(500_000));
        assert!(message(&folder.file("deep.jsonl", deep)).contains("line 1"));
    }

    #[test]
    fn the_limit_is_that_of_a_story() {
        let folder = Folder::new();
        let story = "0123456789\n".repeat(10);
        let fits = folder.file("fits.txt", format!("{story}<|endoftext|>\n").repeat(3));
        assert_eq!(read_limited(&fits, story.len()).unwrap().len(), 3);
        let over = folder.file("over.txt", format!("fine\n<|endoftext|>\n{}", story.repeat(2)));
        let DataError::LongStory { line, .. } = read_limited(&over, story.len()).unwrap_err() else { panic!() };
        assert_eq!(line, 3);
        let one_line = folder.file("line.txt", "x".repeat(10_000));
        assert!(read_limited(&one_line, 1000).unwrap_err().to_string().contains("split it"));
        let json = folder.file("long.jsonl", format!("{{\"text\": \"{}\"}}", "x".repeat(10_000)));
        assert!(matches!(read_limited(&json, 1000), Err(DataError::LongStory { line: 1, .. })));
    }

    #[test]
    fn reading_stops_when_told() {
        let folder = Folder::new();
        let path = folder.file("a.txt", b"a\n<|endoftext|>\nb\n<|endoftext|>\n\xc3\x28");
        let mut seen = Vec::new();
        let flow = read_file(&path, 100, &mut |story, _| {
            seen.push(story.to_string());
            if story == "b" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(flow.unwrap().is_break());
        assert_eq!(seen, ["a", "b"]);
    }
}
