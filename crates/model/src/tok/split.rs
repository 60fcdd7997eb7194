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

fn class(c: char) -> Class {
    let is_in = |ranges: &[(char, char)]| {
        let i = ranges.partition_point(|&(_, end)| end < c);
        ranges.get(i).is_some_and(|&(start, _)| start <= c)
    };
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        c if c.is_whitespace() => Class::Space,
        c if c.is_ascii() => Class::Other,
        _ if is_in(&RANGES[0]) => Class::Letter,
        _ if is_in(&RANGES[1]) => Class::Number,
        _ => Class::Other,
    }
}

/// The pieces of a text, in order.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, later) = rest.split_at(piece_len(rest)?);
        rest = later;
        Some(piece)
    })
}

fn piece_len(s: &str) -> Option<usize> {
    let first = s.chars().next()?;
    if first == '\'' {
        let suffixes = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
        if let Some(suffix) = suffixes.iter().find(|x| s.starts_with(**x)) {
            return Some(suffix.len());
        }
    }
    let run = |from: usize, kind: Class| {
        let end = s[from..].find(|c| class(c) != kind);
        end.map_or(s.len(), |n| from + n)
    };
    let kind = class(first);
    if kind != Class::Space {
        return Some(run(0, kind));
    }
    if first == ' ' {
        let next = s[1..].chars().next().map_or(Class::Space, class);
        if next != Class::Space {
            return Some(run(1, next));
        }
    }
    // The last space before a word is left to the word, unless it is the only one.
    let end = run(0, Class::Space);
    let last = s[..end].chars().next_back().map_or(0, char::len_utf8);
    Some(if end == s.len() || end == last { end } else { end - last })
}
