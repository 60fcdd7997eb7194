//! The fields of a JSON object, each read once and checked; `null` is as good as absent. What nobody read is told to the client.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::ApiError;

#[derive(Default)]
pub struct Fields {
    map: Map<String, Value>,
    read: BTreeSet<&'static str>,
}

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let wrong = |found: String| ApiError::bad("body", format!("the body must be a JSON object: {found}"));
        // Some programs begin every text with a byte order mark.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        match serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))? {
            Value::Object(map) => Ok(Fields { map, read: BTreeSet::new() }),
            other => Err(wrong(format!("found {}", kind(&other)))),
        }
    }

    /// The value, where there is one.
    pub fn get(&mut self, key: &'static str) -> Option<&Value> {
        self.read.insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn number(&mut self, key: &'static str, default: f64, from: f64, to: f64) -> Result<f64, ApiError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_f64().filter(|x| (from..=to).contains(x));
        number.ok_or_else(|| wrong(key, &format!("a number from {from} to {to}"), value))
    }

    pub fn whole(&mut self, key: &'static str, default: u64, from: u64, to: u64) -> Result<u64, ApiError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = whole(value).filter(|x| (from..=to).contains(x));
        number.ok_or_else(|| wrong(key, &format!("a whole number from {from} to {to}"), value))
    }

    pub fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, ApiError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| wrong(key, "true or false", value))
    }

    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(|text| Some(text.into())).ok_or_else(|| wrong(key, "a string", value))
    }

    /// Names of fields that nothing has read, as much as a header can hold.
    pub fn ignored(&self) -> Option<String> {
        let plain = |key: &&String| key.len() <= 64 && key.bytes().all(|b| b.is_ascii_graphic());
        let unread = self.map.keys().filter(|key| !self.read.contains(key.as_str())).filter(plain);
        let names: Vec<&str> = unread.take(20).map(String::as_str).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// A whole number that is not below 0; `5.0` is one.
pub fn whole(value: &Value) -> Option<u64> {
    // From 2^53 on not every whole number is a float.
    let float = |x: &f64| x.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(x);
    value.as_u64().or_else(|| value.as_f64().filter(float).map(|x| x as u64))
}

/// The error of a value that is not what it should be.
pub fn wrong(key: &str, expected: &str, found: &Value) -> ApiError {
    let mut shown = found.to_string();
    if shown.len() > 80 {
        shown = kind(found).into();
    }
    ApiError::bad(key, format!("{key}: expected {expected}, found {shown}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
