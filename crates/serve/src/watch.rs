//! Runs that are watched while they train. This crate opens no file: whoever serves says what there is.

use serde_json::Value;

/// Runs by name.
pub trait Watch: Send + Sync {
    /// All of them, as a list of objects with a `name`.
    fn list(&self) -> Value;

    /// Rows of the log of one from a mark on, and the next mark; none where no run has this name.
    fn rows(&self, name: &str, after: &str) -> Option<Result<Value, String>>;
}
