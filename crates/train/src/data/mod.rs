//! Text in, windows of tokens out:
//! [`source`] (stories of text) -> [`split`] (held out or not) -> [`cache`] (a memory-mapped token file) -> [`window`]
//! (`T` tokens and one), which [`curriculum`] takes from several texts, stage by stage.
//!
//! Everything streams: memory is bounded by the longest story (64 MB), whatever the size of the data.

mod build;
pub mod cache;
pub mod curriculum;
mod files;
pub mod filter;
pub mod holdout;
pub mod hub;
pub mod looks;
pub mod mix;
pub mod mojibake;
pub mod near;
pub mod order;
mod reader;
pub mod source;
pub mod split;
pub mod stats;
pub mod synthetic;
pub mod vocab;
pub mod window;

use crate::atomic::AtomicError;
use crate::what::Unwanted;
pub use files::in_full;
pub(crate) use files::is_readable;
use flashlm_model::tok::TokError;
pub(crate) use reader::foreign;
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
        "data `{spec}`: {reason}; expected a file of text, JSON, CSV or Parquet, a folder of those, a dataset (tinystories, \
         hf:OWNER/NAME), or `synthetic:N`"
    )]
    Spec {
        /// The specification as given.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of 0 bytes.
    #[error("{path}: the file is empty; put stories into it, each ended by a line <|endoftext|>")]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// A folder without a single file to read.
    #[error(
        "{path}: the folder holds no file of text (.txt, .md, .jsonl, .csv, .parquet, ...), nor does any folder below it{passed}"
    )]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// What was passed over, as text to append.
        passed: String,
    },
    /// All files of a training text are those of the validation text.
    #[error(
        "{name}: every file of it is validated on; name another text with --valid, or leave it out to hold out a share"
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
        "{path}: line {line}: NUL bytes, as a file has that was cut off while it was written; `tr -d '\\0'` removes them"
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
        "{path}: the record that starts at line {line} is longer than {} MB; split it into several, or leave it out",
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
    /// A record of JSON or CSV without a story.
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
    /// Bounds on stories that contradict each other.
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
        reason: cache::Stale,
    },
    /// A build that found nothing to put into the cache.
    #[error("{name}: no stories for {split}, of {seen} in the data; {}", none_left(*seen, *doubles))]
    NoStories {
        /// Name of the source.
        name: String,
        /// The side of the split asked for.
        split: split::Split,
        /// Stories in the source, both sides.
        seen: u64,
        /// Those that are in the validation text, too.
        doubles: u64,
    },
    /// A token cache with nothing in it.
    #[error("{name}: the text has no tokens; add data")]
    NoTokens {
        /// Name of the text.
        name: String,
    },
    /// A name that is none of a tokenizer.
    #[error("tokenizer `{found}`: expected frequency, bpe, bytes, or the path of a tokenizer file")]
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
    Hub(#[from] hub::HubError),
    /// A dataset of the hub was used before [`source::Source::fetch`].
    #[error("{name}: the dataset has not been fetched")]
    NotFetched {
        /// Name of the source.
        name: String,
    },
    /// The progress callback asked to stop.
    #[error("stopped before the source was read to its end")]
    Interrupted,
    /// The progress callback asked to stop.
    #[error("stopped before the token cache was complete; nothing was written")]
    Stopped,
}

/// Why there is no story, and what to do.
fn none_left(seen: u64, doubles: u64) -> &'static str {
    match (seen, doubles) {
        (0, _) => "the data holds only blank text, or its filter drops every story",
        (_, 0) => "add data or change the held-out share",
        _ => "all that are left are in the validation text, too; name another with --valid",
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

    /// The same, with a hint where what is missing is named like a dataset.
    fn or_dataset(mut self, spec: &str) -> DataError {
        let alike = |name: &&&str| edit_distance(name, &spec.to_lowercase()) <= 3;
        let DataError::Missing { hint, .. } = &mut self else { return self };
        if let Some(name) = hub::NAMES.iter().find(alike) {
            *hint = format!("; did you mean the dataset {name}?");
        } else if spec.contains("://") {
            *hint = "; an address is not fetched: download the file first".to_string();
        } else if let Some((owner, name)) = spec.split_once('/')
            && ![owner, name].iter().any(|part| part.is_empty() || part.contains(['/', '.', '~', '*', ' ']))
        {
            *hint += &format!("; a dataset of the hub is named hf:{spec}");
        }
        self
    }
}

/// How far `path` exists, and the most similar name at the point where it ends.
pub(crate) fn missing_hint(path: &Path) -> String {
    let here = Path::new(".");
    let mut ancestors = path.ancestors().map(|a| if a.as_os_str().is_empty() { here } else { a });
    let mut wanted = match ancestors.next() {
        Some(path) => path,
        None => return String::new(),
    };
    for folder in ancestors {
        if folder.is_dir() {
            let name = wanted.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            // A folder of millions of files is not worth a hint.
            let names = folder.read_dir().into_iter().flatten().take(10_000).flatten();
            let alike = names
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .map(|other| (edit_distance(&name, &other.to_lowercase()), other))
                .filter(|(distance, _)| *distance <= (name.len() / 3).max(2))
                .min();
            return match alike {
                Some((_, other)) => format!("; did you mean {}?", folder.join(other).display()),
                None => format!("; the nearest folder that exists is {}", folder.display()),
            };
        }
        wanted = folder;
    }
    String::new()
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        row[0] = left;
        for (cell, cb) in row[1..].iter_mut().zip(&b) {
            let best = (diagonal + usize::from(ca != *cb)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
    }
    row[b.len()]
}

#[cfg(test)]
pub(crate) mod testing {
    use super::cache::{Progress, Stale, TokenCache};
    use super::source::Source;
    use super::split::Split;
    use flashlm_model::tok::Tokenizer;
    use std::ops::ControlFlow;
    use std::path::{Path, PathBuf};

    /// A folder of its own for one test, removed at the end.
    pub(crate) struct Folder(tempfile::TempDir);

    impl Folder {
        pub(crate) fn new() -> Folder {
            Folder(tempfile::tempdir().unwrap())
        }

        pub(crate) fn path(&self) -> &Path {
            self.0.path()
        }

        /// Writes a file below the folder and gives its path.
        pub(crate) fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
            let path = self.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, contents).unwrap();
            path
        }
    }

    pub(crate) fn keep_on(_: &Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    pub(crate) fn open_or_build(
        path: &Path,
        source: &Source,
        split: Split,
        threads: usize,
    ) -> (TokenCache, Option<Stale>) {
        let source = source.clone().with_split(split);
        let (cache, built) =
            TokenCache::open_or_build(path, &source, &Tokenizer::bytes(), threads, &mut keep_on).unwrap();
        (cache, built.map(|built| built.reason))
    }

    pub(crate) fn source(folder: &Folder, name: &str, stories: &[&str]) -> Source {
        let path = folder.file(name, stories.join("\n<|endoftext|>\n"));
        Source::parse(path.to_str().unwrap()).unwrap()
    }

    /// About 5 MB, hence several batches.
    pub(crate) fn large() -> Source {
        Source::parse("synthetic:5000").unwrap().with_seed(3)
    }

    pub(crate) fn collect(source: &Source) -> Vec<String> {
        let mut stories = Vec::new();
        source
            .stories(&mut |s| {
                stories.push(s.to_string());
                ControlFlow::Continue(())
            })
            .unwrap();
        stories
    }

    /// The folder `shared` beside the checkout; None (said on stderr) where there is none.
    pub(crate) fn shared() -> Option<PathBuf> {
        let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().skip(1);
        let found = match std::env::var_os("FLASHLM_SHARED") {
            Some(folder) => Some(PathBuf::from(folder)),
            None => above.map(|folder| folder.join("shared")).find(|folder| folder.is_dir()),
        };
        if found.is_none() {
            assert!(std::env::var_os("CI").is_none(), "../shared is missing in CI");
            eprintln!("skipped: ../shared is not there");
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distances_are_the_textbook_ones() {
        for (a, b, d) in
            [("kitten", "sitting", 3), ("flaw", "lawn", 2), ("", "abc", 3), ("abc", "", 3), ("same", "same", 0)]
        {
            assert_eq!(edit_distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn missing_paths_name_the_parent_or_a_neighbour() {
        let folder = testing::Folder::new();
        folder.file("stories/train.txt", "x");
        let typo = missing_hint(&folder.path().join("stories/trian.txt"));
        assert!(typo.contains("did you mean") && typo.contains("train.txt"), "{typo}");
        let folder_typo = missing_hint(&folder.path().join("storeis/train.txt"));
        assert!(folder_typo.ends_with("stories?"), "{folder_typo}");
        let far = missing_hint(&folder.path().join("quite/another/place.txt"));
        assert!(far.contains("nearest folder") && far.ends_with(&folder.path().display().to_string()), "{far}");
    }
}
