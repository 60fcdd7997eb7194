//! The packed runtime: integer products, no allocation per token, and the same bits whatever ISA, threads, batch or cut of the text.
//!
//! ```text
//! h = E[token];  for each block: h += mixer(norm(h)), h += GLU(norm(h));  logits = norm(h) E^T     matrices take int8 rows
//! ```
//!
//! A [`PackedModel`] is the weights, shared by any number of engines. An [`Engine`] is the working memory of one caller. A
//! [`Stream`] is one text on its way: a state of constant size, so that each token costs the same. [`Engine::prefill`] takes many
//! tokens of one stream at once, [`Engine::step`] one token of each of many streams; who takes part in a step is the caller's to
//! say each time, so streams join and leave at will.

pub mod engine;
#[cfg(test)]
mod golden;
pub mod model;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod write;

pub use engine::Engine;
pub use model::PackedModel;
pub use stream::Stream;
pub use write::{Finish, Writer};
