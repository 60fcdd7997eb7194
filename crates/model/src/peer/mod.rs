//! Models of other programs, in float, to compare with and to write with: one file a family.
//!
//! | file | what it reads |
//! |---|---|
//! | `llama.rs` | a folder with `config.json` (`llama`) and safetensors |
//! | `gpt_neo.rs` | a folder with `config.json` (`gpt_neo`) and `pytorch_model.bin` or safetensors |
//! | `llama2c.rs` | a `.bin` of llama2.c, version 0, 1 or 2 |
//!
//! A family is a `Config`, a `read` and `impl Family` (`family.rs`); its line in `Peer::weights` makes it known.

mod config;
pub mod error;
mod family;
mod gpt_neo;
mod layer;
mod llama;
mod llama2c;
mod model;
mod text;

pub use error::PeerError;
pub use llama2c::{cut_llama2c, is_llama2c};
pub use model::{CONFIG, Peer, Sequence, TYPES, model_type};
pub use text::PeerText;
