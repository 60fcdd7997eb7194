//! What a run is to do and where it is written: all that is decided before any text is read.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use flashlm_kernels::Isa;
use flashlm_kernels::cpu::Machine;
use flashlm_train::data::cache::default_dir;
use flashlm_train::run::{Hardware, Origin, Place, Request, Resolved, Resume, Start, open_model};
use flashlm_train::trainer::{Event, Tell};

use super::flags::{self, Args};
use crate::common::{exec, threads};

/// A run that was asked for.
pub struct Asked {
    /// Its settings, with every choice made.
    pub resolved: Resolved,
    /// Where it is to be written; nothing is there yet.
    pub place: Place,
    /// The file of settings that was named.
    pub config: Option<PathBuf>,
}

impl Asked {
    /// By these arguments.
    pub fn of(args: &Args, tell: Tell) -> anyhow::Result<Asked> {
        let machine = Machine::detect();
        let origin = origin(args, tell)?;
        let settings = flags::settings(args, &origin, tell)?;
        let available = if settings.train.threads == 0 { threads(None)? } else { machine.cores };
        let threads = NonZeroUsize::new(available).unwrap_or(NonZeroUsize::MIN);
        let hardware = Hardware { machine, isa: Isa::detect().map_err(anyhow::Error::msg)?, threads };
        let request = Request { settings, origin, offline: args.offline || args.dry_run, cache: default_dir() };
        let resolved = request.resolve(&hardware, tell)?;
        let config = args.config.clone();
        let place = Place::choose(&resolved, args.save_dir.as_deref(), config.as_deref())?;
        Ok(Asked { resolved, place, config })
    }
}

/// What `--resume` or `--from` names.
fn origin(args: &Args, tell: Tell) -> anyhow::Result<Origin> {
    let located = |path: &Path, tell: Tell| open_model(path, args.offline, &|| false, tell);
    Ok(match (&args.resume, &args.from) {
        (Some(path), _) => {
            let resume = Resume::open(&located(path, tell)?)?;
            resume.skipped.iter().for_each(|why| tell(Event::Note(&format!("skipped: {why}"))));
            resume.note.iter().for_each(|note| tell(Event::Note(note)));
            Origin::Resumed(resume)
        }
        (None, Some(path)) => Origin::Tuned(Box::new(Start::load(&exec(None)?, &located(path, tell)?, tell)?)),
        (None, None) => Origin::Fresh,
    })
}
