//! What is heard of a run, and the ways in which it ends.

use crate::log::SampleRow;

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
