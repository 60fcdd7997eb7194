//! Texts of the model as it is.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use flashlm_kernels::Exec;
use flashlm_model::pack::{self, pack};
use flashlm_model::sample;
use flashlm_model::{Engine, Generation, PackedModel};

use super::{Event, Tell, TrainError, Trainer};
use crate::data::source::Source;
use crate::eval::consistency::{Consistency, write_stories};
use crate::log::{Row, SampleRow};
use crate::stepper::Stepper;

/// Tokens of a sample's prompt that are read at once.
const SAMPLE_ROWS: usize = 16;
/// Stories that are looked at for contradictions.
const STORIES: usize = 100;
/// Most of them that a thread writes at a time.
const STORY_ROWS: usize = 64;

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

    /// The parameters at hand as the runtime has them.
    fn packed(&self) -> Result<Arc<PackedModel>, TrainError> {
        let Stepper { lm, params, .. } = &self.stepper;
        let bytes = pack(self.cx, lm.config(), params, &self.inputs.tokenizer, pack::Options::default());
        Ok(Arc::new(PackedModel::from_bytes(bytes, "the model being trained")?))
    }

    /// Sense of the stories that the parameters at hand write; `None` for other texts than those of the built-in grammar, where
    /// `stop` was set on the way, and where it fails.
    pub(super) fn consistency(&mut self, stop: &AtomicBool, tell: Tell) -> Option<Consistency> {
        let texts = self.inputs.settings.texts();
        if !texts.iter().all(|text| Source::parse(&text.source).is_ok_and(|source| source.is_synthetic())) {
            return None;
        }
        let stories = self.write_stories(stop, tell);
        let (stories, failed) = match stories {
            Ok(stories) => (stories, Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.aside("writing stories", failed, tell);
        stories.map(|stories| Consistency::of(&stories))
    }

    fn write_stories(&self, stop: &AtomicBool, tell: Tell) -> Result<Option<Vec<String>>, TrainError> {
        let cx = Exec::new(self.cx.isa(), self.cx.pool().threads());
        let mut engine = Engine::new(self.packed()?, cx, STORY_ROWS);
        let mut shown = Instant::now();
        Ok(write_stories(&mut engine, STORIES, self.inputs.settings.train.seed, &mut |done| {
            if shown.elapsed().as_secs_f64() >= 1.0 {
                shown = Instant::now();
                tell(Event::Progress(&format!("writing stories: {done} of {STORIES}")));
            }
            if stop.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?)
    }

    fn write_samples(&self, step: u64) -> Result<Vec<SampleRow>, TrainError> {
        let t = &self.inputs.settings.train;
        let model = self.packed()?;
        let mut engine = Engine::new(model.clone(), Exec::new(self.cx.isa(), 1), SAMPLE_ROWS);
        let mut rows = Vec::new();
        for (i, prompt) in t.prompts.iter().enumerate() {
            let settings = sample::Settings { seed: t.seed ^ (step << 8 | i as u64), ..sample::Settings::writing() };
            let mut generation = Generation::new(&model, settings, t.sample_tokens, &[])?;
            generation.push(prompt);
            let mut text = String::new();
            engine.generate(&mut generation, |piece| text.push_str(piece))?;
            rows.push(SampleRow { step, prompt: prompt.clone(), text });
        }
        Ok(rows)
    }
}
