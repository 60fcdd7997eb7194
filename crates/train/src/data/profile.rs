//! What a text looks like to a person who wants to train on it: scripts, lines, paragraphs, control characters, and lines that look
//! like separators other than ours.

use std::collections::BTreeMap;

/// Counts over all documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextProfile {
    /// Letters of each script.
    pub scripts: BTreeMap<&'static str, u64>,
    /// Control characters but for tab and line ends.
    pub controls: u64,
    /// Replacement characters: something was lost when the text was decoded.
    pub replaced: u64,
    /// Lines.
    pub lines: u64,
    /// Characters of the longest line.
    pub longest_line: u64,
    /// Runs of lines between empty ones.
    pub paragraphs: u64,
    /// Lines that others use to separate documents, by what they are.
    pub separators: BTreeMap<&'static str, u64>,
}

/// Lines that others separate documents with.
const SEPARATORS: [&str; 14] = [
    "---",
    "***",
    "* * *",
    "===",
    "###",
    "</s>",
    "<s>",
    "<eos>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext>",
    "[EOS]",
    "[SEP]",
    "\u{c}",
];

/// A script in a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Script {
    /// Its name.
    pub name: &'static str,
    /// Its fraction of all letters.
    pub share: f64,
}

impl TextProfile {
    /// Counts one more document.
    pub fn add(&mut self, story: &str) {
        for c in story.chars() {
            if let Some(script) = script(c) {
                *self.scripts.entry(script).or_default() += 1;
            } else if c.is_control() && !matches!(c, '\t' | '\n' | '\r') {
                self.controls += 1;
            } else if c == '\u{fffd}' {
                self.replaced += 1;
            }
        }
        let mut within = false;
        for line in story.lines() {
            self.lines += 1;
            self.longest_line = self.longest_line.max(line.chars().count() as u64);
            let line = line.trim_matches([' ', '\t', '\r']);
            self.paragraphs += u64::from(!line.is_empty() && !within);
            within = !line.is_empty();
            if let Some(known) = SEPARATORS.iter().find(|known| **known == line) {
                *self.separators.entry(known).or_default() += 1;
            }
        }
    }

    /// Scripts by their fraction of all letters, the largest first.
    pub fn shares(&self) -> Vec<Script> {
        let all: u64 = self.scripts.values().sum();
        let mut shares: Vec<_> =
            self.scripts.iter().map(|(script, n)| Script { name: script, share: *n as f64 / all as f64 }).collect();
        shares.sort_by(|a, b| b.share.total_cmp(&a.share));
        shares
    }
}

/// The script of a letter, by its block (Unicode 16, Blocks.txt).
fn script(c: char) -> Option<&'static str> {
    if c.is_ascii() {
        return c.is_ascii_alphabetic().then_some("Latin");
    }
    if !c.is_alphabetic() {
        return None;
    }
    Some(match c as u32 {
        0x00AA..=0x024F | 0x1E00..=0x1EFF | 0x2C60..=0x2C7F | 0xA720..=0xA7FF | 0xFF21..=0xFF5A => "Latin",
        0x0370..=0x03FF | 0x1F00..=0x1FFF => "Greek",
        0x0400..=0x052F | 0x1C80..=0x1C8F | 0x2DE0..=0x2DFF | 0xA640..=0xA69F => "Cyrillic",
        0x0530..=0x058F => "Armenian",
        0x0590..=0x05FF => "Hebrew",
        0x0600..=0x06FF | 0x0750..=0x077F | 0x08A0..=0x08FF | 0xFB50..=0xFDFF | 0xFE70..=0xFEFF => "Arabic",
        0x0900..=0x097F => "Devanagari",
        0x0980..=0x09FF => "Bengali",
        0x0B80..=0x0BFF => "Tamil",
        0x0E00..=0x0E7F => "Thai",
        0x10A0..=0x10FF => "Georgian",
        0x1100..=0x11FF | 0x3130..=0x318F | 0xAC00..=0xD7AF => "Hangul",
        0x3040..=0x30FF | 0xFF66..=0xFF9D => "Kana",
        0x3005..=0x3007 | 0x3400..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF => "Han",
        _ => "other",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_hand() {
        let mut profile = TextProfile::default();
        profile.add("Ein Kätzchen.\r\n\r\n  \nпривет 你好\n---\nかな\u{7}\u{fffd}");
        let scripts = [("Cyrillic", 6), ("Han", 2), ("Kana", 2), ("Latin", 11)];
        assert_eq!(profile.scripts, BTreeMap::from(scripts));
        assert_eq!(
            (profile.controls, profile.replaced, profile.lines, profile.longest_line, profile.paragraphs),
            (1, 1, 6, 13, 2)
        );
        assert_eq!(profile.separators, BTreeMap::from([("---", 1)]));
        assert_eq!(profile.shares()[0], Script { name: "Latin", share: 11.0 / 21.0 });
        profile.add("한글 אב");
        assert_eq!((profile.scripts["Hangul"], profile.scripts["Hebrew"]), (2, 2));
    }
}
