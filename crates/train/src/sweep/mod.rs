//! A sweep: a list of settings, each trained for the same time or number of steps from several seeds, one run after the other.
//!
//! ```text
//! FILE.toml     -> Spec     what all runs share, and the arms: what each does otherwise
//! Spec, folder  -> Sweep    every run with its settings, resolved before any is trained, and what is there of it
//! Sweep         -> Row      of each finished run; rows of one arm are summed up in a Summary
//! ```
//!
//! Seeds are the outer loop, so that every arm has a run early. The folder of a sweep holds a folder for each run, `table.md`,
//! `results.jsonl` and `sweep.svg`; a run is an ordinary one, made by [`run`](crate::run).

mod error;
mod row;
mod spec;
mod work;

pub use error::SweepError;
pub use row::{Row, Summary, summaries, table};
pub use spec::{Arm, Length, Spec};
pub use work::{FIGURE, RESULTS, Sweep, TABLE, Turn};
