//! The trainer: all that it holds, and how it is made.

use std::collections::{BTreeSet, VecDeque};

use flashlm_kernels::Exec;
use flashlm_model::params::Layout;

use super::{Inputs, TrainError, restore};
use crate::average::Average;
use crate::checkpoint::Checkpoint;
use crate::clock::Clock;
use crate::eta::Eta;
use crate::eval::Stories;
use crate::eval::bpb::Report;
use crate::log::Row;
use crate::log::jsonl::Metrics;
use crate::log::tensorboard::Events;
use crate::progress::{Plan, State};
use crate::ranks::Leader;
use crate::run_folder::{METRICS, SETTINGS};
use crate::stepper::Stepper;

/// A run at work.
pub struct Trainer<'a> {
    pub(super) cx: &'a Exec,
    pub(super) inputs: Inputs,
    pub(super) stepper: Stepper,
    /// Where other ranks take part.
    pub(super) leader: Option<&'a Leader<'a>>,
    /// Whether the other ranks have the parameters at hand.
    pub(super) shared: bool,
    /// The mean of its weights, where there is to be one.
    pub(super) average: Option<Average>,
    pub(super) state: State,
    pub(super) plan: Plan,
    pub(super) clock: Clock,
    pub(super) eta: Eta,
    /// Seconds of training before this process.
    pub(super) before: f64,
    /// The part of `valid` that is scored while training.
    pub(super) probe: Stories,
    /// The last validation: its step and figures.
    pub(super) probed: Option<(u64, Report)>,
    pub(super) metrics: Option<Metrics>,
    /// Rows that are not in the log yet.
    pub(super) pending: VecDeque<Row>,
    pub(super) events: Option<Events>,
    pub(super) saved: Saved,
    /// The step of this run that was resumed from; its checkpoint is kept while this process trains.
    pub(super) resumed: Option<u64>,
    /// The step whose samples are in the log.
    pub(super) sampled: Option<u64>,
    /// What has begun to fail and is not told again.
    pub(super) failing: BTreeSet<&'static str>,
    /// What is told when the run begins.
    pub(super) notes: Vec<String>,
}

/// When the last checkpoint was made, in seconds of the clock.
#[derive(Default)]
pub(super) struct Saved {
    /// The step, and that of the last validation it knows of.
    pub key: Option<(u64, Option<u64>)>,
    pub at: f64,
}

impl<'a> Trainer<'a> {
    /// A new run in the claimed folder, or one resumed from `resume`, a checkpoint of this folder or another. Where there is a leader,
    /// steps and validations are shared out over ranks, which get the parameters and the optimizer's state.
    pub fn new(
        cx: &'a Exec,
        inputs: Inputs,
        resume: Option<&Checkpoint>,
        leader: Option<&'a Leader<'a>>,
    ) -> Result<Self, TrainError> {
        let Inputs { settings, texts, .. } = &inputs;
        settings.validate()?;
        settings.model.fits(&inputs.tokenizer)?;
        let t = &settings.train;
        let plan = Plan::new(settings, texts.extents());
        let mut stepper = Stepper::new(&settings.model, t.precision, settings.largest(), t)?;
        let mut average = (t.average_share > 0.0).then(|| Average::new(stepper.lm.layout()));
        let mut notes = Vec::new();
        let state = match resume {
            Some(from) => {
                let state = restore::restore(from, settings, &mut stepper, average.as_mut())?;
                restore::same_text(state, &inputs, &mut notes)
            }
            None => {
                inputs.start.iter().for_each(|start| stepper.params.copy_from_slice(start));
                State::new(inputs.contents())
            }
        };
        // Before the first file is written: ranks that are not alike leave nothing.
        leader.map_or(Ok(()), |leader| leader.begin(cx, settings, &mut stepper))?;
        let eta = Eta::new(t, stepper.params.len());
        let (probe, before) = (inputs.valid.first(t.eval_tokens), state.elapsed);
        let mut trainer = Trainer {
            cx,
            inputs,
            stepper,
            leader,
            shared: true,
            average,
            state,
            plan,
            clock: Clock::start(),
            eta,
            before,
            probe,
            probed: None,
            metrics: None,
            pending: VecDeque::new(),
            events: None,
            saved: Saved::default(),
            resumed: None,
            sampled: None,
            failing: BTreeSet::new(),
            notes,
        };
        match resume {
            Some(from) => trainer.resume(from)?,
            None => trainer.begin()?,
        }
        Ok(trainer)
    }

    /// The files of a new run. Nothing is trained yet: what fails here ends it.
    pub(super) fn begin(&mut self) -> Result<(), TrainError> {
        let Inputs { settings, claim, entropy_bound, .. } = &mut self.inputs;
        claim.mark(&settings.name, *entropy_bound)?;
        claim.write(SETTINGS, settings.to_toml().as_bytes())?;
        self.metrics = Some(Metrics::create(&claim.folder().file(METRICS))?);
        self.events = Some(Events::create(claim.folder().path())?);
        Ok(())
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Names and places of the parameters.
    pub fn layout(&self) -> &Layout {
        self.stepper.lm.layout()
    }
}
