//! Learns a vocabulary: documents are counted one by one, in memory that grows with the number of different words alone, then the
//! tokens are chosen.

use super::bpe::Bpe;
use super::error::TokError;
use super::frequency::Counter;
use super::pieces::Pieces;
use super::tokenizer::{Kind, Tokenizer};
use std::ops::ControlFlow;

/// What has been seen of the text.
pub struct Trainer(Learner);

enum Learner {
    Frequency(Box<Counter>),
    Bpe { pieces: Pieces, vocab_size: usize },
}

impl Trainer {
    /// For FlashLM v4's vocabulary; `vocab_size` 5 to 50261, 4 specials included. Text with fewer kinds of tokens gives a
    /// smaller vocabulary.
    pub fn frequency(vocab_size: usize) -> Result<Self, TokError> {
        Ok(Self(Learner::Frequency(Counter::new(vocab_size)?.into())))
    }

    /// For byte-level BPE; `vocab_size` 257 to 65535 counts the 256 bytes and EOS. The same documents, in any order, give the
    /// same vocabulary; text that runs out of pairs to merge gives a smaller one.
    pub fn bpe(vocab_size: usize) -> Result<Self, TokError> {
        Bpe::check_size(vocab_size)?;
        Ok(Self(Learner::Bpe { pieces: Pieces::default(), vocab_size }))
    }

    /// Counts a document, or a part of one that [`cut`](super::cut) made.
    pub fn add(&mut self, story: &str) {
        match &mut self.0 {
            Learner::Frequency(counter) => counter.add(story),
            Learner::Bpe { pieces, .. } => pieces.add(story),
        }
    }

    /// The vocabulary. The callback hears which share of this last part is done, and may stop it by breaking.
    pub fn finish(self, progress: &mut dyn FnMut(f64) -> ControlFlow<()>) -> Result<Tokenizer, TokError> {
        let kind = match self.0 {
            Learner::Frequency(counter) => Kind::Frequency(counter.finish()?),
            Learner::Bpe { pieces, vocab_size } => Kind::Bpe(Bpe::train(pieces, vocab_size, progress)?),
        };
        Ok(Tokenizer(kind))
    }
}

impl Tokenizer {
    /// FlashLM v4's vocabulary, counted over `stories`: see [`Trainer::frequency`].
    ///
    /// The original takes the first 50,000 documents and strips newlines around each: so should the caller.
    pub fn train_frequency<'a>(stories: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<Self, TokError> {
        Self::train(Trainer::frequency(vocab_size)?, stories)
    }

    /// Byte-level BPE learned from `stories`: see [`Trainer::bpe`].
    pub fn train_bpe<'a>(stories: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<Self, TokError> {
        Self::train(Trainer::bpe(vocab_size)?, stories)
    }

    fn train<'a>(mut trainer: Trainer, stories: impl Iterator<Item = &'a str>) -> Result<Self, TokError> {
        stories.for_each(|story| trainer.add(story));
        trainer.finish(&mut |_| ControlFlow::Continue(()))
    }
}
