//! Where a run is written.

use std::path::{Path, PathBuf};

use super::{Origin, Resolved};
use crate::run_folder::{Claim, RunError, RunFolder};
use crate::trainer::{TrainError, finished};

/// Where a run is written.
pub enum Place {
    /// That of the resumed run.
    Own(RunFolder),
    /// A new one, of this name.
    Named(PathBuf),
    /// The first free one of checkpoints/, checkpoints-2/, ...
    Free,
}

impl Place {
    /// The folder `dir`, or where none is named that of the resumed run, checked and not yet touched; `config` is the file
    /// of settings that the run is started with.
    pub fn choose(run: &Resolved, dir: Option<&Path>, config: Option<&Path>) -> Result<Place, TrainError> {
        let resume = match run.origin() {
            Origin::Resumed(resume) => Some(resume),
            _ => None,
        };
        // A file of the original scripts lies in no run.
        let own = resume.filter(|resume| !resume.from.is_made()).map(|resume| match &resume.run {
            Some(run) => Ok(run.clone()),
            None => RunFolder::of(resume.from.path()),
        });
        let place = match (dir, own) {
            (Some(dir), Some(Ok(own))) if own.is(dir) => Place::Own(own),
            (Some(dir), _) => Place::Named(dir.to_path_buf()),
            (None, Some(own)) => Place::Own(own?),
            (None, None) => Place::Free,
        };
        match &place {
            Place::Own(run) => run.check_resume()?,
            Place::Named(dir) => RunFolder::at(dir).check_new(config)?,
            Place::Free => {}
        }
        if let (Place::Own(folder), Some(resume)) = (&place, resume)
            && let Some(over) = finished(folder, run.settings(), resume.from.step())
        {
            return Err(over);
        }
        Ok(place)
    }

    /// The folder for this process alone.
    pub fn claim(self, config: Option<&Path>) -> Result<Claim, RunError> {
        match self {
            Place::Own(run) => Claim::resume(run),
            Place::Named(dir) => Claim::new(&dir, config),
            Place::Free => {
                let names = (1..).map(|n| if n == 1 { "checkpoints".into() } else { format!("checkpoints-{n}") });
                let taken = |error: &RunError| {
                    matches!(
                        error,
                        RunError::Exists { .. }
                            | RunError::Occupied { .. }
                            | RunError::NotAFolder { .. }
                            | RunError::Locked { .. }
                    )
                };
                let mut claims = names.map(|name| Claim::new(Path::new(&name), config));
                claims.find(|claim| claim.as_ref().err().is_none_or(|e| !taken(e))).expect("one of all numbers is free")
            }
        }
    }
}
