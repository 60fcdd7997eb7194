//! The result of a run, `result.json`: a run that has one for its last step is finished.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Outcome, TrainError};
use crate::config::Settings;
use crate::eval::bpb::Report;
use crate::eval::consistency::Consistency;
use crate::run_folder::RunFolder;

/// The result of a finished run: `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ending {
    /// Of this format.
    pub version: u64,
    /// Name of the run's model.
    pub name: String,
    /// `finished` or `early stop`.
    pub outcome: &'static str,
    /// Steps of the whole run.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// [`Settings::digest`].
    pub settings_xxh3: String,
    /// Bits per byte no model can go below, where known.
    pub entropy_bound: Option<f64>,
    /// Sense of what the best checkpoint writes, where all it was trained on are stories of the built-in grammar.
    pub consistency: Option<Consistency>,
    /// The checkpoint that stands for the run: what `generate`, `pack` and `eval` load.
    pub best: Scored,
    /// The checkpoint of the last step; the same one where that is the best.
    pub last: Scored,
}

/// A checkpoint and its scores on the validation text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// Its step.
    pub step: u64,
    /// Its folder within the run's.
    pub checkpoint: String,
    /// Bits per byte of the part of the text that is scored while training.
    pub probe_bpb: Option<f64>,
    /// Scores on the whole text.
    pub full: Report,
}

/// How a run ended, and its result unless it was interrupted.
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// What it came to.
    pub ending: Option<Ending>,
}

impl Ended {
    /// Stopped on the way.
    pub(super) const INTERRUPTED: Ended = Ended { outcome: Outcome::Interrupted, ending: None };
}

/// What of a result tells that a run is finished.
#[derive(Deserialize)]
struct Finished {
    outcome: String,
    steps: u64,
    settings_xxh3: String,
}

/// Why a run with these settings has nothing left to do after `step`; `None` where it has.
pub fn finished(folder: &RunFolder, settings: &Settings, step: u64) -> Option<TrainError> {
    let result = folder.result().ok().filter(Value::is_object)?;
    let result: Finished = serde_json::from_value(result).ok()?;
    let same = result.steps == step && result.settings_xxh3 == settings.digest();
    same.then(|| over(folder, settings, step, result.outcome == Outcome::EarlyStop.name()))
}

/// The same where the settings differ, but ask for no more than there is.
pub(super) fn ended(folder: &RunFolder, settings: &Settings, step: u64) -> Option<TrainError> {
    let steps = folder.result().ok()?.get("steps")?.as_u64()?;
    (steps == step).then(|| over(folder, settings, step, false))
}

fn over(folder: &RunFolder, settings: &Settings, step: u64, early: bool) -> TrainError {
    let (run, t) = (folder.path().display(), &settings.train);
    let more = match (early, t.steps, t.minutes) {
        (true, ..) => "it stopped early because validation no longer improved; --set train.patience=0 trains on".into(),
        (_, 0, 0.0) => format!("--epochs {} trains on", 2.0 * t.epochs),
        (_, 0, minutes) => format!("--minutes {} trains on", 2.0 * minutes),
        (_, steps, _) => format!("--steps {} trains on", 2 * steps.max(step)),
    };
    TrainError::Finished(format!("{run} is finished at step {step}; nothing was changed; {more}"))
}
