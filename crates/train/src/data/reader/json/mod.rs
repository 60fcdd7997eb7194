//! Records of JSON, their text in one field, their score in another if that is wanted; other fields are passed over.
//!
//! ```text
//! {..} \n {..} \n         a record a line, if the first one begins and ends on its line and nothing else stands there
//! {..} {..}               records over several lines, one after the other; a single one too
//! [{..}, {..}]            the elements of one array; they may be bare strings
//! ```
//! A field is named by its key, or by a path of keys with dots between (`meta.text`); a key that is the whole rest of the
//! path comes first. Paths lead through arrays, whose texts are joined by newlines. `null` is no text. What Python writes
//! beyond JSON is read: NaN and infinities as null, half a pair of surrogates as U+FFFD. Memory: one record.

mod field;
mod names;
mod python;
mod records;

use super::lines::Lines;
use super::{DataError, Fields, Seen, Story};
use field::{Branches, Found, Text, Value};
use names::names;
use python::mended;
use records::{Layout, Records};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;

const MARK: char = '\u{feff}';

pub(super) fn read(
    lines: &mut Lines,
    fields: &Fields,
    seen: &mut Seen,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let mut records = Records::new(lines);
    let mut bytes = Vec::new();
    while records.next(&mut bytes)? {
        let json = records.lines.utf8(&bytes, records.line, records.offset)?;
        let json = json.trim_matches(|c: char| c.is_whitespace() || c == MARK);
        let array = records.layout == Layout::Array;
        if json.is_empty() && records.layout == Layout::Lines {
            continue;
        }
        if !(json.starts_with('{') || array && (json.starts_with('"') || json == "null")) {
            let wanted = if array { "neither an object nor a string" } else { "not a JSON object" };
            return Err(records.bad(0, format!("{wanted}, like {{\"{}\": \"...\"}}", fields.text)));
        }
        let mut parsed = parse(json, fields);
        let mended = parsed.as_ref().is_err_and(|e| !e.is_data()).then(|| mended(json)).flatten();
        let (json, halves) = mended.as_ref().map_or((json, false), |(json, halves)| (json, *halves));
        if mended.is_some() {
            parsed = parse(json, fields);
        }
        let (text, score) = parsed.map_err(|e| match e.is_data() {
            true => records.bad(0, without_place(&e)),
            // serde_json counts lines within the record.
            false => {
                records.bad(e.line() as u64 - 1, format!("bad JSON: {} (column {})", without_place(&e), e.column()))
            }
        })?;
        let text = match text {
            Found::Text(text) => text,
            Found::List(texts) => {
                seen.joined += 1;
                Cow::Owned(texts)
            }
            Found::Null => Cow::Borrowed(""),
            Found::Missing => return Err(records.bad(0, names(format!("there is no field `{}`", fields.text), json))),
            Found::Other(what) => {
                return Err(records.bad(0, names(format!("field `{}` holds {what}, not text", fields.text), json)));
            }
        };
        seen.halves += u64::from(halves && text.contains('\u{fffd}'));
        let text = text.trim_matches(['\n', '\r']);
        if text.is_empty() {
            seen.without += 1;
        } else if f(Story { text, score }, records.lines.read()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Whether the first line that is not blank is a JSON object, and has the field of the text if fields are given.
pub(super) fn begins(head: &[u8], fields: Option<&Fields>) -> bool {
    let line = head.split(|byte| *byte == b'\n').map(|line| line.trim_ascii()).find(|line| !line.is_empty());
    let Some(Ok(json)) = line.map(std::str::from_utf8) else { return false };
    if !json.starts_with('{') {
        return false;
    }
    let mended = mended(json);
    let json = mended.as_ref().map_or(json, |(json, _)| json);
    match fields {
        None => serde_json::from_str::<IgnoredAny>(json).is_ok(),
        Some(Fields { text, .. }) => parse(json, &Fields { text, score: None })
            .is_ok_and(|(found, _)| !matches!(found, Found::Missing | Found::Other(_))),
    }
}

/// What serde_json says, without the place that it adds.
fn without_place(e: &serde_json::Error) -> String {
    e.to_string().split(" at line ").next().unwrap_or_default().to_string()
}

fn parse<'de>(json: &'de str, fields: &Fields) -> serde_json::Result<(Found<'de>, Option<f64>)> {
    let mut parser = serde_json::Deserializer::from_str(json);
    let found = if json.starts_with('{') {
        parser.deserialize_map(Record(fields))?
    } else if let Some(score) = fields.score {
        return Err(Error::custom(format!("a bare string has no field `{score}`; leave out min_score")));
    } else {
        (Value("").deserialize(&mut parser)?, None)
    };
    parser.end().map(|()| found)
}

/// Reads the fields asked for out of an object.
struct Record<'f>(&'f Fields<'f>);

impl<'de> Visitor<'de> for Record<'_> {
    type Value = (Found<'de>, Option<f64>);

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with a field `{}`", self.0.text)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut text, mut score) = (Branches::default(), None);
        while let Some(Text(key)) = map.next_key::<Text>()? {
            if Some(&*key) == self.0.score && key != self.0.text {
                score = Some(map.next_value::<Option<f64>>()?);
            } else {
                text.add(self.0.text, &key, &mut map)?;
            }
        }
        let score = match (self.0.score, score) {
            (Some(name), None) => {
                return Err(A::Error::custom(format!("there is no field `{name}`; leave out min_score")));
            }
            (_, score) => score.flatten(),
        };
        Ok((text.found(), score))
    }
}
