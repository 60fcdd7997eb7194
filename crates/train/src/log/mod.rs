//! What a run leaves behind to be read: rows, curves, a card.
//!
//! One [`Row`] is one line of `metrics.jsonl` ([`jsonl`]), one TensorBoard event ([`tensorboard`]), one point of
//! `curve.svg` ([`svg`]) and one line on stderr ([`console`]); [`card`] writes the README of the finished run, [`bars`] models side
//! by side.
//! Losses are in nats per token, `bpb` in bits per byte, times in seconds since the run began (pauses left out).

pub mod bars;
pub mod card;
pub mod console;
mod curve;
pub mod dots;
pub mod histogram;
pub mod jsonl;
mod scale;
mod style;
pub mod svg;
pub mod tail;
pub mod tensorboard;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

/// One line of the training log: means since the row before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainRow {
    /// Optimizer steps taken.
    pub step: u64,
    /// Training loss, nats per token, mean since the last row.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate of this step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Norm of the whole gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Tokens seen since the run began.
    pub tokens: u64,
    /// Tokens per second since the last row.
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_second: f64,
    /// Seconds of training since the run began.
    #[serde(deserialize_with = "null_is_nan")]
    pub elapsed: f64,
    /// Passes over the training text; with several in the stage, over the one that was read most often.
    #[serde(deserialize_with = "null_is_nan")]
    pub epoch: f64,
    /// Tokens in one training window.
    pub seq_len: usize,
    /// Stage of the curriculum, from 1; 0 in rows written before there were any.
    #[serde(default)]
    pub stage: usize,
    /// Texts of the stage by name, and passes over each since the run began.
    #[serde(default)]
    pub sources: BTreeMap<String, f64>,
    /// With several ranks, seconds that each waited for the slowest since the last row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waited: Vec<f64>,
}

/// One evaluation on the validation set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Optimizer steps taken.
    pub step: u64,
    /// Tokens seen since the run began.
    pub tokens: u64,
    /// Seconds of training since the run began.
    #[serde(deserialize_with = "null_is_nan")]
    pub elapsed: f64,
    /// Validation loss, nats per token.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Validation bits per byte.
    #[serde(deserialize_with = "null_is_nan")]
    pub bpb: f64,
    /// Whether no evaluation before it was better; of that before the first step, never.
    pub best: bool,
}

/// A text the model wrote during training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleRow {
    /// Optimizer steps taken.
    pub step: u64,
    /// What the model was given.
    pub prompt: String,
    /// What it went on with, without the prompt.
    pub text: String,
}

/// One row of a run's log; in JSON the field `kind` names the variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Row {
    /// Training progress.
    Train(TrainRow),
    /// Validation.
    Eval(EvalRow),
    /// Generated text.
    Sample(SampleRow),
}

impl Row {
    /// The optimizer step the row belongs to.
    pub fn step(&self) -> u64 {
        match self {
            Row::Train(r) => r.step,
            Row::Eval(r) => r.step,
            Row::Sample(r) => r.step,
        }
    }
}

/// JSON knows no NaN: a number that was not finite is written as null.
fn null_is_nan<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or(f64::NAN))
}

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] flashlm_model::io::IoError),
    /// The shortened log of a resumed run could not be put in the place of the old one.
    #[error(transparent)]
    Atomic(#[from] crate::atomic::AtomicError),
    /// A line that is not a row, before the end of the file.
    #[error(
        "{path}, line {line}: expected a JSON row of kind train, eval or sample: {source}; remove the line to read the others"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A line no run would have written.
    #[error(
        "{path}, line {line}: longer than {limit} bytes, the limit for a row; this is not a metrics file, or the line is \
         damaged: remove it"
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// The longest line accepted, in bytes.
        limit: usize,
    },
    /// The same, where lines are not counted.
    #[error(
        "{path}, from byte {at}: no end of a line within {limit} bytes; this is not a metrics file, or it is damaged"
    )]
    Endless {
        /// The file.
        path: PathBuf,
        /// Where the line begins.
        at: u64,
        /// The longest line accepted, in bytes.
        limit: usize,
    },
}

impl LogError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| LogError::Io { action, path, source }
    }
}

/// A file that grows by whole records: one that could not be written is taken back, so that the next follows a whole one.
#[derive(Debug)]
struct Append {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Append {
    fn open(path: &Path, options: &mut OpenOptions) -> Result<Self, LogError> {
        let file = options.append(true).open(path).map_err(LogError::io("open", path))?;
        let len = file.metadata().map_err(LogError::io("read the size of", path))?.len();
        Ok(Append { file, path: path.to_path_buf(), len })
    }

    fn write(&mut self, record: &[u8]) -> Result<(), LogError> {
        if let Err(source) = self.file.write_all(record) {
            // The first error is the one to report; a torn end is also mended on resume.
            let _ = self.file.set_len(self.len);
            return Err(LogError::io("append to", &self.path)(source));
        }
        self.len += record.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_documented_json() {
        let eval =
            Row::Eval(EvalRow { step: 7, tokens: 1 << 60, elapsed: 1.5, loss: f64::INFINITY, bpb: 0.75, best: true });
        let text =
            r#"{"kind":"eval","step":7,"tokens":1152921504606846976,"elapsed":1.5,"loss":null,"bpb":0.75,"best":true}"#;
        assert_eq!(serde_json::to_string(&eval).unwrap(), text);
        let Row::Eval(back) = serde_json::from_str(text).unwrap() else {
            panic!("kind eval read as another");
        };
        assert!(back.loss.is_nan());
        assert_eq!((back.tokens, back.bpb, back.best), (1 << 60, 0.75, true));
    }

    #[test]
    fn a_missing_number_is_not_a_nan() {
        let text = r#"{"kind":"eval","step":7,"tokens":1,"elapsed":1.5,"bpb":0.75,"best":true}"#;
        let error = serde_json::from_str::<Row>(text).unwrap_err().to_string();
        assert!(error.contains("loss"), "{error}");
    }
}
