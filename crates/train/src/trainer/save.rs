//! What a run writes while it trains. The checkpoint alone may end a run, and not even that for want of room: it waits until there
//! is some, unless other ranks would wait with it. What fails besides is told once, and the run continues.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use flashlm_model::Shape;
use flashlm_model::io::safetensors::TensorRef;
use flashlm_model::model_file::save_params;

use super::{Event, Tell, TrainError, Trainer};
use crate::atomic::AtomicError;
use crate::average::Average;
use crate::checkpoint::{CheckpointError, Part, folder_name};
use crate::log::jsonl;
use crate::log::svg::{self, Axis, Series};
use crate::log::{LogError, Row};
use crate::progress::State;
use crate::run_folder::{CURVE, METRICS};
use crate::stepper::Stepper;
use crate::units;

/// How often a checkpoint is tried that fails for another reason than want of room.
const TRIES: u32 = 3;
/// The first wait between two tries, and the longest; it doubles.
const WAIT: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];

/// Rows kept while the log cannot be written; further ones are lost.
const MAX_PENDING: usize = 100_000;

impl Trainer<'_> {
    /// The step that is on the disk in the run's folder, saved by this process or resumed from.
    pub fn saved_step(&self) -> Option<u64> {
        self.saved.key.map(|(step, _)| step)
    }

    /// Saves a checkpoint of this step, unless there is one, and removes old ones. A full disk is waited for, but not by several ranks.
    pub(super) fn save(&mut self, tell: Tell) -> Result<(), TrainError> {
        let step = self.state.step;
        let key = Some((step, self.state.validated.map(|v| v.step)));
        if self.saved.key != key {
            let began = Instant::now();
            let (mut tries, mut wait, mut waited) = (0, WAIT[0], false);
            while let Err(error) = self.write_checkpoint() {
                let full = matches!(&error, CheckpointError::Save { source: AtomicError::DiskFull { .. }, .. });
                tries += 1;
                if !full && tries == TRIES {
                    return Err(error.into());
                }
                if full && self.leader.is_some() {
                    let last = self.saved_step().map_or("there is no checkpoint yet".into(), |step| {
                        format!("the checkpoint of step {step} is whole, and --resume goes on from there")
                    });
                    tell(Event::Note(&format!("rank 0 cannot save step {step}, and all ranks end: {last}")));
                    return Err(error.into());
                }
                if !full {
                    tell(Event::Note(&format!("{error}. Trying again")));
                } else if waited {
                    let waiting = units::duration(began.elapsed().as_secs_f64());
                    tell(Event::Progress(&format!(
                        "step {step} is not saved yet: the disk has been full for {waiting}"
                    )));
                } else {
                    tell(Event::Note(&format!(
                        "{error}. The run waits until there is room, then continues; Ctrl-C twice ends it without saving \
                         this step"
                    )));
                }
                waited |= full;
                self.clock.pause(true);
                thread::sleep(wait);
                self.clock.pause(false);
                wait = (2 * wait).min(WAIT[1]);
            }
            if tries > 0 {
                tell(Event::Note(&format!("the checkpoint of step {step} is written; the run continues")));
            }
            self.saved.key = key;
            let path = self.inputs.claim.folder().checkpoints().join(folder_name(step));
            tell(Event::Saved { step, path: &path });
            let protect: Vec<u64> = self.resumed.into_iter().chain([step]).collect();
            let pruned = self.inputs.claim.prune(self.inputs.settings.train.keep, &protect);
            self.aside("removing old checkpoints", pruned.map(drop), tell);
        }
        self.saved.at = self.clock.seconds();
        Ok(())
    }

    fn write_checkpoint(&mut self) -> Result<(), CheckpointError> {
        let Stepper { lm, params, optimizers, .. } = &mut self.stepper;
        let settings = &self.inputs.settings;
        let (tensors, metadata) = save_params(lm.layout(), params, &settings.model);
        let mut kept = optimizers.state();
        kept.extend(self.average.iter_mut().flat_map(Average::state));
        let kept = kept.iter().map(|t| TensorRef { name: &t.name, shape: &t.shape, data: t.data });
        let step = self.state.step;
        let state = serde_json::to_vec_pretty(&self.state).map_err(io::Error::from).map_err(|e| {
            let source = AtomicError::new(Path::new("state.json"), "writing", 0, e);
            CheckpointError::Save { step, bytes: 0, source }
        })?;
        let (toml, tokenizer) = (settings.to_toml(), self.inputs.tokenizer.to_json());
        let parts = [
            Part::Tensors { file: "model.safetensors", tensors, metadata },
            Part::Tensors { file: "optimizer.safetensors", tensors: kept.collect(), metadata: Default::default() },
            Part::Bytes { file: "state.json", data: &state },
            Part::Bytes { file: "config.toml", data: toml.as_bytes() },
            Part::Bytes { file: "tokenizer.json", data: &tokenizer },
        ];
        self.inputs.claim.save(step, &parts)
    }

    /// Before the run ends with an error: what has been trained is saved, if it is numbers. What there is of checkpoints stays,
    /// since an earlier one may be what is resumed from.
    pub(super) fn rescue(&mut self, tell: Tell) {
        let step = self.state.step;
        if step == 0 || self.saved_step() == Some(step) || self.stepper.params.iter().any(|p| !p.is_finite()) {
            return;
        }
        match self.write_checkpoint() {
            Ok(()) => {
                self.saved.key = Some((step, None));
                let run = self.inputs.claim.folder().path().display();
                tell(Event::Note(&format!("step {step}, the last before the error, is saved in {run}")));
            }
            Err(error) => tell(Event::Note(&error.to_string())),
        }
    }

    /// Where a run can be resumed after a loss that is not a number: the newest checkpoint from which a step was made that was
    /// one, or where there is none, one of the start. A checkpoint of the very step that failed is set aside.
    pub(super) fn last_good(&mut self) -> Result<PathBuf, TrainError> {
        let claim = &mut self.inputs.claim;
        if let Some(before) = self.state.step.checked_sub(1) {
            claim.abandon_after(before)?;
        }
        if let Some(newest) = claim.folder().list()?.pop() {
            return Ok(newest.path);
        }
        let (t, rows) = (&self.inputs.settings.train, self.stepper.lm.rows());
        self.stepper = Stepper::new(&self.inputs.settings.model, t.precision, Shape { batch: 1, seq_len: rows }, t)?;
        self.inputs.start.iter().for_each(|start| self.stepper.params.copy_from_slice(start));
        self.state = State::new(self.inputs.contents());
        self.write_checkpoint()?;
        Ok(self.inputs.claim.folder().list()?.pop().map(|newest| newest.path).unwrap_or_default())
    }

    /// What may fail without ending the run: told when it begins to fail, and not again until it has worked.
    pub(super) fn aside<E: Display>(&mut self, what: &'static str, result: Result<(), E>, tell: Tell) {
        match result {
            Ok(()) => drop(self.failing.remove(what)),
            Err(error) if self.failing.insert(what) => {
                tell(Event::Note(&format!("{what} failed, training continues: {error}")));
            }
            Err(_) => {}
        }
    }

    /// Writes a row to the log and to TensorBoard. Rows that the log does not take are kept and written before the next.
    pub(super) fn log(&mut self, row: Row, tell: Tell) {
        tell(Event::Row(&row));
        let written = self.events.as_mut().map_or(Ok(()), |events| events.append(&row));
        self.aside("writing the TensorBoard events", written, tell);
        if self.pending.len() < MAX_PENDING {
            self.pending.push_back(row);
        }
        let written = self.write_rows();
        self.aside("writing metrics.jsonl", written, tell);
    }

    fn write_rows(&mut self) -> Result<(), LogError> {
        if let (None, Some(step)) = (&self.metrics, self.resumed) {
            self.open_log(step)?;
        }
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        while let Some(row) = self.pending.front() {
            let written = metrics.append(row);
            // A row that no reader would take is not tried again.
            if !matches!(&written, Err(LogError::Io { source, .. }) if source.kind() != ErrorKind::InvalidData) {
                self.pending.pop_front();
            }
            written?;
        }
        Ok(())
    }

    /// Draws the curve of the metrics written so far.
    pub(super) fn draw(&mut self, tell: Tell) {
        let written = self.write_rows();
        self.aside("writing metrics.jsonl", written, tell);
        let name = self.inputs.settings.name.clone();
        let entropy_bound = self.inputs.entropy_bound;
        let drawn = jsonl::read(&self.inputs.claim.folder().file(METRICS)).map_err(TrainError::from).and_then(|rows| {
            let options = svg::Options { title: name.clone(), axis: Axis::Tokens, entropy_bound };
            let picture = svg::draw(&[Series::new(name, rows)], &options);
            Ok(self.inputs.claim.write(CURVE, picture.as_bytes())?)
        });
        self.aside("drawing the curve", drawn, tell);
    }
}
