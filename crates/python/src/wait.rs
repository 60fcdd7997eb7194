//! Work without the interpreter's lock, that Ctrl-C ends at once.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use pyo3::{PyResult, Python};

use crate::error::{Failure, Result};

/// How often it is asked whether Ctrl-C was pressed.
pub const TICK: Duration = Duration::from_millis(20);

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
        let receive = &mut receive;
        match py.detach(move || receive.recv_timeout(TICK)) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = py.check_signals() {
                    stop.store(true, Relaxed);
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
