//! Text with lines `<|endoftext|>` between documents; without any, the file is one document. A document longer than the limit is cut
//! into pieces: after the last paragraph that fits, else the last line, else the last blank, else between two characters.

use super::lines::Lines;
use super::oddities::Oddities;
use super::story::Story;
use crate::data::DataError;
use memchr::{memchr_iter, memmem, memrchr, memrchr2};
use std::ops::ControlFlow;

/// The line between two documents, without its line end.
pub(super) const SEPARATOR: &[u8] = b"<|endoftext|>";

/// The byte-order mark.
const MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) fn read(
    lines: &mut Lines,
    oddities: &mut Oddities,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let limit = lines.limit;
    let mut story = Vec::new();
    // Where what is in `story` begins, whether the next byte begins a line, and the pieces given of this document.
    let (mut line, mut offset, mut fresh, mut pieces) = (1, lines.offset, true, 0);
    loop {
        let start = story.len();
        // Room for a document of exactly the limit and the separator after it: what fills it is no separator.
        let n = lines.next((limit + SEPARATOR.len() + 4).saturating_sub(start), &mut story)?;
        let line_of = |line: &[u8]| trim_line_end(line.strip_prefix(MARK).unwrap_or(line)) == SEPARATOR;
        let ends = fresh && line_of(&story[start..]);
        if ends {
            story.truncate(start);
        }
        // A mark where files were joined.
        if fresh && !ends && story[start..].starts_with(MARK) {
            story.drain(start..start + MARK.len());
        }
        fresh = story.last().is_none_or(|byte| *byte == b'\n');
        let whole = ends || n == 0;
        while whole || story.len() > limit {
            let piece = if story.len() > limit { cut(&story, limit) } else { story.len() };
            let text = lines.utf8(&story[..piece], line, offset)?.trim_matches(['\n', '\r']);
            if !text.is_empty() {
                pieces += 1;
                oddities.cut += u64::from(pieces == 2);
                oddities.returns += lone_returns(text.as_bytes());
                if f(Story { text, score: None }, lines.read()).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            if piece == story.len() {
                story.clear();
                break;
            }
            line += memchr_iter(b'\n', &story[..piece]).count() as u64;
            offset += piece as u64;
            story.drain(..piece);
        }
        if n == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        if ends {
            (line, offset, fresh, pieces) = (lines.line + 1, lines.offset, true, 0);
        }
    }
}

fn trim_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Where to cut a document that is longer than the limit.
fn cut(story: &[u8], limit: usize) -> usize {
    let text = &story[..limit];
    let behind = |end: &[u8]| memmem::rfind(text, end).map(|at| at + end.len());
    let blank = || memrchr2(b' ', b'\t', text).map(|at| at + 1);
    // Bytes within a character are 10xxxxxx; four of them in a row are an error that is found later.
    let character = || (limit.saturating_sub(3)..=limit).rev().find(|at| *at > 0 && story[*at] & 0xc0 != 0x80);
    let paragraph = behind(b"\n\n").max(behind(b"\n\r\n"));
    let line = || memrchr(b'\n', text).map(|at| at + 1);
    paragraph.or_else(line).or_else(blank).or_else(character).unwrap_or(limit).max(1)
}

/// Carriage returns within the text that end no line of `\r\n`.
fn lone_returns(text: &[u8]) -> u64 {
    memchr_iter(b'\r', text).filter(|at| !matches!(text.get(at + 1), None | Some(b'\n' | b'\r'))).count() as u64
}

#[cfg(test)]
mod tests {
    use super::super::testing::stories;
    use super::*;
    use crate::data::testing::Folder;

    fn read(text: &[u8], limit: usize) -> (Vec<String>, Oddities) {
        stories(&Folder::new().file("a.txt", text), "text", limit).unwrap()
    }

    #[test]
    fn separators_and_returns_within_lines_are_counted() {
        let (stories, oddities) =
            read(b"a<|endoftext|>b\n<|endoftext|>\n <|endoftext|><|endoftext|>\nc\n<|endoftext|>", 1000);
        assert_eq!(stories, ["a<|endoftext|>b", " <|endoftext|><|endoftext|>\nc"]);
        assert_eq!(oddities, Oddities { separators: 3, ..Oddities::default() });
        let (stories, oddities) = read(b"one\rtwo\r\nthree\r\r\n\rfour\r", 1000);
        assert_eq!(stories, ["one\rtwo\r\nthree\r\r\n\rfour"]);
        assert_eq!(oddities, Oddities { returns: 2, ..Oddities::default() });
    }

    #[test]
    fn marks_of_joined_files_are_left_out() {
        let (stories, _) = read("\u{feff}one\n\u{feff}two\n\u{feff}<|endoftext|>\nthr\u{feff}ee".as_bytes(), 1000);
        assert_eq!(stories, ["one\ntwo", "thr\u{feff}ee"]);
    }

    /// Worked out by hand, with a limit of ten bytes.
    #[test]
    fn long_documents_are_cut_where_it_hurts_least() {
        for (text, pieces) in [
            ("aaaa\n\nbb\nccccc\ndd", &["aaaa", "bb\nccccc", "dd"][..]),
            ("aa\r\n\r\nbb cccccc", &["aa", "bb cccccc"]),
            ("aa bb\ncc dd ee", &["aa bb", "cc dd ee"]),
            ("aa bb cc dd ee", &["aa bb cc ", "dd ee"]),
            ("aaaaaaaaaabbbbbbbbbbcc", &["aaaaaaaaaa", "bbbbbbbbbb", "cc"]),
            ("aaaaaaaaaé", &["aaaaaaaaa", "é"]),
            ("aaaaaaa😀b", &["aaaaaaa", "😀b"]),
            ("ééééé", &["ééééé"]),
            ("\n\n\nééééé\n", &["ééééé"]),
        ] {
            let oddities = Oddities { cut: (pieces.len() > 1).into(), ..Oddities::default() };
            assert_eq!(
                read(text.as_bytes(), 10),
                (pieces.iter().map(|s| s.to_string()).collect(), oddities),
                "{text:?}"
            );
            let twice = format!("{text}\n<|endoftext|>\n{text}\n<|endoftext|>\nshort");
            let (stories, counted) = read(twice.as_bytes(), 10);
            assert_eq!(stories, [pieces, pieces, &["short"]].concat(), "{text:?}");
            assert_eq!(counted.cut, 2 * oddities.cut);
        }
    }

    /// Nothing is lost, whatever the limit, and what looks like a separator where a line was cut is none.
    #[test]
    fn pieces_add_up_to_the_document() {
        let line: String = (0..400).map(|i| ["word ", "ü", "<|endoftext|>", "x"][i * i % 7 % 4]).collect();
        for limit in [13, 14, 50, 333, 1000] {
            for text in [line.clone(), format!("{line}\n{line}\n")] {
                let (pieces, oddities) = read(text.as_bytes(), limit);
                assert!(pieces.iter().all(|piece| piece.len() <= limit) && oddities.cut == 1, "{limit}");
                assert_eq!(pieces.concat(), text.replace('\n', ""), "{limit}");
            }
        }
    }

    #[test]
    fn the_place_of_bad_bytes_is_that_in_the_file() {
        let folder = Folder::new();
        let text = [&b"aaaa bbbb cccc\n\ndddd\n"[..], b"eee\xff"].concat();
        let error = stories(&folder.file("a.txt", &text), "text", 10).unwrap_err();
        let crate::data::DataError::Utf8 { offset, line, .. } = error else { panic!("{error}") };
        assert_eq!((offset, line), (text.len() as u64 - 1, 4));
    }
}
