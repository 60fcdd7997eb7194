//! What the targets share: seeds, files in a folder of the process, models to start from.
//!
//! A seed is a valid input that the target makes itself. Mutating those gets behind the first check, which random bytes
//! hardly ever do. Where a format has a checksum the target sets it right, or nothing behind it would be reached.

pub mod parquet;
pub mod safetensors;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use flashlm_model::{Engine, Exec, Isa, PackedModel};
use flashlm_train::data::filter::Filter;
use flashlm_train::data::source::{Source, SourceReport};

/// Largest state of a sequence that a model is run with, in numbers.
const MAX_STATE: usize = 1 << 22;

/// Writes the seeds into the corpus, which is the first folder among the arguments; for the `init` of a target.
pub fn seed(seeds: impl IntoIterator<Item = Vec<u8>>) {
    let Some(corpus) = std::env::args().skip(1).map(PathBuf::from).find(|path| path.is_dir()) else { return };
    for (i, seed) in seeds.into_iter().enumerate() {
        std::fs::write(corpus.join(format!("seed-{i}")), seed).expect("a corpus to write to");
    }
}

/// A folder for the files of this process, below `TMPDIR`.
pub fn folder() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = std::env::temp_dir().join(format!("flashlm-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        folder
    });
    &FOLDER
}

/// A file in the folder of the process, with folders before it where the name has some.
pub fn file(name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder().join(name);
    if name.contains('/') {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    }
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// The stories of records, and the report where there was no error; they are read with their scores, too.
pub fn stories(source: Source) -> Option<(Vec<String>, SourceReport)> {
    let mut stories = Vec::new();
    let report = source.stories(&mut |story| {
        stories.push(story.to_string());
        ControlFlow::Continue(())
    });
    let scored = source.with_filter(Filter { min_score: f64::MIN, ..Filter::default() }).expect("a filter");
    let _ = scored.stories(&mut |_| ControlFlow::Continue(()));
    let report = report.ok()?;
    assert_eq!(report.bytes, stories.iter().map(|story| story.len() as u64).sum::<u64>());
    report.oddities.notes();
    Some((stories, report))
}

/// Takes numbers off the front of an input; what is missing is 0.
pub fn byte(input: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = input.split_first() else { return 0 };
    *input = rest;
    first
}

/// Two bytes of the input, little-endian.
pub fn word(input: &mut &[u8]) -> u16 {
    u16::from_le_bytes([byte(input), byte(input)])
}

/// At most `n` bytes of the input.
pub fn take<'a>(input: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(n.min(input.len()));
    *input = rest;
    taken
}

/// Writes a few tokens with a model.
pub fn run(model: PackedModel) {
    let c = model.config();
    if c.state_len() > MAX_STATE {
        return;
    }
    let (last, model) = ((c.vocab_size - 1) as u16, Arc::new(model));
    let mut state = model.new_state();
    let mut engine = Engine::new(model.clone(), Exec::new(Isa::SCALAR, 1), 4);
    engine.prefill(&mut state, &[0, last, 1]);
    engine.step(std::slice::from_mut(&mut state), &[last]);
    if let Some(mut again) = model.restore(&state.save()) {
        engine.step(std::slice::from_mut(&mut again), &[0]);
    }
}
