//! One JSON object a line, its text in one field, its score in another if that is wanted; other fields are skipped.

use super::lines::Lines;
use super::{DataError, Fields, Story};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;

pub(super) fn read(
    lines: &mut Lines,
    fields: &Fields,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let mut line = Vec::new();
    loop {
        let (number, offset) = (lines.line + 1, lines.offset);
        line.clear();
        if !lines.next(&mut line, number)? {
            return Ok(ControlFlow::Continue(()));
        }
        let json = lines.utf8(&line, number, offset)?.trim();
        if json.is_empty() {
            continue;
        }
        let field = fields.text.to_string();
        let bad = |reason| DataError::Jsonl { path: lines.path.clone(), line: number, reason, field: field.clone() };
        if !json.starts_with('{') {
            return Err(bad("not a JSON object".to_string()));
        }
        let mut parser = serde_json::Deserializer::from_str(json);
        let parsed = Record(fields).deserialize(&mut parser).and_then(|record| parser.end().map(|()| record));
        let (text, score) = parsed.map_err(|e| {
            // serde_json counts lines within this one.
            let message = e.to_string();
            let what = message.split(" at line ").next().unwrap_or_default();
            bad(if e.is_data() { what.to_string() } else { format!("bad JSON: {what} (column {})", e.column()) })
        })?;
        let text = text.trim_matches(['\n', '\r']);
        if !text.is_empty() && f(Story { text, score }, lines.read()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

/// Reads the fields asked for out of an object.
struct Record<'f>(&'f Fields<'f>);

impl<'de> DeserializeSeed<'de> for Record<'_> {
    type Value = (Cow<'de, str>, Option<f64>);

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

/// A string that is borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Visitor<'de> for Record<'_> {
    type Value = (Cow<'de, str>, Option<f64>);

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with a field `{}`", self.0.text)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut text, mut score) = (None, None);
        while let Some(Text(key)) = map.next_key::<Text>()? {
            if key == self.0.text {
                if text.replace(map.next_value::<Text>()?.0).is_some() {
                    return Err(A::Error::custom(format!("field `{key}` comes twice")));
                }
            } else if Some(&*key) == self.0.score {
                score = Some(map.next_value::<Option<f64>>()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        let missing = |name: &str| A::Error::custom(format!("missing field `{name}`"));
        let score = match (self.0.score, score) {
            (Some(name), None) => return Err(missing(name)),
            (_, score) => score.flatten(),
        };
        Ok((text.ok_or_else(|| missing(self.0.text))?, score))
    }
}
