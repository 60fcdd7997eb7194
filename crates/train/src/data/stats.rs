//! What a source holds: counts, duplicates and near duplicates, lengths, scripts and lines; and a sample of it.
//!
//! Doubled documents are found by the XXH3-64 of their text (two of 10 million different documents collide with a chance of
//! 3e-6). Memory: one document, and up to 14 million hashes in 288 MB; of more different documents the first 14 million are
//! compared with. A sample holds the documents it gives.

use super::DataError;
use super::near_duplicates::NearDuplicates;
use super::profile::TextProfile;
use super::source::{Source, SourceReport};
use flashlm_model::rng::Rng;
use flashlm_model::tok::Tokenizer;
use std::collections::HashSet;
use std::ops::ControlFlow;
use xxhash_rust::xxh3::xxh3_64;

/// Most hashes kept.
pub const MAX_DISTINCT: usize = 14_000_000;

/// Bins of lengths: two for each doubling.
const BINS: usize = 64;

/// What a source holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Documents, bytes, mojibake, and what the filter dropped.
    pub read: SourceReport,
    /// Characters of the documents.
    pub chars: u64,
    /// Characters of the shortest document.
    pub shortest: u64,
    /// Characters of the longest document.
    pub longest: u64,
    /// Documents that came before, word for word.
    pub duplicates: u64,
    /// Whether there were more different documents than are kept.
    pub forgot: bool,
    /// Documents that are nearly one that came before, and not word for word.
    pub near: u64,
    /// Whether these were looked for in the first [`MAX_STORIES`](super::near_duplicates::MAX_STORIES) documents alone.
    pub near_forgot: bool,
    /// Scripts, lines and the like.
    pub profile: TextProfile,
    /// Tokens, EOS of each document included; 0 without a tokenizer.
    pub tokens: u64,
    /// Tokens that are unknown.
    pub unk: u64,
    /// Documents by length: from `bin(i)` to below `bin(i + 1)` characters.
    pub lengths: Vec<u64>,
}

/// The least length in the bin of number `i`: 1, 2, 3, 4, 6, 8, 12, ...
pub fn bin(i: usize) -> u64 {
    match i {
        0 => 1,
        _ => (2 + (i as u64 + 1) % 2) << ((i - 1) / 2),
    }
}

impl Stats {
    /// Reads the whole source; `progress` hears the documents and bytes so far and the fraction of the source that was read, and
    /// may stop it by breaking.
    pub fn of(
        source: &Source,
        tokenizer: Option<&Tokenizer>,
        progress: &mut dyn FnMut(u64, u64, f64) -> ControlFlow<()>,
    ) -> Result<Stats, DataError> {
        let mut stats = Stats { shortest: u64::MAX, lengths: vec![0; BINS], ..Stats::default() };
        let mut encoder = tokenizer.map(|tokenizer| (tokenizer.unk(), tokenizer.encoder()));
        let (mut seen, mut near, mut ids) = (HashSet::new(), NearDuplicates::default(), Vec::new());
        let (mut stories, mut bytes, mut stopped) = (0, 0, false);
        stats.read = source.stories_at(&mut |story, fraction| {
            let chars = story.chars().count() as u64;
            stats.chars += chars;
            (stats.shortest, stats.longest) = (stats.shortest.min(chars), stats.longest.max(chars));
            let place = (0..BINS).rev().find(|i| bin(*i) <= chars).unwrap_or(0);
            stats.lengths[place] += 1;
            stats.profile.add(story);
            let hash = xxh3_64(story.as_bytes());
            let known = seen.contains(&hash);
            if !known && near.is_near_duplicate(story) {
                stats.near += 1;
            }
            if seen.len() < MAX_DISTINCT {
                stats.duplicates += u64::from(!seen.insert(hash));
            } else if known {
                stats.duplicates += 1;
            } else {
                stats.forgot = true;
            }
            if let Some((unk, encoder)) = &mut encoder {
                ids.clear();
                encoder.encode(story, &mut ids);
                stats.tokens += ids.len() as u64 + 1;
                stats.unk += unk.map_or(0, |unk| ids.iter().filter(|id| **id == unk).count() as u64);
            }
            (stories, bytes) = (stories + 1, bytes + story.len() as u64);
            let flow = progress(stories, bytes, fraction);
            stopped = flow.is_break();
            flow
        })?;
        if stopped {
            return Err(DataError::Stopped);
        }
        stats.near_forgot = near.is_full();
        let used = stats.lengths.iter().rposition(|n| *n > 0).map_or(0, |last| last + 1);
        stats.lengths.truncate(used);
        if stories == 0 {
            stats.shortest = 0;
        }
        Ok(stats)
    }
}

/// A document that was drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drawn {
    /// Its number, from 0.
    pub number: u64,
    /// Its text.
    pub text: String,
}

/// Documents that were drawn.
#[derive(Debug)]
pub struct Sample {
    /// In the order of the source.
    pub stories: Vec<Drawn>,
    /// What the source gave.
    pub read: SourceReport,
}

/// `n` documents drawn at random: every set of `n` is as likely, and a
/// seed always draws the same (reservoir sampling, algorithm R of Vitter 1985).
pub fn sample(source: &Source, n: usize, seed: u64) -> Result<Sample, DataError> {
    let mut rng = Rng::new(seed);
    let mut stories: Vec<Drawn> = Vec::new();
    let mut number = 0;
    let read = source.stories(&mut |story| {
        let place = if stories.len() < n { stories.len() } else { rng.below(number + 1) as usize };
        if place < n {
            if place == stories.len() {
                stories.push(Drawn::default());
            }
            stories[place] = Drawn { number, text: story.to_string() };
        }
        number += 1;
        ControlFlow::Continue(())
    })?;
    stories.sort();
    Ok(Sample { stories, read })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{Folder, collect, source};

    fn of(source: &Source, tokenizer: Option<&Tokenizer>) -> Stats {
        Stats::of(source, tokenizer, &mut |_, _, _| ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn bins_double_in_two_steps() {
        let first: Vec<u64> = (0..10).map(bin).collect();
        assert_eq!(first, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]);
    }

    #[test]
    fn counts_by_hand() {
        let folder = Folder::new();
        let text = source(&folder, "a.txt", &["ab", "Itâ€™s", "ab", "äöü", "ab", "x"]);
        let stats = of(&text, Some(&Tokenizer::bytes()));
        assert_eq!((stats.read.stories, stats.read.bytes, stats.read.repaired, stats.read.mended), (6, 19, 1, 1));
        assert_eq!((stats.chars, stats.shortest, stats.longest), (14, 1, 4));
        assert_eq!((stats.duplicates, stats.forgot), (2, false));
        assert_eq!((stats.tokens, stats.unk), (19 + 6, 0));
        assert_eq!(stats.lengths, [1, 3, 1, 1]);
        let frequency = Tokenizer::train_frequency(["ab"].into_iter(), 100).unwrap();
        let stats = of(&text, Some(&frequency));
        assert_eq!(stats.tokens - 6 - stats.unk, 3, "ab is one token, thrice");
        assert_eq!(of(&text, None).tokens, 0);
    }

    #[test]
    fn a_stop_is_told() {
        let text = Source::parse("synthetic:10").unwrap();
        let stopped = Stats::of(&text, None, &mut |_, _, _| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(DataError::Stopped)));
    }

    #[test]
    fn samples_are_fair_and_follow_the_seed() {
        let text = Source::parse("synthetic:50").unwrap();
        let stories = collect(&text);
        let mut drawn = [0; 50];
        for seed in 0..2000 {
            let sample = sample(&text, 5, seed).unwrap();
            assert_eq!((sample.stories.len(), sample.read.stories), (5, 50));
            assert!(sample.stories.is_sorted_by(|a, b| a.number < b.number));
            for Drawn { number, text } in &sample.stories {
                assert_eq!(*text, stories[*number as usize]);
                drawn[*number as usize] += 1;
            }
        }
        // Of 2000 draws each document is in 200, give or take 13.4.
        assert!(drawn.iter().all(|n| (130..270).contains(n)), "{drawn:?}");
        assert_eq!(sample(&text, 3, 7).unwrap().stories, sample(&text, 3, 7).unwrap().stories);
        assert_eq!(sample(&text, 80, 1).unwrap().stories.len(), 50);
        assert!(sample(&text, 0, 1).unwrap().stories.is_empty());
    }
}
