//! Forecast of a run: some passes of each stage are measured and thrown away.

use std::time::{Duration, Instant};

use flashlm_kernels::Exec;
use flashlm_kernels::cpu::CpuTime;

use flashlm_model::Shape;

use super::open::open_text;
use super::{Prepared, Resolved};
use crate::curriculum::Part;
use crate::data::source::Source;
use crate::eta::{Eta, Left};
use crate::progress::{Plan, State};
use crate::stepper::{Step, Stepper};
use crate::trainer::{Event, Tell, TrainError, state};
use crate::units::{duration, thousands};

/// Passes of a step that are measured, and how often; once where that is enough.
const MEASURED: usize = 4;
const ROUNDS: usize = 3;
const ENOUGH: Duration = Duration::from_secs(2);

/// What a run would do from its current position.
pub struct Forecast {
    /// Its stages.
    pub stages: Vec<StageForecast>,
    /// Sequences per step, in stages without a batch of their own.
    pub batch: usize,
    /// Parameters of the model.
    pub parameters: usize,
    /// Seconds of what is no step, guessed from the speed of the steps: validations, samples, checkpoints, and all that comes after the
    /// last step.
    pub rest: f64,
    /// The share of the processors that the threads had while they were measured, of what they asked for: 1 where no other
    /// program was at work.
    pub cpu_share: f64,
}

/// What a stage would do.
pub struct StageForecast {
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Sequences per step.
    pub batch: usize,
    /// Its fraction of the run.
    pub share: f64,
    /// Steps left in it.
    pub steps: f64,
    /// Tokens that these train on.
    pub tokens: f64,
    /// Seconds that these take.
    pub seconds: f64,
    /// Its texts.
    pub texts: Vec<TextForecast>,
}

/// What a stage would read of a text.
pub struct TextForecast {
    /// Its name.
    pub name: String,
    /// Its fraction of the stage's windows.
    pub share: f64,
    /// Documents in it.
    pub stories: usize,
    /// Tokens in it.
    pub tokens: usize,
    /// Tokens that one epoch trains on.
    pub trained: u64,
    /// Epochs of it.
    pub epochs: f64,
}

impl Forecast {
    /// Tokens of all stages.
    pub fn tokens(&self) -> f64 {
        self.stages.iter().map(|stage| stage.tokens).sum()
    }

    /// Steps of all stages.
    pub fn steps(&self) -> f64 {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// Seconds of the steps of all stages.
    pub fn training(&self) -> f64 {
        self.stages.iter().map(|stage| stage.seconds).sum()
    }

    /// Seconds until all is done.
    pub fn seconds(&self) -> f64 {
        self.training() + self.rest
    }
}

impl Resolved {
    /// An error that names every text that is not on this machine; the plan as far as it goes without them is told.
    pub fn texts_are_here(&self, tell: Tell) -> Result<(), TrainError> {
        let specs = self.settings.texts();
        let seed = self.settings.train.seed;
        let missing: Vec<String> = specs
            .iter()
            .filter_map(|spec| open_text(spec, seed, true, &|| false, tell).err())
            .map(|error| error.to_string())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let stages = self.settings.stages();
        for (i, stage) in stages.iter().enumerate() {
            let sum: f64 = stage.sources.iter().map(|source| source.weight).sum();
            let texts: Vec<String> = stage
                .sources
                .iter()
                .map(|source| format!("{} {:.0} %", source.source, 100.0 * source.weight / sum))
                .collect();
            let (of, t, share) = (stages.len(), stage.seq_len, 100.0 * stage.share);
            let texts = texts.join(", ");
            tell(Event::Note(&format!("stage {} of {of}: T {t}, {share:.0} % of the run: {texts}", i + 1)));
        }
        let files = specs.iter().all(|spec| Source::is_of_files(&spec.source));
        Err(TrainError::NotHere { missing, of: specs.len(), files })
    }
}

impl Prepared {
    /// Measures some passes, and forecasts the rest of the run.
    pub fn forecast(&self, cx: &Exec, tell: Tell) -> Result<Forecast, TrainError> {
        let settings = self.settings();
        let plan = Plan::new(settings, self.texts.extents());
        let state = self.resolved.checkpoint().map(|from| state(from, settings)).transpose()?.unwrap_or_default();
        if state.step > 0 {
            let (step, elapsed) = (thousands(state.step), duration(state.elapsed));
            tell(Event::Note(&format!("from step {step} on, after {elapsed}:")));
        }
        let t = &settings.train;
        let mut stepper = Stepper::new(&settings.model, t.precision, settings.largest(), t)?;
        let before = CpuTime::now();
        let mut clock = plan.seconds().map_or(f64::INFINITY, |limit| (limit - state.elapsed).max(0.0));
        let stage = |i| {
            let seconds = self.step_seconds(cx, &mut stepper, i, plan.shape(i))?;
            let stage = self.stage(i, seconds, &plan, &state, clock);
            clock -= stage.seconds;
            Ok(stage)
        };
        let stages = (0..plan.stages()).map(stage).collect::<Result<Vec<_>, TrainError>>()?;
        let cpu_share = CpuTime::share_since(before);
        let parameters = stepper.lm.layout().parameters();
        let valid = (self.valid.first(t.eval_tokens).totals().tokens, self.valid.totals().tokens);
        let left = Left::of(&plan, &state, t, valid);
        let mut eta = Eta::new(t, parameters);
        let steps: f64 = stages.iter().map(|stage: &StageForecast| stage.seconds).sum();
        let trained: f64 = stages.iter().map(|stage| stage.steps * (stage.batch * stage.seq_len) as f64).sum();
        eta.trained(trained.ceil() as usize, steps);
        let rest = eta.remaining(&left).map_or(0.0, |all| (all - steps).max(0.0));
        Ok(Forecast { stages, batch: t.sequences(), parameters, rest, cpu_share })
    }

    /// The time of one step of a stage. Of a long one a few passes are measured, and the others take as long.
    fn step_seconds(&self, cx: &Exec, stepper: &mut Stepper, stage: usize, shape: Shape) -> Result<f64, TrainError> {
        let t = &self.settings().train;
        let Shape { batch, seq_len } = shape;
        let pass = (stepper.lm.rows() / seq_len).max(1);
        let mut step = |n: usize, sequences: usize| {
            let shape = Shape { batch: sequences, seq_len };
            let window = |i: usize| self.texts.window(stage, (n * batch + i) as u64);
            let start = Instant::now();
            let number = n as u64 + 1;
            let (lr, momentum) = (t.min_lr.min(t.lr), t.momentum);
            let result = stepper.step(cx, Step { shape, settings: t, lr, momentum, number, frozen: 0 }, window);
            if result.is_finite() {
                Ok(start.elapsed().as_secs_f64())
            } else {
                Err(TrainError::NotMeasured { n: number, result })
            }
        };
        let (few, many) = (pass.min(batch), batch.min(MEASURED * pass));
        step(0, few)?;
        let start = Instant::now();
        let mut rounds = Vec::new();
        while rounds.len() < ROUNDS && (rounds.is_empty() || start.elapsed() < ENOUGH) {
            let (short, long) = (step(rounds.len(), few)?, step(rounds.len(), many)?);
            let more = (batch - many) as f64 / (many - few).max(1) as f64;
            rounds.push(long + (long - short).max(0.0) * more);
        }
        rounds.sort_by(f64::total_cmp);
        Ok(rounds[rounds.len() / 2])
    }

    /// What is left of a stage in a run that stands at `state` and has `clock` seconds left, where one step takes `step` seconds.
    fn stage(&self, i: usize, step: f64, plan: &Plan, state: &State, clock: f64) -> StageForecast {
        let stages = self.settings().stages();
        let about = &stages[i];
        let left = |before: f64, own: f64, passed: f64| (own - (passed - before).max(0.0)).max(0.0);
        let steps = match (plan.steps(i), plan.seconds()) {
            (Some(own), _) => {
                let before: u64 = (0..i).filter_map(|i| plan.steps(i)).sum();
                left(before as f64, own as f64, state.step as f64).min(clock.max(0.0) / step)
            }
            (None, limit) => {
                let limit = limit.unwrap_or_default();
                let before: f64 = stages[..i].iter().map(|stage| stage.share).sum();
                left(before * limit, about.share * limit, state.elapsed) / step
            }
        };
        let Shape { batch, seq_len } = plan.shape(i);
        let windows = steps * batch as f64;
        let text = |(part, epochs): (&Part, f64)| {
            let text = &self.texts.texts()[part.text];
            TextForecast {
                name: text.name.clone(),
                share: part.share,
                stories: text.cache.stories(),
                tokens: text.cache.tokens().len(),
                trained: part.windows.trained(),
                epochs,
            }
        };
        StageForecast {
            seq_len,
            batch,
            share: about.share,
            steps,
            tokens: windows * self.texts.extents()[i].tokens,
            seconds: steps * step,
            texts: self.texts.passes(i, windows as u64).map(text).collect(),
        }
    }
}
