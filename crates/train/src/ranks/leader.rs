//! Rank 0's side.

use std::sync::atomic::AtomicBool;
use std::thread;

use flashlm_kernels::Exec;
use flashlm_model::LanguageModel;

use super::meet::compute_alike;
use super::message::{Order, send, spread, spread_state};
use super::{Fit, Shared};
use crate::comm::{Comm, CommError};
use crate::config::Settings;
use crate::data::window::Window;
use crate::eval::bpb::Master;
use crate::stepper::{Step, StepResult, Stepper};

/// Rank 0 of several. When it is dropped, the others end.
pub struct Leader<'a> {
    comm: &'a dyn Comm,
}

impl<'a> Leader<'a> {
    /// Where there are other ranks, and this one is number 0.
    pub fn of(comm: &'a dyn Comm) -> Option<Self> {
        (comm.rank() == 0 && comm.size() > 1).then_some(Leader { comm })
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.comm.size()
    }

    /// Gives the others the run's settings, parameters and optimizer; an error where they compute otherwise.
    pub(crate) fn begin(&self, cx: &Exec, settings: &Settings, stepper: &mut Stepper) -> Result<(), CommError> {
        Fit::of(settings).check(self.comm.size())?;
        send(self.comm, &Order::Begin(Box::new(settings.clone())), &[])?;
        spread_state(self.comm, stepper)?;
        compute_alike(self.comm, cx, stepper, &settings.train)
    }

    /// One step, as [`Stepper::step_unless`].
    pub(crate) fn step<'w, W: Into<Window<'w>>>(
        &self,
        stepper: &mut Stepper,
        stop: &AtomicBool,
        cx: &Exec,
        step: Step,
        activation_bits: u32,
        window: impl Fn(usize) -> W,
    ) -> Result<Option<StepResult>, CommError> {
        let Step { shape, lr, momentum, number, frozen, .. } = step;
        let (mut windows, mut tokens) =
            (Vec::with_capacity(shape.batch), Vec::with_capacity(shape.batch + shape.rows()));
        for i in 0..shape.batch {
            let (window, before) = (window(i).into(), tokens.len());
            tokens.push(window.first);
            window.append_to(&mut tokens);
            windows.push(tokens.len() - before);
        }
        let (batch, seq_len) = (shape.batch, shape.seq_len);
        let order = Order::Step { batch, seq_len, lr, momentum, number, frozen, activation_bits, windows };
        send(self.comm, &order, &tokens)?;
        let done = stepper.step_unless(stop, self.comm, cx, step, window);
        self.comm.at(None);
        done
    }

    /// What scores documents together with the other ranks, until its end; `stale` where these have other parameters.
    pub(crate) fn scorer<'s>(
        &'s self,
        cx: &'s Exec,
        lm: &'s mut dyn LanguageModel<f32>,
        params: &'s mut [f32],
        order: Score,
        stop: &'s AtomicBool,
    ) -> Result<Shared<'s>, CommError> {
        let Score { activation_bits, stale, step } = order;
        send(self.comm, &Order::Score { activation_bits, stale, step }, &[])?;
        if stale {
            spread(self.comm, params)?;
        }
        Shared::new(self.comm, Master::new(cx, lm, params), params, step, stop)
    }
}

/// What the others are to know before documents are scored.
pub(crate) struct Score {
    pub activation_bits: u32,
    pub stale: bool,
    pub step: u64,
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        // After a panic nobody knows what the others wait for.
        if !thread::panicking() {
            let _ = send(self.comm, &Order::End, &[]);
        }
    }
}
