//! Events of a run, and the ways in which it ends.

use std::path::Path;

use crate::log::{Row, SampleRow};

/// What the trainer reports.
pub enum Event<'a> {
    /// One line of progress, replaced by the next.
    Progress(&'a str),
    /// A line to keep.
    Note(&'a str),
    /// A row of the log, as `metrics.jsonl` has it.
    Row(&'a Row),
    /// A sample: text that the model generated.
    Sample(&'a SampleRow),
    /// A checkpoint has been written.
    Saved {
        /// The step it is of.
        step: u64,
        /// Its folder.
        path: &'a Path,
    },
}

/// Receives the events.
pub type Tell<'a> = &'a mut dyn FnMut(Event);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reached its end.
    Finished,
    /// The last `patience` validations brought no improvement.
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
