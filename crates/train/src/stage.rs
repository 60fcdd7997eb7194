//! The curriculum in the settings: `train.stages`, each with a sequence length, a share of the run, and texts with weights.
//!
//! ```toml
//! [[train.stages]]
//! seq_len = 256
//! share = 0.4
//! sources = [{ source = "a.txt", weight = 3 }, { source = "b.jsonl", column = "body", filter = { min_chars = 200 } }]
//! ```

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::config::{Settings, SettingsError};
use crate::data::DataError;
use crate::data::filter::Filter;

/// How stories lie in the windows of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundaries {
    /// One after the other; mixers start anew at each (`model.reset`).
    Reset,
    /// One after the other; mixers see the stories before.
    Packed,
    /// One story a window, cut after `T` tokens; where it is shorter, what is missing is not scored.
    Padded,
}

impl Boundaries {
    /// As in a TOML file.
    pub fn name(self) -> &'static str {
        match self {
            Boundaries::Reset => "reset",
            Boundaries::Packed => "packed",
            Boundaries::Padded => "padded",
        }
    }
}

/// One stage of a curriculum: a part of the run with a sequence length and texts of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Tokens of a sequence in this stage.
    pub seq_len: usize,
    /// Share of the run: of its tokens, or of its time where that limits it.
    pub share: f64,
    /// Texts, mixed; empty: `data.source`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<StageSource>,
}

/// One text of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSource {
    /// As `data.source`.
    pub source: String,
    /// Its part of the stage's windows, relative to the other texts of the stage.
    #[serde(default = "one")]
    pub weight: f64,
    /// Field or column of the text; empty: `text`, or that of the dataset.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub column: String,
    /// Stories to keep.
    #[serde(default, skip_serializing_if = "Filter::keeps_all")]
    pub filter: Filter,
}

fn one() -> f64 {
    1.0
}

impl StageSource {
    /// A text that is alone in its stage.
    pub fn new(source: &str) -> Self {
        StageSource { source: source.into(), weight: 1.0, column: String::new(), filter: Filter::default() }
    }

    /// Whether both are of one text, whatever their weights.
    pub fn is_same(&self, other: &StageSource) -> bool {
        StageSource { weight: other.weight, ..self.clone() } == *other
    }
}

/// Stages with every key there is.
pub(crate) fn template() -> Value {
    let filter = Filter { min_chars: 1, ..Filter::default() };
    let sources = vec![StageSource { column: "text".into(), filter, ..StageSource::new("text") }];
    Value::try_from([Stage { seq_len: 1, share: 1.0, sources }]).unwrap_or(Value::Array(Vec::new()))
}

impl Settings {
    /// Checks the stages and what they name.
    pub(crate) fn validate_stages(&self) -> Result<(), SettingsError> {
        let t = &self.train;
        let check = |ok: bool, key, found: String, expected| {
            if ok { Ok(()) } else { Err(SettingsError::Value { key, found, expected }) }
        };
        if !t.stages.is_empty() {
            let sum: f64 = t.stages.iter().map(|s| s.share).sum();
            let each = t.stages.iter().all(|s| s.share > 0.0 && (1..=65_536).contains(&s.seq_len));
            let expected = "stages with seq_len of 1 to 65536 and shares that add up to 1";
            check(each && (sum - 1.0).abs() < 1e-3, "train.stages", format!("(shares add up to {sum:.3})"), expected)?;
            let last = t.stages.last().map(|s| s.seq_len);
            let expected = "the seq_len of the last stage, at which validation runs";
            check(last == Some(t.seq_len), "train.seq_len", t.seq_len.to_string(), expected)?;
        }
        for sources in t.stages.iter().map(|stage| &stage.sources) {
            for (i, source) in sources.iter().enumerate() {
                let (name, weight) = (&source.source, source.weight);
                check(!name.is_empty(), "train.stages.sources.source", "\"\"".into(), "a text, as data.source")?;
                let found = format!("{weight} of {name}");
                check(
                    (1e-6..=1e6).contains(&weight),
                    "train.stages.sources.weight",
                    found,
                    "between 0.000001 and 1000000",
                )?;
                let why = |why: DataError| SettingsError::Filter { text: name.clone(), why: why.to_string() };
                source.filter.check().map_err(why)?;
                let once = !sources[..i].iter().any(|other| other.is_same(source));
                check(
                    once,
                    "train.stages.sources",
                    format!("{name}, twice"),
                    "texts that differ, each with its weight",
                )?;
            }
        }
        Ok(())
    }

    /// The stages of the run with the texts of each, also where the settings leave them out.
    pub fn stages(&self) -> Vec<Stage> {
        let mut stages = self.train.stages.clone();
        if stages.is_empty() {
            stages.push(Stage { seq_len: self.train.seq_len, share: 1.0, sources: Vec::new() });
        }
        for stage in stages.iter_mut().filter(|stage| stage.sources.is_empty()) {
            let column = self.data.column.clone();
            stage.sources.push(StageSource { column, ..StageSource::new(&self.data.source) });
        }
        stages
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset;

    #[test]
    fn stages_are_saved_and_read_back() {
        let settings = preset("curriculum-small").unwrap();
        let names = |stage: &Stage| stage.sources.iter().map(|s| s.source.clone()).collect::<Vec<_>>().join("+");
        let stages: Vec<_> = settings.stages().iter().map(|stage| (stage.seq_len, names(stage))).collect();
        let wanted = [(128, "tinystories"), (256, "simplestories"), (512, "fineweb-edu+simplestories")];
        assert_eq!(stages, wanted.map(|(seq_len, names)| (seq_len, names.to_string())));
        // 0.3 + 0.4 * 0.2 of the run are SimpleStories.
        let texts: Vec<_> = settings.texts().iter().map(|t| (t.source.clone(), (t.weight * 100.0).round())).collect();
        let wanted = [("tinystories", 30.0), ("simplestories", 38.0), ("fineweb-edu", 32.0)];
        assert_eq!(texts, wanted.map(|(name, weight)| (name.to_string(), weight)));
        assert_eq!(Settings::from_toml(&settings.to_toml(), "saved").unwrap(), settings);
        let filter = &settings.texts()[2].filter;
        assert_eq!((filter.min_score, filter.min_chars, filter.max_chars, filter.min_simple), (3.0, 400, 6000, 0.8));
        let mut other = settings.clone();
        other.train.stages[2].sources[0].filter.min_simple = 0.7;
        assert!(settings.conflict(&other).unwrap().contains("train.stages"));
    }
}
