//! The held-out share: a story belongs to validation if `xxh3_64(its UTF-8 bytes) / 2^64 < share`.
//!
//! The side depends on the text alone, so adding, removing or reordering data never moves a story across, a larger
//! share keeps what a smaller one held out, and copies of a story always stand on the same side.

use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

/// Whether the story is held out for validation; `share` is in 0..=1.
pub fn is_valid(story: &str, share: f64) -> bool {
    let unit = (xxh3_64(story.as_bytes()) >> 11) as f64 / (1u64 << 53) as f64;
    unit < share
}

/// Which stories of a source to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Split {
    /// Every story.
    All,
    /// The stories that are not held out at this share.
    Train(f64),
    /// The stories held out at this share.
    Valid(f64),
}

impl Split {
    /// Whether the story is on this side.
    pub fn keeps(self, story: &str) -> bool {
        match self {
            Split::All => true,
            Split::Train(share) => !is_valid(story, share),
            Split::Valid(share) => is_valid(story, share),
        }
    }

    /// The number of this side in files: 0 all, 1 train, 2 valid.
    pub fn id(self) -> u32 {
        match self {
            Split::All => 0,
            Split::Train(_) => 1,
            Split::Valid(_) => 2,
        }
    }

    /// The held-out share (0 for all).
    pub fn share(self) -> f64 {
        match self {
            Split::All => 0.0,
            Split::Train(share) | Split::Valid(share) => share,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Split::All => write!(f, "all"),
            Split::Train(share) => write!(f, "train (held-out share {share})"),
            Split::Valid(share) => write!(f, "valid (held-out share {share})"),
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
        for s in stories().take(5000) {
            assert!(Split::All.keeps(&s));
            assert_ne!(Split::Train(0.3).keeps(&s), Split::Valid(0.3).keeps(&s));
            assert!(!Split::Valid(0.1).keeps(&s) || Split::Valid(0.3).keeps(&s));
        }
    }

    #[test]
    fn stable_for_all_time() {
        // XXH3_64bits of the empty input is 2d06800538d394c2, so the unit is 0.17588...
        assert!(!is_valid("", 0.175) && is_valid("", 0.176));
    }
}
