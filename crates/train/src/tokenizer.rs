//! The tokenizer of a run: one trained on its sources, the bytes, or one from a file.

use crate::data::DataError;
use crate::data::build::Progress;
use crate::data::source::Weighted;
use crate::data::vocab::{Kind, vocabulary};
use crate::recognise::recognise;
use crate::what::{Unwanted, What};
use flashlm_model::tok::Tokenizer;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Which tokenizer to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerChoice {
    /// One trained on the text.
    Trained(Kind),
    /// The 256 bytes, lossless.
    Bytes,
    /// GPT-2's 50,257 tokens, lossless.
    Gpt2,
    /// A tokenizer file.
    File(PathBuf),
}

impl FromStr for TokenizerChoice {
    type Err = DataError;

    /// A kind by its name, else the path of a file: what has a `.` or a `/` in it, or is there.
    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "frequency" => Ok(TokenizerChoice::Trained(Kind::Frequency)),
            "bpe" => Ok(TokenizerChoice::Trained(Kind::Bpe)),
            "bytes" => Ok(TokenizerChoice::Bytes),
            "gpt2" => Ok(TokenizerChoice::Gpt2),
            path if path.contains(['.', std::path::MAIN_SEPARATOR]) || Path::new(path).exists() => {
                Ok(TokenizerChoice::File(path.into()))
            }
            found => Err(DataError::TokenizerChoice { found: found.to_string() }),
        }
    }
}

impl TokenizerChoice {
    /// What can be known before any text is read: whether there is such a file, or may be such a vocabulary.
    pub fn check(&self, vocab_size: usize) -> Result<(), DataError> {
        match self {
            TokenizerChoice::Bytes | TokenizerChoice::Gpt2 => {}
            TokenizerChoice::File(path) => drop(of_file(path)?),
            TokenizerChoice::Trained(kind) => drop(kind.trainer(vocab_size)?),
        }
        Ok(())
    }
}

impl fmt::Display for TokenizerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenizerChoice::Trained(kind) => f.write_str(kind.name()),
            TokenizerChoice::Bytes => f.write_str("bytes"),
            TokenizerChoice::Gpt2 => f.write_str("gpt2"),
            TokenizerChoice::File(path) => path.display().fmt(f),
        }
    }
}

/// The tokenizer chosen, where it is trained as [`vocabulary`] does it.
pub fn tokenizer(
    dir: &Path,
    choice: &TokenizerChoice,
    vocab_size: usize,
    stories: usize,
    sources: &[Weighted],
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Tokenizer, DataError> {
    match choice {
        TokenizerChoice::Trained(kind) => vocabulary(dir, *kind, vocab_size, stories, sources, progress),
        TokenizerChoice::Bytes => Ok(Tokenizer::bytes()),
        TokenizerChoice::Gpt2 => Ok(Tokenizer::gpt2()),
        TokenizerChoice::File(path) => of_file(path),
    }
}

/// The tokenizer of a file.
pub fn of_file(path: &Path) -> Result<Tokenizer, DataError> {
    match recognise(path) {
        What::Tokenizer(_) => Ok(Tokenizer::load(path)?),
        found => Err(Unwanted::new(path, "a tokenizer file, such as tokenizer.json", found).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{Folder, keep_on, source};
    use crate::data::vocab::STORIES;

    #[test]
    fn choices_by_name_and_by_path() {
        let folder = Folder::new();
        let plain = folder.file("plain", "x");
        let file = |path: &str| TokenizerChoice::File(path.into());
        for (text, choice) in [
            ("frequency", TokenizerChoice::Trained(Kind::Frequency)),
            ("bpe", TokenizerChoice::Trained(Kind::Bpe)),
            ("bytes", TokenizerChoice::Bytes),
            ("gpt2", TokenizerChoice::Gpt2),
            ("tokenizer.json", file("tokenizer.json")),
            ("./bpe", file("./bpe")),
            (plain.to_str().unwrap(), file(plain.to_str().unwrap())),
        ] {
            assert_eq!(text.parse::<TokenizerChoice>().unwrap(), choice, "{text}");
            assert_eq!(choice.to_string(), text);
        }
        for text in ["", "BPE", "byte", "gpt"] {
            let error = text.parse::<TokenizerChoice>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("frequency, bpe, bytes"), "{error}");
        }
    }

    #[test]
    fn files_and_bytes_need_no_training() {
        let folder = Folder::new();
        let text = [Weighted::alone(source(&folder, "a.txt", &["x"]))];
        let path = folder.file("tok.json", Tokenizer::train_bpe(["the the"].into_iter(), 258).unwrap().to_json());
        let dir = folder.path().join("cache");
        let of = |choice: TokenizerChoice, size| tokenizer(&dir, &choice, size, STORIES, &text, &mut keep_on);
        assert_eq!(of(TokenizerChoice::File(path), 1).unwrap().vocab_size(), 258);
        assert_eq!(of(TokenizerChoice::Bytes, 1).unwrap().kind(), "bytes");
        assert!(!dir.exists());
        let missing = TokenizerChoice::File(folder.path().join("none.json"));
        let error = of(missing, 1).unwrap_err().to_string();
        assert!(error.contains("none.json"), "{error}");
        let error = of(TokenizerChoice::Trained(Kind::Bpe), 100).unwrap_err().to_string();
        assert!(error.contains("choose 257 to 65535"), "{error}");
    }
}
