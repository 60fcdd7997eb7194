//! Text to token ids and back, in one of three vocabularies of our own, or in those of other programs' models.
//!
//! `frequency` is FlashLM v4's own (lossy: what it does not know becomes UNK), `bpe` is a byte-level BPE trained on the
//! user's text (lossless, a `tokenizer.json`), `bytes` is the 256 bytes (lossless). Each saves to one JSON file and is
//! recognised by its content. Models of other programs come with GPT-2's tokens or
//! with `scored`, the pieces of llama2.c. Ids are u16. Encoding adds no special tokens and takes all text as plain text, also
//! `<|endoftext|>`; decoding drops special ids. A `Tokenizer` never changes, so threads share one by reference.

mod bpe;
mod bytes;
mod compact;
mod error;
mod frequency;
mod gpt2;
mod hash;
mod json;
mod kind;
mod learn;
mod merge;
mod pieces;
mod scored;
mod split;
mod stream;
mod tables;
#[cfg(test)]
pub(crate) mod testing;
mod tokenizer;
mod trainer;
mod words;

pub use error::TokError;
pub(crate) use error::{MAX_FILE, MAX_TOKEN};
pub use kind::FileKind;
pub use stream::StreamDecoder;
pub use tokenizer::{Encoder, Tokenizer, cut};
pub use trainer::Trainer;
