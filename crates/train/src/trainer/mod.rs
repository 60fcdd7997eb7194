//! The trainer: windows of tokens in, updates, validations, samples and checkpoints out, until the run's end, an early stop or
//! a request to stop.
//!
//! Everything that the next update depends on is in [`State`], the parameters and the optimizers' state; a checkpoint holds all of
//! it, so a run by updates that is stopped and resumed gives the same bits as one that never stopped.

mod finish;
mod resume;
mod save;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use flashlm_kernels::{Buf, Exec};
use flashlm_model::config::ConfigError;
use flashlm_model::io::IoError;
use flashlm_model::pack::PackError;
use flashlm_model::params::Layout;
use flashlm_model::sample::SampleError;
use flashlm_model::tok::Tokenizer;

use crate::atomic::AtomicError;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::clock::Clock;
use crate::config::{Settings, SettingsError};
use crate::curriculum::Curriculum;
use crate::data::DataError;
use crate::eval::Stories;
use crate::eval::bpb::{EvalError, Latent, Report, evaluate};
use crate::load::LoadError;
use crate::log::console::{self, Limits};
use crate::log::jsonl::Metrics;
use crate::log::tensorboard::Events;
use crate::log::{EvalRow, LogError, Row, SampleRow, TrainRow};
use crate::progress::{Best, Plan, State};
use crate::run_folder::{Claim, METRICS, RunError, SETTINGS};
use crate::schedule::activation_bits;
use crate::stepper::Stepper;

pub use finish::{Ending, Scored, finished};
pub use resume::{check, continued, state};
use save::Saved;

/// Why training cannot go on. Whatever was saved before is left as it is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrainError {
    #[error(
        "the loss is not a number at step {step} (loss {loss}, gradient norm {grad_norm}). The last good checkpoint is {}. A lower learning rate usually helps: --resume with a lower --lr goes on from there",
        last_good.display()
    )]
    NotFinite { step: u64, loss: f64, grad_norm: f64, last_good: PathBuf },
    #[error("checkpoint of another config: {0}. Leave out the setting, or start a new run in another folder")]
    Conflict(String),
    #[error("{path}: {what}; use an older checkpoint")]
    State { path: PathBuf, what: String },
    /// No error of anybody's: there is nothing left to train.
    #[error("{0}")]
    Finished(String),
    #[error("{0}")]
    TooLarge(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Io(#[from] IoError),
    #[error(transparent)]
    Atomic(#[from] AtomicError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What a run starts from.
pub struct Inputs {
    /// Resolved: no size left to the hardware.
    pub settings: Settings,
    /// The vocabulary of `texts` and `valid`.
    pub tokenizer: Tokenizer,
    /// Training tokens.
    pub texts: Curriculum,
    /// Validation stories.
    pub valid: Stories,
    /// Bits per byte no model can go below on `valid`, where known.
    pub entropy_bound: Option<f64>,
    /// What a new run starts from, in the order of the layout; none for a fresh start.
    pub start: Option<Buf<f32>>,
    /// The run's folder.
    pub claim: Claim,
}

impl Inputs {
    /// What tells the texts, and the validation text, from others.
    fn contents(&self) -> (Vec<u64>, u64) {
        (self.texts.texts().iter().map(|text| text.cache.content()).collect(), self.valid.content())
    }
}

/// What the trainer tells while it works.
pub enum Event<'a> {
    /// One line of progress, replaced by the next.
    Progress(&'a str),
    /// A line to keep.
    Note(&'a str),
    /// A text the model wrote.
    Sample(&'a SampleRow),
}

/// Takes what is told.
pub type Tell<'a> = &'a mut dyn FnMut(Event);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it.
    Finished,
    /// No validation has improved for `patience` of them.
    EarlyStop,
    /// The stop flag was set; everything is saved.
    Interrupted,
}

impl Outcome {
    /// Its name in `result.json`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Finished => "finished",
            Outcome::EarlyStop => "early stop",
            Outcome::Interrupted => "interrupted",
        }
    }
}

/// A run at work.
pub struct Trainer<'a> {
    cx: &'a Exec,
    inputs: Inputs,
    stepper: Stepper,
    state: State,
    plan: Plan,
    clock: Clock,
    /// Seconds of training before this process.
    before: f64,
    /// The part of `valid` that is scored while training.
    probe: Stories,
    /// The last validation: its step and figures.
    probed: Option<(u64, Report)>,
    metrics: Option<Metrics>,
    /// Rows that are not in the log yet.
    pending: VecDeque<Row>,
    events: Option<Events>,
    saved: Saved,
    /// The step of this run that was gone on from; its checkpoint is kept while this process trains.
    resumed: Option<u64>,
    /// The step whose samples are in the log.
    sampled: Option<u64>,
    /// What has begun to fail and is not told again.
    failing: BTreeSet<&'static str>,
    /// What is told when the run begins.
    notes: Vec<String>,
}

impl<'a> Trainer<'a> {
    /// A new run in the claimed folder, or one that goes on from `resume`, a checkpoint of this folder or another.
    pub fn new(cx: &'a Exec, inputs: Inputs, resume: Option<&Checkpoint>) -> Result<Self, TrainError> {
        let Inputs { settings, texts, .. } = &inputs;
        settings.validate()?;
        settings.model.fits(&inputs.tokenizer)?;
        let t = &settings.train;
        let batch = t.batch * t.accumulation;
        let plan = Plan::new(settings, texts.extents(), batch);
        let mut stepper = Stepper::new(&settings.model, t.precision, (batch, plan.longest()), t)?;
        let mut notes = Vec::new();
        let state = match resume {
            Some(from) => resume::same_text(resume::restore(from, settings, &mut stepper)?, &inputs, &mut notes),
            None => {
                inputs.start.iter().for_each(|start| stepper.params.copy_from_slice(start));
                State::new(inputs.contents())
            }
        };
        let (probe, before) = (inputs.valid.first(t.eval_tokens), state.elapsed);
        let mut trainer = Trainer {
            cx,
            inputs,
            stepper,
            state,
            plan,
            clock: Clock::start(),
            before,
            probe,
            probed: None,
            metrics: None,
            pending: VecDeque::new(),
            events: None,
            saved: Saved::default(),
            resumed: None,
            sampled: None,
            failing: BTreeSet::new(),
            notes,
        };
        match resume {
            Some(from) => trainer.go_on(from)?,
            None => trainer.begin()?,
        }
        Ok(trainer)
    }

    /// The files of a new run. Nothing is trained yet: what fails here ends it.
    fn begin(&mut self) -> Result<(), TrainError> {
        let Inputs { settings, claim, entropy_bound, .. } = &mut self.inputs;
        claim.mark(&settings.name, *entropy_bound)?;
        claim.write(SETTINGS, settings.to_toml().as_bytes())?;
        self.metrics = Some(Metrics::create(&claim.folder().file(METRICS))?);
        self.events = Some(Events::create(claim.folder().path())?);
        Ok(())
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Names and places of the parameters.
    pub fn layout(&self) -> &Layout {
        self.stepper.lm.layout()
    }

    /// Trains to the end of the plan, an early stop, or until `stop` is set; what a finished run came to is returned.
    pub fn run(&mut self, stop: &AtomicBool, tell: Tell) -> Result<(Outcome, Option<Ending>), TrainError> {
        for note in std::mem::take(&mut self.notes) {
            tell(Event::Note(&note));
        }
        let ended = self.updates(stop, tell).and_then(|outcome| match outcome {
            Outcome::Interrupted => Ok((outcome, None)),
            outcome => self.finish(outcome, stop, tell),
        });
        match ended {
            Ok((Outcome::Interrupted, _)) => {
                self.save(tell)?;
                self.draw(tell);
            }
            // The one could not be saved, the other has weights that are not worth it.
            Err(TrainError::Checkpoint(_) | TrainError::NotFinite { .. }) | Ok(_) => {}
            Err(_) => self.rescue(tell),
        }
        ended
    }

    fn seconds(&self) -> f64 {
        self.before + self.clock.seconds()
    }

    fn updates(&mut self, stop: &AtomicBool, tell: Tell) -> Result<Outcome, TrainError> {
        let mut row_started = (self.clock.seconds(), self.state.tokens);
        let mut shown = Instant::now();
        let mut resting = 0.0;
        let mut told = None;
        let t = self.inputs.settings.train.clone();
        if self.state.step > 0 && self.saved.key.is_none() {
            // What was gone on from lies in another folder: this one has nothing yet.
            self.save(tell)?;
            if let Some(best) = self.state.best {
                let marked = self.inputs.claim.mark_best(Some(best.step));
                self.aside(MARKING, marked, tell);
            }
        }
        loop {
            self.state.elapsed = self.seconds();
            let progress = self.plan.progress(&self.state);
            if stop.load(Relaxed) {
                return Ok(Outcome::Interrupted);
            }
            let pause = self.clock.seconds();
            let step = self.state.step;
            if step > 0 && due(step, t.eval_every) && self.state.validated.is_none_or(|v| v.step != step) {
                if !self.validate(stop, tell)? {
                    return Ok(Outcome::Interrupted);
                }
                self.draw(tell);
            }
            let by_clock = t.checkpoint_seconds > 0.0 && self.clock.seconds() - self.saved.at >= t.checkpoint_seconds;
            if step > 0 && (due(step, t.checkpoint_every) || by_clock) {
                self.save(tell)?;
            }
            if progress >= 1.0 {
                return Ok(Outcome::Finished);
            }
            if t.patience > 0 && self.state.since_best >= t.patience {
                return Ok(Outcome::EarlyStop);
            }
            if step > 0 && due(step, t.sample_every) && self.sampled != Some(step) {
                self.sample(step, true, tell);
            }
            resting += self.clock.seconds() - pause;
            let stage = self.plan.stage(&self.state);
            if self.plan.stages() > 1 && told.replace(stage) != Some(stage) {
                let texts = &self.inputs.texts;
                let names: Vec<&str> = texts.parts(stage).iter().map(|part| texts.name(part)).collect();
                let names = names.join(" + ");
                let (of, length) = (self.plan.stages(), self.plan.seq_len(stage));
                tell(Event::Note(&format!("stage {} of {of}: {names}, T {length}", stage + 1)));
            }
            let Some((lr, grad_norm)) = self.update(stage, progress, stop)? else { return Ok(Outcome::Interrupted) };
            if self.state.step.is_multiple_of(t.log_every) {
                self.state.elapsed = self.seconds();
                let seconds = (self.clock.seconds() - row_started.0 - resting).max(1e-9);
                let row = self.train_row(lr, grad_norm, (self.state.tokens - row_started.1) as f64 / seconds);
                (row_started, resting) = ((self.clock.seconds(), self.state.tokens), 0.0);
                let limits = Limits { steps: self.plan.total(), seconds: self.plan.seconds() };
                if shown.elapsed().as_secs_f64() >= 1.0 {
                    tell(Event::Progress(&console::progress(&row, &limits)));
                    shown = Instant::now();
                }
                self.log(Row::Train(row), tell);
            }
        }
    }

    /// One update; returns its learning rate and gradient norm, or nothing where `stop` was set on the way.
    fn update(&mut self, stage: usize, progress: f64, stop: &AtomicBool) -> Result<Option<(f64, f64)>, TrainError> {
        let settings = &self.inputs.settings;
        let t = &settings.train;
        if stage != self.state.stage {
            self.state.epochs_before = self.epochs();
            (self.state.stage, self.state.stage_start, self.state.windows) = (stage, self.state.step, Some(0));
        }
        let (seq_len, batch) = (self.plan.seq_len(stage), t.batch * t.accumulation);
        let (texts, first) = (&self.inputs.texts, self.windows());
        let window = |i: usize| texts.window(stage, first + i as u64);
        let lr = t.rates().learning_rate(self.state.step, progress, self.plan.total());
        let step = self.state.step + 1;
        self.stepper.lm.set_activation_bits(activation_bits(
            settings.model.activation_bits,
            t.activation_share,
            progress,
        ));
        let size = (batch, seq_len);
        let Some(update) = self.stepper.step_unless(stop, self.cx, size, window, t, lr, step) else { return Ok(None) };
        if !update.is_finite() {
            let last_good = self.last_good()?;
            return Err(TrainError::NotFinite { step, loss: update.loss, grad_norm: update.grad_norm, last_good });
        }
        self.state.windows = Some(self.windows() + batch as u64);
        self.state.step = step;
        self.state.tokens += update.tokens;
        self.state.loss_sum.0 += update.loss;
        self.state.loss_sum.1 += 1;
        Ok(Some((lr, update.grad_norm)))
    }

    /// Windows of the stage so far.
    fn windows(&self) -> u64 {
        let t = &self.inputs.settings.train;
        let even = (self.state.step - self.state.stage_start) * (t.batch * t.accumulation) as u64;
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
            seq_len: self.plan.seq_len(stage),
            stage: stage + 1,
            sources,
        }
    }

    /// Scores the probe, always the same stories with activations as they are in use, and remembers the best. `false`, and nothing
    /// remembered, where `stop` was set on the way.
    fn validate(&mut self, stop: &AtomicBool, tell: Tell) -> Result<bool, TrainError> {
        let probe = std::mem::take(&mut self.probe);
        let report = self.score(&probe, stop, tell);
        self.probe = probe;
        let Some(report) = report? else { return Ok(false) };
        let now = Best { bpb: report.bpb, step: self.state.step };
        let best = self.state.best.is_none_or(|best| now.bpb < best.bpb);
        if best {
            self.state.best = Some(now);
            self.state.since_best = 0;
        } else {
            self.state.since_best += 1;
        }
        self.state.validated = Some(now);
        let (step, tokens, elapsed) = (self.state.step, self.state.tokens, self.state.elapsed);
        let row = EvalRow { step, tokens, elapsed, loss: report.loss_per_token, bpb: report.bpb, best };
        tell(Event::Note(&console::valid(&row, self.inputs.entropy_bound)));
        self.log(Row::Eval(row), tell);
        if best {
            self.save(tell)?;
            let marked = self.inputs.claim.mark_best(Some(step));
            self.aside(MARKING, marked, tell);
        }
        self.probed = Some((step, report));
        Ok(true)
    }

    /// Scores stories with the parameters at hand, and tells how far it has come; nothing where `stop` was set on the way.
    fn score(&mut self, stories: &Stories, stop: &AtomicBool, tell: Tell) -> Result<Option<Report>, TrainError> {
        let Stepper { lm, params, .. } = &mut self.stepper;
        lm.set_activation_bits(self.inputs.settings.model.activation_bits);
        let total = stories.totals().tokens.max(1);
        let mut shown = Instant::now();
        let scored =
            evaluate(&mut Latent::new(self.cx, &mut **lm, params), &self.inputs.tokenizer, stories, &mut |done| {
                if shown.elapsed().as_secs_f64() >= 1.0 {
                    shown = Instant::now();
                    tell(Event::Progress(&format!("validation {:3.0} %", 100.0 * done as f64 / total as f64)));
                }
                if stop.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        match scored {
            Err(EvalError::Stopped) => Ok(None),
            scored => Ok(Some(scored?)),
        }
    }
}

/// What is told where it fails.
const MARKING: &str = "marking the best checkpoint";

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
