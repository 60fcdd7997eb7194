//! The end of a run: everything is on the disk before anything is scored, and what is told then is of the checkpoint that
//! `generate`, `pack` and `eval` load.
//!
//! `result.json` says what the run came to; a run that has one for its last step is finished.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use flashlm_kernels::Exec;
use flashlm_kernels::cpu::Machine;
use flashlm_model::model_file::read_params;
use flashlm_model::pack::{self, pack};
use flashlm_model::sample;
use flashlm_model::{Engine, PackedModel, Writer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::{Event, Inputs, Outcome, Tell, TrainError, Trainer};
use crate::checkpoint::folder_name;
use crate::config::{Settings, ternary_share};
use crate::eval::bpb::Report;
use crate::log::card::{Card, Scores};
use crate::log::{Row, SampleRow};
use crate::run_folder::{CARD, RESULT, RunFolder};
use crate::stepper::Stepper;

/// Tokens of a sample's prompt that are read at once.
const SAMPLE_ROWS: usize = 16;

/// What a finished run came to: `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ending {
    /// Of this format.
    pub version: u64,
    /// Name of the run's model.
    pub name: String,
    /// `finished` or `early stop`.
    pub outcome: &'static str,
    /// Updates of the whole run.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// XXH3-64 of the resolved settings, 16 hexadecimal digits.
    pub settings_xxh3: String,
    /// Bits per byte no model can go below, where known.
    pub entropy_bound: Option<f64>,
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
    /// Bits per byte of the part that is scored while training.
    pub probe_bpb: Option<f64>,
    /// Of the whole.
    pub full: Report,
}

/// What of a result tells that a run is finished.
#[derive(Deserialize)]
struct Finished {
    outcome: String,
    steps: u64,
    settings_xxh3: String,
}

fn digest(settings: &Settings) -> String {
    format!("{:016x}", xxh3_64(settings.to_toml().as_bytes()))
}

/// Why a run with these settings has nothing left to do after `step`; `None` where it has.
pub fn finished(folder: &RunFolder, settings: &Settings, step: u64) -> Option<TrainError> {
    let result = folder.result().ok().filter(Value::is_object)?;
    let result: Finished = serde_json::from_value(result).ok()?;
    let same = result.steps == step && result.settings_xxh3 == digest(settings);
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
        (true, ..) => "it stopped early, since validations no longer improved; --set train.patience=0 trains on".into(),
        (_, 0, 0.0) => format!("--epochs {} trains on", 2.0 * t.epochs),
        (_, 0, minutes) => format!("--minutes {} trains on", 2.0 * minutes),
        (_, steps, _) => format!("--steps {} trains on", 2 * steps.max(step)),
    };
    TrainError::Finished(format!("{run} is finished at step {step}, nothing was changed; {more}"))
}

impl Trainer<'_> {
    /// Saves, scores, samples, draws and describes. `None` for the result where `stop` was set on the way: going on with the run
    /// does what is left.
    pub(super) fn finish(
        &mut self,
        outcome: Outcome,
        stop: &AtomicBool,
        tell: Tell,
    ) -> Result<(Outcome, Option<Ending>), TrainError> {
        let interrupted = Ok((Outcome::Interrupted, None));
        self.save(tell)?;
        let step = self.state.step;
        if self.state.validated.is_none_or(|v| v.step != step) && !self.validate(stop, tell)? {
            return interrupted;
        }
        // Again where the validation has changed what it knows.
        self.save(tell)?;
        self.draw(tell);
        let Some(last) = self.score_all(step, stop, tell)? else { return interrupted };
        let chosen = self.inputs.claim.folder().chosen()?.filter(|chosen| chosen.step() != step);
        let best = match &chosen {
            None => last.clone(),
            Some(chosen) => {
                let file = chosen.tensors("model.safetensors")?;
                self.stepper.params = read_params(&file, self.stepper.lm.config(), "")?;
                let Some(best) = self.score_all(chosen.step(), stop, tell)? else { return interrupted };
                best
            }
        };
        if stop.load(Relaxed) {
            return interrupted;
        }
        let samples = self.last_samples(best.step, tell);
        self.draw(tell);
        let ending = Ending {
            version: 1,
            name: self.inputs.settings.name.clone(),
            outcome: outcome.name(),
            steps: step,
            tokens: self.state.tokens,
            seconds: self.state.elapsed,
            settings_xxh3: digest(&self.inputs.settings),
            entropy_bound: self.inputs.entropy_bound,
            best,
            last,
        };
        let card = self.card(&ending, samples).markdown();
        let written = self.inputs.claim.write(CARD, card.as_bytes());
        self.aside("writing the model card", written, tell);
        let json = serde_json::to_vec_pretty(&ending).expect("numbers and texts have a JSON form");
        let written = self.inputs.claim.write(RESULT, &json);
        self.aside("writing result.json", written, tell);
        Ok((outcome, Some(ending)))
    }

    /// The parameters at hand, which are those of `step`, on the whole validation text.
    fn score_all(&mut self, step: u64, stop: &AtomicBool, tell: Tell) -> Result<Option<Scored>, TrainError> {
        let known = [self.state.validated, self.state.best].into_iter().flatten().find(|v| v.step == step);
        let probed = self.probed.take_if(|(at, _)| *at == step && self.probe.len() == self.inputs.valid.len());
        let full = match probed {
            Some((_, report)) => report,
            None => {
                let valid = std::mem::take(&mut self.inputs.valid);
                let report = self.score(&valid, stop, tell);
                self.inputs.valid = valid;
                let Some(report) = report? else { return Ok(None) };
                report
            }
        };
        let checkpoint = format!("checkpoints/{}", folder_name(step));
        Ok(Some(Scored { step, checkpoint, probe_bpb: known.map(|v| v.bpb), full }))
    }

    /// Samples of the model that people get. They are rows of the log where they are of its last step and not there yet.
    fn last_samples(&mut self, step: u64, tell: Tell) -> Vec<SampleRow> {
        self.sample(step, step == self.state.step && self.sampled != Some(step), tell)
    }

    /// Lets the parameters at hand, those of `step`, go on from each prompt.
    pub(super) fn sample(&mut self, step: u64, log: bool, tell: Tell) -> Vec<SampleRow> {
        match self.write_samples(step) {
            Ok(rows) => {
                self.aside("sampling", Ok::<_, TrainError>(()), tell);
                for row in &rows {
                    tell(Event::Sample(row));
                    if log {
                        self.log(Row::Sample(row.clone()), tell);
                        self.sampled = Some(step);
                    }
                }
                rows
            }
            Err(error) => {
                self.aside("sampling", Err(error), tell);
                Vec::new()
            }
        }
    }

    fn write_samples(&self, step: u64) -> Result<Vec<SampleRow>, TrainError> {
        let t = &self.inputs.settings.train;
        let Stepper { lm, params, .. } = &self.stepper;
        let bytes = pack(self.cx, lm.config(), params, &self.inputs.tokenizer, pack::Options::default());
        let model = Arc::new(PackedModel::from_bytes(bytes, "the model being trained")?);
        let mut engine = Engine::new(model.clone(), Exec::new(self.cx.isa(), 1), SAMPLE_ROWS);
        let mut rows = Vec::new();
        for (i, prompt) in t.prompts.iter().enumerate() {
            let settings = sample::Settings {
                temperature: 0.8,
                top_p: 0.95,
                seed: t.seed ^ (step << 8 | i as u64),
                ..sample::Settings::default()
            };
            let mut writer = Writer::new(&model, settings, t.sample_tokens, &[])?;
            writer.read(prompt);
            let mut text = String::new();
            engine.write(&mut writer, |piece| text.push_str(piece))?;
            rows.push(SampleRow { step, prompt: prompt.clone(), text });
        }
        Ok(rows)
    }

    fn card(&self, ending: &Ending, samples: Vec<SampleRow>) -> Card {
        let Inputs { settings, tokenizer, .. } = &self.inputs;
        let layout = self.stepper.lm.layout();
        let machine = Machine::detect();
        let full = &ending.best.full;
        Card {
            name: settings.name.clone(),
            parameters: layout.parameters() as u64,
            ternary_share: ternary_share(layout),
            dataset: settings.texts().into_iter().map(|text| text.source).collect::<Vec<_>>().join(", "),
            tokenizer: tokenizer.kind().into(),
            vocab: tokenizer.vocab_size(),
            tokens: ending.tokens,
            seconds: ending.seconds,
            machine: format!("{}, {} threads, {}", machine.name, self.cx.pool().threads(), self.cx.isa().name()),
            precision: settings.train.precision,
            settings: settings.to_toml(),
            step: ending.best.step,
            steps: ending.steps,
            scores: Some(Scores { loss: full.loss_per_token, bpb: full.bpb, bpb_with_eos: full.bpb_with_eos }),
            entropy_bound: ending.entropy_bound,
            samples,
        }
    }
}
