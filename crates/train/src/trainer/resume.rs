//! The folder of a resumed run: what becomes of the steps after the one resumed from.

use super::{Inputs, TrainError, Trainer, continued, ending};
use crate::checkpoint::Checkpoint;
use crate::log::LogError;
use crate::log::jsonl::{Kept, Metrics, Resumed};
use crate::log::tensorboard::Events;
use crate::run_folder::{ABANDONED_METRICS, METRICS, RESULT, RunError, SETTINGS};
use crate::units::counted;

impl Trainer<'_> {
    /// The folder of a resumed run. Only the timeline of checkpoints must be right; what else fails is told, and the run continues.
    pub(super) fn resume(&mut self, from: &Checkpoint) -> Result<(), TrainError> {
        let (step, folder) = (self.state.step, self.inputs.claim.folder().clone());
        if !from.is_made() {
            self.notes.extend(continued(from)?.changes(&self.inputs.settings));
        }
        let full = from.path().canonicalize().map_err(|source| RunError::Read { path: from.path().into(), source })?;
        if from.is_made() || !full.ancestors().nth(2).is_some_and(|run| folder.is(run)) {
            // The best of the other folder is not here, but for the one resumed from.
            self.state.best = self.state.best.filter(|best| best.step == step);
            return self.begin();
        }
        let t = &self.inputs.settings.train;
        let early = t.patience > 0 && self.state.since_best >= t.patience;
        if (early || self.plan.progress(&self.state) >= 1.0)
            && let Some(over) = ending::ended(&folder, &self.inputs.settings, step)
        {
            return Err(over);
        }
        for path in self.inputs.claim.abandon_after(step)? {
            self.notes.push(format!("set aside, since the run continues from step {step}: now {}", path.display()));
        }
        self.resumed = Some(step);
        match self.open_log(step) {
            Ok(rows) => {
                self.state.validated = self.state.validated.or(rows.validated);
                self.sampled = rows.sampled;
                if rows.damaged > 0 {
                    self.notes.push(format!(
                        "{} of {METRICS} could not be read; moved to {ABANDONED_METRICS}",
                        counted(rows.damaged as u64, "line")
                    ));
                }
            }
            Err(error) => self.notes.push(format!("{error}; it will be tried again with the next row")),
        }
        match Events::resume(folder.path(), step) {
            Ok(events) => self.events = Some(events),
            Err(error) => self.notes.push(format!("there will be no TensorBoard events: {error}")),
        }
        let there = folder.list()?;
        self.state.best = self.state.best.filter(|best| there.iter().any(|listed| best.step == listed.step));
        let Inputs { settings, claim, entropy_bound, .. } = &mut self.inputs;
        let written = [
            claim.mark_best(self.state.best.map(|best| best.step)),
            claim.mark(&settings.name, *entropy_bound),
            claim.write(SETTINGS, settings.to_toml().as_bytes()),
            claim.remove(RESULT),
        ];
        self.notes
            .extend(written.into_iter().filter_map(|written| Some(format!("{}; training continues", written.err()?))));
        self.saved.key = Some((step, self.state.validated.map(|v| v.step)));
        Ok(())
    }

    /// The log after the rows of `step`.
    pub(super) fn open_log(&mut self, step: u64) -> Result<Kept, LogError> {
        let folder = self.inputs.claim.folder();
        let Resumed { metrics, kept } = Metrics::resume(&folder.file(METRICS), step, &folder.file(ABANDONED_METRICS))?;
        self.metrics = Some(metrics);
        Ok(kept)
    }
}
