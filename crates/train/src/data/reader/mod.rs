//! The documents of one file, streamed. What a file is, its name and its bytes say together:
//!
//! ```text
//! .jsonl .ndjson .json      JSON: a record a line, records over several lines, or one array of records
//! .csv .tsv                 CSV under a header
//! .parquet                  a column of a Parquet table
//! .txt .text .md            text with lines `<|endoftext|>` between documents
//! any other, or none        JSON lines if the first is an object that has the field, else text
//! any but .parquet, + .zst or .gz      the same, compressed with zstd or gzip
//! ```
//! A document is stripped of the newlines around it ('\n' and '\r'), its inner text is kept to the byte, and it is
//! dropped if nothing is left. A byte-order mark at the start of a file is skipped. Memory: one document or record; of a table,
//! a page and a dictionary.

mod compression;
mod csv;
mod json;
mod lines;
mod magic;
mod oddities;
mod parquet;
mod story;
mod text;

use crate::data::DataError;
use compression::Compression;
use lines::Lines;
pub(crate) use magic::foreign;
use magic::markup;
use memchr::memmem;
pub use oddities::Oddities;
use std::ops::ControlFlow;
use std::path::Path;
pub(super) use story::Fields;
use story::Story;

/// Endings that say what a file holds, which its name can do without.
pub(super) const FORMATS: [&str; 9] =
    [".txt", ".text", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"];

/// Calls `f(story, bytes of the file read so far)` for each document of the file, in order, until it breaks.
pub(super) fn read_file(
    path: &Path,
    fields: &Fields,
    limit: usize,
    oddities: &mut Oddities,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let separator = memmem::Finder::new(text::SEPARATOR);
    let mut separators = 0;
    let flow = read_format(path, fields, limit, oddities, &mut |story, read| {
        separators += separator.find_iter(story.text.as_bytes()).count() as u64;
        f(story, read)
    });
    oddities.separators += separators;
    flow
}

fn read_format(
    path: &Path,
    fields: &Fields,
    limit: usize,
    oddities: &mut Oddities,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.ends_with(".parquet") {
        return parquet::read(path, fields, limit, oddities, f);
    }
    let (compression, inner) = Compression::of(&name);
    let mut lines = Lines::open(path, compression, limit)?;
    let format = FORMATS.into_iter().find(|ending| inner.ends_with(ending));
    let page = markup(lines.head());
    match (format, page) {
        (Some(".jsonl" | ".ndjson" | ".json" | ".csv" | ".tsv"), Some(found)) => {
            Err(DataError::NotText { path: path.to_path_buf(), found })
        }
        (Some(".jsonl" | ".ndjson" | ".json"), _) => json::read(&mut lines, fields, oddities, f),
        (Some(".csv"), _) => csv::read(&mut lines, None, fields, oddities, f),
        (Some(".tsv"), _) => csv::read(&mut lines, Some(b'\t'), fields, oddities, f),
        (None, _) if json::begins(lines.head(), Some(fields)) => json::read(&mut lines, fields, oddities, f),
        _ => match fields.score {
            Some(score) => {
                let path = path.display();
                let reason = format!(
                    "{path} is text and has no `{score}`; leave out min_score, or give JSON lines, CSV or Parquet"
                );
                Err(DataError::Filter { reason })
            }
            None => {
                oddities.json += u64::from(json::begins(lines.head(), None));
                oddities.pages += u64::from(page.is_some() && matches!(format, Some(".txt" | ".text")));
                text::read(&mut lines, oddities, f)
            }
        },
    }
}

#[cfg(test)]
mod testing {
    use super::*;

    /// The documents of a file whose text is in `column`, and what was odd in them.
    pub fn stories(path: &Path, column: &str, limit: usize) -> Result<(Vec<String>, Oddities), DataError> {
        let (mut stories, mut oddities) = (Vec::new(), Oddities::default());
        let fields = Fields { text: column, score: None };
        let flow = read_file(path, &fields, limit, &mut oddities, &mut |story, _| {
            stories.push(story.text.to_string());
            ControlFlow::Continue(())
        })?;
        assert!(flow.is_continue());
        Ok((stories, oddities))
    }

    /// The same with scores, without what was seen.
    pub fn scored(path: &Path, text: &str, score: &str) -> Result<Vec<(String, Option<f64>)>, DataError> {
        let mut stories = Vec::new();
        let fields = Fields { text, score: Some(score) };
        let flow = read_file(path, &fields, 1 << 20, &mut Oddities::default(), &mut |story, _| {
            stories.push((story.text.to_string(), story.score));
            ControlFlow::Continue(())
        })?;
        assert!(flow.is_continue());
        Ok(stories)
    }

    pub fn read(path: &Path) -> Result<Vec<String>, DataError> {
        stories(path, "text", 1 << 20).map(|(stories, _)| stories)
    }

    /// The error for a file, which names it.
    pub fn message(path: &Path) -> String {
        let text = read(path).unwrap_err().to_string();
        assert!(text.contains(&path.display().to_string()), "the message names the file: {text}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use crate::data::testing::Folder;
    use std::io::Write;

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
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
        assert!(message(&cut).contains("cut off"));
        let damaged = message(&folder.file("damaged.txt", b"caf\xc3\xa9 au l\xffit"));
        assert!(damaged.contains("at byte 10 (line 1)") && damaged.contains("-t UTF-8 -c"), "{damaged}");
        assert!(message(&folder.file("latin.txt", b"caf\xe9 au lait")).contains("-f CP1252"));
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
            ("r.txt", b"{\\rtf1\\ansi", "RTF"),
            ("u.txt", b"\xff\xfe\0\0a\0\0\0", "UTF-32"),
            ("annex.txt", b"/annex/objects/SHA256E-s5--abc\n", "git annex get"),
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
    fn a_pointer_is_one_compressed_too() {
        let folder = Folder::new();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n";
        for path in [
            folder.file("a.txt", pointer),
            folder.file("b.txt.gz", gz(pointer.as_bytes())),
            folder.file("c.gz", pointer),
        ] {
            assert!(message(&path).contains("git lfs pull"), "{}", path.display());
        }
    }

    #[test]
    fn what_is_no_text_behind_the_start_is_told_by_its_line() {
        let folder = Folder::new();
        let long = "All is well.\n".repeat(40_000);
        for (name, text) in [("a.txt", format!("{long}cut\0\0\0")), ("a.csv", format!("text\n{long}cut\0\0\0\n"))] {
            let text = read(&folder.file(name, text)).unwrap_err().to_string();
            assert!(text.contains("NUL bytes") && text.contains("line 4000"), "{text}");
        }
        let page = folder.file("page.txt", "<!DOCTYPE html>\n<p>Not found");
        assert_eq!(stories(&page, "text", 100).unwrap().1, Oddities { pages: 1, ..Oddities::default() });
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
                assert!(text.contains("cannot decompress: it ends too early"), "{text}");
            }
            // zstd, without the checksum that is optional, finds a changed header only.
            let mut altered = whole.clone();
            altered[if ending == "gz" { whole.len() / 2 } else { 6 }] ^= 0xff;
            message(&folder.file(&format!("altered.{ending}"), altered));
            message(&folder.file(&format!("trailing.{ending}"), [&whole[..], b"something else"].concat()));
        }
    }

    #[test]
    fn reading_stops_when_told() {
        let folder = Folder::new();
        let path = folder.file("a.txt", b"a\n<|endoftext|>\nb\n<|endoftext|>\n\xc3\x28");
        let mut seen = Vec::new();
        let flow =
            read_file(&path, &Fields { text: "text", score: None }, 100, &mut Oddities::default(), &mut |story, _| {
                seen.push(story.text.to_string());
                if story.text == "b" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        assert!(flow.unwrap().is_break());
        assert_eq!(seen, ["a", "b"]);
    }

    #[test]
    fn names_and_first_bytes_tell_what_a_file_is() {
        let folder = Folder::new();
        let jsonl = "\n{\"id\": 1, \"text\": \"one\"}\n{\"id\": 2, \"text\": \"two\"}\n";
        let array = "[{\"text\": \"one\"}, {\"text\": \"two\"}]";
        let zst = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
        for path in [
            folder.file("a.NDJSON", jsonl),
            folder.file("a.json", jsonl),
            folder.file("b.json", array),
            folder.file("b.json.gz", gz(array.as_bytes())),
            folder.file("b.ndjson.zst", zst(jsonl)),
            folder.file("c", jsonl),
            folder.file("c.dump", jsonl),
            folder.file("c.gz", gz(jsonl.as_bytes())),
            folder.file("c.ZST", zst(jsonl)),
            folder.file("d.csv", "text\none\ntwo\n"),
            folder.file("d.csv.gz", gz(b"id,text\n1,one\n2,two\n")),
            folder.file("d.TSV.zst", zst("id\ttext\r\n1\tone\r\n2\ttwo")),
            folder.file("e.md", "one\n<|endoftext|>\ntwo"),
            folder.file("e.v2", "one\n<|endoftext|>\ntwo"),
        ] {
            let (read, oddities) = stories(&path, "text", 1000).unwrap();
            assert_eq!(
                (read, oddities),
                (vec!["one".to_string(), "two".to_string()], Oddities::default()),
                "{}",
                path.display()
            );
        }
        // Text is text, with a doubt; so is an object without the field under a name that says nothing.
        for path in [folder.file("f.txt", jsonl), folder.file("f.log", jsonl.replace("\"text\"", "\"message\""))] {
            let (read, oddities) = stories(&path, "text", 1000).unwrap();
            assert_eq!((read.len(), oddities), (1, Oddities { json: 1, ..Oddities::default() }), "{}", path.display());
        }
        let text = folder.file("g.txt", "{braces} are text");
        assert_eq!(stories(&text, "text", 100).unwrap().1, Oddities::default());
        assert!(scored(&text, "text", "score").unwrap_err().to_string().contains("leave out min_score"));
    }

    #[test]
    fn what_stands_for_another_file_is_told() {
        let folder = Folder::new();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 248731111\n";
        for name in ["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet", "a.txt.gz", "a.zst", "a"] {
            let text = message(&folder.file(name, pointer));
            assert!(text.ends_with("it is a git LFS pointer to a file not yet fetched; run `git lfs pull`"), "{text}");
        }
        let page = "\n<!DOCTYPE html>\n<html><body>Access denied</body></html>\n";
        for name in ["b.jsonl", "b.json", "b.csv", "b.tsv", "b.parquet", "b.parquet.gz", "b.txt.zst"] {
            assert!(message(&folder.file(name, page)).contains("it starts like HTML"), "{name}");
        }
        assert!(message(&folder.file("c.jsonl", "<?xml version=\"1.0\"?><Error/>")).contains("fetch it again"));
        assert_eq!(read(&folder.file("d.txt", page)).unwrap(), [page.trim()], "a text may be a page");
        let long = pointer.repeat(20);
        assert_eq!(read(&folder.file("e.txt", &long)).unwrap(), [long.trim_end()], "no pointer is so long");
        let tar = [&[b'x'; 257][..], b"ustar\x0000"].concat();
        assert!(message(&folder.file("f.tar.gz", gz(&tar))).contains("tar archive"));
    }

    #[test]
    fn frames_to_be_passed_over_padding_and_windows() {
        let folder = Folder::new();
        let whole = zstd::encode_all(TEXT.as_bytes(), 3).unwrap();
        for kind in 0..16 {
            let skipped = [&[0x50 + kind, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 7, 7, 7][..], &whole].concat();
            assert_eq!(read(&folder.file("a.zst", [&skipped[..], &skipped].concat())).unwrap().len(), 5, "{kind}");
        }
        // A frame of one raw block, with a window of 2 GB: 31 = 10 + 21, in the upper five bits.
        let wide = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 4 << 3 | 1, 0, 0][..], b"wide"].concat();
        assert_eq!(read(&folder.file("b.zst", wide)).unwrap(), ["wide"]);
        let zipped = gz(TEXT.as_bytes());
        for zeros in [1, 2, 700_000] {
            assert_eq!(read(&folder.file("c.gz", [&zipped[..], &vec![0; zeros]].concat())).unwrap(), STORIES);
        }
        assert_eq!(read(&folder.file("d.gz", [&zipped[..], &gz(b""), &gz(b"x"), &[0]].concat())).unwrap().len(), 3);
        for (name, rest) in [("e.gz", &[0, 0, 9][..]), ("f.gz", b"\0\x1f\x8b"), ("g.gz", b"a")] {
            assert!(message(&folder.file(name, [&zipped[..], rest].concat())).contains("other data follows"), "{name}");
        }
        // The fourth byte of a frame says that a dictionary follows, by its number.
        let trained = [&[0x28, 0xb5, 0x2f, 0xfd, 1, 0, 77, 4 << 3 | 1, 0, 0][..], b"text"].concat();
        assert!(message(&folder.file("h.zst", trained)).contains("with a dictionary"));
    }
}
