//! The run folder: one timeline of checkpoints, and what a run writes beside them.
//!
//! ```text
//! RUN/run.json                                marks the folder as a run
//! RUN/run.lock                                held by the process that trains, holds its process id
//! RUN/best                                    {"version":1,"step":500}
//! RUN/checkpoints/step-00000500               a checkpoint of the timeline
//! RUN/checkpoints/step-00000700.abandoned     one that a resume from an earlier step left behind; -2, -3, .. if that is taken
//! ```
//!
//! When a run is resumed from one of its checkpoints, those of later steps are set aside first, newest first, so that a process
//! killed on the way leaves a shorter timeline and never a mixture of two. What is set aside is otherwise ignored and never
//! removed.

mod claim;
mod error;
mod folder;
mod names;
#[cfg(test)]
mod tests;

pub use claim::Claim;
pub use error::RunError;
pub use folder::{Latest, Listed, RunFolder};
pub use names::{ABANDONED_METRICS, CARD, CURVE, METRICS, RESULT, SETTINGS};
