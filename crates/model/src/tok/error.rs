//! What can be wrong with a tokenizer, and how large one may be.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::io::IoError;

/// Files above this are refused unread: the largest vocabulary takes about 4 MB.
pub(crate) const MAX_FILE: usize = 64 << 20;
/// Ids are u16 and 65535 stays free.
pub(super) const MAX_VOCAB: usize = 65_535;
/// Longest token that a list of merges may make; no GPT-2 token is longer either.
pub(crate) const MAX_TOKEN: usize = 1 << 10;

/// What can be wrong with a tokenizer file or a request to train one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokError {
    /// The file could not be read.
    #[error(transparent)]
    Read(#[from] Box<IoError>),
    /// The file was read and is not a tokenizer we can use.
    #[error("tokenizer file {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: Box<TokError>,
    },
    /// Larger than any tokenizer.
    #[error("larger than {limit} bytes, so not a tokenizer file; name the tokenizer's JSON file")]
    TooLarge {
        /// Largest size that is read.
        limit: usize,
    },
    /// What git has in the place of a large file.
    #[error("a git LFS pointer to a file that is not here: fetch it with `git lfs pull`")]
    LfsPointer,
    /// Not JSON, or not the JSON of this kind.
    #[error("not valid {kind} JSON: {reason}; the file may be cut off or of another format")]
    Json {
        /// Kind of tokenizer expected.
        kind: &'static str,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// JSON, but of no kind that we know.
    #[error(
        "not a tokenizer: expected a FlashLM frequency vocabulary (id_to_base), a byte-level BPE \
         tokenizer.json (model) or {{\"kind\":\"bytes\"}}"
    )]
    UnknownKind,
    /// A tokenizer of another program, of a type that is not ours.
    #[error(
        "model type is {found}; expected byte-level BPE: choose another tokenizer, or train one (`flashlm data prepare`)"
    )]
    Type {
        /// The type.
        found: String,
    },
    /// Of a known kind, but contradicts itself or uses something we do not support.
    #[error("{kind} tokenizer: {what}")]
    Invalid {
        /// Kind of tokenizer.
        kind: &'static str,
        /// What is wrong, found and expected.
        what: String,
    },
    /// No vocabulary of this size exists.
    #[error("vocabulary size {found} is not possible for a {kind} tokenizer: choose {min} to {max}")]
    VocabSize {
        /// Kind of tokenizer.
        kind: &'static str,
        /// Size asked for.
        found: usize,
        /// Smallest size.
        min: usize,
        /// Largest size.
        max: usize,
    },
    /// The documents held nothing to learn from.
    #[error("no text to train a {kind} tokenizer on: there are no documents, or all are empty")]
    NoText {
        /// Kind of tokenizer.
        kind: &'static str,
    },
    /// The callback asked for it.
    #[error("stopped")]
    Stopped,
}

impl TokError {
    pub(super) fn check_vocab_size(kind: &'static str, found: usize, range: RangeInclusive<usize>) -> Result<(), Self> {
        let (min, max) = range.into_inner();
        if (min..=max).contains(&found) {
            return Ok(());
        }
        Err(Self::VocabSize { kind, found, min, max })
    }
}
