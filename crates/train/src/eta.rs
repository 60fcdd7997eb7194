//! When a run will be done: what is left of it, each part at the speed it has had so far.
//!
//! What has not happened yet is guessed from the speed of training: scoring is a third of the work of training on the same tokens.
//! Checkpoints by the clock are too rare to count, and whether a run stops early nobody knows.

use crate::config::TrainSettings;
use crate::progress::{Plan, State};

/// Seconds after which a step counts for a third in the speed of training, and what its speed was before is forgotten.
const MEMORY: f64 = 60.0;
/// Steps that are slower than others: memory is touched for the first time, caches are cold.
const WARM_UP: u32 = 2;
/// Work of scoring a token, as a fraction of that of training on it.
const SCORING: f64 = 1.0 / 3.0;
/// Bytes per second of a checkpoint, until one has been written.
const DISK: f64 = 5e8;
/// Tokens that a run scores in order to know how long scoring takes, since the last validation can be longer than all of the training.
pub const SOME: usize = 8192;

/// Something to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Tokens to train on, padding included.
    pub trained: f64,
    /// Tokens to score.
    pub scored: f64,
    /// Times that all prompts are gone on with.
    pub samples: f64,
    /// Checkpoints, besides those of validations.
    pub saves: f64,
}

/// What is left of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Left {
    /// Until the last step; none where steps do not limit the run.
    pub steps: Option<Work>,
    /// Seconds until the time limit, if there is one.
    pub seconds: Option<f64>,
    /// After the last step.
    pub end: Work,
}

impl Left {
    /// Of a run at `state`. `scored`: tokens of a validation in training, and of the one at the end.
    pub fn of(plan: &Plan, state: &State, t: &TrainSettings, (probe, whole): (usize, usize)) -> Left {
        let (probe, whole) = (probe as f64, whole as f64);
        // Multiples of `every` after this step, up to `last`.
        let due = |every: u64, last: u64| {
            let reached = |step: u64| step.checked_div(every).unwrap_or(0);
            reached(last).saturating_sub(reached(state.step))
        };
        let steps = plan.total().map(|total| {
            let mut before = 0;
            let of_stage = |stage| {
                let own = plan.steps(stage).unwrap_or_default();
                let left = own - state.step.saturating_sub(before).min(own);
                before += own;
                (left * plan.shape(stage).rows() as u64) as f64
            };
            let trained = (0..plan.stages()).map(of_stage).sum();
            let validations =
                plan.validations(t.eval_every, total).saturating_sub(plan.validations(t.eval_every, state.step));
            let with_validation = if t.eval_every == 0 { 0 } else { lcm(t.checkpoint_every, t.eval_every) };
            Work {
                trained,
                scored: validations as f64 * probe,
                samples: due(t.sample_every, total.saturating_sub(1)) as f64,
                saves: (due(t.checkpoint_every, total) - due(with_validation, total)) as f64,
            }
        });
        let at = |step| plan.validations(t.eval_every, step);
        let validated = plan.total().is_some_and(|total| total > 0 && at(total) > at(total - 1));
        let scored = if validated { 0.0 } else { probe } + if whole > probe { whole } else { 0.0 };
        let seconds = plan.seconds().map(|limit| (limit - state.elapsed).max(0.0));
        Left { steps, seconds, end: Work { trained: 0.0, scored, samples: 1.0, saves: 1.0 } }
    }
}

/// The least common multiple; 0 of 0.
fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x).map_or(0, |part| part.saturating_mul(b))
}

/// How long something takes.
#[derive(Clone, Copy, Debug, Default)]
struct Speed {
    amount: f64,
    seconds: f64,
}

impl Speed {
    fn add(&mut self, amount: f64, seconds: f64) {
        self.amount += amount;
        self.seconds += seconds;
    }

    /// Seconds of one.
    fn each(&self) -> Option<f64> {
        (self.amount > 0.0).then(|| self.seconds / self.amount)
    }
}

/// How long each part of a run has taken.
#[derive(Clone, Debug)]
pub struct Eta {
    steps: u32,
    trained: Speed,
    scored: Speed,
    samples: Speed,
    saves: Speed,
    /// Tokens of the samples of all prompts, and bytes of a checkpoint.
    sizes: (f64, f64),
}

impl Eta {
    /// Before anything has happened, for a model of so many parameters.
    pub fn new(t: &TrainSettings, parameters: usize) -> Eta {
        let none = Speed::default();
        // Parameters and two moments.
        let sizes = ((t.prompts.len() * t.sample_tokens) as f64, 12.0 * parameters as f64);
        Eta { steps: 0, trained: none, scored: none, samples: none, saves: none, sizes }
    }

    /// A step on so many tokens, padding included.
    pub fn trained(&mut self, tokens: usize, seconds: f64) {
        if self.steps <= WARM_UP {
            // Better than nothing until there are others.
            (self.steps, self.trained) = (self.steps + 1, Speed::default());
        }
        let kept = (-seconds / MEMORY).exp();
        self.trained = Speed { amount: kept * self.trained.amount, seconds: kept * self.trained.seconds };
        self.trained.add(tokens as f64, seconds);
    }

    /// Whether anything has been scored yet.
    pub fn knows_scoring(&self) -> bool {
        self.scored.amount > 0.0
    }

    /// A validation, with all that comes with it, or a part of one.
    pub fn scored(&mut self, tokens: usize, seconds: f64) {
        self.scored.add(tokens as f64, seconds);
    }

    /// Samples of all prompts.
    pub fn sampled(&mut self, seconds: f64) {
        self.samples.add(1.0, seconds);
    }

    /// A checkpoint.
    pub fn saved(&mut self, seconds: f64) {
        self.saves.add(1.0, seconds);
    }

    /// Seconds until all is done; none before the first step, or where nothing limits the run.
    pub fn remaining(&self, left: &Left) -> Option<f64> {
        let training = [left.steps.and_then(|work| self.seconds(&work)), left.seconds].into_iter().flatten();
        Some(training.reduce(f64::min)? + self.seconds(&left.end)?)
    }

    /// Seconds of some work.
    fn seconds(&self, work: &Work) -> Option<f64> {
        let token = self.trained.each()?;
        let (sampled, bytes) = self.sizes;
        let scored = work.scored * self.scored.each().unwrap_or(SCORING * token);
        let samples = work.samples * self.samples.each().unwrap_or(sampled * token);
        let saves = work.saves * self.saves.each().unwrap_or(bytes / DISK);
        Some(work.trained * token + scored + samples + saves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::progress::Extent;
    use crate::stage::Stage;

    const PROBE: usize = 40_000;
    const WHOLE: usize = 1_000_000;

    /// A run by a made clock: what is told after `at` seconds, and what is true.
    struct Run {
        settings: Settings,
        /// Seconds of one token trained on and scored, of samples and of a checkpoint.
        costs: [f64; 4],
        clock: f64,
    }

    impl Run {
        fn new(steps: u64, minutes: f64) -> Run {
            let mut settings = Settings::default();
            let t = &mut settings.train;
            (t.steps, t.minutes, t.batch, t.seq_len) = (steps, minutes, 16, 256);
            (t.eval_every, t.sample_every, t.checkpoint_every) = (100, 150, 70);
            Run { settings, costs: [8e-5, 3.5e-5, 0.1, 0.4], clock: 0.0 }
        }

        fn passes(&mut self, seconds: f64) -> f64 {
            self.clock += seconds;
            seconds
        }

        /// What is told `at` these times, and how long the run really took from then on.
        fn told(mut self, at: &[f64]) -> Vec<(f64, f64)> {
            let [trained, scored, samples, saves] = self.costs;
            let t = self.settings.train.clone();
            let extents: Vec<Extent> = (self.settings.stages().iter())
                .map(|stage| Extent { windows: 1e6, tokens: stage.seq_len as f64 })
                .collect();
            let plan = Plan::new(&self.settings, &extents);
            let (mut eta, mut state, mut told) = (Eta::new(&t, 1_000_000), State::default(), Vec::new());
            let due = |step: u64, every: u64| step > 0 && step.is_multiple_of(every);
            loop {
                state.elapsed = self.clock;
                if let Some(&next) = at.get(told.len())
                    && self.clock >= next
                {
                    let left = Left::of(&plan, &state, &t, (PROBE, WHOLE));
                    told.push((eta.remaining(&left).unwrap(), self.clock));
                }
                if self.clock >= 1.0 && !eta.knows_scoring() {
                    eta.scored(SOME, self.passes(SOME as f64 * scored));
                }
                if due(state.step, t.eval_every) {
                    eta.scored(PROBE, self.passes(PROBE as f64 * scored));
                } else if due(state.step, t.checkpoint_every) {
                    eta.saved(self.passes(saves));
                }
                if plan.progress(&state) >= 1.0 {
                    break;
                }
                if due(state.step, t.sample_every) {
                    eta.sampled(self.passes(samples));
                }
                let tokens = plan.shape(plan.stage(&state)).rows();
                // The first two are slow, and no step is like the other.
                let factor = if state.step < 2 { 12.0 } else { 0.9 + 0.1 * (state.step % 3) as f64 };
                eta.trained(tokens, self.passes(factor * tokens as f64 * trained));
                state.step += 1;
            }
            let probe = if due(state.step, t.eval_every) { 0 } else { PROBE };
            self.clock += (probe + WHOLE) as f64 * scored + samples + saves;
            told.iter().map(|&(told, at)| (told, self.clock - at)).collect()
        }
    }

    fn assert_close(told: &[(f64, f64)], bound: f64) {
        for &(told, truth) in told {
            assert!((told - truth).abs() <= bound * truth, "{told:.1} s told, {truth:.1} s true");
        }
    }

    #[test]
    fn after_ten_seconds_the_end_is_known_within_a_twentieth() {
        // 4,096 tokens of 80 us: a step takes a third of a second, the first two take four.
        for steps in [300, 1000, 1001, 20_000] {
            assert_close(&Run::new(steps, 0.0).told(&[10.0, 20.0, 60.0]), 0.05);
        }
    }

    #[test]
    fn a_run_by_the_clock_ends_after_its_last_scores() {
        assert_close(&Run::new(0, 3.0).told(&[10.0, 100.0, 179.0]), 0.05);
        // The limit that comes first.
        assert_close(&Run::new(100, 60.0).told(&[10.0, 20.0]), 0.05);
        assert_close(&Run::new(100_000, 2.0).told(&[10.0, 20.0]), 0.05);
    }

    #[test]
    fn stages_count_with_their_lengths_and_batches() {
        let mut run = Run::new(600, 0.0);
        let stage = |(seq_len, share, batch)| Stage { seq_len, share, batch, sources: Vec::new() };
        run.settings.train.stages = [(64, 0.2, 0), (128, 0.3, 8), (512, 0.5, 32)].map(stage).into();
        run.settings.train.seq_len = 512;
        assert_close(&run.told(&[10.0, 30.0, 60.0]), 0.05);
    }

    #[test]
    fn a_change_of_speed_is_noticed() {
        let (t, work) = (Settings::default().train, Work { trained: 1000.0, ..Work::default() });
        let mut eta = Eta::new(&t, 0);
        let left = Left { steps: Some(work), seconds: None, end: Work::default() };
        assert_eq!(eta.remaining(&left), None);
        (0..100).for_each(|_| eta.trained(10, 1.0));
        assert!((eta.remaining(&left).unwrap() - 100.0).abs() < 1e-9);
        (0..150).for_each(|_| eta.trained(10, 2.0));
        assert!((eta.remaining(&left).unwrap() - 200.0).abs() < 4.0);
    }

    #[test]
    fn what_is_left_is_counted_from_the_step_reached() {
        let run = Run::new(1000, 0.0);
        let t = &run.settings.train;
        let plan = Plan::new(&run.settings, &[Extent { windows: 1e6, tokens: 256.0 }]);
        let at = |step| Left::of(&plan, &State { step, ..State::default() }, t, (10, 10)).steps.unwrap();
        // Checkpoints at 70, 140, ... 980, without that at 700, which comes with a validation.
        let all = Work { trained: 4_096_000.0, scored: 100.0, samples: 6.0, saves: 13.0 };
        assert_eq!(at(0), all);
        assert_eq!(at(150), Work { trained: 850.0 * 4096.0, scored: 90.0, samples: 5.0, saves: 11.0 });
        assert_eq!(at(1000), Work::default());
        assert_eq!(at(1010), Work::default());
    }
}
