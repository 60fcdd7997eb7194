//! The settings of a run: defaults, then the preset, then `--config FILE`, then flags and `--set key=value`, resolved to one
//! TOML that is printed and saved beside every checkpoint. Unknown keys are errors that name the nearest one.

use flashlm_model::config::{ConfigError, QuantConfig, ScaleKind, StatKind};
use flashlm_model::{ModelConfig, Precision, params::Layout};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::data::{DataError, vocab};
use crate::optim;
use crate::schedule::{Schedule, Shape};
use crate::similar::edit_distance;
use crate::stage::{self, Boundaries, Stage, StageSource};

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Name of the run's model, for logs and the card.
    pub name: String,
    /// Architecture.
    pub model: ModelConfig,
    /// Vocabulary.
    pub tokenizer: TokenizerSettings,
    /// Text.
    pub data: DataSettings,
    /// Everything about training.
    pub train: TrainSettings,
}

/// `[tokenizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizerSettings {
    /// `frequency`, `bpe`, `bytes`, or a file.
    pub kind: String,
    /// Tokens to aim for.
    pub vocab: usize,
    /// Stories from the first on that a frequency vocabulary counts.
    pub stories: usize,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSettings {
    /// Files, a folder, a pattern or several of these, a line each; a dataset of the hub; or `synthetic`.
    pub source: String,
    /// Field or column of the text, in `source` and `valid`; empty: `text`, or that of the dataset.
    pub column: String,
    /// The same as `source` for validation; empty: the dataset's own, else hold out a share of `source`.
    pub valid: String,
    /// Field or column of the text in `valid`; empty: as in `source`.
    pub valid_column: String,
    /// Share of the text held out, more where that would be little; 0: none, and the training text is validated on.
    pub holdout: f64,
    /// Whether to train on stories that are in the validation text, too.
    pub keep_doubles: bool,
    /// What becomes of the ends of stories; `model.reset` follows from it, and it from that: the later setting rules.
    pub boundaries: Boundaries,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TrainSettings {
    pub seed: u64,
    /// What products are computed in; `auto` is what this machine does fastest.
    pub precision: Precision,
    /// Tokens of a sequence, `T`.
    pub seq_len: usize,
    /// Sequences of a step; 0: by the hardware.
    pub batch: usize,
    /// Batches summed before an update.
    pub accumulation: usize,
    /// Passes over the data where neither `steps` nor `minutes` is given.
    pub epochs: f64,
    /// Length of the run in updates; 0: not limited.
    pub steps: u64,
    /// Length of the run in minutes; 0: not limited.
    pub minutes: f64,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end.
    pub min_lr: f64,
    pub schedule: Shape,
    /// Linear warm-up, never longer than a tenth of the run.
    pub warmup_steps: u64,
    /// Last share of the run in which the `wsd` schedule decays.
    pub decay_share: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest global norm of a gradient.
    pub clip: f64,
    /// What updates the latent matrices, by its name in `optimizers!`; the rest is AdamW's.
    pub optimizer: String,
    /// Peak learning rate of the matrices under Muon and NorMuon; it falls as `lr` does.
    pub matrix_lr: f64,
    /// Share of the past in Muon's and NorMuon's running mean of gradients.
    pub momentum: f64,
    /// Share of the past in NorMuon's running mean square of a row.
    pub matrix_beta2: f64,
    /// Weight decay of the matrices under Muon and NorMuon.
    pub matrix_weight_decay: f64,
    /// Weight of the squared logarithm of a row's sum of exponentials, added to what is minimised (PaLM, arXiv 2204.02311).
    pub z_loss: f64,
    /// Last share of the run whose updates have the model's `activation_bits`, the others 0; every validation has them.
    pub activation_share: f64,
    /// The curriculum; empty: `seq_len` and `data.source` throughout.
    pub stages: Vec<Stage>,
    /// Updates between validations; 0: none but the last.
    pub eval_every: u64,
    /// Tokens of the validation text, in whole stories, scored while training; the last validation takes all.
    pub eval_tokens: usize,
    /// Validations without improvement before the run stops; 0: never.
    pub patience: u64,
    /// Updates between samples; 0: only at the end.
    pub sample_every: u64,
    /// Tokens of a sample.
    pub sample_tokens: usize,
    pub prompts: Vec<String>,
    /// Updates between checkpoints; 0: none but the last.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints; 0: by updates only.
    pub checkpoint_seconds: f64,
    /// Checkpoints kept, besides the best.
    pub keep: usize,
    /// Updates between rows of metrics.jsonl.
    pub log_every: u64,
    /// 0: all processors. Results do not depend on it.
    pub threads: usize,
}

impl TrainSettings {
    /// The learning rates of the run.
    pub fn rates(&self) -> Schedule {
        let &TrainSettings { lr, min_lr, schedule, warmup_steps, decay_share, .. } = self;
        Schedule { shape: schedule, lr, min_lr, warmup_steps, decay_share }
    }

    /// The figures of its optimizers.
    pub fn optim(&self) -> optim::Settings {
        let &TrainSettings { lr, beta1, beta2, eps, weight_decay, clip, .. } = self;
        let &TrainSettings { matrix_lr, momentum, matrix_beta2, matrix_weight_decay, .. } = self;
        optim::Settings {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            clip,
            matrix_lr,
            momentum,
            matrix_beta2,
            matrix_weight_decay,
        }
    }
}

/// What is wrong with settings.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SettingsError {
    #[error("unknown preset {name:?}; there are: {known}")]
    Preset { name: String, known: String },
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey { origin: String, key: String, hint: String },
    #[error("{origin}: {message}")]
    Syntax { origin: String, message: String },
    #[error("{key} = {found}: must be {expected}")]
    Value { key: &'static str, found: String, expected: &'static str },
    #[error(
        "data.boundaries = \"{boundaries}\" contradicts model.reset = {reset}: leave one of them out, and it follows from the other"
    )]
    Boundaries { boundaries: &'static str, reset: bool },
    #[error("train.stages.sources, {text}: {why}")]
    Filter { text: String, why: String },
    #[error("train.optimizer = {0:?}: must be one of {names}", names = optim::NAMES.join(", "))]
    Optimizer(String),
    #[error(transparent)]
    Model(#[from] ConfigError),
}

const PRESETS: &[(&str, &str)] = &[
    ("flash-tiny", include_str!("../../../configs/flash-tiny.toml")),
    ("flash-small", include_str!("../../../configs/flash-small.toml")),
    ("flash-large", include_str!("../../../configs/flash-large.toml")),
    ("v4-small", include_str!("../../../configs/v4-small.toml")),
    ("v4-large", include_str!("../../../configs/v4-large.toml")),
    ("v4-blockwise-small", include_str!("../../../configs/v4-blockwise-small.toml")),
    ("v4-blockwise-large", include_str!("../../../configs/v4-blockwise-large.toml")),
    ("gdn-small", include_str!("../../../configs/gdn-small.toml")),
    ("gdn-large", include_str!("../../../configs/gdn-large.toml")),
    ("hybrid-small", include_str!("../../../configs/hybrid-small.toml")),
    ("curriculum-small", include_str!("../../../configs/curriculum-small.toml")),
];

/// Keys of `[train]` that enter each update anew, so that a run may go on with others.
const STEPWISE: &[&str] = &["lr", "min_lr", "matrix_lr", "clip", "batch", "accumulation", "decay_share"];

/// The names that `--preset` takes.
pub fn preset_names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// The settings of a preset over the defaults.
pub fn preset(name: &str) -> Result<Settings, SettingsError> {
    Layers::preset(name)?.settings()
}

impl Default for Settings {
    fn default() -> Self {
        let quant = QuantConfig { scale: ScaleKind::Tensor, size: 256, stat: StatKind::Mean, norm: false };
        Settings {
            name: "custom".into(),
            model: ModelConfig { quant, ..ModelConfig::v4_small() },
            tokenizer: TokenizerSettings { kind: "bpe".into(), vocab: 4096, stories: vocab::STORIES },
            data: DataSettings {
                source: "tinystories".into(),
                column: String::new(),
                valid: String::new(),
                valid_column: String::new(),
                holdout: 0.01,
                keep_doubles: false,
                boundaries: Boundaries::Packed,
            },
            train: TrainSettings {
                seed: 42,
                precision: Precision::Auto,
                seq_len: 256,
                batch: 0,
                accumulation: 1,
                epochs: 10.0,
                steps: 0,
                minutes: 0.0,
                lr: 4e-3,
                min_lr: 1e-5,
                schedule: Shape::Cosine,
                warmup_steps: 500,
                decay_share: 0.2,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.01,
                clip: 1.0,
                optimizer: optim::ADAMW.into(),
                matrix_lr: 0.02,
                momentum: 0.95,
                matrix_beta2: 0.999,
                matrix_weight_decay: 0.0,
                z_loss: 0.0,
                activation_share: 1.0,
                stages: Vec::new(),
                eval_every: 1000,
                eval_tokens: 40_000,
                patience: 3,
                sample_every: 2000,
                sample_tokens: 200,
                prompts: ["Once upon a time", "The little girl", "One day, a boy named"].map(String::from).into(),
                checkpoint_every: 5000,
                checkpoint_seconds: 600.0,
                keep: 2,
                log_every: 10,
                threads: 0,
            },
        }
    }
}

impl Settings {
    /// Reads a resolved TOML, as saved beside a checkpoint.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, SettingsError> {
        let mut layers = Layers::defaults();
        // Runs saved before there was a choice ran in f32, with AdamW.
        layers.set("train.precision", Precision::F32.name())?;
        layers.set("train.optimizer", optim::ADAMW)?;
        let mut table = parse(text, origin)?;
        if let Some(bits) = older_activation_bits(&mut table) {
            layers.set_value("model.activation_bits", bits)?;
        }
        layers.lay(&table, origin)?;
        layers.settings()
    }

    /// The resolved TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Checks every value.
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.model.validate()?;
        let t = &self.train;
        let check = |ok: bool, key, found: String, expected| {
            if ok { Ok(()) } else { Err(SettingsError::Value { key, found, expected }) }
        };
        let within = |x: f64, low: f64, high: f64| x >= low && x <= high;
        check((1..=65_536).contains(&t.seq_len), "train.seq_len", t.seq_len.to_string(), "between 1 and 65536")?;
        check(t.batch <= 65_536, "train.batch", t.batch.to_string(), "at most 65536")?;
        check(
            (1..=4096).contains(&t.accumulation),
            "train.accumulation",
            t.accumulation.to_string(),
            "between 1 and 4096",
        )?;
        let stories = self.tokenizer.stories;
        check(stories >= 1, "tokenizer.stories", stories.to_string(), "at least 1")?;
        check(t.lr > 0.0 && t.lr <= 10.0, "train.lr", t.lr.to_string(), "above 0 and at most 10")?;
        check(within(t.min_lr, 0.0, 10.0), "train.min_lr", t.min_lr.to_string(), "a number between 0 and 10")?;
        check(within(t.epochs, 1e-6, 1e6), "train.epochs", t.epochs.to_string(), "above 0 and at most 1000000")?;
        check(within(t.minutes, 0.0, 1e6), "train.minutes", t.minutes.to_string(), "between 0 and 1000000")?;
        check(within(t.decay_share, 0.0, 1.0), "train.decay_share", t.decay_share.to_string(), "between 0 and 1")?;
        if !optim::NAMES.contains(&t.optimizer.as_str()) {
            return Err(SettingsError::Optimizer(t.optimizer.clone()));
        }
        check(within(t.matrix_lr, 0.0, 10.0), "train.matrix_lr", t.matrix_lr.to_string(), "between 0 and 10")?;
        let decay = t.matrix_weight_decay;
        check(within(decay, 0.0, 1.0), "train.matrix_weight_decay", decay.to_string(), "between 0 and 1")?;
        for (key, beta) in [
            ("train.beta1", t.beta1),
            ("train.beta2", t.beta2),
            ("train.momentum", t.momentum),
            ("train.matrix_beta2", t.matrix_beta2),
        ] {
            check((0.0..1.0).contains(&beta), key, beta.to_string(), "at least 0 and below 1")?;
        }
        check(within(t.eps, 1e-30, 1.0), "train.eps", t.eps.to_string(), "above 0 and at most 1")?;
        check(within(t.weight_decay, 0.0, 1.0), "train.weight_decay", t.weight_decay.to_string(), "between 0 and 1")?;
        check(within(t.clip, 1e-6, 1e6), "train.clip", t.clip.to_string(), "above 0")?;
        check(within(t.z_loss, 0.0, 1.0), "train.z_loss", t.z_loss.to_string(), "between 0 and 1")?;
        let share = t.activation_share;
        check(within(share, 1e-6, 1.0), "train.activation_share", share.to_string(), "above 0 and at most 1")?;
        check(
            within(t.checkpoint_seconds, 0.0, 1e9),
            "train.checkpoint_seconds",
            t.checkpoint_seconds.to_string(),
            "0 or more",
        )?;
        check(t.keep >= 1, "train.keep", t.keep.to_string(), "at least 1")?;
        check(t.log_every >= 1, "train.log_every", t.log_every.to_string(), "at least 1")?;
        check(t.threads <= 1024, "train.threads", t.threads.to_string(), "at most 1024")?;
        check(t.sample_tokens <= 100_000, "train.sample_tokens", t.sample_tokens.to_string(), "at most 100000")?;
        let holdout = self.data.holdout;
        let held = holdout == 0.0 || within(holdout, 1e-6, 0.9);
        check(held, "data.holdout", holdout.to_string(), "0 for none, or between 0.000001 and 0.9")?;
        let (boundaries, reset) = (self.data.boundaries, self.model.reset);
        if boundaries != Boundaries::Padded && reset != (boundaries == Boundaries::Reset) {
            return Err(SettingsError::Boundaries { boundaries: boundaries.name(), reset });
        }
        self.validate_stages()
    }

    /// The first key in which a resumed run may not differ from its checkpoint, with both values.
    pub fn conflict(&self, other: &Settings) -> Option<String> {
        let fixed = |s: &Settings| {
            let mut all = flatten("", &table_of(s));
            let free = |key: &str| {
                // Of the text, what it is counts, and that is compared once it is read.
                if key.starts_with("data.") && key != "data.boundaries" {
                    return true;
                }
                let key = key.strip_prefix("train.").unwrap_or(key);
                STEPWISE.contains(&key)
                    || ["epochs", "steps", "minutes", "threads", "keep", "log_every", "patience", "name"].contains(&key)
                    || key.starts_with("eval_")
                    || key.starts_with("sample_")
                    || key.starts_with("checkpoint_")
                    || key == "prompts"
            };
            all.retain(|(key, _)| !free(key));
            all
        };
        let (mine, theirs) = (fixed(self), fixed(other));
        let differs = mine.iter().zip(&theirs).find(|(a, b)| a != b);
        differs.map(|((key, a), (_, b))| format!("{key} is {a} there and {b} here"))
    }

    /// What a resumed run does otherwise than its checkpoint from the next update on.
    pub fn changes(&self, other: &Settings) -> Vec<String> {
        let (mine, theirs) = (flatten("", &table_of(self)), flatten("", &table_of(other)));
        let own = |key: &str| key.strip_prefix("train.").is_some_and(|key| STEPWISE.contains(&key));
        let differ = mine.into_iter().zip(theirs).filter(|((key, a), (_, b))| own(key) && a != b);
        differ.map(|((key, a), (_, b))| format!("{key} was {a} and is {b} from here on")).collect()
    }
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

/// Settings under construction: a table that is checked against the known keys as each layer is laid over it.
pub struct Layers {
    table: Table,
}

impl Layers {
    /// The defaults.
    pub fn defaults() -> Self {
        Layers::of(&Settings::default())
    }

    /// Finished settings, to be changed further.
    pub fn of(settings: &Settings) -> Self {
        Layers { table: table_of(settings) }
    }

    /// A preset over the defaults.
    pub fn preset(name: &str) -> Result<Self, SettingsError> {
        let Some((_, text)) = PRESETS.iter().find(|(known, _)| *known == name) else {
            let known = preset_names().join(", ");
            return Err(SettingsError::Preset { name: name.into(), known });
        };
        let mut layers = Layers::defaults();
        layers.merge_text(text, name)?;
        Ok(layers)
    }

    /// Lays a TOML text over what is there.
    pub fn merge_text(&mut self, text: &str, origin: &str) -> Result<(), SettingsError> {
        self.lay(&parse(text, origin)?, origin)
    }

    /// One layer; of `data.boundaries` and `model.reset`, one that it leaves out follows from the other.
    fn lay(&mut self, layer: &Table, origin: &str) -> Result<(), SettingsError> {
        merge(&mut self.table, layer, "", origin)?;
        let given = |section: &str, key: &str| layer.get(section).and_then(|section| section.get(key));
        let (boundaries, reset) = (given("data", "boundaries"), given("model", "reset"));
        let padded = Boundaries::Padded.name();
        match (boundaries.and_then(Value::as_str), reset.and_then(Value::as_bool)) {
            (Some(name), None) if name != padded => {
                self.table["model"]["reset"] = Value::Boolean(name == Boundaries::Reset.name());
            }
            (None, Some(reset)) if self.table["data"]["boundaries"].as_str() != Some(padded) => {
                let name = if reset { Boundaries::Reset } else { Boundaries::Packed }.name();
                self.table["data"]["boundaries"] = Value::String(name.into());
            }
            _ => {}
        }
        Ok(())
    }

    /// Sets one dotted key; the value is TOML, or else a plain string.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingsError> {
        let value = format!("v = {value}")
            .parse::<Table>()
            .ok()
            .and_then(|mut t| t.remove("v"))
            .unwrap_or_else(|| Value::String(value.into()));
        self.set_value(key, value)
    }

    /// Sets one dotted key.
    pub fn set_value(&mut self, key: &str, value: Value) -> Result<(), SettingsError> {
        let mut parts = key.rsplit('.');
        let mut layer = Table::from_iter([(parts.next().unwrap_or_default().to_string(), value)]);
        for part in parts {
            layer = Table::from_iter([(part.to_string(), Value::Table(layer))]);
        }
        self.lay(&layer, &format!("setting {key}"))
    }

    /// Settings of what is there, checked.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let parsed: Result<Settings, _> = Value::Table(self.table.clone()).try_into();
        let settings = parsed.map_err(|e: toml::de::Error| SettingsError::Syntax {
            origin: "settings".into(),
            message: e.to_string().trim().to_string(),
        })?;
        settings.validate()?;
        Ok(settings)
    }
}

fn parse(text: &str, origin: &str) -> Result<Table, SettingsError> {
    text.parse().map_err(|e: toml::de::Error| SettingsError::Syntax { origin: origin.into(), message: e.to_string() })
}

/// Takes the bits of activations out of the settings of a run that was saved before they were the model's.
pub(crate) fn older_activation_bits(settings: &mut Table) -> Option<Value> {
    settings.get_mut("train")?.as_table_mut()?.remove("activation_bits")
}

fn table_of(settings: &Settings) -> Table {
    Table::try_from(settings).unwrap_or_default()
}

fn flatten(prefix: &str, table: &Table) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => all.extend(flatten(&path, inner)),
            other => all.push((path, other.to_string())),
        }
    }
    all
}

fn merge(base: &mut Table, over: &Table, prefix: &str, origin: &str) -> Result<(), SettingsError> {
    for (key, value) in over {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if !base.contains_key(key) {
            return Err(unknown(path, &table_of(&Settings::default()), origin));
        }
        if path == "train.stages" {
            check_keys(value, &stage::template(), &path, origin)?;
        }
        match (&mut base[key], value) {
            (Value::Table(base), Value::Table(over)) => merge(base, over, &path, origin)?,
            (slot @ Value::Float(_), Value::Integer(n)) => *slot = Value::Float(*n as f64),
            (slot, value) if slot.type_str() == value.type_str() => *slot = value.clone(),
            (slot, value) => {
                let message = format!("`{path}` must be a {}, found the {} {value}", slot.type_str(), value.type_str());
                return Err(SettingsError::Syntax { origin: origin.into(), message });
            }
        }
    }
    Ok(())
}

fn unknown(key: String, known: &Table, origin: &str) -> SettingsError {
    let known = flatten("", known);
    let hint = match nearest(&key, known.iter().map(|(name, _)| name.as_str())) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "docs/formats.md and the settings.toml of any run list the keys".to_string(),
    };
    SettingsError::UnknownKey { origin: origin.into(), key, hint }
}

/// What other programs call our keys.
const ALIASES: [(&str, &[&str]); 9] = [
    ("train.lr", &["learning_rate"]),
    ("train.batch", &["batch_size", "per_device_train_batch_size"]),
    ("train.epochs", &["num_epochs", "num_train_epochs", "max_epochs"]),
    ("train.steps", &["max_steps", "max_iters", "num_steps", "iters"]),
    ("train.seq_len", &["block_size", "context_length", "context", "max_seq_len", "seq_length"]),
    ("model.dim", &["hidden_size", "n_embd", "d_model", "hidden"]),
    ("model.blocks", &["n_layer", "n_layers", "num_layers", "layers", "num_hidden_layers"]),
    ("model.ffn_hidden", &["intermediate_size", "d_ff"]),
    ("tokenizer.vocab", &["vocab_size"]),
];

/// Looks for keys that the template does not have, in tables and in lists of tables.
fn check_keys(value: &Value, template: &Value, path: &str, origin: &str) -> Result<(), SettingsError> {
    match (value, template) {
        (Value::Array(values), Value::Array(template)) => {
            let template = template.first().into_iter().cycle();
            values.iter().zip(template).try_for_each(|(value, template)| check_keys(value, template, path, origin))
        }
        (Value::Table(table), Value::Table(known)) => table.iter().try_for_each(|(key, value)| {
            let path = format!("{path}.{key}");
            match known.get(key) {
                Some(template) => check_keys(value, template, &path, origin),
                None => {
                    let section = path.rsplit_once('.').map_or("", |(section, _)| section);
                    let known = known.iter().map(|(key, value)| (format!("{section}.{key}"), value.clone())).collect();
                    Err(unknown(path, &known, origin))
                }
            }
        }),
        _ => Ok(()),
    }
}

/// The candidate that is called so elsewhere, else that with the smallest edit distance, up to half the name; a match of the last
/// part of a dotted key counts as near, of the first part (a misspelt section) as a little less so.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
    let section = |key: &str| key.split('.').next().unwrap_or_default().to_string();
    let own = last(name);
    let called = |other: &&str| edit_distance(&own, other) <= other.len() / 6;
    let alias = ALIASES.iter().find(|(_, others)| others.iter().any(called)).map(|(key, _)| *key);
    if let Some(key) = candidates.clone().find(|candidate| Some(*candidate) == alias) {
        return Some(key);
    }
    let far = |candidate: &str| {
        let by_section = if name.contains('.') { usize::MAX } else { edit_distance(name, &section(candidate)) + 1 };
        let by_key = edit_distance(&own, &last(candidate));
        // A key of another section is as near as a key of this one only if it is the same.
        let other = name.contains('.') && section(name) != section(candidate) && by_key > 0;
        edit_distance(name, candidate).min(by_key + 1 + 2 * usize::from(other)).min(by_section)
    };
    let best = candidates.min_by_key(|candidate| far(candidate))?;
    (far(best) <= own.chars().count() / 2 + 1).then_some(best)
}

/// Share of the parameters that are ternary.
pub fn ternary_share(layout: &Layout) -> f64 {
    let matrices = layout.specs().iter().filter(|s| s.group == flashlm_model::params::Group::Matrix);
    matrices.map(|s| s.range.len()).sum::<usize>() as f64 / layout.parameters().max(1) as f64
}

#[cfg(test)]
mod tests {
    use flashlm_model::{LanguageModel, Lm};

    use super::*;

    #[test]
    fn presets_have_the_published_sizes() {
        for (name, parameters) in [("v4-small", 4_364_736), ("v4-large", 16_847_232), ("gdn-small", 5_042_112)] {
            let model = preset(name).unwrap().model;
            assert_eq!(Lm::<f32>::new(&model, 1, false).unwrap().layout().parameters(), parameters, "{name}");
        }
        for name in preset_names() {
            let settings = preset(name).unwrap();
            assert_eq!(settings.name, name);
            assert_eq!(Settings::from_toml(&settings.to_toml(), "saved").unwrap(), settings);
            let new = ["precision", "optimizer", "matrix_", "momentum"];
            let text = settings.to_toml();
            let older = text.split_inclusive('\n').filter(|line| !new.iter().any(|key| line.starts_with(key)));
            let older = Settings::from_toml(&older.collect::<String>(), "saved").unwrap().train;
            assert_eq!((older.precision, older.optimizer.as_str()), (Precision::F32, "adamw"));
        }
    }

    #[test]
    fn runs_saved_before_there_were_switches_have_them_off() {
        let settings = preset("v4-small").unwrap();
        let bits = ["activation_bits", "activation_share"];
        let keys = [&["activation ", "sub_norm", "zero_init", "logit_softcap", "z_loss"], &bits[..]].concat();
        let saved = settings.to_toml();
        let older: Vec<_> = saved.lines().filter(|line| !keys.iter().any(|key| line.starts_with(key))).collect();
        assert_eq!(older.len() + keys.len(), saved.lines().count());
        assert_eq!(Settings::from_toml(&older.join("\n"), "saved").unwrap(), settings);
        let mut layers = Layers::preset("v4-small").unwrap();
        for (key, value) in [("model.activation", "relu2"), ("model.logit_softcap", "15"), ("train.z_loss", "1e-4")] {
            layers.set(key, value).unwrap();
        }
        let set = layers.settings().unwrap();
        assert_eq!((set.model.logit_softcap, set.train.z_loss), (15.0, 1e-4));
        assert!(settings.conflict(&set).unwrap().contains("model.activation"));
        layers.set("train.z_loss", "-1").unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains("train.z_loss = -1: must be between 0 and 1"));
    }

    #[test]
    fn activation_bits_of_older_runs_are_the_models() {
        let saved = preset("v4-small").unwrap();
        let older = |bits: &str| {
            let text = saved.to_toml().replace("activation_bits = 0\n", "");
            Settings::from_toml(&text.replace("[train]\n", &format!("[train]\nactivation_bits = {bits}\n")), "saved")
        };
        assert_eq!(older("0").unwrap(), saved);
        let mut rounded = saved.clone();
        rounded.model.activation_bits = 8;
        assert_eq!(older("8").unwrap(), rounded);
        assert_eq!(Settings::from_toml(&rounded.to_toml(), "saved").unwrap(), rounded);
        assert!(older("4").unwrap_err().to_string().contains("model.activation_bits = 4: must be 0"));
        // What is asked for now is asked for by its name.
        let error = Layers::defaults().set("train.activation_bits", "8").unwrap_err().to_string();
        assert!(
            error.contains("unknown key `train.activation_bits`; did you mean `model.activation_bits`?"),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let mut layers = Layers::defaults();
        for (key, nearest) in
            [("train.warm_steps", "train.warmup_steps"), ("train.seqlen", "train.seq_len"), ("modle.dim", "model.")]
        {
            let error = layers.set(key, "1").unwrap_err().to_string();
            assert!(error.contains("unknown key"), "{error}");
            assert!(error.contains(&format!("did you mean `{nearest}")), "{error}");
        }
        let error = layers.set("batch", "4").unwrap_err().to_string();
        assert!(error.contains("train.batch"), "{error}");
        for (key, hint) in [
            ("train.learning_rate", "did you mean `train.lr`?"),
            ("train.lerning_rate", "did you mean `train.lr`?"),
            ("model.n_layer", "did you mean `model.blocks`?"),
            ("train.block_size", "did you mean `train.seq_len`?"),
            ("train.xyzzy_plugh", "list the keys"),
        ] {
            let error = layers.set(key, "1").unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn layers_override_in_order_and_types_are_checked() {
        let mut layers = Layers::preset("v4-large").unwrap();
        layers.merge_text("[train]\nlr = 1\nbatch = 7", "file").unwrap();
        layers.set("train.batch", "9").unwrap();
        layers.set("data.source", "my file.txt").unwrap();
        let settings = layers.settings().unwrap();
        assert_eq!((settings.train.lr, settings.train.batch, settings.model.dim), (1.0, 9, 384));
        assert_eq!(settings.data.source, "my file.txt");
        assert!(layers.set("train.batch", "many").is_err());
        layers.set("train.optimizer", "lion").unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains("must be one of adamw, muon, normuon"));
        layers.set("train.optimizer", "muon").unwrap();
        layers.set("train.lr", "0").unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains("train.lr = 0: must be above 0"));
        for (key, bad) in [("model.activation_bits", "4"), ("train.activation_share", "0")] {
            let mut layers = Layers::defaults();
            layers.set(key, bad).unwrap();
            assert!(layers.settings().unwrap_err().to_string().contains(&format!("{key} = {bad}: must be ")));
        }
        layers.set("train.lr", "nan").unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains("train.lr"));
    }

    #[test]
    fn story_boundaries_and_the_reset_of_the_model_are_one_switch() {
        let of = |settings: &[(&str, &str)]| {
            let mut layers = Layers::preset("v4-small").unwrap();
            settings.iter().for_each(|(key, value)| layers.set(key, value).unwrap());
            let settings = layers.settings().unwrap();
            (settings.data.boundaries, settings.model.reset)
        };
        use Boundaries::{Packed, Padded, Reset};
        assert_eq!(of(&[]), (Packed, false));
        assert_eq!(of(&[("model.reset", "true")]), (Reset, true));
        assert_eq!(of(&[("data.boundaries", "reset")]), (Reset, true));
        assert_eq!(of(&[("data.boundaries", "reset"), ("model.reset", "false")]), (Packed, false));
        assert_eq!(of(&[("model.reset", "true"), ("data.boundaries", "packed")]), (Packed, false));
        assert_eq!(of(&[("data.boundaries", "padded")]), (Padded, false));
        assert_eq!(of(&[("data.boundaries", "padded"), ("model.reset", "true")]), (Padded, true));
        assert_eq!(of(&[("data.boundaries", "padded"), ("data.boundaries", "reset")]), (Reset, true));
        let both = "[data]\nboundaries = \"reset\"\n[model]\nreset = false";
        let mut layers = Layers::defaults();
        layers.merge_text(both, "file").unwrap();
        let error = layers.settings().unwrap_err().to_string();
        assert!(error.contains("contradicts model.reset = false: leave one of them out"), "{error}");
        layers.set("data.boundaries", "reset").unwrap();
        assert!(layers.settings().unwrap().model.reset, "a later layer mends it");
        // Saved before there was the switch.
        let saved = preset("flash-tiny").unwrap().to_toml();
        let older = saved.replace("boundaries = \"reset\"\n", "");
        assert_ne!(older, saved);
        assert_eq!(Settings::from_toml(&older, "saved").unwrap().to_toml(), saved);
        assert!(Layers::defaults().set("data.boundaries", "1").is_err());
        layers.set("data.boundaries", "none").unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains("packed"), "the values are told");
    }

    #[test]
    fn a_resumed_run_keeps_what_matters() {
        let a = preset("v4-small").unwrap();
        let mut b = a.clone();
        b.train.steps = 77;
        b.train.threads = 3;
        assert_eq!(a.conflict(&b), None);
        b.model.dim = 200;
        assert!(a.conflict(&b).unwrap().contains("model.dim is 192 there and 200 here"));
    }

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
