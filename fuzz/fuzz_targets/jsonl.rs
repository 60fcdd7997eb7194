//! Training text in JSON lines from any bytes: stories or an error, and no other stories than a plain parser gives.
#![no_main]

use flashlm_fuzz::{file, seed, stories};
use flashlm_train::data::source::Source;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn seeds() -> [Vec<u8>; 3] {
    [
        "{\"text\": \"One.\"}\n{\"text\": \"Two,\\n“deux”.\", \"score\": 2.5}\r\n",
        "\u{feff}{\"score\": null, \"text\": \"a\\u00e9\\ud83d\\ude00\"}\n\n{\"id\": [1, {\"a\": []}], \"score\": -1e3, \"text\": \"\"}",
        "{\"text\": \"\\n\\r A \\\\ \\\"\"}\n  {\"te\\u0078t\": \"â€™\", \"other\": \"\\ud800\"} \n",
    ]
    .map(|text| text.as_bytes().to_vec())
}

/// The texts of a file that is all right.
fn plainly(bytes: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let lines =
        text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').map(str::trim).filter(|line| !line.is_empty());
    let texts = lines.map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        Some(value.get("text")?.as_str()?.trim_matches(['\n', '\r']).to_string())
    });
    Some(texts.collect::<Option<Vec<String>>>()?.into_iter().filter(|text| !text.is_empty()).collect())
}

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    let path = file("stories.jsonl", bytes);
    let Ok(source) = Source::parse(path.to_str().expect("a name in UTF-8")) else { return };
    if let Some((stories, report)) = stories(source) {
        // What a plain parser refuses, half a surrogate say, may stand in fields that are passed over.
        if let Some(plain) = plainly(bytes).filter(|_| report.repaired == 0) {
            assert_eq!(stories, plain);
        }
    }
});
