//! What a command found out: rows of a key, a text for people and a value for programs.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::common::out;
use crate::terminal::{columns, stdout_width};

/// Rows in the order in which they are shown.
#[derive(Default)]
pub struct Report {
    rows: Vec<(String, String, Value)>,
}

impl Report {
    /// Appends a row; words of the key are joined by `_` in JSON.
    pub fn add(&mut self, key: &str, text: impl Display, value: impl Into<Value>) {
        self.rows.push((key.to_string(), text.to_string(), value.into()));
    }

    /// One JSON object.
    pub fn json(self) -> Value {
        let object: Map<String, Value> =
            self.rows.into_iter().map(|(key, _, value)| (key.replace(' ', "_"), value)).collect();
        Value::Object(object)
    }

    /// Prints the report: aligned lines, or one JSON object.
    pub fn print(self, json: bool) {
        if json {
            out!("{:#}", self.json());
            return;
        }
        let rows = self.rows.iter().map(|(key, text, _)| (key.as_str(), text.as_str()));
        columns(rows, stdout_width()).iter().for_each(|line| out!("{line}"));
    }
}
