//! Keyword arguments of a run, as the arguments of `flashlm train`: the same settings and the same words.

use std::ffi::OsString;
use std::path::PathBuf;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::asked::{unknown, wrong};
use crate::error::{Failure, Result};
use crate::texts::spool;
use crate::wait::between;

/// Most lists and dicts in each other in a setting.
const DEEP: usize = 16;
/// Arguments, and the options that they are.
const KNOWN: [(&str, &str); 20] = [
    ("minutes", "--minutes"),
    ("hours", "--hours"),
    ("steps", "--steps"),
    ("epochs", "--epochs"),
    ("preset", "--preset"),
    ("params", "--params"),
    ("config", "--config"),
    ("batch", "--batch"),
    ("lr", "--lr"),
    ("seed", "--seed"),
    ("precision", "--precision"),
    ("threads", "--threads"),
    ("column", "--column"),
    ("valid", "--valid"),
    ("tokenizer", "--tokenizer"),
    ("vocab", "--vocab"),
    ("save_dir", "--save-dir"),
    ("resume", "--resume"),
    ("from_model", "--from"),
    ("offline", "--offline"),
];

/// The arguments of a run on `data`, `set` being settings by their dotted keys.
pub fn arguments(
    data: Option<&Bound<PyAny>>,
    set: Option<&Bound<PyDict>>,
    given: Option<&Bound<PyDict>>,
) -> Result<Vec<OsString>> {
    let mut args: Vec<OsString> = vec!["flashlm".into(), "train".into()];
    let mut push = |option: &str, value: OsString| {
        let mut arg = OsString::from(option);
        arg.push("=");
        arg.push(value);
        args.push(arg);
    };
    for (key, value) in given.into_iter().flatten() {
        let key: String = key.extract()?;
        let Some((_, option)) = KNOWN.into_iter().find(|(name, _)| *name == key) else {
            let names: Vec<&str> = KNOWN.iter().map(|known| known.0).chain(["data", "set"]).collect();
            return Err(unknown("Trainer", &key, &names));
        };
        match option {
            _ if value.is_none() => {}
            "--offline" => {}
            "--valid" => texts("valid", &value)?.into_iter().for_each(|text| push(option, text)),
            _ => push(option, plain(&key, &value)?),
        }
    }
    if let Some(data) = data.filter(|data| !data.is_none()) {
        texts("data", data)?.into_iter().for_each(|text| push("--data", text));
    }
    // As they are now: a value may run code that changes them.
    for (key, value) in set.into_iter().flatten().collect::<Vec<_>>() {
        let mut pair = key.extract::<OsString>()?;
        pair.push("=");
        pair.push(toml(&key.extract::<String>()?, &value, DEEP)?);
        push("--set", pair);
    }
    let offline = given.map(|given| given.get_item("offline")).transpose()?.flatten();
    if offline.map_or(Ok(false), |value| value.is_truthy())? {
        args.push("--offline".into());
    }
    Ok(args)
}

/// A text, a number or a path.
fn plain(name: &str, value: &Bound<PyAny>) -> Result<OsString> {
    if value.is_instance_of::<PyBool>() || value.is_instance_of::<PyBytes>() {
        return Err(wrong(name, "a number, a text or a path", value));
    }
    if value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>() {
        return Ok(value.str()?.to_str()?.into());
    }
    value.extract::<PathBuf>().map(PathBuf::into).map_err(|error| {
        // A text with lone surrogates is told as such.
        let wrong_type = error.is_instance_of::<PyTypeError>(value.py());
        if wrong_type { wrong(name, "a number, a text or a path", value) } else { error.into() }
    })
}

/// What is trained or validated on: a path or a name, or documents that the program has itself.
fn texts(name: &str, value: &Bound<PyAny>) -> Result<Vec<OsString>> {
    let is_path = |value: &Bound<PyAny>| value.hasattr("__fspath__");
    if value.is_instance_of::<PyString>() || is_path(value)? {
        let text = plain(name, value)?;
        return match text.to_str() {
            Some("-") => Err(Failure::setting(format!("{name}: \"-\" is standard input; give [sys.stdin.read()]"))),
            _ => Ok(vec![text]),
        };
    }
    let expected = "a path, the name of a dataset, or an iterable of texts";
    if value.is_instance_of::<PyBytes>() {
        return Err(wrong(name, expected, value));
    }
    let mut all = value.try_iter().map_err(|_| wrong(name, expected, value))?;
    let Some(first) = all.next().transpose()? else {
        return Err(Failure::setting(format!("{name}: there is no text; expected {expected}")));
    };
    if is_path(&first)? {
        let paths = std::iter::once(Ok(first)).chain(all);
        return paths
            .map(|path| value.py().check_signals().map_err(Failure::from).and_then(|()| plain(name, &path?)))
            .collect();
    }
    Ok(vec![spool(value.py(), first, all)?.into()])
}

/// A value as TOML, of lists and dicts in each other at most `deep`.
fn toml(name: &str, value: &Bound<PyAny>, deep: usize) -> Result<String> {
    let Some(deep) = deep.checked_sub(1) else {
        return Err(Failure::setting(format!("{name}: lists and dicts in each other, more than {DEEP} deep")));
    };
    let quoted = |text: &Bound<PyAny>| Ok::<_, Failure>(serde_json::json!(text.extract::<String>()?).to_string());
    if value.is_instance_of::<PyBool>() {
        return Ok(value.is_truthy()?.to_string());
    }
    if value.is_instance_of::<PyString>() {
        return quoted(value);
    }
    if value.is_instance_of::<PyInt>() || value.is_instance_of::<PyFloat>() {
        return Ok(value.str()?.to_string());
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        let mut parts = Vec::new();
        for (n, part) in value.try_iter()?.enumerate() {
            between(value.py(), n)?;
            parts.push(toml(name, &part?, deep)?);
        }
        return Ok(format!("[{}]", parts.join(", ")));
    }
    if let Ok(table) = value.cast::<PyDict>() {
        let pair = |(key, value): (Bound<PyAny>, Bound<PyAny>)| {
            Ok(format!("{} = {}", quoted(&key)?, toml(name, &value, deep)?))
        };
        // As they are now: a value may run code that changes them.
        let pairs = table.iter().collect::<Vec<_>>().into_iter().map(pair).collect::<Result<Vec<_>>>()?;
        return Ok(format!("{{{}}}", pairs.join(", ")));
    }
    Err(wrong(name, "a number, a text, a switch, a list or a dict", value))
}
