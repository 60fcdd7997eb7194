//! Work without the interpreter's lock, that Ctrl-C ends at once.

use std::panic::resume_unwind;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::{PyResult, Python};

use crate::error::{Failure, Result};

/// How often it is asked whether Ctrl-C was pressed.
pub const TICK: Duration = Duration::from_millis(20);

/// How long the end of the process waits for files that are being written.
const LONGEST: Duration = Duration::from_secs(5);

/// Items of an iterable between two chances of other threads of Python.
const OFTEN: usize = 256;

/// Before item `n` of an iterable, which may run no code of Python: other threads have their chance, and Ctrl-C is asked for.
pub fn between(py: Python, n: usize) -> PyResult<()> {
    if n.is_multiple_of(OFTEN) {
        py.detach(thread::yield_now);
        py.check_signals()?;
    }
    Ok(())
}

/// Something that writes a file on a thread of its own. The process does not end before the file is whole, or removed.
pub struct Writing(());

/// How many there are, and of which process: those of a process that was forked are not in its child. No lock, which could be held then.
static WRITING: AtomicU64 = AtomicU64::new(0);

fn count(change: impl Fn(u64) -> u64) -> u64 {
    let own = u64::from(process::id()) << 32;
    let changed = |all: u64| own | change(if all >> 32 == own >> 32 { all & u64::from(u32::MAX) } else { 0 });
    // It never refuses.
    changed(WRITING.fetch_update(SeqCst, SeqCst, |all| Some(changed(all))).unwrap_or_default()) & u64::from(u32::MAX)
}

impl Writing {
    /// One more.
    pub fn begin() -> Writing {
        count(|n| n + 1);
        Writing(())
    }

    /// Waits until there are none, but not for long.
    pub fn finish(py: Python) -> PyResult<()> {
        let began = Instant::now();
        while count(|n| n) > 0 && began.elapsed() < LONGEST {
            py.detach(|| thread::sleep(TICK));
            py.check_signals()?;
        }
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        count(|n| n.saturating_sub(1));
    }
}

/// Does `work` on a thread of its own while this one waits for it and for signals. Where a signal raises an exception, it is
/// returned at once; `work` is told to stop, and what it returns is dropped.
pub fn wait<T: Send + 'static>(py: Python, work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static) -> Result<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let (send, mut receive) = sync_channel(1);
    let flag = stop.clone();
    let worker = thread::Builder::new().name("flashlm".into()).spawn(move || {
        let done = work(&flag);
        // Nobody may be waiting any longer.
        let _ = send.send(done);
    });
    let worker = worker.map_err(|error| Failure::from(pyo3::PyErr::from(error)))?;
    loop {
        let answer = &mut receive;
        match py.detach(move || answer.recv_timeout(TICK)) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = py.check_signals() {
                    stop.store(true, Relaxed);
                    // Where it looks often, it has removed what it was writing before the exception is seen.
                    let answer = &mut receive;
                    let _ = py.detach(move || answer.recv_timeout(2 * TICK));
                    return Err(error.into());
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                if let Err(panic) = py.detach(|| worker.join()) {
                    resume_unwind(panic);
                }
                return Err(Failure::stream("the work has ended without a result"));
            }
        }
    }
}
