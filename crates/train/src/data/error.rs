//! What can go wrong with data, in words that say what to do.

use super::cache::Stale;
use super::hint::missing_hint;
use super::hub::HubError;
use super::split::Split;
use crate::atomic::AtomicError;
use crate::what::Unwanted;
use flashlm_model::tok::TokError;
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between a data specification and a window of tokens.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system or a decompressor failed.
    #[error("{path}: cannot {action}: {cause}")]
    Io {
        /// What was being done ("read", "write", ...).
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// The folder of vocabularies and token caches.
    #[error("{path}: this folder cannot be created: {cause}; FLASHLM_CACHE=DIR takes another")]
    CacheFolder {
        /// The folder.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// There is no such file or folder.
    #[error("{path}: no such file or folder{hint}")]
    Missing {
        /// The path as given.
        path: PathBuf,
        /// How far the path exists and what is named alike, as text to append.
        hint: String,
    },
    /// The data specification is none of the known forms.
    #[error(
        "data `{spec}`: {reason}; expected a text, JSON, CSV or Parquet file, a folder of such files, a dataset \
         (tinystories, hf:OWNER/NAME), or `synthetic:N`"
    )]
    Spec {
        /// The specification as given.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of 0 bytes.
    #[error("{path}: the file is empty; put text into it, documents separated by lines <|endoftext|>")]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// A folder without a single file to read.
    #[error(
        "{path}: neither the folder nor its subfolders hold a text file (.txt, .md, .jsonl, .csv, .parquet, ...){passed}"
    )]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// What was skipped, as text to append.
        passed: String,
    },
    /// All files of a training text are those of the validation text.
    #[error(
        "{name}: all its files are in the validation text, none is left to train on; name another text with --valid, or \
         leave --valid out to hold out part of the text"
    )]
    SameFiles {
        /// Name of the source.
        name: String,
    },
    /// Something else than text.
    #[error(
        "{path}: this is not text: {found}{}",
        if found.contains(';') { "" } else { "; give UTF-8 text, JSON lines, CSV or Parquet" }
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it looks like, and what to do.
        found: &'static str,
    },
    /// A byte that is no text, somewhere behind the start.
    #[error(
        "{path}: line {line}: NUL bytes, as in a file that was cut off while being written; `tr -d '\\0'` removes them"
    )]
    Nul {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
    },
    /// Text in another encoding, or damaged.
    #[error("{path}: invalid UTF-8 at byte {offset} (line {line}); {mend}")]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte, in the decompressed text.
        offset: u64,
        /// Its line, counted from 1.
        line: u64,
        /// What it may be, and what to do.
        mend: &'static str,
    },
    /// One record that does not fit into the memory set aside for it.
    #[error(
        "{path}: the record that starts at line {line} is longer than {} MB; split it, or leave it out",
        limit >> 20
    )]
    LongRecord {
        /// The file.
        path: PathBuf,
        /// First line of the record, counted from 1.
        line: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// A record of JSON or CSV without a document.
    #[error("{path}: line {line}: {reason}")]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A compressed file that cannot be decompressed.
    #[error("{path}: cannot decompress: {reason}")]
    Compressed {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// A Parquet table that cannot be read.
    #[error("{path}: Parquet table: {reason}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A table without the column that was asked for.
    #[error(
        "{path}: {problem}; columns of {wanted}: {found}{}",
        if wanted == &"numbers" { "" } else { "; choose one with --column" }
    )]
    Column {
        /// The file.
        path: PathBuf,
        /// What is wrong with the column named.
        problem: String,
        /// What the column must hold.
        wanted: &'static str,
        /// The columns that hold it.
        found: String,
    },
    /// Bounds on documents that contradict each other.
    #[error("filter: {reason}")]
    Filter {
        /// What is wrong and what to give.
        reason: String,
    },
    /// A token cache that does not serve.
    #[error("{path}: {reason}; delete it, or run `flashlm data prepare` to build it again")]
    Cache {
        /// The cache file.
        path: PathBuf,
        /// Why not.
        reason: Stale,
    },
    /// A build that found nothing to put into the cache.
    #[error("{name}: no document is left for {split}, out of {seen} in the data; {}", none_left(*seen, *duplicates))]
    NoStories {
        /// Name of the source.
        name: String,
        /// The side of the split asked for.
        split: Split,
        /// Documents in the source, both sides.
        seen: u64,
        /// Those that are in the validation text, too.
        duplicates: u64,
    },
    /// A token cache with nothing in it.
    #[error("{name}: the text has no tokens; add data")]
    NoTokens {
        /// Name of the text.
        name: String,
    },
    /// A name that is none of a tokenizer.
    #[error("tokenizer `{found}`: expected frequency, bpe, bytes, gpt2, or the path of a tokenizer file")]
    TokenizerChoice {
        /// The name as given.
        found: String,
    },
    /// Something else than what was asked for.
    #[error(transparent)]
    Unwanted(#[from] Unwanted),
    /// The tokenizer could not be read or trained.
    #[error(transparent)]
    Tokenizer(#[from] TokError),
    /// The cache file could not be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// A dataset of the hub could not be had.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A dataset of the hub was used before [`Source::fetch`](super::source::Source::fetch).
    #[error("{name}: the dataset has not been fetched")]
    NotFetched {
        /// Name of the source.
        name: String,
    },
    /// The progress callback asked to stop.
    #[error("stopped before the whole text was read; nothing was written")]
    Stopped,
}

/// Why there is no document, and what to do.
fn none_left(seen: u64, duplicates: u64) -> &'static str {
    match (seen, duplicates) {
        (0, _) => "the data holds only blank text, or the filter drops every document",
        (_, 0) => "add data or change the held-out fraction",
        _ => "all of them are also in the validation text; name another with --valid",
    }
}

impl DataError {
    /// The error for a failed operation on `path`, with a hint if the path does not exist.
    pub(crate) fn io(action: &'static str, path: &Path, cause: io::Error) -> DataError {
        let path = path.to_path_buf();
        match cause.kind() {
            io::ErrorKind::NotFound => DataError::Missing { hint: missing_hint(&path), path },
            _ => DataError::Io { action, path, cause },
        }
    }
}
