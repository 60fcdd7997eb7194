//! JSON of tokenizer files.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::{MAX_VOCAB, TokError};

/// Reads a JSON text of a tokenizer of this kind.
pub(super) fn parse<'a, T: Deserialize<'a>>(kind: &'static str, json: &'a [u8]) -> Result<T, TokError> {
    serde_json::from_slice(json).map_err(|e| TokError::Json { kind, reason: e.to_string() })
}

/// A JSON object of integers in file order, doubled keys kept, so that they can be refused; of more than a vocabulary may have
/// only the number.
#[derive(Default)]
pub(super) struct Pairs {
    pub(super) list: Vec<(String, u64)>,
    pub(super) len: usize,
}

impl FromIterator<(String, u64)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(pairs: I) -> Self {
        let list: Vec<(String, u64)> = pairs.into_iter().collect();
        Self { len: list.len(), list }
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Pairs::default();
                while pairs.list.len() < MAX_VOCAB
                    && let Some(pair) = map.next_entry()?
                {
                    pairs.list.push(pair);
                }
                pairs.len = pairs.list.len();
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    pairs.len += 1;
                }
                Ok(pairs)
            }
        }
        d.deserialize_map(Entries)
    }
}
