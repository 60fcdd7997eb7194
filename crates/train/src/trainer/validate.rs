//! Validation while training.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use super::{Event, Tell, TrainError, Trainer};
use crate::eval::Stories;
use crate::eval::bpb::{EvalError, Master, Report, evaluate};
use crate::log::{EvalRow, Row, console};
use crate::progress::Best;
use crate::ranks::Score;
use crate::stepper::Stepper;

/// What is told where it fails.
pub(super) const MARKING: &str = "marking the best checkpoint";

impl Trainer<'_> {
    /// Scores the probe, always the same documents with activations as they are in use, and marks the best. `false`, and nothing
    /// marked, where `stop` was set on the way.
    pub(super) fn validate(&mut self, stop: &AtomicBool, tell: Tell) -> Result<bool, TrainError> {
        let probe = std::mem::take(&mut self.probe);
        let report = self.score(&probe, stop, tell);
        self.probe = probe;
        let Some(report) = report? else { return Ok(false) };
        let now = Best { bpb: report.bpb, step: self.state.step };
        let best = self.state.best.is_none_or(|best| now.bpb < best.bpb);
        if best {
            self.state.best = Some(now);
            self.state.since_best = 0;
        } else {
            self.state.since_best += 1;
        }
        self.state.validated = Some(now);
        let (step, tokens, elapsed) = (self.state.step, self.state.tokens, self.state.elapsed);
        let row = EvalRow { step, tokens, elapsed, loss: report.loss_per_token, bpb: report.bpb, best };
        tell(Event::Note(&console::valid(&row, self.inputs.entropy_bound)));
        self.log(Row::Eval(row), tell);
        if best {
            self.save(tell)?;
            let marked = self.inputs.claim.mark_best(Some(step));
            self.aside(MARKING, marked, tell);
        }
        self.probed = Some((step, report));
        Ok(true)
    }

    /// Scores the probe before the first step, for comparison; no checkpoint is marked. `false` where `stop` was set on the way.
    pub(super) fn validate_start(&mut self, stop: &AtomicBool, tell: Tell) -> Result<bool, TrainError> {
        let probe = std::mem::take(&mut self.probe);
        let report = self.score(&probe, stop, tell);
        self.probe = probe;
        let Some(Report { bpb, loss_per_token: loss, .. }) = report? else { return Ok(false) };
        let row = EvalRow { step: 0, tokens: 0, elapsed: self.state.elapsed, loss, bpb, best: false };
        tell(Event::Note(&console::valid(&row, self.inputs.entropy_bound)));
        self.log(Row::Eval(row), tell);
        Ok(true)
    }

    /// Scores documents with the parameters at hand, and tells how far it has come; nothing where `stop` was set on the way.
    pub(super) fn score(
        &mut self,
        stories: &Stories,
        stop: &AtomicBool,
        tell: Tell,
    ) -> Result<Option<Report>, TrainError> {
        let Stepper { lm, params, .. } = &mut self.stepper;
        lm.set_activation_bits(self.inputs.settings.model.activation_bits);
        let total = stories.totals().tokens.max(1);
        let mut shown = Instant::now();
        let mut progress = |done: usize| {
            if shown.elapsed().as_secs_f64() >= 1.0 {
                shown = Instant::now();
                tell(Event::Progress(&format!("validation {:3.0} %", 100.0 * done as f64 / total as f64)));
            }
            if stop.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let tokenizer = &self.inputs.tokenizer;
        let scored = match self.leader {
            None => evaluate(&mut Master::new(self.cx, &mut **lm, params), tokenizer, stories, &mut progress),
            Some(leader) => {
                let stale = !std::mem::replace(&mut self.shared, true);
                let (step, activation_bits) = (self.state.step, self.inputs.settings.model.activation_bits);
                let order = Score { activation_bits, stale, step };
                let mut scorer = leader.scorer(self.cx, &mut **lm, params, order, stop)?;
                let scored = evaluate(&mut scorer, tokenizer, stories, &mut progress);
                scorer.end()?;
                scored
            }
        };
        match scored {
            Err(EvalError::Stopped) => Ok(None),
            scored => Ok(Some(scored?)),
        }
    }
}
