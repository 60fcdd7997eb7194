//! Before anything is trained: that all ranks are alike, and that there is work for each.

use flashlm_model::Shape;
use serde::{Deserialize, Serialize};

use crate::comm::{Comm, CommError, gather};
use crate::config::Settings;
use crate::stepper::pass_rows;

/// What must be the same on all ranks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Of the program.
    pub version: String,
    /// The instruction set to compute with.
    pub isa: String,
    /// The flags that it was started with.
    pub flags: String,
}

/// Compares what all ranks are; an error names the first that differs from rank 0. A number of ranks that cannot share out a step is
/// refused.
pub fn meet(comm: &dyn Comm, own: &Hello) -> Result<(), CommError> {
    let ranks = comm.size();
    if !ranks.is_power_of_two() {
        return Err(CommError::NoPower { ranks });
    }
    let text = serde_json::to_vec(own).map_err(|e| CommError::Message(e.to_string()))?;
    let lens = gather(comm, &(text.len() as u32).to_le_bytes())?;
    let longest = lens.iter().map(|len| u32::from_le_bytes([len[0], len[1], len[2], len[3]])).max().unwrap_or(0);
    // Spaces after a JSON text are part of it.
    let mut padded = text;
    padded.resize(longest as usize, b' ');
    let mut all = Vec::new();
    for hello in gather(comm, &padded)? {
        all.push(serde_json::from_slice::<Hello>(&hello).map_err(|e| CommError::Message(e.to_string()))?);
    }
    for (rank, other) in all.iter().enumerate() {
        for (what, theirs, own, mend) in [
            ("version of flashlm", &other.version, &all[0].version, "install one version everywhere"),
            ("instruction set", &other.isa, &all[0].isa, "set FLASHLM_ISA to one that all have"),
            ("list of flags", &other.flags, &all[0].flags, "start all with the same"),
        ] {
            if theirs != own {
                let (theirs, own) = (theirs.clone(), own.clone());
                return Err(CommError::Differs { rank, what, theirs, own, mend });
            }
        }
    }
    Ok(())
}

/// How many ranks have something to do in a step.
pub struct Fit {
    /// Of the stage that has the most.
    passes: usize,
    shape: Shape,
    pass_rows: usize,
}

impl Fit {
    /// Of these settings.
    pub fn of(settings: &Settings) -> Fit {
        let rows = pass_rows(&settings.train, settings.largest());
        let fits = settings.stages().into_iter().map(|stage| {
            let shape = Shape { batch: stage.batch * settings.train.accumulation, seq_len: stage.seq_len };
            Fit { passes: shape.batch.div_ceil((rows / shape.seq_len).max(1)), shape, pass_rows: rows }
        });
        fits.max_by_key(|fit| fit.passes).expect("there is a stage")
    }

    /// An error where some of so many ranks would have nothing to do.
    pub fn check(&self, ranks: usize) -> Result<(), CommError> {
        let Fit { passes, shape: Shape { batch, seq_len }, pass_rows } = *self;
        if ranks > passes {
            return Err(CommError::TooMany { ranks, passes, batch, seq_len, pass_rows });
        }
        Ok(())
    }
}
