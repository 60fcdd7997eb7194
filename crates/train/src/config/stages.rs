//! Stages and texts of a run, also where the settings leave them out.

use flashlm_model::Shape;

use super::settings::Settings;
use crate::data::filter::Filter;
use crate::stage::{Stage, StageSource};

impl Settings {
    /// The stages of the run with the texts of each, also where the settings leave them out.
    pub fn stages(&self) -> Vec<Stage> {
        let mut stages = self.train.stages.clone();
        if stages.is_empty() {
            stages.push(Stage { seq_len: self.train.seq_len, share: 1.0, batch: 0, sources: Vec::new() });
        }
        for stage in stages.iter_mut().filter(|stage| stage.batch == 0) {
            stage.batch = self.train.batch;
        }
        for stage in stages.iter_mut().filter(|stage| stage.sources.is_empty()) {
            let column = self.data.column.clone();
            let filter = Filter { documents: self.data.documents, ..Filter::default() };
            stage.sources.push(StageSource { column, filter, ..StageSource::new(&self.data.source) });
        }
        stages
    }

    /// The shape of the largest batch of any stage: the most sequences of a step, and the longest.
    pub fn largest(&self) -> Shape {
        let stages = self.stages();
        let most = |of: fn(&Stage) -> usize| stages.iter().map(of).max().unwrap_or(1);
        Shape { batch: most(|stage| stage.batch) * self.train.accumulation, seq_len: most(|stage| stage.seq_len) }
    }

    /// Every text of the run once, in the order of the stages; the weight is its part of the whole run.
    pub fn texts(&self) -> Vec<StageSource> {
        let mut texts: Vec<StageSource> = Vec::new();
        for stage in self.stages() {
            let sum: f64 = stage.sources.iter().map(|source| source.weight).sum();
            for source in stage.sources {
                let weight = stage.share * source.weight / sum;
                match texts.iter_mut().find(|text| text.is_same(&source)) {
                    Some(text) => text.weight += weight,
                    None => texts.push(StageSource { weight, ..source }),
                }
            }
        }
        texts
    }
}
