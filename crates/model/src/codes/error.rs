//! Why a packed model was not made or read.

use crate::error::ConfigError;
use crate::io::IoError;
use crate::tok::TokError;

/// Why a packed model was not made or read.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The file is no safetensors file, or a tensor is missing or of another type.
    #[error(transparent)]
    Io(#[from] IoError),
    /// It is one, and no packed model of this version.
    #[error("{file}: metadata `{key}`: expected {expected}, found {found}; {mend}")]
    Metadata {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        mend: &'static str,
    },
    /// A tensor is not what the config asks for.
    #[error("{file}: tensor `{name}`: expected {expected}, found {found}; pack the run again with `flashlm pack`")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// What the config asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The config is none that a model can have, or not that of its tokenizer.
    #[error("{file}: {source}")]
    Config {
        /// The file.
        file: String,
        /// Why.
        source: ConfigError,
    },
    /// The tokenizer inside is none, or of another model.
    #[error("{file}: its tokenizer: {source}")]
    Tokenizer {
        /// The file.
        file: String,
        /// Why.
        source: TokError,
    },
}
