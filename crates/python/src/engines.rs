//! Working memory of one thread each, used again by the next caller.

use std::sync::{Arc, Mutex};

use flashlm_kernels::{Exec, Isa, Token};
use flashlm_model::{Engine, PackedModel, SequenceState};

use crate::error::{Failure, Result};

/// Rows of a prompt that are worked through at once.
const ROWS: usize = 64;
/// Engines that are kept while nobody uses them.
const IDLE: usize = 16;

/// The engines of one model. They have no threads of their own, so that they also work in a process that was forked.
pub struct Engines {
    model: Arc<PackedModel>,
    idle: Mutex<Vec<Engine>>,
}

impl Engines {
    /// None yet.
    pub fn new(model: Arc<PackedModel>) -> Arc<Engines> {
        Arc::new(Engines { model, idle: Mutex::default() })
    }

    /// One to work with.
    pub fn take(&self) -> Result<Engine> {
        // A lock that another thread held when this process was forked stays locked.
        let idle = self.idle.try_lock().ok().and_then(|mut idle| idle.pop());
        idle.map_or_else(|| Ok(Engine::new(self.model.clone(), exec(1)?, ROWS)), Ok)
    }

    /// Takes it back.
    pub fn give(&self, engine: Engine) {
        if let Ok(mut idle) = self.idle.try_lock()
            && idle.len() < IDLE
        {
            idle.push(engine);
        }
    }
}

/// An executor of so many threads.
pub fn exec(threads: usize) -> Result<Exec> {
    Ok(Exec::new(Isa::detect().map_err(Failure::setting)?, threads))
}

/// Feeds tokens in pieces, and asks before each whether to go on; `false` where it was not to.
pub fn feed(
    engine: &mut Engine,
    state: &mut SequenceState,
    tokens: &[Token],
    mut goes_on: impl FnMut() -> bool,
) -> bool {
    tokens.chunks(4 * engine.rows()).all(|piece| {
        let on = goes_on();
        if on {
            engine.feed(state, piece);
        }
        on
    })
}
