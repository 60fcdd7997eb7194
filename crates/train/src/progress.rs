//! Where a run stands: what a checkpoint must carry so that training goes on as if it had never stopped, and how far the run
//! has come by updates or by the clock.

use serde::{Deserialize, Serialize};

use crate::config::{Settings, Stage};

/// Saved as `state.json` in every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Updates done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training, pauses left out.
    pub elapsed: f64,
    /// Stage of progressive length.
    pub stage: usize,
    /// Update at which the stage began.
    pub stage_start: u64,
    /// Passes over the data before this stage.
    pub epochs_before: f64,
    /// Lowest bits per byte of all validations, its loss and step.
    pub best: Option<Best>,
    /// Validations since.
    pub since_best: u64,
    /// Sum of losses since the last row of metrics, and their number.
    pub loss_sum: (f64, u64),
}

/// The best validation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Best {
    pub bpb: f64,
    pub step: u64,
}

/// When stages and the run end.
pub struct Plan {
    stages: Vec<Stage>,
    /// Updates after which each stage ends, where known.
    ends: Option<Vec<u64>>,
    seconds: Option<f64>,
}

impl Plan {
    /// The plan for `tokens` of training text and `batch` sequences an update.
    pub fn new(settings: &Settings, tokens: usize, batch: usize) -> Plan {
        let t = &settings.train;
        let stages = settings.stages();
        let seconds = (t.minutes > 0.0).then_some(t.minutes * 60.0);
        let mut share = 0.0;
        let ends = if t.steps > 0 {
            let end = |stage: &Stage| {
                share += stage.share;
                ((share * t.steps as f64).round() as u64).min(t.steps)
            };
            let mut ends: Vec<u64> = stages.iter().map(end).collect();
            *ends.last_mut().expect("there is a stage") = t.steps;
            Some(ends)
        } else if seconds.is_none() {
            let mut end = 0;
            let updates = |stage: &Stage| {
                let windows = tokens as f64 / (stage.seq_len + 1) as f64;
                end += ((t.epochs * stage.share * windows / batch as f64).round() as u64).max(1);
                end
            };
            Some(stages.iter().map(updates).collect())
        } else {
            None
        };
        Plan { stages, ends, seconds }
    }

    /// Updates of the whole run, where known.
    pub fn total(&self) -> Option<u64> {
        self.ends.as_ref().and_then(|ends| ends.last().copied())
    }

    /// The time limit in seconds, where there is one.
    pub fn seconds(&self) -> Option<f64> {
        self.seconds
    }

    /// The share of the run that has passed.
    pub fn progress(&self, state: &State) -> f64 {
        let by_steps = self.total().map_or(0.0, |total| state.step as f64 / total as f64);
        let by_time = self.seconds.map_or(0.0, |limit| state.elapsed / limit);
        by_steps.max(by_time)
    }

    /// The stage that the next update belongs to.
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

    /// Sequence length of a stage.
    pub fn seq_len(&self, stage: usize) -> usize {
        self.stages[stage].seq_len
    }

    /// Longest sequence of any stage.
    pub fn longest(&self) -> usize {
        self.stages.iter().map(|s| s.seq_len).max().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged() -> Settings {
        let mut s = Settings::default();
        s.train.stages = [(128, 0.25), (256, 0.25), (512, 0.5)].map(|(seq_len, share)| Stage { seq_len, share }).into();
        s.train.seq_len = 512;
        s
    }

    #[test]
    fn stages_by_updates() {
        let mut settings = staged();
        settings.train.steps = 100;
        let plan = Plan::new(&settings, 1_000_000, 4);
        let at = |step| plan.stage(&State { step, ..State::default() });
        assert_eq!([0, 24, 25, 49, 50, 99].map(at), [0, 0, 1, 1, 2, 2]);
        assert_eq!((plan.total(), plan.longest()), (Some(100), 512));
    }

    #[test]
    fn stages_by_epochs_count_the_tokens_that_each_trains_on() {
        let mut settings = staged();
        settings.train.epochs = 4.0;
        let plan = Plan::new(&settings, 129 * 257 * 513, 1);
        // One epoch of 128, one of 256, two of 512.
        assert_eq!(plan.ends, Some(vec![257 * 513, 257 * 513 + 129 * 513, 257 * 513 + 129 * 513 + 2 * 129 * 257]));
    }

    #[test]
    fn stages_by_the_clock_never_go_back() {
        let mut settings = staged();
        settings.train.minutes = 1.0;
        let plan = Plan::new(&settings, 1_000_000, 4);
        let at = |elapsed, stage| plan.stage(&State { elapsed, stage, ..State::default() });
        assert_eq!([at(0.0, 0), at(14.9, 0), at(15.1, 0), at(31.0, 1), at(70.0, 2), at(1.0, 1)], [0, 0, 1, 2, 2, 1]);
        assert_eq!(plan.progress(&State { elapsed: 30.0, ..State::default() }), 0.5);
        assert_eq!(plan.total(), None);
    }
}
