//! What is wrong with settings.

use flashlm_model::config::ConfigError;

use crate::optim;

/// What is wrong with settings.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SettingsError {
    #[error("unknown preset {name:?}; the presets are {known}")]
    Preset { name: String, known: String },
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey { origin: String, key: String, hint: String },
    #[error("{origin}: {message}")]
    Syntax { origin: String, message: String },
    #[error("{key} = {found}: must be {expected}")]
    Value { key: &'static str, found: String, expected: &'static str },
    #[error(
        "data.boundaries = \"{boundaries}\" contradicts model.reset = {reset}: set only one of them, the other follows from it"
    )]
    Boundaries { boundaries: &'static str, reset: bool },
    #[error(
        "model.mixer = {mixer:?} would do nothing: model.pattern = {pattern:?} has the mixer of each block; set model.pattern = [{mixer:?}] \
         instead"
    )]
    Mixer { mixer: String, pattern: Vec<String> },
    #[error("train.stages.sources, {text}: {why}")]
    Filter { text: String, why: String },
    #[error("train.optimizer = {0:?}: must be one of {names}", names = optim::NAMES.join(", "))]
    Optimizer(String),
    #[error(transparent)]
    Model(#[from] ConfigError),
}
