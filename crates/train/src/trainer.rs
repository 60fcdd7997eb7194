//! The trainer: windows of tokens in, updates, validations, samples and checkpoints out, until the run's end, an early stop or
//! a request to stop.
//!
//! Everything that the next update depends on is in [`State`], the parameters and the optimizers' state; a checkpoint holds all of
//! it, so a run by updates that is stopped and resumed gives the same bits as one that never stopped.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use flashlm_kernels::Exec;
use flashlm_kernels::cpu::Machine;
use flashlm_model::config::ConfigError;
use flashlm_model::io::IoError;
use flashlm_model::io::safetensors::TensorRef;
use flashlm_model::pack::{self, PackError, pack};
use flashlm_model::params::Layout;
use flashlm_model::sample::{self, SampleError};
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Engine, PackedModel, Writer};

use crate::atomic::{self, AtomicError};
use crate::checkpoint::{self, Checkpoint, CheckpointError, Part};
use crate::config::{Settings, SettingsError, ternary_share};
use crate::data::DataError;
use crate::data::curriculum::Curriculum;
use crate::eval::Stories;
use crate::eval::bpb::{EvalError, Latent, Report, evaluate};
use crate::load::{LoadError, read_params, read_state, save_params};
use crate::lock::RunLock;
use crate::log::card::{Card, Scores};
use crate::log::console::{self, Limits};
use crate::log::jsonl::{self, Metrics};
use crate::log::svg::{self, Axis, Series};
use crate::log::tensorboard::Events;
use crate::log::{EvalRow, LogError, Row, SampleRow, TrainRow};
use crate::progress::{Best, Plan, State};
use crate::schedule::{activation_bits, learning_rate};
use crate::stepper::Stepper;

/// Tokens of a sample's prompt that are read at once.
const SAMPLE_ROWS: usize = 16;

/// Why training cannot go on. Whatever was saved before is left as it is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrainError {
    #[error(
        "the loss is not a number at step {step} (loss {loss}, gradient norm {grad_norm}). {last_good}. A lower train.lr usually helps"
    )]
    NotFinite { step: u64, loss: f64, grad_norm: f64, last_good: String },
    #[error("checkpoint of another config: {0}. Leave out the setting, or start a new run in another folder")]
    Conflict(String),
    #[error("{path}: {what}; use an older checkpoint")]
    State { path: PathBuf, what: String },
    #[error("{0} holds a run already. Go on with it by --resume {0}, or choose another folder with --save-dir")]
    Exists(PathBuf),
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
    /// The run's folder.
    pub run: PathBuf,
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

/// A run at work.
pub struct Trainer<'a> {
    cx: &'a Exec,
    inputs: Inputs,
    stepper: Stepper,
    state: State,
    plan: Plan,
    /// The part of `valid` that is scored while training.
    probe: Stories,
    samples: Vec<SampleRow>,
    metrics: Metrics,
    events: Events,
    saved: Saved,
    _lock: RunLock,
}

/// When the last checkpoint was made.
struct Saved {
    step: Option<u64>,
    at: Instant,
}

impl<'a> Trainer<'a> {
    /// A new run in `inputs.run`, or one that goes on from `resume`.
    pub fn new(cx: &'a Exec, inputs: Inputs, resume: Option<&Checkpoint>) -> Result<Self, TrainError> {
        let Inputs { settings, run, texts, .. } = &inputs;
        settings.validate()?;
        settings.model.fits(&inputs.tokenizer)?;
        let lock = RunLock::acquire(run)?;
        if resume.is_none() && !checkpoint::list(run)?.is_empty() {
            return Err(TrainError::Exists(run.clone()));
        }
        let t = &settings.train;
        let batch = t.batch * t.accumulation;
        let plan = Plan::new(settings, texts.extents(), batch);
        let mut stepper = Stepper::new(&settings.model, t.precision, (batch, plan.longest()), t)?;
        let state = match resume {
            Some(from) => restore(from, settings, &mut stepper)?,
            None => State { epochs_before: vec![0.0; texts.texts().len()], ..State::default() },
        };
        let metrics_path = run.join("metrics.jsonl");
        let (metrics, events) = match resume {
            Some(_) => (Metrics::resume(&metrics_path, state.step)?, Events::resume(run, state.step)?),
            None => (Metrics::create(&metrics_path)?, Events::create(run)?),
        };
        let toml = settings.to_toml();
        write(&run.join("config.toml"), toml.as_bytes())?;
        let about = serde_json::json!({ "name": settings.name, "entropy_bound": inputs.entropy_bound });
        write(&run.join("run.json"), about.to_string().as_bytes())?;
        let probe = inputs.valid.first(t.eval_tokens);
        let saved = Saved { step: resume.map(Checkpoint::step), at: Instant::now() };
        let samples = Vec::new();
        Ok(Trainer { cx, inputs, stepper, state, plan, probe, samples, metrics, events, saved, _lock: lock })
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Names and places of the parameters.
    pub fn layout(&self) -> &Layout {
        self.stepper.lm.layout()
    }

    /// Trains to the end of the plan, an early stop, or until `stop` is set; the last validation is returned.
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(Outcome, Option<Report>), TrainError> {
        let start = Instant::now();
        let before = self.state.elapsed;
        let mut row_started = (Instant::now(), self.state.tokens);
        let mut shown = Instant::now();
        let mut resting = 0.0;
        let mut told = None;
        let t = self.inputs.settings.train.clone();
        let outcome = loop {
            self.state.elapsed = before + start.elapsed().as_secs_f64();
            let progress = self.plan.progress(&self.state);
            if progress >= 1.0 {
                break Outcome::Finished;
            }
            if stop.load(Relaxed) {
                break Outcome::Interrupted;
            }
            if t.patience > 0 && self.state.since_best >= t.patience {
                break Outcome::EarlyStop;
            }
            let stage = self.plan.stage(&self.state);
            if self.plan.stages() > 1 && told.replace(stage) != Some(stage) {
                let texts = &self.inputs.texts;
                let names: Vec<&str> = texts.parts(stage).iter().map(|part| texts.name(part)).collect();
                let names = names.join(" + ");
                let (of, length) = (self.plan.stages(), self.plan.seq_len(stage));
                tell(Event::Note(&format!("stage {} of {of}: {names}, T {length}", stage + 1)));
            }
            let (lr, grad_norm) = self.update(stage, progress)?;
            let step = self.state.step;
            if step.is_multiple_of(t.log_every) {
                self.state.elapsed = before + start.elapsed().as_secs_f64();
                let seconds = (row_started.0.elapsed().as_secs_f64() - resting).max(1e-9);
                let row = self.train_row(lr, grad_norm, (self.state.tokens - row_started.1) as f64 / seconds);
                (row_started, resting) = ((Instant::now(), self.state.tokens), 0.0);
                let limits = Limits { steps: self.plan.total(), seconds: self.plan.seconds() };
                if shown.elapsed().as_secs_f64() >= 1.0 {
                    tell(Event::Progress(&console::progress(&row, &limits)));
                    shown = Instant::now();
                }
                self.log(&Row::Train(row))?;
            }
            let pause = Instant::now();
            if due(step, t.eval_every) {
                self.validate(tell)?;
                self.draw()?;
            }
            if due(step, t.sample_every) {
                self.sample(tell)?;
            }
            let by_clock = t.checkpoint_seconds > 0.0 && self.saved.at.elapsed().as_secs_f64() >= t.checkpoint_seconds;
            if due(step, t.checkpoint_every) || by_clock {
                self.save()?;
            }
            resting += pause.elapsed().as_secs_f64();
        };
        if outcome == Outcome::Interrupted {
            self.save()?;
            self.draw()?;
            return Ok((outcome, None));
        }
        let mut report = self.validate(tell)?;
        if self.probe.len() < self.inputs.valid.len() {
            report = score(self.cx, &mut self.stepper, &self.inputs.tokenizer, &self.inputs.valid, tell)?;
        }
        self.save()?;
        self.samples.clear();
        self.sample(tell)?;
        self.draw()?;
        self.write_card(&report)?;
        Ok((outcome, Some(report)))
    }

    /// One update; returns its learning rate and gradient norm.
    fn update(&mut self, stage: usize, progress: f64) -> Result<(f64, f64), TrainError> {
        let settings = &self.inputs.settings;
        let t = &settings.train;
        if stage != self.state.stage {
            self.state.epochs_before = self.epochs();
            (self.state.stage, self.state.stage_start) = (stage, self.state.step);
        }
        let (seq_len, batch) = (self.plan.seq_len(stage), t.batch * t.accumulation);
        let (texts, first) = (&self.inputs.texts, self.windows());
        let window = |i: usize| texts.window(stage, first + i as u64);
        let lr = learning_rate(t, self.state.step, progress, self.plan.total());
        let step = self.state.step + 1;
        self.stepper.lm.set_activation_bits(activation_bits(settings.model.activation_bits, t, progress));
        let update = self.stepper.step(self.cx, (batch, seq_len), window, t, lr, step);
        if !update.is_finite() {
            let last_good = match self.saved.step {
                Some(step) => format!("The last good checkpoint is step {step} in {}", self.inputs.run.display()),
                None => "No checkpoint was made before it".into(),
            };
            return Err(TrainError::NotFinite { step, loss: update.loss, grad_norm: update.grad_norm, last_good });
        }
        self.state.step = step;
        self.state.tokens += update.tokens;
        self.state.loss_sum.0 += update.loss;
        self.state.loss_sum.1 += 1;
        Ok((lr, update.grad_norm))
    }

    /// Windows of the stage so far.
    fn windows(&self) -> u64 {
        let t = &self.inputs.settings.train;
        (self.state.step - self.state.stage_start) * (t.batch * t.accumulation) as u64
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

    fn log(&mut self, row: &Row) -> Result<(), TrainError> {
        self.metrics.append(row)?;
        Ok(self.events.append(row)?)
    }

    /// Scores the probe, always the same stories with activations as they are in use, and remembers the best.
    fn validate(&mut self, tell: &mut dyn FnMut(Event)) -> Result<Report, TrainError> {
        self.stepper.lm.set_activation_bits(self.inputs.settings.model.activation_bits);
        let report = score(self.cx, &mut self.stepper, &self.inputs.tokenizer, &self.probe, tell)?;
        let best = self.state.best.is_none_or(|best| report.bpb < best.bpb);
        if best {
            self.state.best = Some(Best { bpb: report.bpb, step: self.state.step });
            self.state.since_best = 0;
        } else {
            self.state.since_best += 1;
        }
        let (step, tokens, elapsed) = (self.state.step, self.state.tokens, self.state.elapsed);
        let row = EvalRow { step, tokens, elapsed, loss: report.loss_per_token, bpb: report.bpb, best };
        tell(Event::Note(&console::valid(&row, self.inputs.entropy_bound)));
        self.log(&Row::Eval(row))?;
        if best {
            self.save()?;
            checkpoint::mark_best(&self.inputs.run, step)?;
        }
        Ok(report)
    }

    /// Lets the model go on from each prompt.
    fn sample(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let t = self.inputs.settings.train.clone();
        let Stepper { lm, params, .. } = &self.stepper;
        let bytes = pack(self.cx, lm.config(), lm.layout(), params, &self.inputs.tokenizer, pack::Options::default());
        let model = Arc::new(PackedModel::from_bytes(bytes, "the model being trained")?);
        let mut engine = Engine::new(model.clone(), Exec::new(self.cx.isa(), 1), SAMPLE_ROWS);
        for (i, prompt) in t.prompts.iter().enumerate() {
            let settings = sample::Settings {
                temperature: 0.8,
                top_p: 0.95,
                seed: t.seed ^ (self.state.step << 8 | i as u64),
                ..sample::Settings::default()
            };
            let mut writer = Writer::new(&model, settings, t.sample_tokens, &[])?;
            writer.read(prompt);
            let mut text = String::new();
            engine.write(&mut writer, |piece| text.push_str(piece))?;
            let row = SampleRow { step: self.state.step, prompt: prompt.clone(), text };
            tell(Event::Sample(&row));
            self.log(&Row::Sample(row.clone()))?;
            self.samples.push(row);
        }
        Ok(())
    }

    /// Saves a checkpoint of this step, unless there is one, and removes old ones.
    fn save(&mut self) -> Result<(), TrainError> {
        if self.saved.step == Some(self.state.step) {
            self.saved.at = Instant::now();
            return Ok(());
        }
        let Stepper { lm, params, optimizers, .. } = &mut self.stepper;
        let (tensors, metadata) = save_params(lm.layout(), params, &self.inputs.settings.model);
        let kept = optimizers.state();
        let kept = kept.iter().map(|t| TensorRef { name: &t.name, shape: &t.shape, data: t.data });
        let state = serde_json::to_vec_pretty(&self.state).map_err(io::Error::from);
        let state = state.map_err(|e| AtomicError::new(Path::new("state.json"), "writing", 0, e))?;
        let (toml, tokenizer) = (self.inputs.settings.to_toml(), self.inputs.tokenizer.to_json());
        let parts = [
            Part::Tensors { file: "model.safetensors", tensors, metadata },
            Part::Tensors { file: "optimizer.safetensors", tensors: kept.collect(), metadata: Default::default() },
            Part::Bytes { file: "state.json", data: &state },
            Part::Bytes { file: "config.toml", data: toml.as_bytes() },
            Part::Bytes { file: "tokenizer.json", data: &tokenizer },
        ];
        checkpoint::save(&self.inputs.run, self.state.step, &parts)?;
        self.saved = Saved { step: Some(self.state.step), at: Instant::now() };
        checkpoint::prune(&self.inputs.run, self.inputs.settings.train.keep, &[])?;
        Ok(())
    }

    /// Draws `curve.svg` from the metrics written so far.
    fn draw(&self) -> Result<(), TrainError> {
        let run = &self.inputs.run;
        let name = self.inputs.settings.name.clone();
        let rows = jsonl::read(&run.join("metrics.jsonl"))?;
        let options =
            svg::Options { title: name.clone(), axis: Axis::Tokens, entropy_bound: self.inputs.entropy_bound };
        let picture = svg::draw(&[Series::new(name, rows)], &options);
        write(&run.join("curve.svg"), picture.as_bytes())
    }

    fn write_card(&self, report: &Report) -> Result<(), TrainError> {
        let Inputs { settings, tokenizer, run, .. } = &self.inputs;
        let layout = self.stepper.lm.layout();
        let machine = Machine::detect();
        let card = Card {
            name: settings.name.clone(),
            parameters: layout.parameters() as u64,
            ternary_share: ternary_share(layout),
            dataset: settings.texts().into_iter().map(|text| text.source).collect::<Vec<_>>().join(", "),
            tokenizer: tokenizer.kind().into(),
            vocab: tokenizer.vocab_size(),
            tokens: self.state.tokens,
            seconds: self.state.elapsed,
            machine: format!("{}, {} threads, {}", machine.name, self.cx.pool().threads(), self.cx.isa().name()),
            precision: settings.train.precision,
            settings: settings.to_toml(),
            scores: Some(Scores { loss: report.loss_per_token, bpb: report.bpb, bpb_with_eos: report.bpb_with_eos }),
            entropy_bound: self.inputs.entropy_bound,
            samples: self.samples.clone(),
        };
        write(&run.join("README.md"), card.markdown().as_bytes())
    }
}

/// Scores `stories` and tells how far it has come.
fn score(
    cx: &Exec,
    stepper: &mut Stepper,
    tokenizer: &Tokenizer,
    stories: &Stories,
    tell: &mut dyn FnMut(Event),
) -> Result<Report, TrainError> {
    let total = stories.totals().tokens.max(1);
    let mut shown = Instant::now();
    let report = evaluate(&mut Latent::new(cx, &mut *stepper.lm, &stepper.params), tokenizer, stories, &mut |done| {
        if shown.elapsed().as_secs_f64() >= 1.0 {
            shown = Instant::now();
            tell(Event::Progress(&format!("validation {:3.0} %", 100.0 * done as f64 / total as f64)));
        }
        ControlFlow::Continue(())
    })?;
    Ok(report)
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    Ok(atomic::write_file(path, |w| io::Write::write_all(w, bytes))?)
}

/// Fills the stepper from a checkpoint of the same settings and returns where the run stood.
fn restore(from: &Checkpoint, settings: &Settings, stepper: &mut Stepper) -> Result<State, TrainError> {
    let bad = |file: &str, what: String| TrainError::State { path: from.path().join(file), what };
    let text = String::from_utf8(from.bytes("config.toml")?).map_err(|e| bad("config.toml", e.to_string()))?;
    let mut saved = Settings::from_toml(&text, "the checkpoint's config.toml")?;
    // Runs saved before there was a reset do not tell the token; the tokenizer is the checkpoint's own.
    if !saved.model.reset {
        saved.model.eos = settings.model.eos;
    }
    if let Some(conflict) = saved.conflict(settings) {
        return Err(TrainError::Conflict(conflict));
    }
    stepper.params = read_params(&from.tensors("model.safetensors")?, stepper.lm.layout())?;
    read_state(&from.tensors("optimizer.safetensors")?, &mut stepper.optimizers.state())?;
    let state: State =
        serde_json::from_slice(&from.bytes("state.json")?).map_err(|e| bad("state.json", e.to_string()))?;
    let (stages, texts) = (settings.stages().len(), settings.texts().len());
    if state.step != from.step()
        || state.stage >= stages
        || state.epochs_before.len() != texts
        || state.stage_start > state.step
        || !state.elapsed.is_finite()
    {
        return Err(bad("state.json", "its values do not belong together".into()));
    }
    Ok(state)
}
