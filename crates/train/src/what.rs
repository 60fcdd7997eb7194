//! What a path is, and the words for it, which all commands share. How it is recognised: `recognise.rs`.

use flashlm_model::tok::FileKind;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The folder of a run.
    Run {
        /// The folder.
        folder: PathBuf,
        /// How many checkpoints it has; none yet where it has just started.
        checkpoints: usize,
    },
    /// The folder of one checkpoint.
    Checkpoint {
        /// The folder.
        folder: PathBuf,
        /// The full path of the run in whose `checkpoints` it lies; none where it lies elsewhere, as a copy does.
        run: Option<PathBuf>,
    },
    /// The folder `checkpoints` of a run.
    Checkpoints {
        /// The full path of the run.
        run: PathBuf,
    },
    /// A folder that `flashlm data prepare` wrote.
    Prepared,
    /// A folder with files of text in it or below it.
    TextFolder,
    /// A folder with nothing in it.
    EmptyFolder,
    /// A model file with master weights, which has its tokenizer beside it.
    Model,
    /// A file that `flashlm pack` wrote.
    Packed,
    /// A float model of another program, which can be run: of which family.
    Peer(&'static str),
    /// A file of `torch.save`.
    Torch,
    /// No file, but the name of the model in the program.
    Builtin,
    /// Vectors for `flashlm verify`.
    Vectors,
    /// Tensors of another program.
    Tensors {
        /// What its metadata says of its format.
        format: Option<String>,
        /// How many tensors.
        count: usize,
    },
    /// A tokenizer, of a kind that can be used or not.
    Tokenizer(FileKind),
    /// A file of tokens.
    TokenCache,
    /// The metrics of a run, `metrics.jsonl`.
    Log,
    /// Text to train on: the form it has.
    Text(String),
    /// No file, but the name of a dataset.
    Dataset,
    /// No file, but the name of synthetic stories.
    Synthetic,
    /// What git has in the place of a large file.
    LfsPointer,
    /// A file of no bytes.
    Empty,
    /// A file of a known format that is cut off or damaged: which, and how.
    Damaged(&'static str, String),
    /// Anything else.
    Other {
        /// What it is.
        what: String,
        /// What to do.
        mend: String,
    },
    /// Nothing: how far the path exists, as text to append.
    Missing(String),
    /// The operating system does not let us look: why.
    Unreadable(String),
}

/// A path that is not what was asked for.
#[derive(Debug)]
pub struct Unwanted {
    /// The path.
    path: PathBuf,
    /// What was asked for.
    wanted: &'static str,
    /// What it is.
    found: Box<What>,
}

impl Unwanted {
    /// `found` at `path` instead of `wanted`.
    pub fn new(path: &Path, wanted: &'static str, found: What) -> Self {
        Unwanted { path: path.into(), wanted, found: found.into() }
    }
}

impl std::error::Error for Unwanted {}

impl fmt::Display for Unwanted {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Unwanted { path, wanted, found } = self;
        let path = path.display();
        match &**found {
            What::Missing(hint) => write!(f, "{path}: no such file or folder{hint}; expected {wanted}"),
            What::Unreadable(why) => write!(f, "{path}: cannot be read: {why}; check the path and its permissions"),
            _ => write!(f, "{path}: expected {wanted}, found {found}; {}", found.mend(&self.path)),
        }
    }
}

/// As in "found a token cache".
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            What::Run { checkpoints: 0, .. } => write!(f, "a run that has no checkpoint yet"),
            What::Run { .. } => write!(f, "a run"),
            What::Checkpoint { .. } => write!(f, "a checkpoint"),
            What::Checkpoints { .. } => write!(f, "the folder of a run's checkpoints"),
            What::Prepared => write!(f, "a folder that `flashlm data prepare` wrote"),
            What::TextFolder => write!(f, "a folder of text"),
            What::EmptyFolder => write!(f, "an empty folder"),
            What::Model => write!(f, "a model with master weights"),
            What::Packed => write!(f, "a packed model"),
            What::Peer(family) => write!(f, "a {family} model"),
            What::Torch => write!(f, "a PyTorch file"),
            What::Builtin => write!(f, "the name of the built-in model"),
            What::Vectors => write!(f, "test vectors"),
            What::Tensors { format, count } => {
                let format = format.as_ref().map_or("no format".into(), |format| format!("format {format:?}"));
                let plural = if *count == 1 { "" } else { "s" };
                write!(f, "a safetensors file of another program ({format}, {count} tensor{plural})")
            }
            What::Tokenizer(FileKind::Frequency) => write!(f, "a tokenizer (frequency)"),
            What::Tokenizer(FileKind::Bpe) => write!(f, "a tokenizer (BPE)"),
            What::Tokenizer(FileKind::Bytes) => write!(f, "a tokenizer (bytes)"),
            What::Tokenizer(FileKind::Gpt2) => write!(f, "a tokenizer (GPT-2)"),
            What::Tokenizer(FileKind::Other(kind)) => write!(f, "a tokenizer of another program (model type {kind})"),
            What::TokenCache => write!(f, "a token cache"),
            What::Log => write!(f, "the metrics of a run"),
            What::Text(form) => write!(f, "{form}"),
            What::Dataset => write!(f, "the name of a dataset"),
            What::Synthetic => write!(f, "the name of synthetic stories"),
            What::LfsPointer => write!(f, "a git LFS pointer to a file that is not here"),
            What::Empty => write!(f, "an empty file"),
            What::Damaged(format, why) => write!(f, "a damaged {format} file ({why})"),
            What::Other { what, .. } => write!(f, "{what}"),
            What::Missing(_) => write!(f, "nothing"),
            What::Unreadable(why) => write!(f, "something that cannot be read ({why})"),
        }
    }
}

impl What {
    /// What to do with it instead.
    pub fn mend(&self, path: &Path) -> String {
        let at = quoted(path);
        match self {
            What::Run { checkpoints: 0, .. } => {
                "wait until `flashlm train` has saved its first, or stop it with Ctrl-C, which saves one".into()
            }
            What::Run { .. } | What::Checkpoint { .. } | What::Model | What::Packed | What::Builtin => {
                format!("to see what is in it: flashlm info {at}")
            }
            What::Checkpoints { run } => format!("name the run, {}, or one of its checkpoints", run.display()),
            What::Prepared => format!("to train with its tokenizer: flashlm train --tokenizer {at}/tokenizer.json"),
            What::Text(_) | What::TextFolder | What::Dataset | What::Synthetic => {
                format!("to train on it: flashlm train --data {at}")
            }
            What::EmptyFolder => "if a run has just started in it, wait for its first checkpoint".into(),
            What::Vectors => format!("to compare this build with them: flashlm verify {at}"),
            What::Tensors { .. } => {
                "of other programs, FlashLM runs folders of Llama and GPT-Neo with a config.json: name the folder"
                    .into()
            }
            What::Peer(_) => {
                format!("it can be run, not trained or exported: flashlm eval {at}, flashlm generate {at}")
            }
            What::Torch => format!("if it is a model of FlashLM v4: flashlm info {at}"),
            What::Tokenizer(FileKind::Other(_)) => {
                "FlashLM takes byte-level BPE (model type BPE), and trains its own: flashlm data prepare".into()
            }
            What::Tokenizer(_) => format!("to train with it: flashlm train --tokenizer {at}"),
            What::TokenCache => "name the text that it was made from".into(),
            What::Log => format!("to draw it: flashlm plot {at}"),
            What::LfsPointer => "fetch the file with `git lfs pull`".into(),
            What::Empty | What::Damaged(..) => "copy it again from its source".into(),
            What::Other { mend, .. } => mend.clone(),
            What::Missing(_) | What::Unreadable(_) => "check the path and its permissions".into(),
        }
    }
}

/// The path as a shell takes it: in quotes where it has other than plain characters.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./:+,=@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::recognise;

    #[test]
    fn an_error_says_what_was_wanted_found_and_to_be_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my story.txt");
        std::fs::write(&path, "Once").unwrap();
        let say = |path: &Path, wanted| Unwanted::new(path, wanted, recognise(path)).to_string();
        let at = path.display();
        assert_eq!(
            say(&path, "a model"),
            format!("{at}: expected a model, found text; to train on it: flashlm train --data '{at}'")
        );
        let none = folder.path().join("none");
        let text = say(&none, "a model");
        assert!(text.starts_with(&format!("{}: no such file or folder; ", none.display())), "{text}");
        assert!(text.ends_with("; expected a model"), "{text}");
        for (name, found) in
            [("synthetic:7", What::Synthetic), ("tinystories", What::Dataset), ("hf:a/b", What::Dataset)]
        {
            assert_eq!(recognise(Path::new(name)), found);
        }
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(Path::new("runs/a-1.txt")), "runs/a-1.txt");
    }
}
