//! What has a JSON form, as an object of Python.

use pyo3::prelude::*;
use serde_json::Value;

use crate::error::Result;

/// Dicts, lists, texts and numbers.
pub fn object<'py>(py: Python<'py>, value: &Value) -> Result<Bound<'py, PyAny>> {
    let text = value.to_string();
    Ok(py.import("json")?.call_method1("loads", (text,))?)
}
