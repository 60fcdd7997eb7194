//! Files of models: packed, exported, compared with test vectors.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use flashlm_kernels::{Exec, Isa};
use flashlm_model::Precision;
use flashlm_model::io::safetensors::TensorFile;
use flashlm_train::eval::verify::verify as compare;
use flashlm_train::recognise::recognise;
use flashlm_train::what::{Unwanted, What};
use pyo3::prelude::*;
use serde_json::json;

use crate::asked::{number, whole};
use crate::error::{Failure, Result};
use crate::json::object;
use crate::wait::{Writing, wait};

/// Calls a command with these arguments, and returns what it reports. After Ctrl-C nothing is written.
fn report<'py>(py: Python<'py>, args: Vec<OsString>) -> Result<Bound<'py, PyAny>> {
    let writing = Writing::begin();
    let report = wait(py, move |stop| {
        let _writing = writing;
        flashlm::report(args, &|| stop.load(Relaxed)).map_err(Failure::in_short)
    })?;
    object(py, &report)
}

fn words(parts: &[&str]) -> Vec<OsString> {
    parts.iter().map(OsString::from).collect()
}

/// What follows `name=`, so that it is never taken for an option.
fn option(name: &str, value: impl Into<OsString>) -> OsString {
    let mut option = OsString::from(name);
    option.push("=");
    option.push(value.into());
    option
}

/// Packs a model into one small file, as `flashlm pack` does, and returns what it is: file, sizes in bytes, parameters.
#[pyfunction]
#[pyo3(signature = (model, output = PathBuf::from("model.safetensors"), *, ternary_bits = None, table_bits = None, force = false))]
#[pyo3(text_signature = "(model, output='model.safetensors', *, ternary_bits=2, table_bits=8, force=False)")]
pub fn pack<'py>(
    py: Python<'py>,
    model: PathBuf,
    output: PathBuf,
    ternary_bits: Option<&Bound<'py, PyAny>>,
    table_bits: Option<&Bound<'py, PyAny>>,
    force: bool,
) -> Result<Bound<'py, PyAny>> {
    let mut args = words(&["flashlm", "pack"]);
    args.push(option("--output", output));
    if let Some(bits) = ternary_bits {
        args.push(option("--ternary-bits", number("ternary_bits", bits)?.to_string()));
    }
    if let Some(bits) = table_bits {
        args.push(option("--table-bits", whole::<u64>("table_bits", bits)?.to_string()));
    }
    args.extend(force.then(|| "--force".into()));
    args.extend(["--".into(), model.into()]);
    report(py, args)
}

/// Exports a model for other programs, as `flashlm export` does: `format` is one of those that
/// `flashlm export --help` lists, such as `"onnx"`.
#[pyfunction]
#[pyo3(signature = (format, model, output, *, weights = None, force = false))]
pub fn export<'py>(
    py: Python<'py>,
    format: &str,
    model: PathBuf,
    output: PathBuf,
    weights: Option<&str>,
    force: bool,
) -> Result<Bound<'py, PyAny>> {
    let mut args = words(&["flashlm", "export"]);
    args.push(option("--output", output));
    args.extend(weights.map(|weights| option("--weights", weights)));
    args.extend(force.then(|| "--force".into()));
    args.extend(["--".into(), format.into(), model.into()]);
    report(py, args)
}

/// Runs test vectors, as `flashlm verify` does, and returns what was found: `pass`, and `checks` with their values and bounds.
#[pyfunction]
#[pyo3(signature = (file, *, precision = "f32"))]
pub fn verify<'py>(py: Python<'py>, file: PathBuf, precision: &str) -> Result<Bound<'py, PyAny>> {
    let known = Precision::ALL.into_iter().find(|p| p.name() == precision).ok_or_else(|| {
        let all = Precision::ALL.map(Precision::name).join(", ");
        Failure::setting(format!("precision: expected one of {all}, found {precision:?}"))
    })?;
    let found = wait(py, move |_| {
        let what = recognise(&file);
        if what != What::Vectors {
            let wanted = "test vectors, a .safetensors file like those in tests/reference";
            return Err(anyhow::Error::from(Unwanted::new(&file, wanted, what)).into());
        }
        let cx = Exec::new(Isa::detect().map_err(Failure::setting)?, 1);
        let vectors = TensorFile::open(&file)?;
        let outcome = compare(&cx, &vectors, known.resolve(cx.isa()))
            .map_err(|error| anyhow::Error::from(error).context(format!("{}: cannot be verified", file.display())))?;
        let mut found = json!(outcome);
        (found["checks"], found["pass"]) = (json!(outcome.checks()), json!(outcome.passed()));
        Ok(found)
    })?;
    object(py, &found)
}
