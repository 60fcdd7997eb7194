//! The stories of one file, streamed. What a file is, its name and its bytes say together:
//!
//! ```text
//! .jsonl .ndjson .json      JSON: a record a line, records over several lines, or one array of records
//! .csv .tsv                 CSV under a header
//! .parquet                  a column of a Parquet table
//! .txt .text .md            text with lines `<|endoftext|>` between stories
//! any other, or none        JSON lines if the first is an object that has the field, else text
//! any but .parquet, + .zst or .gz      the same, compressed with zstd or gzip
//! ```
//! A story is stripped of the newlines around it ('\n' and '\r'), its inner text is kept to the byte, and it is
//! dropped if nothing is left. A byte-order mark at the start of a file is skipped. Memory: one story or record; of a table,
//! a page and a dictionary.

mod compression;
mod csv;
mod json;
mod lines;
mod parquet;
mod seen;
mod text;

use super::DataError;
use compression::{Compression, GZIP, ZSTD};
use lines::Lines;
pub use seen::Seen;
use std::ops::ControlFlow;
use std::path::Path;

/// Endings of the files that a folder is searched for.
pub(crate) const ENDINGS: [&str; 9] = [".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".zst", ".gz"];

/// Endings that say what a file holds, which its name can do without.
pub(super) const FORMATS: [&str; 9] =
    [".txt", ".text", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"];

/// Longest file that can be a git LFS pointer.
const POINTER: usize = 1024;

/// First bytes of formats that are often mistaken for text.
const MAGICS: [(&[u8], &str); 14] = [
    (b"\x7fELF", "it is an ELF program"),
    (b"\x89PNG", "it is a PNG image"),
    (b"\xff\xd8\xff", "it is a JPEG image"),
    (b"%PDF", "it is a PDF document; extract the text first"),
    (GZIP, "it is gzip-compressed; rename it to end in .gz"),
    (b"BZh", "it is bzip2-compressed; decompress it first (`bunzip2`)"),
    (b"\xfd7zXZ\0", "it is xz-compressed; decompress it first (`unxz`)"),
    (b"PK\x03\x04", "it is a zip archive (or a .pt file); unpack it first"),
    (ZSTD, "it is zstd-compressed; rename it to end in .zst"),
    (b"PAR1", "it is a Parquet table; rename it to end in .parquet (decompress it first if it is compressed)"),
    (b"GGUF", "it is a GGUF model"),
    (b"\xff\xfe", "it is UTF-16; convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)"),
    (b"\xfe\xff", "it is UTF-16; convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)"),
    (b"FLMTOKS\0", "it is a token cache"),
];

/// What a file is, and what to do with it, if its first bytes are of a format that is often mistaken for text.
pub(crate) fn foreign(start: &[u8]) -> Option<&'static str> {
    let tar = start.get(257..262) == Some(b"ustar");
    let magic = MAGICS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, found)| *found);
    magic.or(tar.then_some("it is a tar archive; unpack it first (`tar -xf`)"))
}

/// The same of the few lines that git leaves in the place of a large file. `start` is all of a small file.
fn pointer(start: &[u8]) -> Option<&'static str> {
    let pointer = start.len() <= POINTER && start.starts_with(b"version https://git-lfs.github.com/spec/");
    pointer.then_some("it is a git LFS pointer, which stands for a file not yet fetched; run `git lfs pull`")
}

/// The same of a web page, which servers send instead of a file that they do not give.
fn markup(start: &[u8]) -> Option<&'static str> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |word: &str| start.get(..word.len()).is_some_and(|s| s.eq_ignore_ascii_case(word.as_bytes()));
    let page = ["<!doctype", "<html", "<head", "<?xml", "<!--"].into_iter().any(begins);
    page.then_some("it begins like HTML, so it may be the error page of a server; fetch it again")
}

/// Which fields of a record, or columns of a table, to read.
pub(super) struct Fields<'a> {
    /// The text.
    pub text: &'a str,
    /// A number that says how good the text is, if it is wanted; text files have none.
    pub score: Option<&'a str>,
}

/// A story as it stands in its file.
pub(super) struct Story<'a> {
    pub text: &'a str,
    pub score: Option<f64>,
}

/// Calls `f(story, bytes of the file read so far)` for each story of the file, in order, until it breaks.
pub(super) fn read_file(
    path: &Path,
    fields: &Fields,
    limit: usize,
    seen: &mut Seen,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.ends_with(".parquet") {
        return parquet::read(path, fields, limit, seen, f);
    }
    let (compression, inner) = Compression::of(&name);
    let mut lines = Lines::open(path, compression, limit)?;
    let format = FORMATS.into_iter().find(|ending| inner.ends_with(ending));
    let page = markup(lines.head());
    match (format, page) {
        (Some(".jsonl" | ".ndjson" | ".json" | ".csv" | ".tsv"), Some(found)) => {
            Err(DataError::NotText { path: path.to_path_buf(), found })
        }
        (Some(".jsonl" | ".ndjson" | ".json"), _) => json::read(&mut lines, fields, seen, f),
        (Some(".csv"), _) => csv::read(&mut lines, None, fields, seen, f),
        (Some(".tsv"), _) => csv::read(&mut lines, Some(b'\t'), fields, seen, f),
        (None, _) if json::begins(lines.head(), Some(fields)) => json::read(&mut lines, fields, seen, f),
        _ => match fields.score {
            Some(score) => {
                let path = path.display();
                let reason = format!(
                    "{path} is text and has no `{score}`; leave out min_score, or give JSON lines, CSV or Parquet"
                );
                Err(DataError::Filter { reason })
            }
            None => {
                seen.json += u64::from(json::begins(lines.head(), None));
                text::read(&mut lines, seen, f)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Folder;
    use std::io::Write;

    const TEXT_FIELD: Fields = Fields { text: "text", score: None };

    fn read_limited(path: &Path, limit: usize) -> Result<Vec<String>, DataError> {
        let mut stories = Vec::new();
        let flow = read_file(path, &TEXT_FIELD, limit, &mut Seen::default(), &mut |story, _| {
            stories.push(story.text.to_string());
            ControlFlow::Continue(())
        })?;
        assert!(flow.is_continue());
        Ok(stories)
    }

    fn read(path: &Path) -> Result<Vec<String>, DataError> {
        read_limited(path, 1 << 20)
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
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
    fn compressed_and_jsonl_give_what_the_text_gives() {
        let folder = Folder::new();
        let zst = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
        let jsonl: String = STORIES
            .iter()
            .map(|s| serde_json::json!({"id": [1, {"text": 2}], "text": format!("\n{s}\n")}).to_string() + "\n\n")
            .collect();
        // Two frames or members in one file, as `cat a.zst b.zst` makes them.
        let (left, right) = TEXT.split_at(20);
        for path in [
            folder.file("a.zst", zst(TEXT)),
            folder.file("a.txt.zst", [zst(left), zst(right)].concat()),
            folder.file("a.jsonl", &jsonl),
            folder.file("a.JSONL.ZST", zst(&jsonl)),
            folder.file("a.gz", gz(TEXT.as_bytes())),
            folder.file("a.txt.gz", [gz(left.as_bytes()), gz(right.as_bytes())].concat()),
            folder.file("a.jsonl.gz", gz(jsonl.as_bytes())),
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
            ("b.txt", gzip, "rename it to end in .gz"),
            ("c.txt", b"PK\x03\x04", "zip"),
            ("d.txt", b"PAR1abc", "rename it to end in .parquet"),
            ("e.txt", b"\xff\xfeO\0n\0", "UTF-16"),
            ("f.txt", b"some text and \0", "NUL"),
            ("g.txt", &zstd::encode_all(&b"text"[..], 0).unwrap(), "rename"),
            ("h.zst", b"plain text", "not zstd"),
            ("i.zst", &zstd::encode_all(&gzip[..], 0).unwrap(), "gzip"),
            ("j.gz", b"plain text", "not gzip"),
            ("k.parquet", b"plain text, long enough", "not a Parquet table"),
            ("l.parquet.gz", &gz(b"PAR1abc"), "decompress it first"),
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
        assert_eq!(read(&folder.file("whole.zst", &whole)).unwrap(), [noise.as_str()]);
        let zipped = gz(noise.as_bytes());
        assert_eq!(read(&folder.file("whole.gz", &zipped)).unwrap(), [noise]);
        for (ending, whole) in [("zst", whole), ("gz", zipped)] {
            for (name, end) in [("cut", whole.len() - 3), ("half", whole.len() / 2), ("head", 5)] {
                let text = message(&folder.file(&format!("{name}.{ending}"), &whole[..end]));
                assert!(text.contains("cannot decompress") && text.contains("fetch or compress it again"), "{text}");
            }
            // zstd, without the checksum that is optional, finds a changed header only.
            let mut altered = whole.clone();
            altered[if ending == "gz" { whole.len() / 2 } else { 6 }] ^= 0xff;
            message(&folder.file(&format!("altered.{ending}"), altered));
            message(&folder.file(&format!("trailing.{ending}"), [&whole[..], b"something else"].concat()));
        }
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
    fn fields_of_another_name_and_scores() {
        let folder = Folder::new();
        let path = folder.file(
            "a.jsonl",
            "{\"story\":\"one\",\"score\":3,\"text\":7}\n{\"score\":null,\"story\":\"t\\u0077o\"}\n{\"\\u0073tory\":\"three\",\"score\":-2.5}",
        );
        let mut seen = Vec::new();
        let fields = Fields { text: "story", score: Some("score") };
        let flow = read_file(&path, &fields, 100, &mut Seen::default(), &mut |story, _| {
            seen.push((story.text.to_string(), story.score));
            ControlFlow::Continue(())
        });
        assert!(flow.unwrap().is_continue());
        assert_eq!(seen, [("one", Some(3.0)), ("two", None), ("three", Some(-2.5))].map(|(s, x)| (s.to_string(), x)));
        let wrong = |path: &Path, fields| {
            read_file(path, &fields, 100, &mut Seen::default(), &mut |_, _| ControlFlow::Continue(()))
        };
        let error = wrong(&path, Fields { text: "body", score: None }).unwrap_err().to_string();
        assert!(error.contains("missing field `body`") && error.contains("{\"body\": \"...\"}"), "{error}");
        let error = wrong(&path, Fields { text: "story", score: Some("points") }).unwrap_err().to_string();
        assert!(error.contains("missing field `points`"), "{error}");
        let twice = folder.file("twice.jsonl", "{\"text\":\"a\",\"text\":\"b\"}");
        assert!(message(&twice).contains("twice"));
        let text = folder.file("a.txt", "a story");
        let error = wrong(&text, Fields { text: "text", score: Some("score") }).unwrap_err().to_string();
        assert!(error.contains("min_score"), "{error}");
    }

    #[test]
    fn the_limit_is_that_of_a_story() {
        let folder = Folder::new();
        let story = "0123456789\n".repeat(10);
        let fits = folder.file("fits.txt", format!("{story}<|endoftext|>\n").repeat(3));
        assert_eq!(read_limited(&fits, story.len()).unwrap().len(), 3);
        let json = folder.file("long.jsonl", format!("{{\"text\": \"{}\"}}", "x".repeat(10_000)));
        assert!(matches!(read_limited(&json, 1000), Err(DataError::LongRecord { line: 1, .. })));
    }

    #[test]
    fn reading_stops_when_told() {
        let folder = Folder::new();
        let path = folder.file("a.txt", b"a\n<|endoftext|>\nb\n<|endoftext|>\n\xc3\x28");
        let mut seen = Vec::new();
        let flow = read_file(&path, &TEXT_FIELD, 100, &mut Seen::default(), &mut |story, _| {
            seen.push(story.text.to_string());
            if story.text == "b" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(flow.unwrap().is_break());
        assert_eq!(seen, ["a", "b"]);
    }
}
