//! Where the run of a checkpoint stood, and what it had learned.

use super::check::agree;
use super::{Inputs, TrainError};
use crate::average::Average;
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::load::read_state;
use crate::progress::{Contents, State};
use crate::stepper::Stepper;
use flashlm_model::model_file::read_params;

/// Where the run of a checkpoint stood.
pub fn state(from: &Checkpoint, settings: &Settings) -> Result<State, TrainError> {
    let bad = |what: String| TrainError::State { path: from.path().join("state.json"), what };
    let mut state: State = serde_json::from_slice(&from.bytes("state.json")?).map_err(|e| bad(e.to_string()))?;
    let (stages, texts) = (settings.stages().len(), settings.texts().len());
    // Of a file of the original scripts, which says nothing of its text.
    if from.is_made() {
        state.epochs_before = vec![0.0; texts];
    }
    if state.step != from.step()
        || state.stage >= stages
        || state.epochs_before.len() != texts
        || state.stage_start > state.step
        || !state.elapsed.is_finite()
    {
        return Err(bad("its values contradict each other".into()));
    }
    Ok(state)
}

/// Fills the stepper and the mean of its weights from a checkpoint of the same settings and returns where the run stood.
pub(super) fn restore(
    from: &Checkpoint,
    settings: &Settings,
    stepper: &mut Stepper,
    average: Option<&mut Average>,
) -> Result<State, TrainError> {
    agree(from, settings)?;
    stepper.params = read_params(&from.tensors("model.safetensors")?, stepper.lm.config(), "")?;
    let mut kept = stepper.optimizers.state();
    kept.extend(average.into_iter().flat_map(Average::state));
    read_state(&from.tensors("optimizer.safetensors")?, &mut kept)?;
    state(from, settings)
}

/// Where the run stands on the texts that it has now. On other ones, such as the old text with more behind it, epochs are counted
/// anew; on another validation text, no earlier validation counts.
pub(super) fn same_text(mut state: State, inputs: &Inputs, notes: &mut Vec<String>) -> State {
    let Contents { texts, valid } = inputs.contents();
    if !state.texts.is_empty() && state.texts != texts {
        notes.push(
            "the training text is another one than at this checkpoint: training continues on it, epochs are counted anew, \
             and losses before and after cannot be compared"
                .into(),
        );
        state.epochs_before = vec![0.0; texts.len()];
        (state.stage_start, state.windows) = (state.step, Some(0));
    }
    if state.valid.is_some_and(|before| before != valid) {
        notes.push(
            "the validation text is another one than at this checkpoint: earlier validations no longer count".into(),
        );
        (state.best, state.since_best, state.validated) = (None, 0, None);
    }
    State { texts, valid: Some(valid), ..state }
}
