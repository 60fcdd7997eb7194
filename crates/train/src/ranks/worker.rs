//! The side of all ranks but 0.

use std::sync::atomic::AtomicBool;

use flashlm_kernels::Exec;

use super::Shared;
use super::meet::compute_alike;
use super::message::{Order, cut, receive, spread, spread_state};
use crate::comm::{Comm, CommError};
use crate::config::Settings;
use crate::eval::bpb::Master;
use crate::stepper::{Step, Stepper};
use flashlm_model::Shape;

/// Does what rank 0 asks for until it ends. `stop` asks rank 0 to save and end.
pub fn follow(comm: &dyn Comm, cx: &Exec, stop: &AtomicBool) -> Result<(), CommError> {
    let mut model: Option<(Settings, Stepper)> = None;
    loop {
        let (order, tokens) = receive(comm)?;
        match (order, &mut model) {
            (Order::Begin(settings), model) => {
                let t = &settings.train;
                let stepper = Stepper::new(&settings.model, t.precision, settings.largest(), t);
                let mut stepper = stepper.map_err(|e| CommError::Message(e.to_string()))?;
                spread_state(comm, &mut stepper)?;
                match compute_alike(comm, cx, &mut stepper, &settings.train) {
                    // Rank 0 has seen it too, and ends the run.
                    Ok(()) | Err(CommError::Differ(_)) => *model = Some((*settings, stepper)),
                    Err(error) => return Err(error),
                }
            }
            (
                Order::Step { batch, seq_len, lr, momentum, number, frozen, activation_bits, windows },
                Some((settings, stepper)),
            ) => {
                let windows = cut(&tokens, &windows)?;
                let (shape, settings) = (Shape { batch, seq_len }, &settings.train);
                let step = Step { shape, settings, lr, momentum, number, frozen };
                stepper.lm.set_activation_bits(activation_bits);
                stepper.step_unless(stop, comm, cx, step, |i| windows[i])?;
            }
            (Order::Score { activation_bits, stale, step }, Some((_, stepper))) => {
                if stale {
                    spread(comm, &mut stepper.params)?;
                }
                stepper.lm.set_activation_bits(activation_bits);
                let Stepper { lm, params, .. } = stepper;
                match Shared::new(comm, Master::new(cx, &mut **lm, params), params, step, stop) {
                    Ok(scorer) => score(comm, scorer)?,
                    // Rank 0 has seen it too, and ends the run.
                    Err(CommError::Drifted { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            (Order::End, _) => return Ok(()),
            _ => return Err(CommError::Message("an order out of turn".into())),
        }
    }
}

fn score(comm: &dyn Comm, mut scorer: Shared) -> Result<(), CommError> {
    loop {
        let (order, tokens) = receive(comm)?;
        match (order, tokens.split_first()) {
            (Order::Documents(lens), Some((&eos, tokens))) => drop(scorer.score(&cut(tokens, &lens)?, eos)?),
            (Order::Scored, _) => return Ok(()),
            _ => return Err(CommError::Message("an order out of turn".into())),
        }
    }
}
