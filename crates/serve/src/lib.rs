//! `flashlm serve`: models over HTTP/1.1, in the API that OpenAI's clients speak.
//!
//! ```text
//! connection -> guard (host, key, origin) -> route -> ask (a request, checked) -> desk (the engine's thread) -> answer, whole or SSE
//! ```
//!
//! One thread owns all engines (`desk.rs`); HTTP runs on a runtime of its own. A text is the bits that `flashlm generate` writes with the
//! same seed, whoever else is asking.
#![forbid(unsafe_code)]

mod answer;
mod ask;
mod body;
mod cache;
mod desk;
mod error;
mod fields;
mod mailbox;
mod metrics;
mod model;
mod openapi;
mod routes;
mod runtime;
pub mod server;
mod uri;
mod watch;

pub use model::{Served, Weights};
pub use server::{Options, ServeError, serve};
pub use watch::Watch;
