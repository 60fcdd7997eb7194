//! Which documents of a source to keep, so that a small model can learn from what is left.
//!
//! ```text
//! min_score  <= score of the document (fineweb-edu: 0 to 5, by a classifier of educational value)
//! min_chars  <= characters <= max_chars
//! min_simple <= words of at most six letters / words
//! documents  >= number of the document among those that are kept
//! ```
//! A word is a run of letters, apostrophes not counted. A key that is 0 asks for nothing. Fractions of simple words measured:
//! TinyStories 0.91, folk tales 0.88, classic novels 0.83.

use super::DataError;
use serde::{Deserialize, Serialize};

/// Letters of the longest simple word.
const SIMPLE: usize = 6;

/// Bounds that a document must keep; the default keeps everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Least value of the column `score`; 0: any, and no such column is needed.
    pub min_score: f64,
    /// Least number of characters.
    pub min_chars: usize,
    /// Largest number of characters; 0: any.
    pub max_chars: usize,
    /// Least fraction of words of at most six letters, 0..=1.
    pub min_simple: f64,
    /// Most documents, from the first on; 0: all.
    pub documents: u64,
}

/// Documents that a filter dropped, each for the first reason that held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Below `min_score`, or without a score.
    pub score: u64,
    /// Fewer than `min_chars`.
    pub short: u64,
    /// More than `max_chars`.
    pub long: u64,
    /// A fraction of simple words below `min_simple`.
    pub hard: u64,
}

impl Dropped {
    /// For whatever reason.
    pub fn total(&self) -> u64 {
        self.score + self.short + self.long + self.hard
    }
}

impl Filter {
    /// An error unless the bounds can be kept.
    pub fn check(&self) -> Result<(), DataError> {
        let bad = |reason: String| Err(DataError::Filter { reason });
        if !self.min_score.is_finite() {
            return bad(format!("min_score is {}; give a number", self.min_score));
        }
        if !(0.0..=1.0).contains(&self.min_simple) {
            return bad(format!("min_simple is {}; give a fraction between 0 and 1", self.min_simple));
        }
        if self.max_chars > 0 && self.max_chars < self.min_chars {
            return bad(format!("max_chars {} is less than min_chars {}", self.max_chars, self.min_chars));
        }
        Ok(())
    }

    /// Whether every document is kept.
    pub fn keeps_all(&self) -> bool {
        *self == Filter::default()
    }

    /// Whether scores are needed.
    pub fn scores(&self) -> bool {
        self.min_score != 0.0
    }

    /// Whether the document stays; if not, the reason is counted.
    pub fn keeps(&self, story: &str, score: Option<f64>, dropped: &mut Dropped) -> bool {
        // Characters are counted only where bytes, one to four a character, do not settle it.
        let fewer = |n: usize| story.len() < n || (story.len() / 4 < n && story.chars().count() < n);
        let reason = if self.scores() && !score.is_some_and(|score| score >= self.min_score) {
            &mut dropped.score
        } else if fewer(self.min_chars) {
            &mut dropped.short
        } else if self.max_chars > 0 && !fewer(self.max_chars + 1) {
            &mut dropped.long
        } else if self.min_simple > 0.0 && simple_share(story) < self.min_simple {
            &mut dropped.hard
        } else {
            return true;
        };
        *reason += 1;
        false
    }
}

/// The fraction of words of at most six letters; 0 if there is no word.
pub fn simple_share(text: &str) -> f64 {
    let (mut words, mut simple, mut letters) = (0u64, 0u64, 0);
    let mut end = |letters: &mut usize| {
        words += u64::from(*letters > 0);
        simple += u64::from((1..=SIMPLE).contains(letters));
        *letters = 0;
    };
    for c in text.chars() {
        if c.is_alphabetic() {
            letters += 1;
        } else if !matches!(c, '\'' | '’') {
            end(&mut letters);
        }
    }
    end(&mut letters);
    simple as f64 / words.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_counted_by_hand() {
        for (text, share) in [
            ("", 0.0),
            ("12 + 34 = '", 0.0),
            ("The cat sat.", 1.0),
            ("Seventy kittens, little ones", 0.5),
            ("couldn't wouldn’t 'tis", 1.0 / 3.0),
            ("Über großes Kätzchen", 2.0 / 3.0),
            ("word—wordwords3word", 2.0 / 3.0),
        ] {
            assert_eq!(simple_share(text), share, "{text}");
        }
    }

    #[test]
    fn each_bound_is_exact_and_counted_once() {
        let filter = Filter { min_score: 2.5, min_chars: 3, max_chars: 5, min_simple: 0.5, documents: 0 };
        let mut dropped = Dropped::default();
        for (story, score, kept) in [
            ("abc", Some(2.5), true),
            ("äöü", Some(3.0), true),
            ("äöüßé", Some(3.0), true),
            ("abc", Some(2.4), false),
            ("x", None, false),
            ("äö", Some(3.0), false),
            ("abcdef", Some(3.0), false),
            ("1 2 3", Some(9.0), false),
            ("abc", Some(f64::NAN), false),
        ] {
            assert_eq!(filter.keeps(story, score, &mut dropped), kept, "{story}");
        }
        assert_eq!(dropped, Dropped { score: 3, short: 1, long: 1, hard: 1 });
        assert_eq!(dropped.total(), 6);
        assert!(Filter::default().keeps_all() && Filter::default().keeps("", None, &mut dropped));
    }

    #[test]
    fn bounds_that_cannot_be_kept_are_refused() {
        for filter in [
            Filter { min_score: f64::NAN, ..Filter::default() },
            Filter { min_simple: 1.1, ..Filter::default() },
            Filter { min_chars: 10, max_chars: 9, ..Filter::default() },
        ] {
            assert!(matches!(filter.check(), Err(DataError::Filter { .. })), "{filter:?}");
        }
        let read = |toml: &str| toml::from_str::<Filter>(toml);
        assert_eq!(read("min_chars = 3").unwrap(), Filter { min_chars: 3, ..Filter::default() });
        assert!(read("min_char = 3").is_err());
    }
}
