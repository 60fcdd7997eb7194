//! Vocabularies trained on the sources of a run.
//!
//! Training sees the documents of each source, of its side of the split, in order, up to a number of documents
//! (`tokenizer.stories`, 50,000 as in
//! the original) or 64 MB, BPE up to 64 MB, and counts what is in them as it reads: memory is bounded by one document and the
//! different words of that. Of several sources each gives its
//! share of that, from its start; one with less than its share gives what it has. A trained vocabulary is kept beside the
//! token caches, and used again for the same sources and shares, side, kind, size and number of documents:
//!
//! ```text
//! <source>-<fingerprint>.vocab: the XXH3-64 of what follows as 16 hex digits, `\n`, the JSON of the tokenizer
//! ```

use super::DataError;
use super::build::Progress;
use super::source::{Source, Weighted};
use crate::atomic;
use flashlm_model::io::read_limited;
use flashlm_model::tok::{TokError, Tokenizer, Trainer, cut};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Documents that a frequency vocabulary counts if no other number is asked for.
pub const STORIES: usize = 50_000;
/// Text that training sees, in bytes.
const SAMPLE: usize = 64 << 20;
/// Text between two calls of the progress callback, in bytes.
const STRIDE: usize = 1 << 20;
/// Fraction of the work that is reading, where merges are learned after it.
const READING: f64 = 0.5;
/// Longest vocabulary file accepted.
const MAX_FILE: u64 = 64 << 20;
/// Part of every fingerprint; to be raised when the same documents come to give another vocabulary.
const VERSION: &[u8] = b"flashlm vocabulary 2";

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The most frequent of GPT-2's tokens, lossy.
    Frequency,
    /// Byte-level BPE, lossless.
    Bpe,
}

impl Kind {
    /// As in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Frequency => "frequency",
            Kind::Bpe => "bpe",
        }
    }

    /// A vocabulary of that size about to be trained; an error where there can be none.
    pub fn trainer(self, vocab_size: usize) -> Result<Trainer, TokError> {
        match self {
            Kind::Frequency => Trainer::frequency(vocab_size),
            Kind::Bpe => Trainer::bpe(vocab_size),
        }
    }
}

/// The vocabulary kept in the folder `dir`, else one trained on `sources`, by their weights, with `vocab_size` tokens to aim
/// for, a frequency one on `stories` of them, and kept there. The callback hears of the text being read, and of the merges
/// learned from it (its tokens stay 0), and may stop both by breaking.
pub fn vocabulary(
    dir: &Path,
    kind: Kind,
    vocab_size: usize,
    stories: usize,
    sources: &[Weighted],
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Tokenizer, DataError> {
    let (max_stories, reading) = match kind {
        Kind::Frequency => (stories.max(1), 1.0),
        Kind::Bpe => (usize::MAX, READING),
    };
    let path = vocab_path(dir, kind.name(), vocab_size, max_stories, sources)?;
    if let Some(kept) = kept(&path).filter(|kept| kept.kind() == kind.name() && kept.vocab_size() <= vocab_size) {
        return Ok(kept);
    }
    let mut trainer = kind.trainer(vocab_size)?;
    let started = Instant::now();
    let mut said = |fraction, read: &Read| {
        let (stories, bytes) = (read.stories as u64, read.bytes as u64);
        let seconds = started.elapsed().as_secs_f64();
        progress(&Progress { stories, bytes, tokens: 0, fraction, seconds })
    };
    let read = sample(sources, max_stories, SAMPLE, &mut |text| trainer.add(text), &mut |fraction, read| {
        said(reading * fraction, read)
    })?;
    let trained = trainer.finish(&mut |fraction| said(reading + (1.0 - reading) * fraction, &read));
    let trained = trained.map_err(|e| if matches!(e, TokError::Stopped) { DataError::Stopped } else { e.into() })?;
    keep(&path, &trained)?;
    Ok(trained)
}

fn vocab_path(dir: &Path, kind: &str, size: usize, stories: usize, sources: &[Weighted]) -> Result<PathBuf, DataError> {
    let mut hash = Xxh3::new();
    hash.update(VERSION);
    hash.update(kind.as_bytes());
    hash.update(&(size as u64).to_le_bytes());
    hash.update(&(stories as u64).to_le_bytes());
    for Weighted { source, weight } in sources {
        hash.update(&source.fingerprint()?.to_le_bytes());
        // A source that is alone has no share to tell.
        let weight = (sources.len() > 1).then_some(weight.to_bits().to_le_bytes());
        hash.update(weight.as_ref().map_or(&[], |weight| &weight[..]));
        let (side, of) = source.split().to_parts();
        hash.update(&u64::from(side).to_le_bytes());
        hash.update(&of.to_le_bytes());
    }
    let name = match sources {
        [Weighted { source, .. }] => source.name(),
        _ => "mix",
    };
    Ok(dir.join(format!("{name}-{:016x}.vocab", hash.digest())))
}

/// The vocabulary in the file; none if it is missing or not as it was written, which is then retrained.
fn kept(path: &Path) -> Option<Tokenizer> {
    let bytes = read_limited(path, MAX_FILE).ok()?;
    let (hash, json) = bytes.split_at_checked(17)?;
    (hash == checksum(json).as_bytes()).then(|| Tokenizer::from_json(json).ok())?
}

fn keep(path: &Path, tokenizer: &Tokenizer) -> Result<(), DataError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|cause| DataError::CacheFolder { path: folder.into(), cause })?;
        atomic::clean_leftovers(folder)?;
    }
    let json = tokenizer.to_json();
    atomic::write_file(path, |w| {
        w.write_all(checksum(&json).as_bytes())?;
        w.write_all(&json)
    })?;
    Ok(())
}

fn checksum(json: &[u8]) -> String {
    format!("{:016x}\n", xxh3_64(json))
}

/// How much of a sample has been read.
#[derive(Clone, Copy, Default)]
struct Read {
    stories: usize,
    bytes: usize,
}

/// Gives `take` of each source its share of `max_stories` and `max_bytes`, one after the other. `progress` hears which share of
/// all has been read.
fn sample(
    sources: &[Weighted],
    max_stories: usize,
    max_bytes: usize,
    take: &mut dyn FnMut(&str),
    progress: &mut dyn FnMut(f64, &Read) -> ControlFlow<()>,
) -> Result<Read, DataError> {
    let sum: f64 = sources.iter().map(|source| source.weight).sum();
    let (mut all, mut before) = (Read::default(), 0.0);
    for Weighted { source, weight } in sources {
        let share = weight / sum;
        let part = |limit: usize| if sources.len() == 1 { limit } else { (share * limit as f64).ceil() as usize };
        let most = Read { stories: part(max_stories), bytes: part(max_bytes) };
        first_stories(source, most, &mut all, take, &mut |fraction, all| progress(before + share * fraction, all))?;
        before += share;
    }
    Ok(all)
}

/// Whole documents, until there are as many as `most` says or at least as many bytes.
fn first_stories(
    source: &Source,
    most: Read,
    all: &mut Read,
    take: &mut dyn FnMut(&str),
    progress: &mut dyn FnMut(f64, &Read) -> ControlFlow<()>,
) -> Result<(), DataError> {
    let (had, mut said, mut stopped) = (*all, all.bytes, false);
    source.stories_at(&mut |story, read| {
        all.stories += 1;
        let mut rest = story;
        let mut full = false;
        while !rest.is_empty() && !stopped {
            let (part, later) = rest.split_at(cut(rest, STRIDE).unwrap_or(rest.len()));
            take(part);
            rest = later;
            all.bytes += part.len();
            let (stories, bytes) = (all.stories - had.stories, all.bytes - had.bytes);
            full = rest.is_empty() && (stories >= most.stories || bytes >= most.bytes);
            if full || all.bytes - said >= STRIDE {
                said = all.bytes;
                let parts = [read, stories as f64 / most.stories as f64, bytes as f64 / most.bytes as f64];
                let fraction = parts.into_iter().fold(0.0, f64::max).min(1.0);
                stopped = progress(fraction, all).is_break();
            }
        }
        if full || stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if stopped { Err(DataError::Stopped) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::split::Split;
    use crate::data::testing::{Folder, collect, keep_on, large, source};
    use std::time::SystemTime;

    fn trained(folder: &Path, kind: Kind, size: usize, source: &Source, split: Split) -> Tokenizer {
        let sources = [Weighted::alone(source.clone().with_split(split))];
        vocabulary(folder, kind, size, STORIES, &sources, &mut keep_on).unwrap()
    }

    /// The only file in a folder.
    fn only_file(folder: &Path) -> PathBuf {
        let files: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    /// Long enough ago to be told from now.
    fn backdate(path: &Path) -> SystemTime {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        time
    }

    #[test]
    fn trained_on_one_side_of_the_split_alone() {
        let folder = Folder::new();
        let source = Source::parse("synthetic:300").unwrap();
        let split = Split::Train(0.5);
        let stories = collect(&source);
        let side: Vec<&str> = stories.iter().map(|s| s.as_str()).filter(|s| !split.take(s, 0).is_empty()).collect();
        let bpe = trained(folder.path(), Kind::Bpe, 400, &source, split);
        let frequency = trained(folder.path(), Kind::Frequency, 60, &source, split);
        assert_eq!(bpe.to_json(), Tokenizer::train_bpe(side.iter().copied(), 400).unwrap().to_json());
        assert_eq!(frequency.to_json(), Tokenizer::train_frequency(side.into_iter(), 60).unwrap().to_json());
        let all = trained(folder.path(), Kind::Bpe, 400, &source, Split::All);
        assert_ne!(all.hash(), bpe.hash());
    }

    /// The hash is that of what the crate `tokenizers` 0.23 learned of these documents.
    #[test]
    fn a_vocabulary_is_that_of_the_crate() {
        let source = Source::parse("synthetic:2000").unwrap().with_seed(42);
        let trained = trained(Folder::new().path(), Kind::Bpe, 1000, &source, Split::Train(0.01));
        assert_eq!(trained.hash(), 0xb5ca_70c3_65ef_ca1f);
    }

    #[test]
    fn a_frequency_vocabulary_is_of_the_first_stories_alone() {
        let folder = Folder::new();
        let text = [Weighted::alone(source(&folder, "a.txt", &["a a", "c c", "b b b", "b b b"]))];
        let of = |stories| {
            let kind = Kind::Frequency;
            vocabulary(folder.path(), kind, 100, stories, &text, &mut keep_on).unwrap().to_json()
        };
        let first_two = Tokenizer::train_frequency(["a a", "c c"].into_iter(), 100).unwrap().to_json();
        assert_eq!(of(2), first_two);
        assert_ne!(of(3), first_two);
    }

    #[test]
    fn a_second_run_reads_what_the_first_kept() {
        let folder = Folder::new();
        let text = source(&folder, "a.txt", &["the cat and the hat", "the bat and the rat"]);
        for (kind, size) in [(Kind::Bpe, 270), (Kind::Frequency, 8)] {
            let dir = folder.path().join(kind.name());
            let first = trained(&dir, kind, size, &text, Split::All);
            let path = only_file(&dir);
            let time = backdate(&path);
            let mut silent = |_: &Progress| -> ControlFlow<()> { panic!("the text was read again") };
            let second = vocabulary(&dir, kind, size, STORIES, &[Weighted::alone(text.clone())], &mut silent).unwrap();
            assert_eq!(second.to_json(), first.to_json());
            assert_eq!(path.metadata().unwrap().modified().unwrap(), time);
            // Another size and another side are other vocabularies.
            trained(&dir, kind, size - 1, &text, Split::All);
            trained(&dir, kind, size, &text, Split::Train(0.0));
            assert_eq!(dir.read_dir().unwrap().count(), 3);
        }
    }

    #[test]
    fn a_damaged_file_is_made_again() {
        let folder = Folder::new();
        let dir = folder.path().join("cache");
        let text = source(&folder, "a.txt", &["the cat and the hat"]);
        let first = trained(&dir, Kind::Bpe, 262, &text, Split::All);
        let path = only_file(&dir);
        let whole = fs::read(&path).unwrap();
        let other = Tokenizer::train_bpe(["something else"].into_iter(), 262).unwrap().to_json();
        let forged = [checksum(&Tokenizer::bytes().to_json()).into_bytes(), Tokenizer::bytes().to_json()].concat();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bad in
            [vec![], whole[..17].to_vec(), whole[..100].to_vec(), flipped, [&whole[..17], &other].concat(), forged]
        {
            fs::write(&path, bad).unwrap();
            let again = trained(&dir, Kind::Bpe, 262, &text, Split::All);
            assert_eq!(again.to_json(), first.to_json());
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    /// The texts of a sample, and the shares told.
    fn sampled(sources: &[Weighted], max_stories: usize, max_bytes: usize) -> (Vec<String>, Vec<f64>) {
        let (mut stories, mut fractions) = (Vec::new(), Vec::new());
        let mut take = |story: &str| stories.push(story.to_string());
        let read = sample(sources, max_stories, max_bytes, &mut take, &mut |fraction, read| {
            assert!(read.stories > 0 && read.bytes > 0);
            fractions.push(fraction);
            ControlFlow::Continue(())
        });
        let read = read.unwrap();
        assert_eq!((read.stories, read.bytes), (stories.len(), stories.iter().map(String::len).sum()));
        (stories, fractions)
    }

    #[test]
    fn the_sample_is_bounded_and_told_on_the_way() {
        let sources = [Weighted { source: large(), weight: 0.3 }];
        let stories = collect(&sources[0].source);
        let total: usize = stories.iter().map(String::len).sum();
        assert_eq!(sampled(&sources, 50, usize::MAX), (stories[..50].to_vec(), vec![1.0]));
        let (some, fractions) = sampled(&sources, usize::MAX, 100_000);
        let bytes: usize = some.iter().map(String::len).sum();
        assert!(bytes >= 100_000 && bytes - some.last().unwrap().len() < 100_000 && fractions == [1.0]);
        let (all, fractions) = sampled(&sources, usize::MAX, usize::MAX);
        assert!(all == stories);
        assert!((total / STRIDE / 2..=total / STRIDE).contains(&fractions.len()), "{fractions:?} for {total} bytes");
        assert!(fractions.is_sorted());
    }

    /// A document of many strides is told of on the way, and given whole.
    #[test]
    fn a_long_story_is_no_silence() {
        let folder = Folder::new();
        let long = "once upon a time ".repeat(5 * STRIDE / 17);
        let sources = [Weighted::alone(source(&folder, "long.txt", &[&long]))];
        let (mut text, mut calls) = (String::new(), 0);
        let mut hear = |_: f64, _: &Read| {
            calls += 1;
            ControlFlow::Continue(())
        };
        sample(&sources, 1, usize::MAX, &mut |part| text.push_str(part), &mut hear).unwrap();
        assert!(text == collect(&sources[0].source)[0] && calls >= 4, "{calls}");
    }

    /// The callback hears of the merges as well, after the text, and can stop them.
    #[test]
    fn learning_is_told_and_stopped() {
        let folder = Folder::new();
        let text: Vec<String> =
            (0..40_000u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        let sources = [Weighted::alone(source(&folder, "a.txt", &[&text.join(" ")]))];
        let mut fractions = Vec::new();
        let mut hear = |p: &Progress| {
            fractions.push(p.fraction);
            if p.fraction > READING { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let (kind, dir) = (Kind::Bpe, folder.path().join("cache"));
        let stopped = vocabulary(&dir, kind, 5000, STORIES, &sources, &mut hear);
        assert!(matches!(stopped, Err(DataError::Stopped)) && !dir.exists());
        assert!(fractions.is_sorted() && fractions.last().is_some_and(|last| *last > READING), "{fractions:?}");
    }

    #[test]
    fn several_sources_share_the_sample_by_weight() {
        let of = |source: &Source, weight| Weighted { source: source.clone(), weight };
        let folder = Folder::new();
        let (a, b) = (Source::parse("synthetic:4000").unwrap(), large());
        let expected: Vec<String> = [&collect(&a)[..300], &collect(&b)[..100]].concat();
        assert_eq!(sampled(&[of(&a, 3.0), of(&b, 1.0)], 400, usize::MAX), (expected, vec![0.75, 1.0]));
        // A source with less than its share gives all it has, and no other takes its place.
        let few = [of(&source(&folder, "few.txt", &["one", "two"]), 1.0), of(&b, 1.0)];
        assert_eq!(sampled(&few, 100, usize::MAX).0.len(), 2 + 50);
        // Other weights are another vocabulary.
        let path = |weights: [f64; 2]| {
            let sources = [of(&a, weights[0]), of(&b, weights[1])];
            vocab_path(folder.path(), "bpe", 300, STORIES, &sources).unwrap()
        };
        assert_eq!(path([0.5, 0.5]), path([0.5, 0.5]));
        assert_ne!(path([0.5, 0.5]), path([0.6, 0.4]));
    }

    #[test]
    fn a_stop_leaves_nothing() {
        let folder = Folder::new();
        let dir = folder.path().join("cache");
        let mut stop = |_: &Progress| ControlFlow::Break(());
        let stopped = vocabulary(&dir, Kind::Bpe, 300, STORIES, &[Weighted::alone(large())], &mut stop);
        assert!(matches!(stopped, Err(DataError::Stopped)));
        assert!(!dir.exists());
    }
}
