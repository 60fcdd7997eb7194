//! The end of a run: everything is on the disk before anything is scored, and what is told then is of the checkpoint that
//! `generate`, `pack` and `eval` load.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use flashlm_kernels::cpu::Machine;
use flashlm_model::model_file::read_params;

use super::{Ended, Ending, Event, Inputs, Outcome, Scored, Tell, TrainError, Trainer};
use crate::checkpoint::folder_name;
use crate::log::SampleRow;
use crate::log::card::{Card, Scores, ternary_share};
use crate::run_folder::{CARD, RESULT};
use crate::units::counted;

impl Trainer<'_> {
    /// Saves, scores, samples, draws and describes. `None` for the result where `stop` was set on the way: going on with the run
    /// does what is left.
    pub(super) fn finish(&mut self, outcome: Outcome, stop: &AtomicBool, tell: Tell) -> Result<Ended, TrainError> {
        self.save(tell)?;
        let step = self.state.step;
        if !self.settle(stop, tell)? {
            return Ok(Ended::INTERRUPTED);
        }
        if self.state.validated.is_none_or(|v| v.step != step) && !self.validate(stop, tell)? {
            return Ok(Ended::INTERRUPTED);
        }
        // Again where the validation has changed what it knows.
        self.save(tell)?;
        let Some(last) = self.score_all(step, stop, tell)? else { return Ok(Ended::INTERRUPTED) };
        let chosen = self.inputs.claim.folder().chosen()?.filter(|chosen| chosen.step() != step);
        let best = match &chosen {
            None => last.clone(),
            Some(chosen) => {
                let file = chosen.tensors("model.safetensors")?;
                self.stepper.params = read_params(&file, self.stepper.lm.config(), "")?;
                self.shared = false;
                let Some(best) = self.score_all(chosen.step(), stop, tell)? else { return Ok(Ended::INTERRUPTED) };
                best
            }
        };
        if stop.load(Relaxed) {
            return Ok(Ended::INTERRUPTED);
        }
        let samples = self.last_samples(best.step, tell);
        let consistency = self.consistency(stop, tell);
        if stop.load(Relaxed) {
            return Ok(Ended::INTERRUPTED);
        }
        self.draw(tell);
        let ending = Ending {
            version: 1,
            name: self.inputs.settings.name.clone(),
            outcome: outcome.name(),
            steps: step,
            tokens: self.state.tokens,
            seconds: self.state.elapsed,
            settings_xxh3: self.inputs.settings.digest(),
            entropy_bound: self.inputs.entropy_bound,
            consistency,
            best,
            last,
        };
        let card = self.card(&ending, samples).markdown();
        let written = self.inputs.claim.write(CARD, card.as_bytes());
        self.aside("writing the model card", written, tell);
        let json = serde_json::to_vec_pretty(&ending).expect("numbers and texts have a JSON form");
        let written = self.inputs.claim.write(RESULT, &json);
        self.aside("writing result.json", written, tell);
        Ok(Ended { outcome, ending: Some(ending) })
    }

    /// Decides between the last weights and their mean by the probe: the better of the two is the model of the last step from
    /// here on. `false`, and nothing decided, where `stop` was set on the way.
    fn settle(&mut self, stop: &AtomicBool, tell: Tell) -> Result<bool, TrainError> {
        let steps = self.state.averaged;
        let Some(mut average) = self.average.take_if(|_| steps > 0) else { return Ok(true) };
        let probe = std::mem::take(&mut self.probe);
        let last = self.score(&probe, stop, tell);
        average.swap(&mut self.stepper.params);
        self.shared = false;
        let mean = last.and_then(|last| Ok(last.zip(self.score(&probe, stop, tell)?)));
        self.probe = probe;
        let better = matches!(&mean, Ok(Some((last, mean))) if mean.bpb < last.bpb);
        if !better {
            average.swap(&mut self.stepper.params);
            self.shared = false;
        }
        self.average = Some(average);
        let Some((last, mean)) = mean? else { return Ok(false) };
        self.state.averaged = 0;
        if better {
            // Another model than the one that was saved and scored.
            (self.saved.key, self.state.validated, self.probed, self.sampled) = (None, None, None, None);
        }
        let kept = if better { "the mean is" } else { "the last weights are" };
        let (last, mean, steps) = (last.bpb, mean.bpb, counted(steps, "step"));
        tell(Event::Note(&format!(
            "bits per byte of the last weights {last:.4}, of their mean over the last {steps} {mean:.4}: {kept} kept"
        )));
        Ok(true)
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
            machine: format!(
                "{}, {}, {}",
                machine.name,
                counted(self.cx.pool().threads() as u64, "thread"),
                self.cx.isa().name()
            ),
            precision: settings.train.precision,
            settings: settings.to_toml(),
            step: ending.best.step,
            steps: ending.steps,
            scores: Some(Scores { loss: full.loss_per_token, bpb: full.bpb, bpb_with_eos: full.bpb_with_eos }),
            entropy_bound: ending.entropy_bound,
            consistency: ending.consistency.as_ref().map(|found| (found.told(), found.kinds())),
            samples,
        }
    }
}
