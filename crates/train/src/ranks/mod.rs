//! One run on several ranks. Rank 0 leads: it has the text, the clock, the log and the checkpoints, and sends the others what they
//! need for each step and validation, its tokens included. The others follow. Parameters and optimizer are the same everywhere.
//!
//! Which passes of a step a rank computes is a function of their number, its own and that of all ranks ([`crate::comm::share`]).

mod cost;
mod leader;
mod meet;
mod message;
mod scorer;
mod worker;

pub use cost::{Link, Work};
pub use leader::Leader;
pub(crate) use leader::Score;
pub use meet::{Fit, Hello, VERSION, checksum, meet};
pub use scorer::Shared;
pub use worker::follow;
