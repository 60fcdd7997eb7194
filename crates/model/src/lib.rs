//! Models of FlashLM: architecture with forward and backward by hand, tokenizers, file formats, sampling.
//!
//! A packed model (`flashlm pack`) that writes, piece by piece:
//!
//! ```
//! use flashlm_model::{Engine, Exec, Isa, PackedModel, Generation, sample::Settings};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = std::sync::Arc::new(PackedModel::open("../../tests/golden/conv.safetensors".as_ref())?);
//! let mut engine = Engine::new(model.clone(), Exec::new(Isa::detect()?, 1), 64);
//! let settings = Settings { temperature: 0.8, top_p: 0.95, seed: 42, ..Settings::default() };
//! let mut generation = Generation::new(&model, settings, 200, &[])?;
//! let tokens = generation.push("Once upon a time");
//! let finish = engine.generate(&mut generation, |piece| print!("{piece}"))?;
//! println!("\n{} tokens after {tokens} of the prompt: {finish:?}", generation.tokens());
//! # Ok(())
//! # }
//! ```
//!
//! Axes are those of [`flashlm_kernels`]. Nothing here opens a network connection or starts a thread.
#![forbid(unsafe_code)]

pub mod codes;
pub mod config;
pub mod error;
pub mod export;
pub mod family;
#[cfg(test)]
mod gradcheck;
pub mod infer;
pub mod io;
pub mod layer;
pub mod mixer;
pub mod model_file;
pub mod original;
pub mod pack;
pub mod params;
pub mod peer;
pub mod precision;
#[cfg(test)]
mod reference;
pub mod rng;
#[cfg(test)]
mod roundcheck;
pub mod sample;
#[cfg(test)]
mod testing;
pub mod tok;

pub use config::ModelConfig;
pub use family::forms::{BatchState, LanguageModel, Prepared, Shape};
pub use flashlm_kernels::ops::Objective;
pub use flashlm_kernels::{Exec, Isa, Token};
pub use infer::{Engine, Finish, Generation, PackedModel, Scored, SequenceState};
pub use layer::dropout::Dropout;
pub use model_file::Model;
pub use peer::Peer;
pub use precision::Precision;
