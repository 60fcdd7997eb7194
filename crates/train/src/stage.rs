//! The curriculum in the settings: `train.stages`, each with a sequence length, a fraction of the run, and where they
//! differ from the rest of the run, a batch and texts with weights.
//!
//! ```toml
//! [[train.stages]]
//! seq_len = 256
//! share = 0.4
//! batch = 64
//! sources = [{ source = "a.txt", weight = 3 }, { source = "b.jsonl", column = "body", filter = { min_chars = 200 } }]
//! ```

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::data::filter::Filter;

/// How documents lie in the windows of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundaries {
    /// Documents one after the other; mixers start afresh at each (`model.reset`): intra-document masking.
    Reset,
    /// Documents one after the other; mixers see the documents before.
    Packed,
    /// One document per window, cut after `T` tokens; where it is shorter, padding is not scored.
    Padded,
}

impl Boundaries {
    /// Its name in a TOML file.
    pub fn name(self) -> &'static str {
        match self {
            Boundaries::Reset => "reset",
            Boundaries::Packed => "packed",
            Boundaries::Padded => "padded",
        }
    }
}

/// What is put in another order in every epoch of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// Windows of the text as it lies.
    Windows,
    /// Documents, before they are cut into windows.
    Documents,
}

/// One stage of a curriculum: a part of the run with its own sequence length and texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Tokens of a sequence in this stage.
    pub seq_len: usize,
    /// Fraction of the run: of its tokens, or of its time where that limits it.
    pub share: f64,
    /// Sequences per batch in this stage; 0: `train.batch`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub batch: usize,
    /// Texts, mixed; empty: `data.source`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<StageSource>,
}

/// One text of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSource {
    /// As `data.source`.
    pub source: String,
    /// Its part of the stage's windows, relative to the other texts of the stage.
    #[serde(default = "one")]
    pub weight: f64,
    /// Field or column of the text; empty: `text`, or that of the dataset.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub column: String,
    /// Documents to keep.
    #[serde(default, skip_serializing_if = "Filter::keeps_all")]
    pub filter: Filter,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn one() -> f64 {
    1.0
}

impl StageSource {
    /// A text that is alone in its stage.
    pub fn new(source: &str) -> Self {
        StageSource { source: source.into(), weight: 1.0, column: String::new(), filter: Filter::default() }
    }

    /// Whether both are of one text, whatever their weights.
    pub fn is_same(&self, other: &StageSource) -> bool {
        StageSource { weight: other.weight, ..self.clone() } == *other
    }
}

/// Stages with every key there is.
pub(crate) fn template() -> Value {
    let filter = Filter { min_chars: 1, ..Filter::default() };
    let sources = vec![StageSource { column: "text".into(), filter, ..StageSource::new("text") }];
    Value::try_from([Stage { seq_len: 1, share: 1.0, batch: 1, sources }]).unwrap_or(Value::Array(Vec::new()))
}
