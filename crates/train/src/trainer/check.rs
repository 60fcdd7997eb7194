//! What is refused before any text is read.

use flashlm_model::{ModelConfig, Shape};

use super::TrainError;
use crate::checkpoint::Checkpoint;
use crate::config::{Settings, TrainSettings};
use crate::stepper::pass_rows;
use crate::tokenizer::TokenizerChoice;
use crate::units;

/// A step that even a fast machine would take longer for than this, in seconds, is refused.
const LONGEST_UPDATE: f64 = 3600.0;
/// Operations per second of one thread of a fast machine.
const FAST: f64 = 1e11;

/// The settings that a checkpoint was saved with.
pub fn continued(from: &Checkpoint) -> Result<Settings, TrainError> {
    let bad = |what: String| TrainError::State { path: from.path().join("config.toml"), what };
    let text = String::from_utf8(from.bytes("config.toml")?).map_err(|e| bad(e.to_string()))?;
    Ok(Settings::from_toml(&text, "the checkpoint's config.toml")?)
}

/// That a run may be resumed from a checkpoint with these settings.
pub(super) fn agree(from: &Checkpoint, settings: &Settings) -> Result<(), TrainError> {
    let mut saved = continued(from)?;
    if from.is_made() {
        // A run of another program: only what its file holds is fixed.
        let TrainSettings { optimizer, average_share, frozen_taps, .. } = saved.train;
        let train = TrainSettings { optimizer, average_share, frozen_taps, ..settings.train.clone() };
        saved = Settings { model: saved.model, train, ..settings.clone() };
    }
    // Both come from the tokenizer, which is the checkpoint's own.
    let ModelConfig { vocab_size, eos, .. } = settings.model;
    (saved.model.vocab_size, saved.model.eos) = (vocab_size, eos);
    saved.conflict(settings).map_or(Ok(()), |conflict| Err(TrainError::Conflict(conflict)))
}

/// What needs no text to be found out: settings that no run can have, that the checkpoint resumed from does not allow, or that ask
/// for a step longer or larger than this machine can be meant for. `memory` is in bytes, 0 where
/// it is not known.
pub fn check(settings: &Settings, from: Option<&Checkpoint>, threads: usize, memory: u64) -> Result<(), TrainError> {
    settings.validate()?;
    if let Some(from) = from {
        agree(from, settings)?;
    } else {
        settings.tokenizer.kind.parse::<TokenizerChoice>()?.check(settings.tokenizer.vocab)?;
    }
    let estimate = Estimate::of(settings);
    let about =
        format!("train.batch = {} sequences of train.seq_len = {} tokens", estimate.sequences, estimate.seq_len);
    if memory > 0 && estimate.bytes > memory {
        let (needed, memory) = (units::bytes(estimate.bytes), units::bytes(memory));
        let what = format!("{about} need about {needed} of memory, and this machine has {memory}; lower train.seq_len");
        return Err(TrainError::TooLarge(what));
    }
    let seconds = estimate.operations / (FAST * threads as f64);
    if seconds > LONGEST_UPDATE {
        let what = format!(
            "{about} are {} tokens: one step would take {} or longer on {threads} {}; lower one of them",
            units::thousands(estimate.tokens),
            units::duration(seconds),
            if threads == 1 { "thread" } else { "threads" }
        );
        return Err(TrainError::TooLarge(what));
    }
    Ok(())
}

/// What one step costs, roughly and rather too little than too much.
struct Estimate {
    sequences: usize,
    seq_len: usize,
    tokens: u64,
    /// Multiplications and additions.
    operations: f64,
    bytes: u64,
}

impl Estimate {
    fn of(settings: &Settings) -> Self {
        let (m, t) = (&settings.model, &settings.train);
        // The stage with the most tokens in a step.
        let stages = settings.stages();
        let most =
            stages.iter().map(|stage| (stage.batch as u64 * stage.seq_len as u64, stage)).max_by_key(|(n, _)| *n);
        let (batch, seq_len) = most.map_or((t.batch, t.seq_len), |(_, stage)| (stage.batch, stage.seq_len));
        let sequences = batch * t.accumulation;
        let tokens = sequences as u64 * seq_len as u64;
        // The GLU and, of each mixer, at least three square matrices.
        let block = (3 * m.dim * (m.ffn_hidden + m.dim)) as f64;
        // A vocabulary that is still to be made has at most the size that is aimed for.
        let vocab = m.vocab_size.min(settings.tokenizer.vocab);
        let weights = m.blocks as f64 * block + (vocab * m.dim) as f64;
        // Forward, and backward twice as much: the same of each weight for each token.
        let operations = 6.0 * weights * tokens as f64;
        // Parameters, two moments, and gradients of a tree of passes; of each row of a pass the residual stream, and what a block
        // keeps in two bytes.
        let rows = pass_rows(t, Shape { batch: sequences, seq_len });
        let passes = sequences.div_ceil(rows / seq_len);
        let row = m.blocks as f64 * (2.0 * 4.0 * m.dim as f64 + 2.0 * (4 * m.dim + 3 * m.ffn_hidden) as f64);
        let bytes = f64::from(16 + 4 * passes.max(1).ilog2()) * weights + rows as f64 * row;
        Estimate { sequences, seq_len, tokens, operations, bytes: bytes as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_beyond_the_machine_is_refused_with_its_size() {
        let mut settings = Settings { name: "test".into(), ..crate::config::preset("flash-small").unwrap() };
        let check = |settings: &Settings, memory| check(settings, None, 2, memory).map_err(|e| e.to_string());
        (settings.train.batch, settings.train.seq_len) = (32, 256);
        assert_eq!(check(&settings, 1 << 30), Ok(()));
        assert_eq!(check(&settings, 0), Ok(()), "an unknown size refuses nothing");
        // Parameters, gradients and moments of 1.4 million are 22 MB, without any activations.
        let error = check(&settings, 16 << 20).unwrap_err();
        assert!(error.contains("32 sequences of train.seq_len = 256") && error.contains("has 16.0 MiB"), "{error}");
        (settings.train.batch, settings.train.seq_len) = (65_536, 65_536);
        let error = check(&settings, 1 << 50).unwrap_err();
        // 2^32 tokens, six operations for each of 1.4 million weights, 10^11 per second on each of two threads: 49 hours.
        let days: f64 = error.split("would take ").nth(1).and_then(|e| e.split('d').next()).unwrap().parse().unwrap();
        assert!((2.0..=2.1).contains(&days) && error.contains("4,294,967,296 tokens"), "{error}");
    }
}
