//! GPT-2's split of a text into pieces, within which byte pairs are merged: the matches, one after the other, of
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, which together are the whole text.
//!
//! Written out by hand: a regex engine with look-ahead is ten times slower and gives up on very long runs of spaces. Equal
//! to the crate's split on every character (tests of `bpe.rs`).
//! Source: <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.

use regex_syntax::hir;
use std::sync::LazyLock;

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// Ranges of `\p{L}` and `\p{N}`, of the Unicode version that the `tokenizers` crate has too.
static RANGES: LazyLock<[Vec<(char, char)>; 2]> = LazyLock::new(|| {
    [r"\p{L}", r"\p{N}"].map(|class| match regex_syntax::parse(class).map(|h| h.into_kind()) {
        Ok(hir::HirKind::Class(hir::Class::Unicode(c))) => c.iter().map(|r| (r.start(), r.end())).collect(),
        _ => Vec::new(),
    })
});

/// Classes of ASCII.
const ASCII: [Class; 128] = {
    let mut table = [Class::Other; 128];
    let mut b = 0;
    while b < 128 {
        table[b] = match b as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b' ' | b'\t'..=b'\r' => Class::Space,
            _ => Class::Other,
        };
        b += 1;
    }
    table
};

fn class(c: char) -> Class {
    let is_in = |ranges: &[(char, char)]| {
        let i = ranges.partition_point(|&(_, end)| end < c);
        ranges.get(i).is_some_and(|&(start, _)| start <= c)
    };
    match ASCII.get(c as usize) {
        Some(class) => *class,
        None if c.is_whitespace() => Class::Space,
        None if is_in(&RANGES[0]) => Class::Letter,
        None if is_in(&RANGES[1]) => Class::Number,
        None => Class::Other,
    }
}

/// Ranges of letters and of numbers, first and last character.
pub(super) fn ranges() -> &'static [Vec<(char, char)>; 2] {
    &RANGES
}

/// The pieces of a text, in order.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        (start < text.len()).then(|| {
            at = end(text, start);
            &text[start..at]
        })
    })
}

/// A place at or after `from` where the text can be cut in two that have the pieces of the whole: before whitespace that
/// follows something else, for no piece goes on there and none looks back.
pub(super) fn cut(text: &str, from: usize) -> Option<usize> {
    let follows = |i: usize| text[..i].chars().next_back().is_some_and(|c| class(c) != Class::Space);
    let bytes = text.as_bytes();
    (from.max(1)..bytes.len()).find(|&i| matches!(bytes[i], b' ' | b'\t'..=b'\r') && follows(i))
}

/// Where the piece ends that starts at `start`, which is less than the length.
pub(super) fn end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let class_at = |i: usize| match bytes.get(i) {
        None => None,
        Some(b) if b.is_ascii() => Some((ASCII[usize::from(*b)], 1)),
        Some(_) => text[i..].chars().next().map(|c| (class(c), c.len_utf8())),
    };
    // The end of the run of the class from `i` on.
    let run = |mut i: usize, kind: Class| {
        while let Some((_, len)) = class_at(i).filter(|(found, _)| *found == kind) {
            i += len;
        }
        i
    };
    if bytes[start] == b'\'' {
        let suffixes = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
        if let Some(suffix) = suffixes.iter().find(|x| bytes[start..].starts_with(x.as_bytes())) {
            return start + suffix.len();
        }
    }
    let Some((kind, len)) = class_at(start) else { return bytes.len() };
    if kind != Class::Space {
        return run(start + len, kind);
    }
    if bytes[start] == b' '
        && let Some((next, len)) = class_at(start + 1).filter(|(next, _)| *next != Class::Space)
    {
        return run(start + 1 + len, next);
    }
    // The last space before a word is left to the word, unless it is the only one.
    let end = run(start + len, Class::Space);
    let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
    if end == bytes.len() || end - start == last { end } else { end - last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tok::testing::{Random, odd_texts, random_text};

    #[test]
    fn parts_of_a_cut_have_the_pieces_of_the_whole() {
        let mut r = Random(11);
        let mut cuts = 0;
        for text in odd_texts().into_iter().chain((0..5000).map(|_| random_text(&mut r))) {
            let whole: Vec<&str> = split(&text).collect();
            let mut from = 0;
            while let Some(at) = cut(&text, from) {
                let (left, right) = text.split_at(at);
                assert!(split(left).chain(split(right)).eq(whole.iter().copied()), "{text:?} {at}");
                (from, cuts) = (at + 1, cuts + 1);
            }
        }
        assert!(cuts > 10_000, "{cuts}");
        assert_eq!(cut("no_place_at_all", 3), None);
        assert_eq!(cut(" leading", 0), None);
        assert_eq!(cut("a  b\nc", 2), Some(4));
    }
}
