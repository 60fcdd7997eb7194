//! Records of JSON, their text in one field, their score in another if that is wanted; other fields are skipped.
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
use super::oddities::Oddities;
use super::story::{Fields, Story};
use crate::data::DataError;
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
    oddities: &mut Oddities,
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
            if !array && (json.is_empty() || json.starts_with(',')) {
                let reason = "a comma or bracket where a record was expected; JSON lines have none between them, an array has [ and ] around all";
                return Err(records.bad(0, reason.to_string()));
            }
            let wanted = if array { "neither an object nor a string" } else { "not a JSON object" };
            return Err(records.bad(0, format!("{wanted}, like {{\"{}\": \"...\"}}", fields.text)));
        }
        let mut parsed = parse(json, fields);
        let mended = parsed.as_ref().is_err_and(|e| !e.is_data()).then(|| mended(json)).flatten();
        let (json, halves) = mended.as_ref().map_or((json, false), |(json, halves)| (json, *halves));
        if mended.is_some() {
            parsed = parse(json, fields);
        }
        let (text, score) = parsed.map_err(|e| records.syntax(&e))?;
        let text = match text {
            Found::Text(text) => text,
            Found::List(texts) => {
                oddities.joined += 1;
                Cow::Owned(texts)
            }
            Found::Null => Cow::Borrowed(""),
            Found::Missing => return Err(records.bad(0, names(format!("there is no field `{}`", fields.text), json))),
            Found::Other(what) => {
                return Err(records.bad(0, names(format!("field `{}` holds {what}, not text", fields.text), json)));
            }
        };
        oddities.halves += u64::from(halves && text.contains('\u{fffd}'));
        let text = text.trim_matches(['\n', '\r']);
        if text.is_empty() {
            oddities.without += 1;
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

fn parse<'de>(json: &'de str, fields: &Fields) -> serde_json::Result<(Found<'de>, Option<f64>)> {
    let mut parser = serde_json::Deserializer::from_str(json);
    let found = if json.starts_with('{') {
        parser.deserialize_map(Record(fields))?
    } else if let Some(score) = fields.score.filter(|_| json != "null") {
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

#[cfg(test)]
mod tests {
    use super::super::testing::{message, read, scored, stories};
    use super::*;
    use crate::data::testing::Folder;
    use serde_json::json;

    const STORIES: [&str; 3] = ["One {day}] \"she\"\n\\ran,", "naïve 😀\t", "}{"];

    /// Compact, indented, on one line and on many, as Python's `json` writes them with `indent` and without.
    #[test]
    fn every_layout_gives_the_same_stories() {
        let folder = Folder::new();
        let records: Vec<_> = STORIES.iter().map(|s| json!({"id": [{"text": 1}, [[]]], "text": s, "x": {}})).collect();
        let compact: Vec<String> = records.iter().map(|r| r.to_string()).collect();
        let pretty: Vec<String> = records.iter().map(|r| serde_json::to_string_pretty(r).unwrap()).collect();
        let escaped = "[{\"text\": \"One {day}] \\u0022she\\u0022\\n\\\\ran,\"}\n\
            ,\"na\\u00efve \\ud83d\\ude00\\t\" , {\"\\u0074ext\":\"}{\"}]";
        for (name, text) in [
            ("lines", compact.join("\n")),
            ("blank lines", format!("\n \r\n{}\r\n\n", compact.join(" \r\n\r\n\t"))),
            ("marks", compact.iter().map(|r| format!("\u{feff}{r}\n")).collect()),
            ("in a row", compact.concat()),
            ("indented", pretty.join("\n")),
            ("marked and indented", format!("\u{feff}{}", pretty.join("\n\u{feff}"))),
            ("array", format!("[{}]", compact.join(","))),
            ("array of lines", format!("[\n{}\n]\n", compact.join(",\n"))),
            ("indented array", serde_json::to_string_pretty(&records).unwrap()),
            ("marked array", format!("\u{feff}[{}]", compact.join(","))),
            ("strings", serde_json::to_string(&STORIES).unwrap()),
            ("both", escaped.to_string()),
        ] {
            for path in [folder.file("a.json", &text), folder.file("a.jsonl", &text)] {
                let (found, oddities) = stories(&path, "text", 200).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(found, STORIES, "{name}");
                assert_eq!(oddities, Oddities::default());
            }
        }
        assert_eq!(
            read(&folder.file("a.json", serde_json::to_string_pretty(&records[0]).unwrap())).unwrap(),
            STORIES[..1]
        );
        assert_eq!(read(&folder.file("a.json", " [ ] ")).unwrap(), [""; 0]);
        // Beyond what is buffered, and of which the limit is that of a record.
        let many = format!("[{}]", vec![&compact[..]; 20_000].concat().join(", "));
        assert_eq!(stories(&folder.file("a.json", many), "text", 200).unwrap().0.len(), 60_000);
    }

    #[test]
    fn a_field_may_lie_deeper() {
        let folder = Folder::new();
        let get = |field: &str, record: serde_json::Value| {
            let (found, oddities) = stories(&folder.file("a.jsonl", record.to_string()), field, 1000).unwrap();
            (found.concat(), oddities.joined)
        };
        assert_eq!(get("meta.text", json!({"text": "no", "meta": {"x": 1, "text": "yes"}})), ("yes".into(), 0));
        assert_eq!(get("meta.text", json!({"meta": {"text": 3}, "meta.text": "yes"})), ("yes".into(), 0));
        assert_eq!(get("a.b.c", json!({"a": {"x": 1}, "a.b": {"c": "yes"}})), ("yes".into(), 0));
        assert_eq!(get("a.b.c", json!({"a": {"b.c": "yes", "b": {"c": "no"}}})), ("yes".into(), 0));
        let chat = json!({"messages": [
            {"role": "user", "content": "Hi."}, {"role": "tool"}, {"content": null}, {"content": "Yes?\n"},
        ]});
        assert_eq!(get("messages.content", chat), ("Hi.\nYes?".into(), 1));
        assert_eq!(get("text", json!({"text": ["a", ["b", null], []]})), ("a\nb".into(), 1));
        for none in
            [json!({"m": null}), json!({"m": {"text": null}}), json!({"m": []}), json!({"m": [{"text": null}, {}]})]
        {
            let (found, oddities) = stories(&folder.file("a.jsonl", none.to_string()), "m.text", 100).unwrap();
            assert_eq!((found.len(), oddities), (0, Oddities { without: 1, ..Oddities::default() }), "{none}");
        }
    }

    #[test]
    fn records_without_text_and_what_python_writes() {
        let folder = Folder::new();
        let lines = "{\"text\": null}\n{\"p\": NaN, \"text\": \"a\"}\n\
            {\"text\": \"cut \\ud83d\", \"p\": [-Infinity]}\n{\"text\": \"\\n\"}\n";
        let array = format!("[null, {}]", lines.trim_end().replace('\n', ", "));
        for (text, without) in [(lines, 2), (&array, 3)] {
            let (found, oddities) = stories(&folder.file("a.json", text), "text", 100).unwrap();
            assert_eq!(found, ["a", "cut \u{fffd}"]);
            assert_eq!(oddities, Oddities { without, halves: 1, ..Oddities::default() });
        }
    }

    #[test]
    fn bad_records_are_told_by_their_place() {
        let folder = Folder::new();
        for (line, word) in [
            ("{\"text\": \"cut", "EOF"),
            ("{\"text\": \"a\"} x", "trailing"),
            ("{\"text\": \"a\"},", "trailing"),
            (
                "{\"text\": 3, \"b\": {\"c\": \"x\"}}",
                "field `text` holds a number, not text; fields with text: b.c; choose one with --column",
            ),
            ("{\"text\": {\"de\": \"a\"}}", "holds an object, not text; fields with text: text.de;"),
            ("{\"text\": [\"a\", true]}", "holds a boolean"),
            ("{\"body\": \"a\", \"n\": 1, \"t\": [\"b\"]}", "there is no field `text`; fields with text: body, t;"),
            ("{\"n\": 1}", "there is no field `text`, and no field holds text"),
            ("[\"a\"]", "not a JSON object"),
            ("{\"text\": \"\\x\"}", "invalid escape"),
            ("{\"text\":\"a\",\"text\":\"b\"}", "is given twice"),
        ] {
            let text = message(&folder.file("a.jsonl", format!("{{\"text\":\"fine\"}}\n\n{line}\n")));
            assert!(text.contains("line 3: ") && text.contains(word), "{text}");
        }
        for (text, place, word) in [
            ("[{\"text\": \"a\"}\n {\"text\": \"b\"}]", "line 2: element 1", "comma"),
            ("[{\"text\": \"a\"},\n3]", "line 2: element 2", "neither"),
            ("[{\"text\": \"a\"},,]", "line 1: element 2", "neither"),
            ("[{\"text\": \"a\"},\n{\"text\": \"b\"}", "line 2: element 3", "cut off"),
            ("[{\"text\": \"a\"},\n\n{\"text\": \"b", "line 3: element 2", "EOF"),
            ("[{\"text\": \"a\"}]\n[]", "line 2", "follows the array"),
            ("{\n\"text\": \"a\"\n}\n{\n\"text\": 3}", "line 4", "number"),
            ("{\n\"text\": \"a\"\n}\n,{}", "line 4", "a comma or bracket where a record"),
            ("{\"text\": \"a\"},\n{\"text\": \"b\"},\n", "line 1", "a comma or bracket where a record"),
            ("{\n\"text\" \"a\"\n}\n{}", "line 2", "expected `:`"),
            ("{\"text\": \"a\"\n{\"text\": \"b\"}\n", "line 2", "expected `,` or `}`"),
            ("{\"text\": \"a\n{\"text\": \"b\"}\n", "line 1", "string"),
            ("text", "line 1", "not a JSON object"),
        ] {
            let error = message(&folder.file("a.json", text));
            assert!(error.contains(place) && error.contains(word), "{text}: {error}");
        }
        let open = folder.file("a.jsonl", "{\"text\": \"a\"\n".repeat(1000));
        let error = stories(&open, "text", 500).unwrap_err().to_string();
        assert!(error.contains("line 2: bad JSON: expected `,` or `}`"), "{error}");
        let deep = format!("{{\"x\": {}", "[".repeat(500_000));
        assert!(message(&folder.file("deep.jsonl", deep)).contains("line 1"));
        let deep = format!("{{\"text\": {}{}}}", "[".repeat(50_000), "]".repeat(50_000));
        assert!(message(&folder.file("deep.jsonl", deep)).contains("recursion"));
    }

    #[test]
    fn scores_and_limits() {
        let folder = Folder::new();
        let path = folder.file(
            "a.jsonl",
            "{\"story\":\"one\",\"score\":3,\"text\":7}\n{\"score\":null,\"story\":\"t\\u0077o\"}\n\
            {\"\\u0073tory\":\"three\",\"score\":-2.5}\n{\"story\":\"four\",\"score\":NaN}",
        );
        let expected = [("one", Some(3.0)), ("two", None), ("three", Some(-2.5)), ("four", None)];
        assert_eq!(scored(&path, "story", "score").unwrap(), expected.map(|(s, x)| (s.to_string(), x)));
        let error = scored(&path, "story", "points").unwrap_err().to_string();
        assert!(error.contains("there is no field `points`"), "{error}");
        let error = scored(&folder.file("a.json", "[null, \"a\"]"), "text", "score").unwrap_err().to_string();
        assert!(error.contains("element 2") && error.contains("bare string"), "{error}");
        let record = format!("{{\"text\": \"{}\"}}", "x".repeat(10_000));
        for (name, text, line) in [
            ("a.jsonl", &record, 1),
            ("b.jsonl", &format!("{{\"text\":\"a\"}}\n{record}\n"), 2),
            ("c.json", &format!("[\n{record}]"), 2),
        ] {
            let error = stories(&folder.file(name, text), "text", 1000).unwrap_err().to_string();
            assert!(error.contains(&format!("the record that starts at line {line} is longer")), "{error}");
            assert_eq!(read(&folder.file(name, text)).unwrap().last().unwrap().len(), 10_000);
        }
    }
}
