//! Training text in JSON of any layout from any bytes: stories or an error, and of an array no others than a plain parser gives.
//! The first byte says whether the text lies below another field.
#![no_main]

use flashlm_fuzz::{byte, file, seed, stories};
use flashlm_train::data::source::Source;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn seeds() -> [Vec<u8>; 7] {
    let with = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    [
        with(0, "[{\"text\": \"One.\"},\n {\"score\": 2, \"text\": \"a\\u00e9\\ud83d\\ude00 “\"}, null]\r\n"),
        with(0, "\u{feff}[\"One.\", \"Two\\n\", {\"text\": null}]"),
        with(0, "{\n  \"text\": \"One.\",\n  \"ppl\": NaN\n}\n{\"text\": \"\\ud800\", \"b\": [-Infinity]}"),
        with(0, "{\"text\": [\"a\", [\"b\", null]]}{\"text\": \"c\"}"),
        with(1, "[{\"meta\": {\"text\": \"One.\"}}, {\"meta.text\": \"Two.\", \"meta\": {}}]"),
        with(1, "{\"meta\": [{\"text\": \"One.\"}, {\"role\": 1}, {\"text\": null}]}\n{\"meta\": null}\n"),
        with(1, "{\"content\": \"One.\", \"a\": {\"b\": [\"c\", {\"d\": \"e\"}]}}"),
    ]
}

/// The texts of an array that is all right.
fn plainly(bytes: &[u8]) -> Option<Vec<String>> {
    let array: Vec<Value> = serde_json::from_slice(bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)).ok()?;
    let texts = array.iter().map(|element| match element {
        Value::Null => Some(""),
        Value::String(text) => Some(text.as_str()),
        Value::Object(fields) => fields.get("text")?.as_str(),
        _ => None,
    });
    let texts: Option<Vec<&str>> = texts.collect();
    Some(
        texts?.iter().map(|text| text.trim_matches(['\n', '\r']).to_string()).filter(|text| !text.is_empty()).collect(),
    )
}

fuzz_target!(init: seed(seeds()), |input: &[u8]| {
    let mut bytes = input;
    let below = byte(&mut bytes) % 2 == 1;
    let path = file("stories.json", bytes);
    let Ok(source) = Source::parse(path.to_str().expect("a name in UTF-8")) else { return };
    let source = source.with_column(if below { "meta.text" } else { "text" });
    if let Some((stories, report)) = stories(source) {
        if let Some(plain) = plainly(bytes).filter(|_| report.repaired == 0 && !below) {
            assert_eq!(stories, plain);
        }
    }
});
