//! Sources by their specification, datasets of the hub fetched if they are not here yet.

use std::ops::ControlFlow;

use crate::data::DataError;
use crate::data::hub::Client;
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
    let fetched = source.fetch(&Client::from_env(offline)?, &mut |p| {
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
    });
    if matches!(fetched, Err(DataError::Stopped)) {
        tell(Event::Note("stopped; what has arrived is kept, and the same command continues from there"));
    }
    fetched
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
