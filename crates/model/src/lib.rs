//! Models of FlashLM: architecture with forward and backward by hand, tokenizers, file formats, sampling.
//!
//! Axes are those of [`flashlm_kernels`]. Nothing here opens a network or starts a thread of its own.
#![forbid(unsafe_code)]

pub mod config;
#[cfg(test)]
mod gradcheck;
pub mod infer;
pub mod io;
pub mod layer;
pub mod lm;
pub mod mixer;
pub mod pack;
pub mod params;
pub mod precision;
pub mod rng;
#[cfg(test)]
mod roundcheck;
pub mod sample;
pub mod tok;

pub use config::ModelConfig;
pub use flashlm_kernels::ops::Objective;
pub use infer::{Engine, Finish, PackedModel, Stream, Writer};
pub use lm::{LanguageModel, Lm, State};
pub use precision::Precision;
