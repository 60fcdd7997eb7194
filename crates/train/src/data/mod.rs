//! Text in, windows of tokens out:
//! [`source`] (documents of text) -> [`split`] (held out or not) -> [`cache`] (a memory-mapped token file) -> [`window`]
//! (`T` tokens and one), which [`curriculum`](crate::curriculum) takes from several texts, stage by stage.
//!
//! Everything streams: memory is bounded by the longest document (64 MB), whatever the size of the data.

pub mod build;
pub mod cache;
mod documents;
mod error;
mod files;
pub mod filter;
pub mod held_out;
mod hint;
pub mod holdout;
pub mod hub;
pub(crate) mod mix;
pub mod mojibake;
pub mod near_duplicates;
mod order;
pub mod profile;
mod reader;
pub mod source;
pub mod split;
pub mod stats;
pub mod synthetic;
#[cfg(test)]
pub(crate) mod testing;
pub mod vocab;
pub mod window;

pub use error::DataError;
pub(crate) use files::is_readable;
pub(crate) use hint::missing_hint;
pub(crate) use reader::foreign;
