//! What tests of data share.

use super::build::{self, Progress};
use super::cache::{Stale, TokenCache};
use super::source::Source;
use super::split::Split;
use flashlm_model::tok::Tokenizer;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A folder for one test, removed at the end.
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

pub(crate) fn open_or_build(path: &Path, source: &Source, split: Split, threads: usize) -> (TokenCache, Option<Stale>) {
    let source = source.clone().with_split(split);
    let build::Opened { cache, built } =
        build::open_or_build(path, &source, &Tokenizer::bytes(), threads, &mut keep_on).unwrap();
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
