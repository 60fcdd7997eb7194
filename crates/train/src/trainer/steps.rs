//! Step after step, with what is due in between.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use flashlm_model::Shape;

use super::pace::Pace;
use super::validate::MARKING;
use super::{Ended, Event, Outcome, Tell, TrainError, Trainer};
use crate::comm::Solo;
use crate::eta::{Left, SOME};
use crate::log::console;
use crate::log::{Row, TrainRow};
use crate::schedule::activation_bits;
use crate::stepper::Step;

impl Trainer<'_> {
    /// Trains to the end of the plan, an early stop, or until `stop` is set; what a finished run came to is returned.
    pub fn run(&mut self, stop: &AtomicBool, tell: Tell) -> Result<Ended, TrainError> {
        for note in std::mem::take(&mut self.notes) {
            tell(Event::Note(&note));
        }
        let ended = self.steps(stop, tell).and_then(|outcome| match outcome {
            Outcome::Interrupted => Ok(Ended::INTERRUPTED),
            outcome => self.finish(outcome, stop, tell),
        });
        match ended {
            Ok(Ended { outcome: Outcome::Interrupted, .. }) => {
                self.save(tell)?;
                self.draw(tell);
            }
            // The one could not be saved, the other has weights that are not worth it.
            Err(TrainError::Checkpoint(_) | TrainError::NotFinite { .. }) | Ok(_) => {}
            Err(_) => self.rescue(tell),
        }
        ended
    }

    /// Tenths of a run that time limits, if its validations follow them.
    fn tenth(&self) -> u64 {
        let by_time = self.inputs.settings.train.eval_every == 0 && self.plan.seconds().is_some();
        if by_time { (10.0 * self.plan.progress(&self.state)) as u64 } else { 0 }
    }

    fn seconds(&self) -> f64 {
        self.before + self.clock.seconds()
    }

    fn steps(&mut self, stop: &AtomicBool, tell: Tell) -> Result<Outcome, TrainError> {
        let mut shown = Instant::now();
        let mut resting = 0.0;
        let mut told = None;
        let t = self.inputs.settings.train.clone();
        if self.state.step > 0 && self.saved.key.is_none() {
            // What was resumed from lies in another folder: this one has nothing yet.
            self.save(tell)?;
            if let Some(best) = self.state.best {
                let marked = self.inputs.claim.mark_best(Some(best.step));
                self.aside(MARKING, marked, tell);
            }
        }
        let mut pace = Pace::new(self.tenth());
        if self.state.step == 0 && self.resumed.is_none() {
            let began = self.clock.seconds();
            if !self.validate_start(stop, tell)? {
                return Ok(Outcome::Interrupted);
            }
            pace.took(began, self.clock.seconds());
        }
        let mut row_started = (self.clock.seconds(), self.state.tokens);
        loop {
            self.state.elapsed = self.seconds();
            let progress = self.plan.progress(&self.state);
            if stop.load(Relaxed) {
                return Ok(Outcome::Interrupted);
            }
            let pause = self.clock.seconds();
            let step = self.state.step;
            let validation = pace.due(self.tenth(), pause)
                || self.plan.validations(t.eval_every, step)
                    > self.plan.validations(t.eval_every, step.saturating_sub(1));
            if validation && self.state.validated.is_none_or(|v| v.step != step) {
                if !self.validate(stop, tell)? {
                    return Ok(Outcome::Interrupted);
                }
                self.draw(tell);
                self.eta.scored(self.probe.totals().tokens, self.clock.seconds() - pause);
                pace.took(pause, self.clock.seconds());
            }
            let by_clock = t.checkpoint_seconds > 0.0 && self.clock.seconds() - self.saved.at >= t.checkpoint_seconds;
            if step > 0 && (due(step, t.checkpoint_every) || by_clock) {
                let (began, saved) = (self.clock.seconds(), self.saved.key);
                self.save(tell)?;
                if self.saved.key != saved {
                    self.eta.saved(self.clock.seconds() - began);
                }
            }
            if progress >= 1.0 {
                return Ok(Outcome::Finished);
            }
            if t.patience > 0 && self.state.since_best >= t.patience {
                return Ok(Outcome::EarlyStop);
            }
            if step > 0 && due(step, t.sample_every) && self.sampled != Some(step) {
                let began = self.clock.seconds();
                self.sample(step, true, tell);
                self.eta.sampled(self.clock.seconds() - began);
            }
            resting += self.clock.seconds() - pause;
            let stage = self.plan.stage(&self.state);
            if self.plan.stages() > 1 && told.replace(stage) != Some(stage) {
                let texts = &self.inputs.texts;
                let names: Vec<&str> = texts.parts(stage).iter().map(|part| texts.name(part)).collect();
                let names = names.join(" + ");
                let (of, Shape { batch, seq_len }) = (self.plan.stages(), self.plan.shape(stage));
                let batch = if batch == t.sequences() { String::new() } else { format!(", batch {batch}") };
                tell(Event::Note(&format!("stage {} of {of}: {names}, T {seq_len}{batch}", stage + 1)));
            }
            let began = self.clock.seconds();
            let Some((lr, grad_norm)) = self.step(stage, progress, stop)? else { return Ok(Outcome::Interrupted) };
            self.eta.trained(self.plan.shape(stage).rows(), self.clock.seconds() - began);
            if self.state.step.is_multiple_of(t.log_every) {
                self.state.elapsed = self.seconds();
                let seconds = (self.clock.seconds() - row_started.0 - resting).max(1e-9);
                let row = self.train_row(lr, grad_norm, (self.state.tokens - row_started.1) as f64 / seconds);
                if let Some((rank, share)) = slow(&row.waited, seconds)
                    && self.failing.insert(SLOW)
                {
                    let share = 100.0 * share;
                    tell(Event::Note(&format!("rank {rank} is slow: the others wait for it {share:.0} % of the time")));
                }
                (row_started, resting) = ((self.clock.seconds(), self.state.tokens), 0.0);
                if shown.elapsed().as_secs_f64() >= 1.0 {
                    let some = self.inputs.valid.first(SOME);
                    // A document is scored whole, and one can be a book.
                    if !self.eta.knows_scoring() && some.totals().tokens <= 4 * SOME {
                        let began = self.clock.seconds();
                        self.score(&some, stop, tell)?;
                        resting += self.clock.seconds() - began;
                        self.eta.scored(some.totals().tokens, self.clock.seconds() - began);
                    }
                    let scored = (self.probe.totals().tokens, self.inputs.valid.totals().tokens);
                    let left = Left::of(&self.plan, &self.state, &t, scored);
                    tell(Event::Progress(&console::progress(&row, self.plan.total(), self.eta.remaining(&left))));
                    shown = Instant::now();
                }
                self.log(Row::Train(row), tell);
            }
        }
    }

    /// One optimizer step; returns its learning rate and gradient norm, or nothing where `stop` was set on the way.
    fn step(&mut self, stage: usize, progress: f64, stop: &AtomicBool) -> Result<Option<(f64, f64)>, TrainError> {
        let settings = &self.inputs.settings;
        let t = &settings.train;
        if stage != self.state.stage {
            self.state.epochs_before = self.epochs();
            (self.state.stage, self.state.stage_start, self.state.windows) = (stage, self.state.step, Some(0));
        }
        let shape = self.plan.shape(stage);
        let (texts, first) = (&self.inputs.texts, self.windows());
        let window = |i: usize| texts.window(stage, first + i as u64);
        let (rates, total) = (t.rates(), self.plan.total());
        let lr = rates.learning_rate(self.state.step, progress, total);
        let momentum = rates.momentum(progress, total);
        let number = self.state.step + 1;
        let bits = activation_bits(settings.model.activation_bits, t.activation_share, progress);
        self.stepper.lm.set_activation_bits(bits);
        // For a tenth of the run at most: a short one trains it, too.
        let more = self.state.frozen == self.state.step && self.state.step < t.frozen_embedding && progress < 0.1;
        let frozen = self.state.frozen + u64::from(more);
        let step = Step { shape, settings: t, lr, momentum, number, frozen };
        let result = match self.leader {
            Some(leader) => leader.step(&mut self.stepper, stop, self.cx, step, bits, window)?,
            None => self.stepper.step_unless(stop, &Solo, self.cx, step, window)?,
        };
        let Some(result) = result else { return Ok(None) };
        if !result.is_finite() {
            let last_good = self.last_good()?;
            let (loss, grad_norm) = (result.loss, result.grad_norm);
            return Err(TrainError::NotFinite { step: number, loss, grad_norm, last_good });
        }
        if let Some(average) = &mut self.average {
            let counts = progress >= 1.0 - t.average_share;
            self.state.averaged = if counts { self.state.averaged + 1 } else { 0 };
            if counts {
                average.add(self.cx, &self.stepper.params, self.state.averaged, t.average_decay);
            }
        }
        self.state.windows = Some(self.windows() + shape.batch as u64);
        (self.state.step, self.state.frozen) = (number, frozen);
        self.state.tokens += result.tokens;
        self.state.loss_sum.0 += result.loss;
        self.state.loss_sum.1 += 1;
        Ok(Some((lr, result.grad_norm)))
    }

    /// Windows of the stage so far.
    fn windows(&self) -> u64 {
        let even = (self.state.step - self.state.stage_start) * self.plan.shape(self.state.stage).batch as u64;
        self.state.windows.unwrap_or(even)
    }

    /// Passes over each text so far.
    fn epochs(&self) -> Vec<f64> {
        let mut epochs = self.state.epochs_before.clone();
        for (part, passes) in self.inputs.texts.passes(self.state.stage, self.windows()) {
            epochs[part.text] += passes;
        }
        epochs
    }

    fn train_row(&mut self, lr: f64, grad_norm: f64, tokens_per_second: f64) -> TrainRow {
        let (sum, count) = std::mem::take(&mut self.state.loss_sum);
        let (stage, epochs) = (self.state.stage, self.epochs());
        let texts = &self.inputs.texts;
        let parts = texts.parts(stage).iter();
        let sources: BTreeMap<String, f64> =
            parts.map(|part| (texts.name(part).to_string(), epochs[part.text])).collect();
        TrainRow {
            step: self.state.step,
            loss: sum / count.max(1) as f64,
            lr,
            grad_norm,
            tokens: self.state.tokens,
            tokens_per_second,
            elapsed: self.state.elapsed,
            epoch: sources.values().copied().fold(0.0, f64::max),
            seq_len: self.plan.shape(stage).seq_len,
            stage: stage + 1,
            sources,
            waited: std::mem::take(&mut self.stepper.waited),
        }
    }
}

/// What is told once, from the first row on in which it is so.
const SLOW: &str = "a slow rank";
/// The share of time from which on a wait is told.
const WAITS: f64 = 0.2;

/// The rank that others wait for, and what share of these seconds they do so on average.
fn slow(waited: &[f64], seconds: f64) -> Option<(usize, f64)> {
    let (rank, _) = waited.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1))?;
    let share = waited.iter().sum::<f64>() / (waited.len() - 1) as f64 / seconds;
    (share > WAITS).then_some((rank, share))
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
