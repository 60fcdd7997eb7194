//! A packed model opened: metadata, digest, config and tokenizer are checked, the tensors of its weights are still to be read.

use std::borrow::Cow;

use crate::codes::error::PackError;
use crate::codes::format::{FORMAT, VERSION, digest};
use crate::codes::options::{Density, TableBits};
use crate::codes::reader::Reader;
use crate::config::ModelConfig;
use crate::io::safetensors::TensorFile;
use crate::params::Layout;
use crate::tok::Tokenizer;

/// A packed model whose weights are still to be read.
pub(crate) struct Opened {
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) digest: String,
    pub(crate) reader: Reader,
}

impl Opened {
    /// Checks all but the tensors of the weights.
    pub(crate) fn read(file: TensorFile) -> Result<Opened, PackError> {
        let label = file.label();
        let again = "pack the run again with `flashlm pack`";
        let metadata = |key: &'static str, mend| {
            file.metadata(key).ok_or_else(|| PackError::Metadata {
                file: label.into(),
                key,
                expected: "a text".into(),
                found: "none".into(),
                mend,
            })
        };
        let expect = |key, expected: &str, mend| {
            let found = metadata(key, mend)?;
            if found == expected {
                return Ok(());
            }
            Err(PackError::Metadata { file: label.into(), key, expected: expected.into(), found: shown(found), mend })
        };
        expect("format", FORMAT, "is it a packed model? `flashlm pack` makes one from a run")?;
        expect("version", VERSION, "it was made by another version of this program: use that, or pack the run again")?;
        let config = metadata("config", again)?;
        let digest = digest(config, file.data());
        expect("xxh3", &digest, "the file is damaged: copy it again from its source")?;
        // The digest has seen all of it; from here on one tensor after the other is looked at.
        file.release();
        let refused = |key, expected: &str, found: String| PackError::Metadata {
            file: label.into(),
            key,
            expected: expected.into(),
            found: shown(&found),
            mend: again,
        };
        let density = match metadata("per_byte", again)? {
            "4" => Density::Four,
            "5" => Density::Five,
            other => return Err(refused("per_byte", "4 or 5", other.into())),
        };
        let table = match metadata("table_bits", again)? {
            "8" => TableBits::Eight,
            "4" => TableBits::Four,
            other => return Err(refused("table_bits", "8 or 4", other.into())),
        };
        let config: ModelConfig =
            serde_json::from_str(config).map_err(|e| refused("config", "the settings of a model", e.to_string()))?;
        config.validate().map_err(|source| PackError::Config { file: label.into(), source })?;
        let reader = Reader::new(file, Layout::of(&config), density, table);
        let tokenizer = read_tokenizer(&reader, &config)?;
        Ok(Opened { config, tokenizer, digest, reader })
    }
}

/// The tokenizer, which fits the model.
fn read_tokenizer(from: &Reader, config: &ModelConfig) -> Result<Tokenizer, PackError> {
    let file = || from.file.label().to_owned();
    let tokenizer =
        Tokenizer::from_compact(from.tokenizer()?).map_err(|source| PackError::Tokenizer { file: file(), source })?;
    config.fits(&tokenizer).map_err(|source| PackError::Config { file: file(), source })?;
    Ok(tokenizer)
}

/// A text from outside, cut to what fits a message.
fn shown(text: &str) -> String {
    let cut: Cow<str> = match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}..", &text[..at]).into(),
        None => text.into(),
    };
    format!("{cut:?}")
}
