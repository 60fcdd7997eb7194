//! Texts of the model as it is.

use std::sync::Arc;

use flashlm_kernels::Exec;
use flashlm_model::pack::{self, pack};
use flashlm_model::sample;
use flashlm_model::{Engine, Generation, PackedModel};

use super::{Event, Tell, TrainError, Trainer};
use crate::log::{Row, SampleRow};
use crate::stepper::Stepper;

/// Tokens of a sample's prompt that are read at once.
const SAMPLE_ROWS: usize = 16;

impl Trainer<'_> {
    /// Lets the parameters at hand, those of `step`, go on from each prompt.
    pub(super) fn sample(&mut self, step: u64, log: bool, tell: Tell) -> Vec<SampleRow> {
        match self.write_samples(step) {
            Ok(rows) => {
                self.aside("sampling", Ok::<_, TrainError>(()), tell);
                for row in &rows {
                    tell(Event::Sample(row));
                    if log {
                        self.log(Row::Sample(row.clone()), tell);
                        self.sampled = Some(step);
                    }
                }
                rows
            }
            Err(error) => {
                self.aside("sampling", Err(error), tell);
                Vec::new()
            }
        }
    }

    fn write_samples(&self, step: u64) -> Result<Vec<SampleRow>, TrainError> {
        let t = &self.inputs.settings.train;
        let Stepper { lm, params, .. } = &self.stepper;
        let bytes = pack(self.cx, lm.config(), params, &self.inputs.tokenizer, pack::Options::default());
        let model = Arc::new(PackedModel::from_bytes(bytes, "the model being trained")?);
        let mut engine = Engine::new(model.clone(), Exec::new(self.cx.isa(), 1), SAMPLE_ROWS);
        let mut rows = Vec::new();
        for (i, prompt) in t.prompts.iter().enumerate() {
            let settings = sample::Settings {
                temperature: 0.8,
                top_p: 0.95,
                seed: t.seed ^ (step << 8 | i as u64),
                ..sample::Settings::default()
            };
            let mut generation = Generation::new(&model, settings, t.sample_tokens, &[])?;
            generation.push(prompt);
            let mut text = String::new();
            engine.generate(&mut generation, |piece| text.push_str(piece))?;
            rows.push(SampleRow { step, prompt: prompt.clone(), text });
        }
        Ok(rows)
    }
}
