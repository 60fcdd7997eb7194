//! Why a model of another program was not loaded.

use std::path::PathBuf;

use crate::io::IoError;
use crate::tok::TokError;

/// Why a model of another program was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// A file could not be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Sizes or switches that are not to be had here.
    #[error("{}: `{key}`: expected {expected}, found {found}; choose a model that has it so", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What can be run.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The config is no JSON of its kind.
    #[error("{}: expected the config.json of a Llama or GPT-Neo model, found {found}; copy it again from its source", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        found: String,
    },
    /// A tensor that is not what the config says.
    #[error("{file}: tensor `{name}`: expected {expected}, found {found}; copy config.json and weights of one model")]
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
    /// A folder without weights.
    #[error("{}: expected model.safetensors or pytorch_model.bin beside config.json, found neither; copy it from the model's source", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// Weights in several files.
    #[error("{}: the weights are in several files; expected one: join them with transformers, `save_pretrained(folder, max_shard_size=\"1TB\")`", path.display())]
    Sharded {
        /// The list of the files.
        path: PathBuf,
    },
    /// A tokenizer that cannot be read.
    #[error("{}: a SentencePiece model; expected tokenizer.json: make one with transformers, `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`", path.display())]
    SentencePiece {
        /// The file.
        path: PathBuf,
    },
    /// A model alone has no text.
    #[error("{}: expected {expected} beside the model, found no such file; copy it from the model's source", path.display())]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
        /// The file.
        expected: &'static str,
    },
    /// The tokenizer cannot be used.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokError,
    },
    /// The tokenizer is of another model.
    #[error("{}: expected a tokenizer of at most {expected} tokens, like the model, found {found}; use the tokenizer of the model", path.display())]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// Tokens of the model.
        expected: usize,
        /// Tokens of the tokenizer.
        found: usize,
    },
}
