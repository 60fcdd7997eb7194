//! Settings under construction, one layer over the other.

use flashlm_model::Precision;
use toml::{Table, Value};

use super::keys::{check_keys, unknown};
use super::settings::Settings;
use super::table::table_of;
use super::{SettingsError, presets};
use crate::optim;
use crate::stage::{self, Boundaries};

/// The settings of a preset over the defaults.
pub fn preset(name: &str) -> Result<Settings, SettingsError> {
    Layers::preset(name)?.settings()
}

/// Settings under construction: a table that is checked against the known keys as each layer is laid over it.
pub struct Layers {
    table: Table,
    /// Whether the last that was said of mixers is `model.mixer`.
    mixer: bool,
}

impl Settings {
    /// Reads a resolved TOML, as saved beside a checkpoint.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, SettingsError> {
        let mut layers = Layers::defaults();
        // Runs saved before there was a choice ran in f32, with AdamW, in passes of 2,048 rows.
        layers.set("train.precision", Precision::F32.name())?;
        layers.set("train.optimizer", optim::ADAMW)?;
        layers.set("train.pass_rows", "2048")?;
        let mut table = parse(text, origin)?;
        if let Some(bits) = older_activation_bits(&mut table) {
            layers.set_value("model.activation_bits", bits)?;
        }
        layers.lay(&table, origin)?;
        layers.settings()
    }
}

impl Layers {
    /// The defaults.
    pub fn defaults() -> Self {
        Layers::of(&Settings::default())
    }

    /// Finished settings, to be changed further.
    pub fn of(settings: &Settings) -> Self {
        Layers { table: table_of(settings), mixer: false }
    }

    /// A preset over the defaults.
    pub fn preset(name: &str) -> Result<Self, SettingsError> {
        let mut layers = Layers::defaults();
        layers.merge_text(presets::text_of(name)?, name)?;
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
        let [mixer, pattern] = ["mixer", "pattern"].map(|key| given("model", key).is_some());
        self.mixer = (self.mixer || mixer) && !pattern;
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
        let settings = parsed.map_err(|e: toml::de::Error| {
            let text = e.to_string().trim().replace("unknown variant", "unknown value");
            let (message, key) = text.split_once("\nin ").unwrap_or((&text, "settings"));
            SettingsError::Syntax { origin: key.trim_matches('`').into(), message: message.into() }
        })?;
        // A pattern of the preset would win, without a word.
        let model = &settings.model;
        if self.mixer && !model.pattern.is_empty() {
            return Err(SettingsError::Mixer { mixer: model.mixer.clone(), pattern: model.pattern.clone() });
        }
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

/// What kind of value it is, in words.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::String(_) => "a string",
        Value::Boolean(_) => "a boolean",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
        Value::Datetime(_) => "a date",
    }
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
            (Value::Integer(_), Value::Integer(n)) if *n < 0 => {
                let message = format!("`{path}` must be a whole number, 0 or more, found {n}");
                return Err(SettingsError::Syntax { origin: origin.into(), message });
            }
            // The only list of strings of which no part is checked elsewhere.
            (Value::Array(_), Value::Array(prompts))
                if path == "train.prompts" && prompts.iter().any(|p| !p.is_str()) =>
            {
                let message =
                    format!("`{path}` must be a list of strings, such as [\"Once\", \"One day\"], found {value}");
                return Err(SettingsError::Syntax { origin: origin.into(), message });
            }
            (slot, value) if slot.type_str() == value.type_str() => *slot = value.clone(),
            (slot, value) => {
                let message = format!("`{path}` must be {}, found {} {value}", kind_of(slot), kind_of(value));
                return Err(SettingsError::Syntax { origin: origin.into(), message });
            }
        }
    }
    Ok(())
}
