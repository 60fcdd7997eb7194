//! Training text in CSV from any bytes.
//!
//! ```text
//! first byte % 4: 0 the rest is the file, 1 2 3 the rest is texts, one after each zero, which are written with , ; or tabs
//! ```
//! What was written must be read.
#![no_main]

use flashlm_fuzz::{byte, file, seed, stories};
use flashlm_train::data::{mojibake::repair, source::Source};
use libfuzzer_sys::fuzz_target;

fn seeds() -> [Vec<u8>; 6] {
    let with = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    [
        with(0, "id,text,score\r\n1,\"One, \"\"two\"\"\n\",2.5\r\n\r\n2,,\r\n"),
        with(0, "\u{feff}text;score\r\"a\rb\";1\r"),
        with(0, "score\ttext\n1\ta\n2\t\"b\n"),
        with(1, "One, two;\0 \"three\"\r\n\0\0\tfour"),
        with(2, "One, two;\0 \"three\"\0\"\0\n"),
        with(3, "\tOne\0\"\"\0“naïve”"),
    ]
}

fn read(name: &str, bytes: &[u8]) -> Option<Vec<String>> {
    let path = file(name, bytes);
    let source = Source::parse(path.to_str().expect("a name in UTF-8")).ok()?;
    stories(source).filter(|(_, report)| report.repaired == 0).map(|(stories, _)| stories)
}

fuzz_target!(init: seed(seeds()), |input: &[u8]| {
    let mut rest = input;
    let kind = byte(&mut rest) % 4;
    if kind == 0 {
        read("a.csv", rest);
        read("a.tsv", rest);
        return;
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let texts: Vec<&str> = text.split('\0').collect();
    let (name, separator) = [("b.csv", ','), ("b.csv", ';'), ("b.tsv", '\t')][usize::from(kind) - 1];
    let mut table = format!("score{separator}text\n");
    for text in &texts {
        table += &format!("1{separator}\"{}\"\n", text.replace('"', "\"\""));
    }
    let expected: Vec<&str> =
        texts.iter().map(|text| text.trim_matches(['\n', '\r'])).filter(|text| !text.is_empty()).collect();
    match read(name, table.as_bytes()) {
        Some(stories) => assert_eq!(stories, expected),
        None => assert!(expected.iter().any(|text| repair(text).sequences > 0), "what was written is not read"),
    }
});
