//! Whole training steps on random tokens: what speed is measured with, where there is no text yet.

use flashlm_kernels::{Exec, Token};
use flashlm_model::rng::Rng;
use flashlm_model::{ModelConfig, Precision, Shape};

use super::size::pass_rows_for;
use crate::config::TrainSettings;
use crate::stepper::{Step, StepResult, Stepper};
use crate::trainer::TrainError;

/// Batches of random tokens, used in turn.
const BATCHES: usize = 8;

/// A model in training, and the batches it is given.
pub struct Steps {
    /// The model.
    pub stepper: Stepper,
    settings: TrainSettings,
    shape: Shape,
    /// `[BATCHES, B, T + 1]`.
    tokens: Vec<Token>,
    step: u64,
}

impl Steps {
    /// A fresh model, for steps of this shape.
    pub fn new(
        cx: &Exec,
        model: &ModelConfig,
        precision: Precision,
        mut settings: TrainSettings,
        shape: Shape,
    ) -> Result<Self, TrainError> {
        if settings.pass_rows == 0 {
            settings.pass_rows = pass_rows_for(shape.rows(), cx.pool().threads());
        }
        let stepper = Stepper::new(model, precision, shape, &settings)?;
        let mut rng = Rng::new(settings.seed);
        let random = |_| rng.below(model.vocab_size as u64) as Token;
        let tokens = (0..BATCHES * shape.batch * (shape.seq_len + 1)).map(random).collect();
        Ok(Steps { stepper, settings, shape, tokens, step: 0 })
    }

    /// One whole step, as the trainer takes it.
    pub fn step(&mut self, cx: &Exec) -> Result<StepResult, TrainError> {
        let Shape { batch, seq_len } = self.shape;
        let first = self.step as usize % BATCHES * batch;
        let window = |i: usize| &self.tokens[(first + i) * (seq_len + 1)..][..seq_len + 1];
        self.step += 1;
        let (settings, lr, momentum) = (&self.settings, self.settings.lr, self.settings.momentum);
        let step = Step { shape: self.shape, settings, lr, momentum, number: self.step, frozen: 0 };
        let result = self.stepper.step(cx, step, window);
        if result.is_finite() { Ok(result) } else { Err(TrainError::NotMeasured { n: self.step, result }) }
    }
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::Isa;

    use super::*;
    use crate::config::preset;

    /// What is timed is training: the loss of random tokens starts at ln V, and falls where they come again.
    #[test]
    fn the_steps_train() {
        let cx = Exec::new(Isa::SCALAR, 1);
        let model = ModelConfig { vocab_size: 31, dim: 16, blocks: 1, ffn_hidden: 24, ..ModelConfig::v4_small() };
        let settings = preset("v4-small").unwrap().train;
        let mut steps = Steps::new(&cx, &model, Precision::F32, settings, Shape { batch: 3, seq_len: 5 }).unwrap();
        let losses: Vec<f64> = (0..25 * BATCHES).map(|_| steps.step(&cx).unwrap().loss).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!((losses[0] - 31f64.ln()).abs() < 0.1, "{}", losses[0]);
        let last = mean(&losses[24 * BATCHES..]);
        assert!(last < 0.8 * 31f64.ln(), "{last}");
    }
}
