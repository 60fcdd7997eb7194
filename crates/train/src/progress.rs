//! The position of a run: what a checkpoint must hold so that training continues as if it had never stopped, and how far the run
//! is by steps or by the clock.

use flashlm_model::Shape;
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Settings;
use crate::stage::Stage;

/// Saved as `state.json` in every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training, without pauses.
    pub elapsed: f64,
    /// Stage of the curriculum.
    pub stage: usize,
    /// Step at which the stage began.
    pub stage_start: u64,
    /// Windows of the stage so far; missing in older states, whose batch never changed.
    #[serde(default)]
    pub windows: Option<u64>,
    /// The contents of each text, and of the validation text, as before this run; missing in older states.
    #[serde(default)]
    pub texts: Vec<u64>,
    #[serde(default)]
    #[allow(missing_docs)]
    pub valid: Option<u64>,
    /// Passes over each text of the run before this stage; one number in runs saved when there was but one text.
    #[serde(deserialize_with = "one_or_many")]
    pub epochs_before: Vec<f64>,
    /// Lowest bits per byte of all validations, its loss and step.
    pub best: Option<Best>,
    /// Validations since.
    pub since_best: u64,
    /// The last validation; missing in older states.
    #[serde(default)]
    pub validated: Option<Best>,
    /// First steps so far in which the embedding stayed as it started (`train.frozen_embedding`); missing in older states.
    #[serde(default)]
    pub frozen: u64,
    /// Steps that are in the mean of the weights (`train.average_share`); missing in older states.
    #[serde(default)]
    pub averaged: u64,
    /// Sum and number of the losses since the last row of metrics.
    pub loss_sum: (f64, u64),
}

/// What tells the texts of a run, and its validation text, from others.
pub struct Contents {
    /// Of each text.
    pub texts: Vec<u64>,
    /// Of the validation text.
    pub valid: u64,
}

impl State {
    /// The start of a run on these.
    pub fn new(Contents { texts, valid }: Contents) -> State {
        State { epochs_before: vec![0.0; texts.len()], texts, valid: Some(valid), ..State::default() }
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(f64),
        Many(Vec<f64>),
    }
    Ok(match Either::deserialize(d)? {
        Either::One(epochs) => vec![epochs],
        Either::Many(epochs) => epochs,
    })
}

/// A validation, such as the best so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Best {
    pub bpb: f64,
    pub step: u64,
}

/// When each stage and the run end.
pub struct Plan {
    stages: Vec<Stage>,
    /// Batches per step.
    accumulation: usize,
    /// Steps after which each stage ends, where known.
    ends: Option<Vec<u64>>,
    seconds: Option<f64>,
}

/// What a stage has to train on.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Windows of all texts of the run at the stage's sequence length.
    pub windows: f64,
    /// Mean number of tokens that a window of the stage trains on.
    pub tokens: f64,
}

impl Plan {
    /// The plan for stages of these extents.
    ///
    /// A stage's `share` is a fraction of the run's tokens: in a run limited by steps, stages with fewer tokens per step get more
    /// steps; in one limited by epochs, each gets its fraction of the epochs, in windows of its length. Only if time alone limits
    /// the run, `share` is a fraction of the time.
    pub fn new(settings: &Settings, extents: &[Extent]) -> Plan {
        let t = &settings.train;
        let stages = settings.stages();
        let seconds = (t.minutes > 0.0).then_some(t.minutes * 60.0);
        let mut sum = 0.0;
        let ends = if t.steps > 0 {
            // Against `train.batch`, so that where no stage has another one, no number depends on it.
            let tokens = |stage: &Stage, e: &Extent| e.tokens * (stage.batch as f64 / t.batch.max(1) as f64);
            let part = |(stage, e): (&Stage, &Extent)| stage.share / tokens(stage, e);
            let parts: Vec<f64> = stages.iter().zip(extents).map(part).collect();
            let whole: f64 = parts.iter().sum();
            let end = |part: &f64| {
                sum += part / whole;
                ((sum * t.steps as f64).round() as u64).min(t.steps)
            };
            let mut ends: Vec<u64> = parts.iter().map(end).collect();
            *ends.last_mut().expect("there is a stage") = t.steps;
            Some(ends)
        } else if seconds.is_none() {
            let mut end = 0;
            let steps = |(stage, e): (&Stage, &Extent)| {
                let sequences = stage.batch * t.accumulation;
                end += ((t.epochs * stage.share * e.windows / sequences as f64).round() as u64).max(1);
                end
            };
            Some(stages.iter().zip(extents).map(steps).collect())
        } else {
            None
        };
        Plan { stages, accumulation: t.accumulation, ends, seconds }
    }

    /// Steps of a stage, if known.
    pub fn steps(&self, stage: usize) -> Option<u64> {
        let ends = self.ends.as_ref()?;
        Some(ends[stage] - stage.checked_sub(1).map_or(0, |before| ends[before]))
    }

    /// Steps of the whole run, where known.
    pub fn total(&self) -> Option<u64> {
        self.ends.as_ref().and_then(|ends| ends.last().copied())
    }

    /// The time limit in seconds, where there is one.
    pub fn seconds(&self) -> Option<f64> {
        self.seconds
    }

    /// The fraction of the run that is done, 0 to 1.
    pub fn progress(&self, state: &State) -> f64 {
        let by_steps = self.total().map_or(0.0, |total| state.step as f64 / total as f64);
        let by_time = self.seconds.map_or(0.0, |limit| state.elapsed / limit);
        by_steps.max(by_time)
    }

    /// How many validations the first `step` steps come with, where `every` steps are between two; 0: ten over the run, none where
    /// time limits it.
    pub fn validations(&self, every: u64, step: u64) -> u64 {
        match (every, self.total()) {
            (1.., _) => step / every,
            // Of a shorter run, one for each step.
            (0, Some(total)) if self.seconds.is_none() => {
                (10 * step).checked_div(total).map_or(0, |tenth| tenth.min(step))
            }
            _ => 0,
        }
    }

    /// The stage that the next step belongs to.
    pub fn stage(&self, state: &State) -> usize {
        let last = self.stages.len() - 1;
        let found = match &self.ends {
            Some(ends) => ends.iter().position(|&end| state.step < end),
            None => {
                let p = self.progress(state);
                let mut share = 0.0;
                self.stages.iter().position(|stage| {
                    share += stage.share;
                    p < share
                })
            }
        };
        found.unwrap_or(last).max(state.stage)
    }

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// The shape of a step of a stage.
    pub fn shape(&self, stage: usize) -> Shape {
        let Stage { batch, seq_len, .. } = self.stages[stage];
        Shape { batch: batch * self.accumulation, seq_len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_validations_over_a_run_of_any_length() {
        let mut settings = Settings::default();
        settings.train.batch = 16;
        for (steps, every, expected) in [
            (1000, 0, (1..=10).map(|i| 100 * i).collect::<Vec<u64>>()),
            (7, 0, (1..=7).collect()),
            (25, 0, vec![3, 5, 8, 10, 13, 15, 18, 20, 23, 25]),
            (25, 10, vec![10, 20]),
        ] {
            settings.train.steps = steps;
            let plan = Plan::new(&settings, &[Extent { windows: 1e6, tokens: 256.0 }]);
            let due = |&step: &u64| plan.validations(every, step) > plan.validations(every, step - 1);
            assert_eq!((1..=steps).filter(due).collect::<Vec<_>>(), expected, "{steps} steps");
        }
        settings.train.minutes = 1.0;
        let plan = Plan::new(&settings, &[Extent { windows: 1e6, tokens: 256.0 }]);
        assert_eq!(
            (plan.validations(0, 20), plan.validations(10, 20)),
            (0, 2),
            "time decides, or steps that are named"
        );
    }

    fn staged(shares: [f64; 3]) -> Settings {
        let mut s = Settings::default();
        let stage = |(seq_len, share)| Stage { seq_len, share, batch: 0, sources: Vec::new() };
        s.train.stages = [128, 256, 512].into_iter().zip(shares).map(stage).collect();
        (s.train.seq_len, s.train.batch) = (512, 4);
        s
    }

    /// Of a text of so many tokens, packed.
    fn extents(tokens: usize) -> [Extent; 3] {
        [128, 256, 512].map(|t| Extent { windows: tokens as f64 / t as f64, tokens: t as f64 })
    }

    #[test]
    fn stages_by_updates_share_the_tokens() {
        let mut settings = staged([0.25, 0.25, 0.5]);
        settings.train.steps = 100;
        let plan = Plan::new(&settings, &extents(1_000_000));
        // 50 * 128 = 25 * 256 = 25 * 512 / 2.
        assert_eq!([0, 1, 2].map(|stage| plan.steps(stage).unwrap()), [50, 25, 25]);
        let at = |step| plan.stage(&State { step, ..State::default() });
        assert_eq!([0, 49, 50, 74, 75, 99].map(at), [0, 0, 1, 1, 2, 2]);
        assert_eq!((plan.total(), settings.largest()), (Some(100), Shape { batch: 4, seq_len: 512 }));
        // Small batches first: 80 * 2 * 128 = 20 * 8 * 256 / 2 = 10 * 4 * 512.
        (settings.train.stages[0].batch, settings.train.stages[1].batch) = (2, 8);
        settings.train.stages[1].share = 0.5;
        settings.train.stages[2].share = 0.25;
        settings.train.steps = 110;
        let plan = Plan::new(&settings, &extents(1_000_000));
        assert_eq!([0, 1, 2].map(|stage| plan.steps(stage).unwrap()), [80, 20, 10]);
        assert_eq!([0, 1, 2].map(|stage| plan.shape(stage).batch), [2, 8, 4]);
        assert_eq!(settings.largest(), Shape { batch: 8, seq_len: 512 });
    }

    #[test]
    fn stages_by_epochs_count_the_tokens_that_each_trains_on() {
        let mut settings = staged([0.25, 0.25, 0.5]);
        (settings.train.epochs, settings.train.batch) = (4.0, 1);
        let plan = Plan::new(&settings, &extents(128 * 256 * 512));
        // One epoch of 128, one of 256, two of 512.
        assert_eq!(plan.ends, Some(vec![256 * 512, 256 * 512 + 128 * 512, 256 * 512 + 128 * 512 + 2 * 128 * 256]));
        // The same epochs in fewer steps.
        (settings.train.stages[2].batch, settings.train.accumulation) = (16, 2);
        let plan = Plan::new(&settings, &extents(128 * 256 * 512));
        assert_eq!([0, 1, 2].map(|stage| plan.steps(stage).unwrap()), [128 * 512, 64 * 512, 128 * 256 / 16]);
    }

    #[test]
    fn stages_by_the_clock_never_go_back() {
        let mut settings = staged([0.25, 0.25, 0.5]);
        settings.train.minutes = 1.0;
        let plan = Plan::new(&settings, &extents(1_000_000));
        let at = |elapsed, stage| plan.stage(&State { elapsed, stage, ..State::default() });
        assert_eq!([at(0.0, 0), at(14.9, 0), at(15.1, 0), at(31.0, 1), at(70.0, 2), at(1.0, 1)], [0, 0, 1, 2, 2, 1]);
        assert_eq!(plan.progress(&State { elapsed: 30.0, ..State::default() }), 0.5);
        assert_eq!((plan.total(), plan.steps(0)), (None, None));
    }

    #[test]
    fn a_state_saved_when_there_was_but_one_text_is_read() {
        let now = serde_json::to_string(&State { epochs_before: vec![1.5], ..State::default() }).unwrap();
        let then = now.replace("[1.5]", "1.5");
        assert_ne!(now, then);
        let read = |text: &str| serde_json::from_str::<State>(text).unwrap();
        assert_eq!(read(&then), read(&now));
    }
}
