//! A setting that no model can have, and the checks that find one.

/// A setting that no model can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model.{key} = {found}: must be {expected}")]
pub struct ConfigError {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// The allowed values.
    pub expected: String,
}

impl ConfigError {
    /// That `key` is `found` and must be `expected`.
    pub fn new(key: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        ConfigError { key, found: found.to_string(), expected: expected.into() }
    }
}

/// The error unless `ok`.
pub fn check(ok: bool, error: impl FnOnce() -> ConfigError) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(error()) }
}

/// That the value of `key` lies between two others, both included.
pub fn within(key: &'static str, found: usize, low: usize, high: usize) -> Result<(), ConfigError> {
    check((low..=high).contains(&found), || ConfigError::new(key, found, format!("between {low} and {high}")))
}

/// That the value of `key` can be the epsilon of a norm.
pub fn epsilon(key: &'static str, found: f64) -> Result<(), ConfigError> {
    check((1e-12..1.0).contains(&found), || ConfigError::new(key, found, "at least 1e-12 and below 1"))
}
