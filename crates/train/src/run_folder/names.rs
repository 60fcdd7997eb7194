//! The files of a run.

/// The resolved settings.
pub const SETTINGS: &str = "settings.toml";
/// The model card.
pub const CARD: &str = "MODEL_CARD.md";
/// One row of the log a line.
pub const METRICS: &str = "metrics.jsonl";
/// Rows of steps that were abandoned.
pub const ABANDONED_METRICS: &str = "metrics.abandoned.jsonl";
/// The curve of the log.
pub const CURVE: &str = "curve.svg";
/// What a finished run came to.
pub const RESULT: &str = "result.json";
pub(super) const ABOUT: &str = "run.json";
pub(super) const LOCK: &str = "run.lock";
pub(super) const BEST: &str = "best";
pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const ABANDONED: &str = ".abandoned";
pub(super) const VERSION: u64 = 1;
/// Longest `run.json` and `result.json` accepted.
pub(super) const MAX_JSON: u64 = 1 << 20;
