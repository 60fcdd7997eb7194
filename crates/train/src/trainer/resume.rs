//! A run that goes on: what may not differ from its checkpoint, what it is filled with, and what becomes of the steps after it.

use flashlm_model::ModelConfig;

use super::{Inputs, TrainError, Trainer, finish};
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::load::{read_params, read_state};
use crate::log::LogError;
use crate::log::jsonl::{Kept, Metrics};
use crate::log::tensorboard::Events;
use crate::progress::State;
use crate::run_folder::{ABANDONED_METRICS, METRICS, RESULT, RunError, SETTINGS};
use crate::stepper::{ROWS, Stepper};
use crate::tokenizer::TokenizerChoice;
use crate::units;

/// An update that even a fast machine would take longer for than this, in seconds, is refused.
const LONGEST_UPDATE: f64 = 3600.0;
/// Operations per second of one thread of a fast machine.
const FAST: f64 = 1e11;

/// The settings that a checkpoint was saved with.
pub fn continued(from: &Checkpoint) -> Result<Settings, TrainError> {
    let bad = |what: String| TrainError::State { path: from.path().join("config.toml"), what };
    let text = String::from_utf8(from.bytes("config.toml")?).map_err(|e| bad(e.to_string()))?;
    Ok(Settings::from_toml(&text, "the checkpoint's config.toml")?)
}

/// What needs no text to be found out: settings that no run can have, that the checkpoint gone on from does not allow, or that ask
/// for an update longer or larger than this machine can be meant for. `memory` is in bytes.
pub fn check(settings: &Settings, from: Option<&Checkpoint>, threads: usize, memory: u64) -> Result<(), TrainError> {
    settings.validate()?;
    if let Some(from) = from {
        let mut saved = continued(from)?;
        // Both come from the tokenizer, which is the checkpoint's own.
        let ModelConfig { vocab_size, eos, .. } = settings.model;
        (saved.model.vocab_size, saved.model.eos) = (vocab_size, eos);
        if let Some(conflict) = saved.conflict(settings) {
            return Err(TrainError::Conflict(conflict));
        }
    } else {
        settings.tokenizer.kind.parse::<TokenizerChoice>()?.check(settings.tokenizer.vocab)?;
    }
    let estimate = Estimate::of(settings);
    let about = format!(
        "train.batch = {} sequences of train.seq_len = {} tokens",
        settings.train.batch * settings.train.accumulation,
        estimate.seq_len
    );
    if estimate.bytes > memory {
        let (needed, memory) = (units::bytes(estimate.bytes), units::bytes(memory));
        let what = format!("{about} need about {needed} of memory, and this machine has {memory}; lower train.seq_len");
        return Err(TrainError::TooLarge(what));
    }
    let seconds = estimate.operations / (FAST * threads as f64);
    if seconds > LONGEST_UPDATE {
        let what = format!(
            "{about} are {} tokens: one update would take {} or longer on {threads} {}; lower either",
            units::thousands(estimate.tokens),
            units::duration(seconds),
            if threads == 1 { "thread" } else { "threads" }
        );
        return Err(TrainError::TooLarge(what));
    }
    Ok(())
}

/// What one update costs, roughly and rather too little than too much.
struct Estimate {
    seq_len: usize,
    tokens: u64,
    /// Multiplications and additions.
    operations: f64,
    bytes: u64,
}

impl Estimate {
    fn of(settings: &Settings) -> Self {
        let (m, t) = (&settings.model, &settings.train);
        let seq_len = settings.stages().iter().map(|stage| stage.seq_len).max().unwrap_or(t.seq_len);
        let sequences = t.batch * t.accumulation;
        let tokens = sequences as u64 * seq_len as u64;
        // The GLU and, of each mixer, at least three square matrices.
        let block = (3 * m.dim * (m.ffn_hidden + m.dim)) as f64;
        // A vocabulary that is still to be made has at most the size that is aimed for.
        let vocab = m.vocab_size.min(settings.tokenizer.vocab);
        let weights = m.blocks as f64 * block + (vocab * m.dim) as f64;
        // Forward, and backward twice as much: the same of each weight for each token.
        let operations = 6.0 * weights * tokens as f64;
        // Parameters, gradients and two moments; of each row of a pass the stream, and what a block keeps in two bytes.
        let rows = ROWS.min(sequences * seq_len).max(seq_len) as f64;
        let row = m.blocks as f64 * (2.0 * 4.0 * m.dim as f64 + 2.0 * (4 * m.dim + 3 * m.ffn_hidden) as f64);
        let bytes = 16.0 * weights + rows * row;
        Estimate { seq_len, tokens, operations, bytes: bytes as u64 }
    }
}

/// Where the run of a checkpoint stood.
pub fn state(from: &Checkpoint, settings: &Settings) -> Result<State, TrainError> {
    let bad = |what: String| TrainError::State { path: from.path().join("state.json"), what };
    let state: State = serde_json::from_slice(&from.bytes("state.json")?).map_err(|e| bad(e.to_string()))?;
    let (stages, texts) = (settings.stages().len(), settings.texts().len());
    if state.step != from.step()
        || state.stage >= stages
        || state.epochs_before.len() != texts
        || state.stage_start > state.step
        || !state.elapsed.is_finite()
    {
        return Err(bad("its values do not belong together".into()));
    }
    Ok(state)
}

/// Fills the stepper from a checkpoint of the same settings and returns where the run stood.
pub(super) fn restore(from: &Checkpoint, settings: &Settings, stepper: &mut Stepper) -> Result<State, TrainError> {
    let mut saved = continued(from)?;
    // Runs saved before there was a reset do not tell the token; the tokenizer is the checkpoint's own.
    if !saved.model.reset {
        saved.model.eos = settings.model.eos;
    }
    if let Some(conflict) = saved.conflict(settings) {
        return Err(TrainError::Conflict(conflict));
    }
    stepper.params = read_params(&from.tensors("model.safetensors")?, stepper.lm.layout())?;
    read_state(&from.tensors("optimizer.safetensors")?, &mut stepper.optimizers.state())?;
    state(from, settings)
}

/// Where the run stands on the texts that it has now. On other ones, such as the old text with more behind it, epochs are counted
/// anew; on another validation text, no earlier validation counts.
pub(super) fn same_text(mut state: State, inputs: &Inputs, notes: &mut Vec<String>) -> State {
    let (texts, valid) = inputs.contents();
    if !state.texts.is_empty() && state.texts != texts {
        notes.push(
            "the training text is another one than at this checkpoint: the same weights go on with it, epochs are counted anew, \
             and the figures before and after do not compare"
                .into(),
        );
        state.epochs_before = vec![0.0; texts.len()];
        (state.stage_start, state.windows) = (state.step, Some(0));
    }
    if state.valid.is_some_and(|before| before != valid) {
        notes.push(
            "the validation text is another one than at this checkpoint: validations before it do not count".into(),
        );
        (state.best, state.since_best, state.validated) = (None, 0, None);
    }
    State { texts, valid: Some(valid), ..state }
}

impl Trainer<'_> {
    /// The folder of a run that goes on. Only the timeline of checkpoints must be right; what else fails is told, and the run goes on.
    pub(super) fn go_on(&mut self, from: &Checkpoint) -> Result<(), TrainError> {
        let (step, folder) = (self.state.step, self.inputs.claim.folder().clone());
        self.notes.extend(continued(from)?.changes(&self.inputs.settings));
        let full = from.path().canonicalize().map_err(|source| RunError::Read { path: from.path().into(), source })?;
        if !full.ancestors().nth(2).is_some_and(|run| folder.is(run)) {
            // The best of the other folder is not here, but for the one gone on from.
            self.state.best = self.state.best.filter(|best| best.step == step);
            return self.begin();
        }
        let t = &self.inputs.settings.train;
        let early = t.patience > 0 && self.state.since_best >= t.patience;
        if (early || self.plan.progress(&self.state) >= 1.0)
            && let Some(over) = finish::ended(&folder, &self.inputs.settings, step)
        {
            return Err(over);
        }
        for path in self.inputs.claim.abandon_after(step)? {
            self.notes.push(format!("set aside, since the run goes on from step {step}: now {}", path.display()));
        }
        self.resumed = Some(step);
        match self.open_log(step) {
            Ok(rows) => {
                self.state.validated = self.state.validated.or(rows.validated);
                self.sampled = rows.sampled;
                if rows.damaged > 0 {
                    self.notes.push(format!(
                        "{} lines of {METRICS} were no rows; they are in {ABANDONED_METRICS} now",
                        rows.damaged
                    ));
                }
            }
            Err(error) => self.notes.push(format!("{error}; it is tried again with the next row")),
        }
        match Events::resume(folder.path(), step) {
            Ok(events) => self.events = Some(events),
            Err(error) => self.notes.push(format!("there will be no TensorBoard events: {error}")),
        }
        let there = folder.list()?;
        self.state.best = self.state.best.filter(|best| there.iter().any(|(step, _)| best.step == *step));
        let Inputs { settings, claim, entropy_bound, .. } = &mut self.inputs;
        let written = [
            claim.mark_best(self.state.best.map(|best| best.step)),
            claim.mark(&settings.name, *entropy_bound),
            claim.write(SETTINGS, settings.to_toml().as_bytes()),
            claim.remove(RESULT),
        ];
        self.notes
            .extend(written.into_iter().filter_map(|written| Some(format!("{}; training goes on", written.err()?))));
        self.saved.key = Some((step, self.state.validated.map(|v| v.step)));
        Ok(())
    }

    /// The log after the rows of `step`.
    pub(super) fn open_log(&mut self, step: u64) -> Result<Kept, LogError> {
        let folder = self.inputs.claim.folder();
        let (metrics, rows) = Metrics::resume(&folder.file(METRICS), step, &folder.file(ABANDONED_METRICS))?;
        self.metrics = Some(metrics);
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_beyond_the_machine_is_refused_with_its_size() {
        let mut settings = Settings { name: "test".into(), ..crate::config::preset("flash-tiny").unwrap() };
        let check = |settings: &Settings, memory| check(settings, None, 2, memory).map_err(|e| e.to_string());
        settings.train.batch = 32;
        assert_eq!(check(&settings, 1 << 30), Ok(()));
        // Parameters, gradients and moments of 1.2 million are 19 MB, without any activations.
        let error = check(&settings, 16 << 20).unwrap_err();
        assert!(error.contains("32 sequences of train.seq_len = 256") && error.contains("has 16.0 MiB"), "{error}");
        (settings.train.batch, settings.train.seq_len) = (65_536, 65_536);
        let error = check(&settings, 1 << 50).unwrap_err();
        // 2^32 tokens, six operations for each of a million weights, 10^11 per second on each thread: more than 30 hours.
        let days: f64 = error.split("would take ").nth(1).and_then(|e| e.split('d').next()).unwrap().parse().unwrap();
        assert!((1.0..=2.0).contains(&days) && error.contains("4,294,967,296 tokens"), "{error}");
    }
}
