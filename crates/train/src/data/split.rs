//! Which part of a source is taken, if part of it is held out for validation.
//!
//! By a hash: a document is held out if `xxh3_64(its UTF-8 bytes) / 2^64 < share`. The side depends on the text alone, so adding,
//! removing or reordering data never moves a document across, a larger fraction keeps what a smaller one held out, and copies of a
//! document always stand on the same side.
//!
//! By place, for a source of few documents: what lies before a byte of the text, and what lies behind. A document across that place
//! is cut at the first line end behind it, or the first space where no line ends within 4 KB or half of what is left.

use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

/// How far behind the place of a cut a better one is looked for.
const LOOK: usize = 4096;

/// Whether the document is held out for validation; `share` is in 0..=1.
pub fn is_valid(story: &str, share: f64) -> bool {
    let unit = (xxh3_64(story.as_bytes()) >> 11) as f64 / (1u64 << 53) as f64;
    unit < share
}

/// Which documents of a source to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Split {
    /// Every document.
    All,
    /// The documents that are not held out at this fraction.
    Train(f64),
    /// The documents held out at this fraction.
    Valid(f64),
    /// The text before this byte of all documents.
    Before(u64),
    /// The text from this byte on.
    After(u64),
}

impl Split {
    /// What this side has of a document that begins at byte `start` of the text; empty for nothing.
    pub fn take(self, story: &str, start: u64) -> &str {
        let keep = |kept: bool| if kept { story } else { "" };
        let cut = |at: u64| match at.saturating_sub(start) {
            at if at < story.len() as u64 => story.split_at(cut(story, at as usize)),
            _ => (story, ""),
        };
        match self {
            Split::All => story,
            Split::Train(share) => keep(!is_valid(story, share)),
            Split::Valid(share) => keep(is_valid(story, share)),
            Split::Before(at) => cut(at).0.trim_end_matches(['\n', '\r']),
            Split::After(at) => cut(at).1.trim_start_matches(['\n', '\r']),
        }
    }

    /// As two numbers for a file: 0 all, 1 train, 2 valid, 3 before, 4 after; and the bits of the fraction, or the place.
    pub(super) fn to_parts(self) -> (u32, u64) {
        match self {
            Split::All => (0, 0),
            Split::Train(share) => (1, share.to_bits()),
            Split::Valid(share) => (2, share.to_bits()),
            Split::Before(at) => (3, at),
            Split::After(at) => (4, at),
        }
    }

    /// The opposite; none if the first number is unknown.
    pub(super) fn from_parts((id, of): (u32, u64)) -> Option<Split> {
        Some(match id {
            0 => Split::All,
            1 => Split::Train(f64::from_bits(of)),
            2 => Split::Valid(f64::from_bits(of)),
            3 => Split::Before(of),
            4 => Split::After(of),
            _ => return None,
        })
    }
}

/// Where to cut a document near byte `at`, 0 or behind it; a function of the document alone.
fn cut(story: &str, at: usize) -> usize {
    if at == 0 {
        return 0;
    }
    let at = story.ceil_char_boundary(at);
    let near = &story[at..story.floor_char_boundary(at + LOOK.min((story.len() - at) / 2))];
    let behind = |i: usize| at + i + 1;
    near.find('\n').or_else(|| near.find(' ')).map_or(at, behind)
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Split::All => write!(f, "all"),
            Split::Train(share) => write!(f, "train (held-out fraction {share})"),
            Split::Valid(share) => write!(f, "valid (held-out fraction {share})"),
            Split::Before(at) => write!(f, "train (before byte {at})"),
            Split::After(at) => write!(f, "valid (from byte {at} on)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stories() -> impl Iterator<Item = String> {
        (0..100_000).map(|i| format!("Story {i}."))
    }

    #[test]
    fn the_share_is_what_was_asked_for() {
        for share in [0.01, 0.1, 0.5] {
            let held = stories().filter(|s| is_valid(s, share)).count() as f64;
            let sigma = (100_000.0 * share * (1.0 - share)).sqrt();
            assert!((held - 100_000.0 * share).abs() < 5.0 * sigma, "{share}: {held}");
        }
        assert!(!stories().any(|s| is_valid(&s, 0.0)));
        assert!(stories().all(|s| is_valid(&s, 1.0)));
    }

    #[test]
    fn sides_are_complements_and_grow_with_the_share() {
        let keeps = |split: Split, s: &str| !split.take(s, 7).is_empty();
        for s in stories().take(5000) {
            assert!(keeps(Split::All, &s));
            assert_ne!(keeps(Split::Train(0.3), &s), keeps(Split::Valid(0.3), &s));
            assert!(!keeps(Split::Valid(0.1), &s) || keeps(Split::Valid(0.3), &s));
        }
    }

    #[test]
    fn stable_for_all_time() {
        // XXH3_64bits of the empty input is 2d06800538d394c2, so the unit is 0.17588...
        assert!(!is_valid("", 0.175) && is_valid("", 0.176));
    }

    #[test]
    fn by_place_each_byte_is_on_one_side() {
        let stories = ["Ein Satz.\nNoch einer, länger als der erste.\nEnde", "ohne Leerzeichen", "zwei Wörter"];
        let text: String = stories.concat();
        for at in 0..=text.len() as u64 + 2 {
            let (mut start, mut sides) = (0, [String::new(), String::new()]);
            for story in stories {
                sides[0] += Split::Before(at).take(story, start);
                sides[1] += Split::After(at).take(story, start);
                start += story.len() as u64;
            }
            // But for the line ends at the cut.
            let both = sides.concat();
            assert!(
                both == text
                    || text.replacen('\n', "", 1) == both
                    || text.contains('\n') && both.len() + 1 == text.len()
            );
            let first = sides[0].len() as u64;
            assert!(first >= at.min(text.len() as u64).saturating_sub(1) && first <= at + 40, "{at}: {sides:?}");
        }
        // At the first line end behind the place, else at a space, else at once.
        let side = |story: &'static str, at| (Split::Before(at).take(story, 0), Split::After(at).take(story, 0));
        assert_eq!(side("one\ntwo three", 2), ("one", "two three"));
        assert_eq!(side("one two three", 5), ("one two ", "three"));
        assert_eq!(side("äöü", 1), ("ä", "öü"));
        assert_eq!(side("one", 0), ("", "one"));
    }

    #[test]
    fn numbers_in_files_tell_the_side() {
        for split in [Split::All, Split::Train(0.1), Split::Valid(0.25), Split::Before(9), Split::After(u64::MAX)] {
            assert_eq!(Split::from_parts(split.to_parts()), Some(split));
        }
        assert_eq!(Split::from_parts((5, 0)), None);
    }
}
