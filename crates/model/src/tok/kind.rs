//! What tokenizer a JSON text is of.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::error::{MAX_FILE, TokError};
use super::json::parse;
use crate::io::LFS_POINTER;

/// What tokenizer a JSON text is of, told by its keys alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// FlashLM v4's vocabulary.
    Frequency,
    /// A `tokenizer.json` of byte pairs.
    Bpe,
    /// The 256 bytes.
    Bytes,
    /// GPT-2's, which the program has.
    Gpt2,
    /// A `tokenizer.json` of another type, such as `Unigram`.
    Other(String),
}

impl FileKind {
    /// Reads the keys.
    pub fn of(json: &[u8]) -> Result<Self, TokError> {
        /// The keys that tell the kinds apart.
        #[derive(Deserialize)]
        struct Probe {
            kind: Option<String>,
            id_to_base: Option<IgnoredAny>,
            base_to_id: Option<IgnoredAny>,
            model: Option<Model>,
        }
        /// Older files do not name the type; what only one type has does, whatever its value.
        #[derive(Deserialize)]
        struct Model {
            r#type: Option<String>,
            #[serde(default, deserialize_with = "there")]
            unk_id: bool,
            #[serde(default, deserialize_with = "there")]
            max_input_chars_per_word: bool,
            #[serde(default, deserialize_with = "there")]
            unk_token: bool,
            #[serde(default, deserialize_with = "there")]
            merges: bool,
        }
        fn there<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
            IgnoredAny::deserialize(d).map(|_| true)
        }
        if json.len() > MAX_FILE {
            return Err(TokError::TooLarge { limit: MAX_FILE });
        }
        if json.starts_with(LFS_POINTER) {
            return Err(TokError::LfsPointer);
        }
        let probe: Probe = parse("tokenizer", json)?;
        match probe.kind.as_deref() {
            Some("bytes") => return Ok(Self::Bytes),
            Some("gpt2") => return Ok(Self::Gpt2),
            _ => {}
        }
        if probe.id_to_base.is_some() || probe.base_to_id.is_some() {
            return Ok(Self::Frequency);
        }
        let model = probe.model.ok_or(TokError::UnknownKind)?;
        let by_key = match model {
            Model { unk_id: true, .. } => "Unigram",
            Model { max_input_chars_per_word: true, .. } => "WordPiece",
            Model { merges: false, unk_token: true, .. } => "WordLevel",
            _ => "BPE",
        };
        let found = model.r#type.unwrap_or(by_key.into());
        Ok(if found == "BPE" { Self::Bpe } else { Self::Other(found) })
    }
}
