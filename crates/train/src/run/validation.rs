//! What a run is validated on, and what is left out of training for it.

use std::sync::Arc;

use flashlm_kernels::Token;
use flashlm_model::tok::Tokenizer;

use super::open::open_source;
use crate::config::{DataSettings, Settings};
use crate::data::cache::{TokenCache, Whole};
use crate::data::holdout::{Holdout, stories_of};
use crate::data::source::{Source, Weighted};
use crate::data::split::Split;
use crate::eval::Stories;
use crate::stage::StageSource;
use crate::trainer::{Tell, TrainError};
use crate::units::{bytes, counted, thousands};

/// What a run is validated on.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Validation {
    /// The text that `data.valid` names.
    Named,
    /// Part of a training text is held out, at least this fraction.
    HeldOut(f64),
    /// A training text itself.
    Training,
}

impl Validation {
    pub fn of(data: &DataSettings) -> Validation {
        match data.holdout {
            _ if !data.valid.is_empty() => Validation::Named,
            0.0 => Validation::Training,
            share => Validation::HeldOut(share),
        }
    }

    /// The validation text: the one named, or what is held out of source `last`. Of the training texts, the files and documents of
    /// it are left out.
    pub fn separate(
        self,
        settings: &Settings,
        sources: &mut [Weighted],
        last: usize,
        offline: bool,
        stop: &dyn Fn() -> bool,
        tell: Tell,
    ) -> Result<Source, TrainError> {
        let data = &settings.data;
        let by_place = |split| matches!(split, Split::After(_));
        let valid = match self {
            Validation::Named => {
                // Another seed, so that two synthetic sources do not tell the same stories.
                let valid = open_source(&data.valid, settings.train.seed.wrapping_add(1), offline, stop, tell)?;
                let column = if data.valid_column.is_empty() { &data.column } else { &data.valid_column };
                let valid = if column.is_empty() { valid } else { valid.with_column(column) };
                for Weighted { source, .. } in sources.iter_mut() {
                    if source.place() == valid.place() {
                        return Err(TrainError::ValidIsTrain);
                    }
                    source.leave_out_files_of(&valid)?;
                }
                valid
            }
            Validation::Training => return Ok(sources[last].source.clone()),
            Validation::HeldOut(share) => {
                let Holdout { train, valid } = Holdout::of(&sources[last].source, share, stop)?;
                let held = sources[last].source.clone().with_split(valid);
                for (i, Weighted { source, .. }) in sources.iter_mut().enumerate() {
                    // By hash, a document is held out of all texts alike.
                    if i == last || !by_place(valid) {
                        *source = source.clone().with_split(train);
                    }
                }
                held
            }
        };
        if !data.keep_doubles && (self == Validation::Named || by_place(valid.split())) {
            let held = Arc::new(stories_of(&valid, stop)?);
            for Weighted { source, .. } in sources.iter_mut() {
                *source = source.clone().without(held.clone());
            }
        }
        Ok(valid)
    }

    /// What is scored of a training text, in words.
    pub fn told(self, train: &TokenCache, source: &Source, valid: &Stories, tokenizer: &Tokenizer) -> String {
        let other = if apart(train, valid, tokenizer) > KIND {
            "; it uses other letters than the rest, so it is a poor measure: name a text of the same kind with --valid"
        } else {
            ""
        };
        let about = match self {
            Validation::Training => "nothing is held out (data.holdout = 0): the training text itself is scored".into(),
            _ => of_text(train, source.split(), valid.len()),
        };
        format!("validation: {about}{other}")
    }
}

/// The text that is validated on where none is named for it: of the last stage, the one with the largest weight.
pub(super) fn heaviest_of_last_stage(settings: &Settings) -> StageSource {
    let sources = settings.stages().pop().map(|stage| stage.sources).unwrap_or_default();
    let first = sources[0].clone();
    sources.into_iter().fold(first, |best, source| if source.weight > best.weight { source } else { best })
}

/// Fewer documents, or bytes by place, are said to be few.
const FEW: (u64, u64) = (50, 16 << 10);

/// Bits by which texts of two kinds are apart at least. Measured: German after English 0.26, the other way round 0.16, verse after
/// source code 0.09; the last files of a program after its others 0.05, the end of the last of four novels 0.02.
const KIND: f64 = 0.08;
/// Fewer bytes say nothing about that.
const MEASURABLE: f64 = 4096.0;

/// How far the bytes of the validation text are from those of the training text: the Kullback-Leibler divergence in bits.
fn apart(train: &TokenCache, valid: &Stories, tokenizer: &Tokenizer) -> f64 {
    let bytes: Vec<Vec<u8>> = (0..tokenizer.vocab_size()).map(|id| tokenizer.decode(&[id as Token])).collect();
    let count = |tokens: &mut dyn Iterator<Item = Token>| {
        let mut ids = vec![0u64; bytes.len()];
        tokens.for_each(|id| ids[usize::from(id)] += 1);
        let mut counts = [0.0; 256];
        for (n, bytes) in ids.into_iter().zip(&bytes) {
            bytes.iter().for_each(|byte| counts[usize::from(*byte)] += n as f64);
        }
        counts
    };
    let total = |counts: &[f64; 256]| counts.iter().sum::<f64>();
    let train = count(&mut train.tokens().iter().copied());
    let valid = count(&mut (0..valid.len()).flat_map(|i| valid.story(i)).copied());
    if total(&valid) < MEASURABLE {
        return 0.0;
    }
    // One more of each in the training text, so that none is impossible there.
    let (all_valid, all_train) = (total(&valid), total(&train) + 256.0);
    let shares = valid.iter().zip(&train).map(|(v, t)| (v / all_valid, (t + 1.0) / all_train));
    shares.filter(|(p, _)| *p > 0.0).map(|(p, q)| p * (p / q).log2()).sum()
}

/// What is held out of a text, in words.
fn of_text(train: &TokenCache, valid: Split, stories_held: usize) -> String {
    let Whole { stories, bytes: all } = train.read();
    let held = match valid {
        Split::After(at) => all.saturating_sub(at),
        _ => all.saturating_sub(train.bytes()),
    };
    let part = format!("{}, {:.1} % of the text", bytes(held), 100.0 * held as f64 / all.max(1) as f64);
    let few = "; so few make a rough measure: name your own text with --valid";
    match valid {
        Split::After(_) => {
            let stories = counted(stories_held as u64, "document");
            format!("the end of the text is held out: {stories}, {part}{}", if held < FEW.1 { few } else { "" })
        }
        _ => {
            let stories_held = stories.saturating_sub(train.stories() as u64);
            format!(
                "{} of {} held out, chosen by their hash: {part}{}",
                thousands(stories_held),
                counted(stories, "document"),
                if stories_held < FEW.0 { few } else { "" }
            )
        }
    }
}
