//! The file of a sweep.
//!
//! ```toml
//! preset = "flash-small"              # what all runs share
//! data = "train.txt"
//! minutes = 10                        # or steps = N, or tokens = N
//! seeds = [1, 2, 3]
//! set = ["train.optimizer=muon"]
//! [[arms]]
//! name = "base"
//! [[arms]]
//! name = "no x0"
//! set = ["model.x0=false"]            # laid over what all share
//! ```

use std::path::Path;

use serde::Deserialize;

use flashlm_model::io::read_limited;
use toml::Value;

use super::SweepError;
use crate::config::{Layers, Settings, SettingsError};

/// Longest file of a sweep.
const MAX: u64 = 1 << 20;

/// What a sweep's file says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The preset that all runs start from.
    pub preset: String,
    /// The training text.
    pub data: Option<String>,
    /// The validation text.
    pub valid: Option<String>,
    minutes: Option<f64>,
    steps: Option<u64>,
    tokens: Option<u64>,
    /// A run of each arm for each of these.
    pub seeds: Vec<u64>,
    /// Settings of all runs, `KEY=VALUE`.
    #[serde(default)]
    pub set: Vec<String>,
    /// What is compared.
    pub arms: Vec<Arm>,
}

/// One of the settings that are compared.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// What it does otherwise, `KEY=VALUE`.
    #[serde(default)]
    pub set: Vec<String>,
}

/// How long each run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// By the clock.
    Minutes(f64),
    /// Optimizer steps.
    Steps(u64),
    /// The fewest steps whose sequences have at least so many tokens.
    Tokens(u64),
}

impl Arm {
    /// Its name as part of that of a folder.
    pub fn file_name(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        self.name.trim().chars().map(plain).collect()
    }
}

impl Spec {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Spec, SweepError> {
        let wrong = |what: String| SweepError::Spec { path: path.to_path_buf(), what };
        let text = String::from_utf8(read_limited(path, MAX)?).map_err(|_| wrong("must be UTF-8 text".into()))?;
        Spec::parse(&text).map_err(wrong)
    }

    /// Parses the text of a file; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Spec, String> {
        let spec: Spec = toml::from_str(text).map_err(|e| e.to_string().trim().to_string())?;
        spec.check_length()?;
        if spec.seeds.is_empty() {
            return Err("seeds: expected at least one, such as seeds = [1, 2, 3]".into());
        }
        if spec.arms.is_empty() {
            return Err("expected at least one [[arms]] with a name".into());
        }
        if let Some(seed) = spec.seeds.iter().enumerate().find(|(i, seed)| spec.seeds[..*i].contains(seed)) {
            return Err(format!("seeds: {} is given twice", seed.1));
        }
        for (i, arm) in spec.arms.iter().enumerate() {
            let file_name = arm.file_name();
            if !file_name.contains(|c: char| c.is_ascii_alphanumeric()) || file_name.starts_with('.') {
                return Err(format!(
                    "the name {:?} of an arm cannot be that of a folder; use letters and digits",
                    arm.name
                ));
            }
            let same = |other: &&Arm| other.file_name().eq_ignore_ascii_case(&file_name);
            if let Some(other) = spec.arms[..i].iter().find(same) {
                return Err(format!(
                    "the arms {:?} and {:?} would have the same folder; rename one",
                    other.name, arm.name
                ));
            }
        }
        Ok(spec)
    }

    fn check_length(&self) -> Result<(), String> {
        let given = [self.minutes.is_some(), self.steps.is_some(), self.tokens.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            return Err("expected one of minutes = M, steps = N and tokens = N, the length of each run".into());
        }
        if self.minutes.is_some_and(|minutes| !(minutes.is_finite() && minutes > 0.0))
            || self.steps == Some(0)
            || self.tokens == Some(0)
        {
            return Err("the length of a run must be above 0".into());
        }
        Ok(())
    }

    /// How long each run is.
    pub fn length(&self) -> Length {
        match (self.minutes, self.steps, self.tokens) {
            (Some(minutes), ..) => Length::Minutes(minutes),
            (_, Some(steps), _) => Length::Steps(steps),
            (.., tokens) => Length::Tokens(tokens.unwrap_or_default()),
        }
    }

    /// The settings of a run, of one step where its length is in tokens, since what a step has may depend on the machine.
    pub fn settings(&self, arm: &Arm, seed: u64) -> Result<Settings, SettingsError> {
        let mut layers = Layers::preset(&self.preset)?;
        for (key, text) in [("data.source", &self.data), ("data.valid", &self.valid)] {
            if let Some(text) = text {
                layers.set_value(key, Value::String(text.clone()))?;
            }
        }
        for setting in self.set.iter().chain(&arm.set) {
            let Some((key, value)) = setting.split_once('=') else {
                let message = "must be KEY=VALUE, such as train.lr=3e-3".into();
                return Err(SettingsError::Syntax { origin: format!("set {setting:?}"), message });
            };
            layers.set(key.trim(), value.trim())?;
        }
        let mut settings = layers.settings()?;
        let t = &mut settings.train;
        (t.seed, t.minutes, t.steps) = match self.length() {
            Length::Minutes(minutes) => (seed, minutes, 0),
            Length::Steps(steps) => (seed, 0.0, steps),
            Length::Tokens(_) => (seed, 0.0, 1),
        };
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "preset = \"flash-tiny\"\ndata = \"synthetic:50\"\nsteps = 7\nseeds = [3, 1]\n\
        set = [\"train.lr=0.01\", \"model.dim=32\"]\n[[arms]]\nname = \"base\"\n[[arms]]\nname = \"no x0: 2\"\nset = [\"model.dim = 64\"]\n";

    #[test]
    fn an_arm_is_laid_over_what_all_share() {
        let spec = Spec::parse(GOOD).unwrap();
        let settings = |arm: usize| spec.settings(&spec.arms[arm], 9).unwrap();
        let (base, other) = (settings(0), settings(1));
        assert_eq!((base.model.dim, base.train.lr, base.train.steps, base.train.seed), (32, 0.01, 7, 9));
        assert_eq!((other.model.dim, other.train.lr, &*other.data.source), (64, 0.01, "synthetic:50"));
        assert_eq!(spec.arms[1].file_name(), "no-x0--2");
        let minutes = Spec::parse(&GOOD.replace("steps = 7", "minutes = 0.5")).unwrap();
        let t = minutes.settings(&spec.arms[0], 1).unwrap().train;
        assert_eq!((t.minutes, t.steps, minutes.length()), (0.5, 0, Length::Minutes(0.5)));
        assert_eq!(Spec::parse(&GOOD.replace("steps", "tokens")).unwrap().length(), Length::Tokens(7));
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, words) in [
            ("steps = 7", "", "one of minutes"),
            ("steps = 7", "steps = 7\ntokens = 9", "one of minutes"),
            ("steps = 7", "steps = 0", "above 0"),
            ("steps = 7", "minutes = -1", "above 0"),
            ("[3, 1]", "[]", "at least one"),
            ("[3, 1]", "[3, 1, 3]", "3 is given twice"),
            ("no x0: 2", "Base", "the same folder"),
            ("no x0: 2", "..", "cannot be that of a folder"),
            ("seeds", "seed", "seed"),
        ] {
            let error = Spec::parse(&GOOD.replace(from, to)).expect_err(to);
            assert!(error.contains(words), "{error} for {to}");
        }
        let spec = Spec::parse(&GOOD.replace("train.lr=0.01", "train.lr")).unwrap();
        let error = spec.settings(&spec.arms[0], 1).unwrap_err().to_string();
        assert!(error.contains("train.lr") && error.contains("KEY=VALUE"), "{error}");
    }
}
