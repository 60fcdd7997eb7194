//! Sources and models by their names, what is on the hub fetched if it is not here yet.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::data::hub::{Client, HubError, ModelName, Progress};
use crate::data::source::Source;
use crate::stage::StageSource;
use crate::trainer::{Event, Tell};
use crate::units::{bytes, duration};

/// The source that a specification names; `offline` takes what is on this machine alone.
pub fn open_source(
    spec: &str,
    seed: u64,
    offline: bool,
    stop: &dyn Fn() -> bool,
    tell: Tell,
) -> Result<Source, DataError> {
    let source = Source::parse(spec)?.with_seed(seed);
    if !source.is_remote() {
        return Ok(source);
    }
    let fetched = source.fetch(&Client::from_env(offline)?, &mut |p| told(spec, p, stop, tell));
    if matches!(fetched, Err(DataError::Stopped)) {
        tell(Event::Note(KEPT));
    }
    fetched
}

/// The path of the model that a name `hf:OWNER/NAME[@REVISION][:FILE]` stands for, fetched if it is not here yet; a path that leads
/// somewhere, and any other, is itself.
pub fn open_model(path: &Path, offline: bool, stop: &dyn Fn() -> bool, tell: Tell) -> Result<PathBuf, DataError> {
    let Some((spec, name)) =
        path.to_str().filter(|_| !path.exists()).and_then(|spec| Some((spec, ModelName::parse(spec)?)))
    else {
        return Ok(path.to_owned());
    };
    let name = name.map_err(|reason| HubError::NoFiles { repo: spec.to_string(), reason })?;
    let fetched = Client::from_env(offline)?.fetch_model(&name, &mut |p| told(spec, p, stop, tell));
    if matches!(fetched, Err(HubError::Stopped)) {
        tell(Event::Note(KEPT));
    }
    Ok(fetched?)
}

const KEPT: &str = "stopped; what has arrived is kept, and the same command continues from there";

/// Tells how far a fetch is.
pub(super) fn told(spec: &str, p: &Progress, stop: &dyn Fn() -> bool, tell: Tell) -> ControlFlow<()> {
    if let Some(note) = p.note {
        tell(Event::Note(&format!("{spec}: {note}")));
    }
    let eta = p.total.saturating_sub(p.done) as f64 / p.bytes_per_second.max(1.0);
    let (done, total, speed) = (bytes(p.done), bytes(p.total), bytes(p.bytes_per_second as u64));
    tell(Event::Progress(&match p.waiting {
        Some(waiting) => format!("{}: {waiting}", p.file),
        None if p.total == 0 => format!("{}: asking the hub for its files", p.file),
        None => format!("{}  {done} of {total}  {speed}/s  eta {}", p.file, duration(eta)),
    }));
    if stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// A text of a run.
pub(super) fn open_text(
    spec: &StageSource,
    seed: u64,
    offline: bool,
    stop: &dyn Fn() -> bool,
    tell: Tell,
) -> Result<Source, DataError> {
    select(open_source(&spec.source, seed, offline, stop, tell)?, spec)
}

/// The source with the column and the filter of its stage.
pub(super) fn select(source: Source, spec: &StageSource) -> Result<Source, DataError> {
    let source = if spec.column.is_empty() { source } else { source.with_column(&spec.column) };
    source.with_filter(spec.filter.clone())
}
