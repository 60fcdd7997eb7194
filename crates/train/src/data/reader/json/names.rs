//! The fields of a record that hold text, for messages.

use super::field::Text;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// How many fields a message names, and how deep they may lie.
const NAMES: usize = 20;
const DEPTH: usize = 4;

/// The problem, and the fields of the record that hold text.
pub(super) fn names(problem: String, json: &str) -> String {
    let mut found = Vec::new();
    let mut parser = serde_json::Deserializer::from_str(json);
    // The record has been read before; what cannot be read of it now is not named.
    let _ = Names { path: String::new(), depth: 0, found: &mut found }.deserialize(&mut parser);
    match found.is_empty() {
        true => format!("{problem}, and no field holds text"),
        false => format!("{problem}; fields with text: {}; choose one with --column", found.join(", ")),
    }
}

/// Collects the paths of strings.
struct Names<'f> {
    path: String,
    depth: usize,
    found: &'f mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Names<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        if self.depth > DEPTH || self.found.len() >= NAMES {
            return IgnoredAny::deserialize(d).map(drop);
        }
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        if !self.found.contains(&self.path) {
            self.found.push(self.path);
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let Names { path, depth, found } = self;
        while elements.next_element_seed(Names { path: path.clone(), depth: depth + 1, found })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Names { path, depth, found } = self;
        while let Some(Text(key)) = map.next_key::<Text>()? {
            let path = if path.is_empty() { key.into_owned() } else { format!("{path}.{key}") };
            map.next_value_seed(Names { path, depth: depth + 1, found })?;
        }
        Ok(())
    }
}
