//! What a format is given.

use crate::codes::error::PackError;
use crate::codes::weight::Weight;
use crate::config::ModelConfig;
use crate::io::safetensors::TensorFile;
use crate::pack::open::Opened;
use crate::tok::Tokenizer;

/// A packed model taken apart.
pub struct Source {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// All parameters, in the order of the layout.
    pub weights: Vec<Weight>,
}

impl Source {
    /// Reads the file of a packed model.
    pub fn read(file: TensorFile) -> Result<Source, PackError> {
        let Opened { config, tokenizer, reader, .. } = Opened::read(file)?;
        let weights = reader.weights(config.quant.quant())?;
        reader.finish()?;
        Ok(Source { config, tokenizer, weights })
    }

    /// Why a format that has code of its own for what a model computes cannot say this one: another family, other mixers.
    pub fn unknown(&self) -> Vec<String> {
        const KNOWN: [&str; 5] = ["conv", "shortconv", "attention", "delta", "leaky"];
        let mut reasons = Vec::new();
        if self.config.family != "flash" {
            reasons.push(format!("model.family = {} (expected flash)", self.config.family));
        }
        for mixer in (0..self.config.blocks).map(|i| self.config.mixer_of(i)).filter(|mixer| !KNOWN.contains(mixer)) {
            let reason = format!("model.mixer = {mixer} (expected {})", KNOWN.join(", "));
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        reasons
    }

    /// Why one that reads texts of these kinds of vocabulary alone cannot, if it is another.
    pub fn unknown_vocabulary(&self, known: &[&str]) -> Option<String> {
        let kind = self.tokenizer.kind();
        (!known.contains(&kind)).then(|| format!("tokenizer.kind = {kind} (expected {})", known.join(" or ")))
    }
}

/// What a format has made of a model.
pub enum Exported {
    /// One file.
    File(Vec<u8>),
    /// The files of a folder, by their names.
    Folder(Vec<(&'static str, Vec<u8>)>),
}

/// Why a format cannot express a model: each reason names the setting, its value and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this format cannot express the model: {}", .0.join("; "))]
pub struct Refused(pub Vec<String>);
