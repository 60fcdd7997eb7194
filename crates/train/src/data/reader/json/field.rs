//! The text under the name of a field: its key, or a path of keys with dots between. A key that is all that is left of the path
//! comes before one that the path begins with. Paths lead through lists, whose texts are joined by newlines.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// What is found under the name of a field.
pub(super) enum Found<'de> {
    Missing,
    Null,
    Text(Cow<'de, str>),
    /// Of a list, joined.
    List(String),
    /// Something else: a number, say.
    Other(&'static str),
}

/// A string that is borrowed where it has no escapes.
#[derive(serde::Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// What an object holds under a path: in the key that is all of it, and below a key that it begins with.
#[derive(Default)]
pub(super) struct Branches<'de> {
    key: Option<Found<'de>>,
    below: Option<Found<'de>>,
}

impl<'de> Branches<'de> {
    pub fn add<A: MapAccess<'de>>(&mut self, path: &str, key: &str, map: &mut A) -> Result<(), A::Error> {
        let (place, rest) = match path.strip_prefix(key) {
            Some("") => (&mut self.key, ""),
            Some(rest) if rest.starts_with('.') => (&mut self.below, &rest[1..]),
            _ => return map.next_value::<IgnoredAny>().map(drop),
        };
        let found = map.next_value_seed(Value(rest))?;
        match (&place, &found) {
            (None | Some(Found::Missing), _) => *place = Some(found),
            (Some(_), Found::Missing) => {}
            _ => return Err(A::Error::custom(format!("field `{key}` is given twice"))),
        }
        Ok(())
    }

    pub fn found(self) -> Found<'de> {
        self.key.or(self.below).unwrap_or(Found::Missing)
    }
}

/// Reads what lies at a path below a value; the value itself, if the path is empty.
pub(super) struct Value<'p>(pub &'p str);

impl Value<'_> {
    fn other<'de>(&self, what: &'static str) -> Found<'de> {
        if self.0.is_empty() { Found::Other(what) } else { Found::Missing }
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Found<'de>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Found<'de>, E> {
        Ok(if self.0.is_empty() { Found::Text(Cow::Borrowed(text)) } else { Found::Missing })
    }

    fn visit_str<E>(self, text: &str) -> Result<Found<'de>, E> {
        Ok(if self.0.is_empty() { Found::Text(Cow::Owned(text.to_string())) } else { Found::Missing })
    }

    fn visit_unit<E>(self) -> Result<Found<'de>, E> {
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found<'de>, E> {
        Ok(self.other("a boolean"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found<'de>, E> {
        Ok(self.other("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found<'de>, E> {
        Ok(self.other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found<'de>, E> {
        Ok(self.other("a number"))
    }

    /// The texts that are there; elements without the field are skipped if another has it.
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Found<'de>, A::Error> {
        let (mut all, mut missing, mut other) = (None::<String>, 0, None);
        let mut any = false;
        while let Some(found) = elements.next_element_seed(Value(self.0))? {
            any |= matches!(found, Found::Null);
            let text = match found {
                Found::Text(text) => text,
                Found::List(text) => Cow::Owned(text),
                Found::Other(what) => {
                    other = Some(what);
                    continue;
                }
                Found::Missing => {
                    missing += 1;
                    continue;
                }
                Found::Null => continue,
            };
            match &mut all {
                Some(all) => {
                    all.push('\n');
                    all.push_str(&text);
                }
                None => all = Some(text.into_owned()),
            }
        }
        Ok(match (all, other) {
            (_, Some(what)) => Found::Other(what),
            (Some(all), None) => Found::List(all),
            (None, None) if missing > 0 && !any => Found::Missing,
            (None, None) => Found::Null,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let mut text = Branches::default();
        while let Some(Text(key)) = map.next_key::<Text>()? {
            if self.0.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                text.add(self.0, &key, &mut map)?;
            }
        }
        Ok(if self.0.is_empty() { Found::Other("an object") } else { text.found() })
    }
}
