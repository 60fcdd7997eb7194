//! Texts that a program has in memory, as a file among the caches: a text is read more than once. The same texts are the same file.
//!
//! The program's iterable runs on the thread that calls, the file is written on another, so that no disk keeps Ctrl-C waiting.

use std::fs::{create_dir_all, remove_file, rename};
use std::io::{Error, Write};
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use flashlm_train::atomic::write_file;
use flashlm_train::data::cache::default_dir;
use pyo3::prelude::*;
use pyo3::types::PyString;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Failure, Result};
use crate::wait::{TICK, Writing, between, wait};

/// Of the files that this process writes.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
/// Bytes that are handed over at once.
const PIECE: usize = 1 << 18;

/// A file of JSON lines with a document for each text.
pub fn spool<'py>(
    py: Python<'py>,
    first: Bound<'py, PyAny>,
    rest: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> Result<PathBuf> {
    let folder = default_dir();
    create_dir_all(&folder)
        .map_err(|error| PyErr::from(Error::new(error.kind(), format!("{}: {error}", folder.display()))))?;
    let number = WRITTEN.fetch_add(1, Relaxed);
    let new = folder.join(format!("texts-{}-{number}.new", process::id()));
    let (send, receive) = sync_channel::<Option<Vec<u8>>>(2);
    let path = new.clone();
    let writing = Writing::begin();
    let work = move || {
        let _writing = writing;
        let mut hash = Xxh3::new();
        write_file(&path, |file| {
            loop {
                match receive.recv() {
                    Ok(Some(lines)) => {
                        hash.update(&lines);
                        file.write_all(&lines)?;
                    }
                    Ok(None) => return Ok(()),
                    Err(_) => return Err(Error::other("the texts failed")),
                }
            }
        })?;
        let path = folder.join(format!("texts-{:016x}.jsonl", hash.digest()));
        // A file that is there stays: by its time the caches know that they are of it.
        if path.exists() { remove_file(&new) } else { rename(&new, &path) }.map_err(PyErr::from)?;
        Ok(path)
    };
    let writer = thread::Builder::new().name("flashlm-texts".into()).spawn(work).map_err(PyErr::from)?;
    let mut lines = Vec::new();
    for (n, text) in std::iter::once(Ok(first)).chain(rest).enumerate() {
        between(py, n)?;
        let text = text?.cast_into::<PyString>().map_err(PyErr::from)?;
        lines.extend((serde_json::json!({"text": text.to_str()?}).to_string() + "\n").into_bytes());
        if lines.len() >= PIECE && !give(py, &send, Some(std::mem::take(&mut lines)))? {
            break;
        }
    }
    let _ = give(py, &send, Some(lines))? && give(py, &send, None)?;
    // What could not be written is told here.
    wait(py, move |_| writer.join().unwrap_or_else(|_| Err(Failure::training("the texts cannot be written"))))
}

/// Whether the writer took it; it does not where it has failed.
fn give(py: Python, send: &SyncSender<Option<Vec<u8>>>, mut lines: Option<Vec<u8>>) -> Result<bool> {
    loop {
        match send.try_send(lines) {
            Ok(()) => return Ok(true),
            Err(TrySendError::Disconnected(_)) => return Ok(false),
            Err(TrySendError::Full(back)) => lines = back,
        }
        py.detach(|| thread::sleep(TICK / 10));
        py.check_signals()?;
    }
}
