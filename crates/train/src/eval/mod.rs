//! Evaluation: bits per byte ([`bpb`]), of a whole source ([`source`]), sense of written stories ([`consistency`]), and test
//! vectors ([`verify`]).
//!
//! [`Stories`] is what is scored: whole documents as tokens, each ended by EOS, with the bytes and characters of their text.

pub mod bpb;
pub mod consistency;
pub mod source;
pub mod verify;

use crate::data::DataError;
use crate::data::source::{Source, SourceReport};
use flashlm_kernels::Token;
use flashlm_model::tok::Tokenizer;
use std::ops::ControlFlow;
use xxhash_rust::xxh3::Xxh3;

/// How much of a set is scored: whole documents from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Stop after the document that reaches this number of tokens, EOS counted; none for all documents.
    pub tokens: Option<usize>,
}

/// Documents to be scored.
#[derive(Clone, Debug, Default)]
pub struct Stories {
    tokens: Vec<Token>,
    /// Totals after each document.
    totals: Vec<Totals>,
}

/// What was taken of a source.
pub struct Taken {
    /// The documents.
    pub stories: Stories,
    /// What the source gave.
    pub report: SourceReport,
}

/// Sizes of the documents from the first to one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tokens, EOS counted.
    pub tokens: usize,
    /// UTF-8 bytes of the text.
    pub bytes: u64,
    /// Unicode characters of the text.
    pub characters: u64,
}

impl Stories {
    /// What a source gives, as far as the budget goes.
    pub fn read(source: &Source, tokenizer: &Tokenizer, budget: Budget) -> Result<Taken, DataError> {
        Stories::read_with(source, tokenizer, budget, &mut |_| ())
    }

    /// The same; `see` is shown the text of each document taken.
    pub fn read_with(
        source: &Source,
        tokenizer: &Tokenizer,
        budget: Budget,
        see: &mut dyn FnMut(&str),
    ) -> Result<Taken, DataError> {
        let mut stories = Stories::default();
        let report = source.stories(&mut |text| {
            stories.push(tokenizer, text);
            see(text);
            match budget.tokens {
                Some(limit) if stories.totals().tokens >= limit => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })?;
        Ok(Taken { stories, report })
    }

    /// Adds one document.
    pub fn push(&mut self, tokenizer: &Tokenizer, text: &str) {
        tokenizer.encode(text, &mut self.tokens);
        self.tokens.push(tokenizer.eos());
        let before = self.totals();
        self.totals.push(Totals {
            tokens: self.tokens.len(),
            bytes: before.bytes + text.len() as u64,
            characters: before.characters + text.chars().count() as u64,
        });
    }

    /// The documents from the first to the one that reaches `tokens` tokens.
    pub fn first(&self, tokens: usize) -> Stories {
        let n = self.totals.iter().position(|t| t.tokens >= tokens).map_or(self.len(), |i| i + 1);
        Stories { tokens: self.tokens[..self.totals_of(n).tokens].to_vec(), totals: self.totals[..n].to_vec() }
    }

    /// Removes all documents and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.totals.clear();
    }

    /// A hash of all tokens.
    pub fn content(&self) -> u64 {
        let mut hash = Xxh3::new();
        self.tokens.iter().for_each(|token| hash.update(&token.to_le_bytes()));
        hash.digest()
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.totals.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.totals.is_empty()
    }

    /// Sizes of all documents together.
    pub fn totals(&self) -> Totals {
        self.totals.last().copied().unwrap_or_default()
    }

    /// Sizes of the first `n` documents together, or of all where there are fewer.
    pub fn totals_of(&self, n: usize) -> Totals {
        n.min(self.len()).checked_sub(1).map(|last| self.totals[last]).unwrap_or_default()
    }

    /// The tokens of document `i`, EOS at the end. Panics if there are not that many.
    pub fn story(&self, i: usize) -> &[Token] {
        &self.tokens[self.totals_of(i).tokens..self.totals[i].tokens]
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::{Path, PathBuf};

    use flashlm_kernels::{Exec, Isa};

    /// A file of `tests/reference`.
    pub fn reference(name: &str) -> PathBuf {
        let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|above| above.join("tests/reference"));
        folders.into_iter().find(|folder| folder.is_dir()).expect("tests/reference").join(name)
    }

    /// Every ISA of the machine with two threads; `FLASHLM_ISA` narrows it to one.
    pub fn exec_on_all_isas(check: impl Fn(&Exec)) {
        Isa::wanted().unwrap().into_iter().for_each(|isa| check(&Exec::new(isa, 2)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::split::Split;
    use crate::data::testing::shared;

    #[test]
    fn stories_are_cut_where_they_end_and_counted() {
        let tokenizer = Tokenizer::bytes();
        let mut stories = Stories::default();
        assert_eq!((stories.len(), stories.totals(), stories.totals_of(3)), (0, Totals::default(), Totals::default()));
        for text in ["ab", "é€", ""] {
            stories.push(&tokenizer, text);
        }
        let eos = tokenizer.eos();
        assert_eq!(stories.story(0), [97, 98, eos]);
        assert_eq!(stories.story(1), [0xc3, 0xa9, 0xe2, 0x82, 0xac, eos]);
        assert_eq!(stories.story(2), [eos]);
        assert_eq!(stories.totals(), Totals { tokens: 10, bytes: 7, characters: 4 });
        assert_eq!(stories.totals_of(1), Totals { tokens: 3, bytes: 2, characters: 2 });
        stories.clear();
        stories.push(&tokenizer, "c");
        assert_eq!((stories.len(), stories.story(0)), (1, &[99, eos][..]));
    }

    #[test]
    fn a_budget_takes_whole_stories_of_one_side_from_the_start() {
        let tokenizer = Tokenizer::bytes();
        let source = Source::parse("synthetic:200").unwrap();
        let split = Split::Valid(0.3);
        let side = source.clone().with_split(split);
        let read = |tokens| Stories::read(&side, &tokenizer, Budget { tokens }).unwrap().stories;
        let mut wanted = Vec::new();
        let keep = |story: &str| {
            wanted.extend((!split.take(story, 0).is_empty()).then(|| story.to_string()));
            ControlFlow::Continue(())
        };
        source.stories(&mut { keep }).unwrap();
        assert!(wanted.len() > 20);
        let all = read(None);
        assert_eq!(all.len(), wanted.len());
        for (i, text) in wanted.iter().enumerate() {
            assert_eq!(tokenizer.decode(all.story(i)), text.as_bytes());
        }
        // One token more than the first three documents have asks for the fourth.
        let three = all.totals_of(3).tokens;
        assert_eq!(read(Some(three)).totals(), all.totals_of(3));
        assert_eq!(read(Some(three + 1)).totals(), all.totals_of(4));
    }

    #[test]
    fn the_evaluation_file_of_the_published_table_has_its_known_sizes() {
        let Some(shared) = shared() else { return };
        let tokenizer = Tokenizer::load(&shared.join("fixtures/tokenizer/frequency_tokenizer.json")).unwrap();
        let source = Source::parse(shared.join("data/tinystories/valid.txt").to_str().unwrap()).unwrap();
        let Taken { stories, report } = Stories::read(&source, &tokenizer, Budget::default()).unwrap();
        assert_eq!((stories.len(), stories.totals().bytes, stories.totals().tokens), (500, 402_270, 98_610));
        assert_eq!((report.stories, report.bytes), (500, 402_270));
    }
}
