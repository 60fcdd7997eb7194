//! Objects of JSON against the tables of docs/json.md: every field that is documented is there with its type, and no other.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Name and type of each field of an object.
type Fields = BTreeMap<String, String>;

/// The tables of the page, by the last word of their headings.
pub struct Schemas(BTreeMap<String, Fields>);

impl Schemas {
    pub fn documented() -> Schemas {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/json.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (mut all, mut at) = (BTreeMap::<String, Fields>::new(), String::new());
        for line in page.lines() {
            if let Some(name) = line.strip_prefix("### ") {
                at = name.to_string();
            } else if line.starts_with("| `") || line.starts_with("| ...") {
                let cells: Vec<&str> = line.split('|').map(str::trim).collect();
                all.entry(at.clone()).or_default().insert(cells[1].trim_matches('`').into(), cells[2].into());
            }
        }
        assert_eq!(all.len(), 11, "{:?}", all.keys());
        Schemas(all)
    }

    /// Checks one object.
    pub fn check(&self, name: &str, object: &Value) {
        let fields = &self.0[name];
        let object = object.as_object().unwrap_or_else(|| panic!("{name}: no object: {object}"));
        for (key, kind) in fields.iter().filter(|(key, _)| *key != "...") {
            match (object.get(key), kind.strip_suffix(", optional")) {
                (Some(value), kept) => self.is(value, kept.unwrap_or(kind), &format!("{name}.{key}")),
                (None, Some(_)) => {}
                (None, None) => panic!("{name}: no {key} in {object:?}"),
            }
        }
        let open = fields.contains_key("...");
        for key in object.keys() {
            assert!(open || fields.contains_key(key), "docs/json.md, {name}: does not know {key}");
        }
    }

    fn is(&self, value: &Value, kind: &str, at: &str) {
        if let Some(item) = kind.strip_prefix("list of ") {
            value
                .as_array()
                .unwrap_or_else(|| panic!("{at}: no list: {value}"))
                .iter()
                .for_each(|v| self.check(item, v));
            return;
        }
        let fits = |kind: &str| match kind {
            "string" => value.is_string(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "object" => value.is_object(),
            "array" => value.is_array(),
            "null" => value.is_null(),
            other => panic!("docs/json.md, {at}: {other} is no type"),
        };
        assert!(kind.split(" or ").any(fits), "{at}: expected {kind}, found {value}");
    }
}
