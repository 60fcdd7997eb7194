//! What a run starts from: nothing, a checkpoint that it resumes, or the weights of a model.

use std::path::{Path, PathBuf};

use flashlm_kernels::{Buf, Exec};
use flashlm_model::ModelConfig;

use super::import::import;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{DataSettings, Settings, TrainSettings};
use crate::load::{Found, LoadError, unpacked};
use crate::recognise::recognise;
use crate::run_folder::{Latest, RunFolder};
use crate::trainer::{Event, Tell, TrainError, continued};
use crate::what::{Unwanted, What};
use flashlm_model::Model;

/// What a run starts from.
pub enum Origin {
    /// Fresh weights.
    Fresh,
    /// A run or checkpoint that is resumed.
    Resumed(Resume),
    /// A model, with a fresh optimizer and schedule.
    Tuned(Box<Start>),
}

impl Origin {
    /// The checkpoint it resumes from, if any.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Origin::Resumed(resume) => Some(&resume.from),
            _ => None,
        }
    }
}

/// A checkpoint to resume from, and its run if that was named.
pub struct Resume {
    /// The checkpoint.
    pub from: Checkpoint,
    /// Its run.
    pub run: Option<RunFolder>,
    /// Why newer checkpoints were skipped.
    pub skipped: Vec<CheckpointError>,
    /// What is to be said of a file of the original scripts.
    pub note: Option<String>,
}

impl Resume {
    /// One checkpoint folder, the latest good one of a run, or a file of the original scripts.
    pub fn open(path: &Path) -> Result<Resume, TrainError> {
        let wanted = |found| {
            Unwanted::new(
                path,
                "a run with a checkpoint, one of its checkpoints, or a .pt of the original scripts",
                found,
            )
        };
        let run = match recognise(path) {
            What::Checkpoint { folder, .. } => {
                return Ok(Resume { from: Checkpoint::open(&folder)?, run: None, skipped: Vec::new(), note: None });
            }
            What::Torch => {
                let (from, note) = import(path)?;
                return Ok(Resume { from, run: None, skipped: Vec::new(), note: Some(note) });
            }
            What::Run { folder, checkpoints: 1.. } => RunFolder::at(&folder),
            found => return Err(wanted(found).into()),
        };
        let Some(Latest { checkpoint: from, skipped }) = run.latest()? else {
            return Err(wanted(recognise(path)).into());
        };
        Ok(Resume { from, run: Some(run), skipped, note: None })
    }
}

/// The weights and the vocabulary of a model.
pub struct Start {
    /// Its sizes and switches.
    pub config: ModelConfig,
    pub(super) params: Buf<f32>,
    /// As JSON.
    pub(super) tokenizer: Vec<u8>,
    /// Of the checkpoint that it is.
    path: PathBuf,
}

impl Start {
    /// Those of a run, a checkpoint, a model file or a packed model.
    pub fn load(cx: &Exec, path: &Path, tell: Tell) -> Result<Start, LoadError> {
        match Found::load(path)? {
            Found::Master(model) => {
                let Model { config, params, tokenizer, path, step } = *model;
                let step = step.map_or(String::new(), |step| format!(" (step {step})"));
                tell(Event::Note(&format!(
                    "starting from {}{step}, with a fresh optimizer and schedule",
                    path.display()
                )));
                Ok(Start { config, params, tokenizer: tokenizer.to_json(), path })
            }
            Found::Packed(model) => {
                tell(Event::Note(&format!(
                    "starting from {}: a packed model has no master weights; they start at the ternary values, which costs \
                     some steps",
                    path.display()
                )));
                Ok(Start {
                    config: model.config().clone(),
                    params: unpacked(cx, path)?,
                    tokenizer: model.tokenizer().to_json(),
                    path: path.to_path_buf(),
                })
            }
        }
    }

    /// How the model was trained, without its text and length; none where that is not known.
    pub fn recipe(&self) -> Option<Settings> {
        let saved = continued(&Checkpoint::open(&self.path).ok()?).ok()?;
        let Settings { data, tokenizer, train, .. } = Settings::default();
        let (steps, minutes, epochs, stages) = (train.steps, train.minutes, train.epochs, train.stages);
        let boundaries = saved.data.boundaries;
        Some(Settings {
            data: DataSettings { boundaries, ..data },
            tokenizer,
            train: TrainSettings { steps, minutes, epochs, stages, ..saved.train },
            ..saved
        })
    }
}
