//! Texts that a program has in memory, as a file among the caches: a text is read more than once. The same texts are the same file.

use std::fs::{create_dir_all, remove_file, rename};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flashlm_train::atomic::write_file;
use flashlm_train::data::cache::default_dir;
use pyo3::prelude::*;
use pyo3::types::PyString;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Failure, Result};

/// Of the files that this process writes.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// A file of JSON lines with a document for each text.
pub fn spool<'py>(
    first: Bound<'py, PyAny>,
    rest: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> Result<PathBuf> {
    let folder = default_dir();
    create_dir_all(&folder).map_err(|error| {
        Failure::from(PyErr::from(std::io::Error::new(error.kind(), format!("{}: {error}", folder.display()))))
    })?;
    let (mut hash, mut failed) = (Xxh3::new(), None);
    let number = WRITTEN.fetch_add(1, Relaxed);
    let new = folder.join(format!("texts-{}-{number}.new", std::process::id()));
    let written = write_file(&new, |file| {
        for text in std::iter::once(Ok(first)).chain(rest) {
            let line = match text.and_then(|text| Ok(text.cast_into::<PyString>()?.to_str()?.to_string())) {
                Ok(text) => serde_json::json!({"text": text}).to_string() + "\n",
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("the texts failed"));
                }
            };
            hash.update(line.as_bytes());
            file.write_all(line.as_bytes())?;
        }
        Ok(())
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    written?;
    let path = folder.join(format!("texts-{:016x}.jsonl", hash.digest()));
    // A file that is there stays: by its time the caches know that they are of it.
    if path.exists() {
        remove_file(&new).map_err(PyErr::from)?;
    } else {
        rename(&new, &path).map_err(PyErr::from)?;
    }
    Ok(path)
}
