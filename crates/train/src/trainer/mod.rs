//! The trainer: windows of tokens in, steps, validations, samples and checkpoints out, until the run's end, an early stop or
//! a request to stop.
//!
//! Everything that the next step depends on is in [`State`](crate::progress::State), the parameters and the optimizer state; a
//! checkpoint holds all of it, so a run limited by steps that is stopped and resumed gives the same bits as one that never stopped.

mod check;
mod ending;
mod error;
mod event;
mod finish;
mod inputs;
mod pace;
mod restore;
mod resume;
mod sample;
mod save;
mod steps;
mod validate;
mod work;

pub use check::{check, continued};
pub use ending::{Ended, Ending, Scored, finished};
pub use error::TrainError;
pub use event::{Event, Outcome, Tell};
pub use inputs::Inputs;
pub use restore::state;
pub use work::Trainer;
