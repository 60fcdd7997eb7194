//! The packed runtime: integer matmuls, no allocation per token, and the same bits for every ISA, thread count, batch and split
//! of a prompt.
//!
//! ```text
//! h = E[token];  for each block: h += mixer(norm(h)), h += GLU(norm(h));  logits = norm(h) E^T     matrices take int8 rows
//! ```
//!
//! A [`PackedModel`] is the weights, shared by any number of engines. An [`Engine`] is the working memory of one caller. A
//! [`SequenceState`] is one sequence in progress: its size is constant, so each token costs the same. [`Engine::prefill`] takes
//! many tokens of one sequence at once, [`Engine::step`] one token of each of many sequences; the caller chooses the sequences
//! anew at each step, so they can join and leave at any time.

pub mod engine;
pub mod generation;
#[cfg(test)]
mod golden;
pub mod model;
pub mod scored;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod written;

pub use engine::Engine;
pub use generation::Generation;
pub use model::PackedModel;
pub use scored::Scored;
pub use state::SequenceState;
pub use written::Finish;
