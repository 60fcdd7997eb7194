//! `flashlm data`: text looked at and made ready.

use crate::common::Place;

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

const LINES: &str = "{\"story\":\"The cat sat.\",\"score\":3}\n{\"story\":\"Incomprehensible phenomena.\",\"score\":4}\n\
    {\"story\":\"Itâ€™s late.\",\"score\":4.5}\n{\"story\":\"A dog ran far away home.\",\"score\":1}\n\
    {\"story\":\"The cat sat.\",\"score\":3}\n";

#[test]
fn stats_count_and_draw() {
    let place = Place::new();
    place.write("a.jsonl", LINES);
    place.write("tok.json", "{\"kind\":\"bytes\"}");
    let told = place.ok("data stats a.jsonl --column story --tokenizer tok.json --quick --svg lengths.svg --json");
    let stats = json(&told);
    assert_eq!((&stats["stories"], &stats["duplicates"]["stories"]), (&5.into(), &1.into()), "{stats}");
    assert_eq!((&stats["mojibake"]["stories"], &stats["characters"]["longest"]), (&1.into(), &27.into()));
    let bytes = stats["bytes"].as_u64().unwrap();
    assert_eq!(stats["tokens"]["total"], bytes + 5);
    let lengths: u64 = stats["lengths"].as_array().unwrap().iter().map(|bin| bin["stories"].as_u64().unwrap()).sum();
    assert_eq!(lengths, 5);
    assert!(std::fs::read_to_string(place.path("lengths.svg")).unwrap().starts_with("<svg"));

    let filter = "--column story --min-score 2 --min-simple 0.5 --max-chars 30";
    let stats = json(&place.ok(&format!("data stats a.jsonl {filter} --quick --json")));
    assert_eq!(stats["stories"], 3);
    assert_eq!(stats["dropped"], serde_json::json!({"score": 1, "short": 0, "long": 0, "hard": 1}));
    assert!(place.ok(&format!("data stats a.jsonl {filter}")).contains("2 documents dropped by the filter"));

    place.fails("data stats a.jsonl", &["no field `text`", "line 1"]);
    place.fails("data stats a.jsonl --column story --min-simple 2", &["min_simple", "between 0 and 1"]);
    place.fails("data stats synthetic:9 --min-score 2", &["leave out min_score"]);
    place.fails("data stats none.txt", &["no such file"]);
}

#[test]
fn a_sample_is_data_again_and_follows_its_seed() {
    let place = Place::new();
    let draw = |flags: &str| place.ok(&format!("data sample synthetic:100 {flags}"));
    assert_eq!(draw("-n 4 --seed 1"), draw("-n 4 --seed 1"));
    assert_ne!(draw("-n 4 --seed 1"), draw("-n 4 --seed 2"));
    place.write("drawn.txt", draw("-n 7"));
    let of_all = json(&draw("-n 7 --json"));
    assert_eq!(of_all["of"], 100);
    let again = json(&place.ok("data sample drawn.txt -n 10 --json"));
    let texts = |sample: &serde_json::Value| -> Vec<String> {
        sample["stories"].as_array().unwrap().iter().map(|story| story["text"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(texts(&again), texts(&of_all));
    place.fails("data sample drawn.txt --min-chars 1000000", &["the filter drops all"]);
}

#[test]
fn prepare_takes_columns_filters_and_stories() {
    let place = Place::new();
    place.write("a.jsonl", LINES.repeat(40));
    let flags = "--data a.jsonl --column story --min-score 2 --tokenizer frequency --vocab 50 --valid synthetic:5 --out p --json";
    // The column and the filter are for the validation text too, which here has no score.
    place.fails(&format!("data prepare {flags}"), &["leave out min_score"]);
    place.write("b.jsonl", "{\"story\":\"A hen.\",\"score\":2}\n{\"story\":\"A fox.\",\"score\":1}\n");
    let report = json(&place.ok(&format!("data prepare {}", flags.replace("synthetic:5", "b.jsonl"))));
    assert_eq!((&report["train"]["stories"], &report["valid"]["stories"]), (&160.into(), &1.into()), "{report}");
    assert_eq!((&report["dropped"]["score"], &report["mojibake"]), (&41.into(), &40.into()));
    let report = json(
        &place.ok("data prepare --data synthetic:400 --tokenizer frequency --vocab 500 --stories 1 --out q --json"),
    );
    assert!(report["train"]["coverage"].as_f64().unwrap() < 0.99, "one story has not all words: {report}");
    assert!(report["train"]["stories"].as_u64().unwrap() + report["valid"]["stories"].as_u64().unwrap() == 400);
}

/// What cannot be prepared leaves the folder as it was, whichever side it is of, and no folder where there was none.
#[test]
fn a_failed_prepare_changes_nothing() {
    let place = Place::new();
    let story = |n: usize| format!("Story {n} of a cat and a dog.\n<|endoftext|>\n");
    for folder in ["a", "b"] {
        std::fs::create_dir(place.path(folder)).unwrap();
    }
    place.write("a/text.txt", (0..300).map(story).collect::<String>());
    place.write("b/text.txt", (300..800).map(story).collect::<String>());
    place.write("none.jsonl", "{\"other\":1}\n");
    let files = || {
        let names = std::fs::read_dir(place.path("prepared/text")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = names.map(|path| (std::fs::read(&path).unwrap(), path)).collect();
        files.sort();
        files
    };
    let prepare = "data prepare --tokenizer bpe --vocab 300 --data";
    place.ok(&format!("{prepare} a/text.txt"));
    // Its tokens are no text.
    place.fails(
        "train -d prepared/text",
        &["the text that they were made of", "prepared/text/tokenizer.json for the same vocabulary"],
    );
    let before = files();
    assert_eq!(before.len(), 3);
    place.fails(&format!("{prepare} b/text.txt"), &["prepared/text", "another text", "--out prepared/text"]);
    place.fails(&format!("{prepare} b/text.txt --valid none.jsonl --out prepared/text"), &["none.jsonl"]);
    place.fails(&format!("{prepare} b/text.txt --valid none.jsonl --out new"), &["none.jsonl"]);
    assert!(files() == before && !place.path("new").exists());
    place.ok(&format!("{prepare} a/text.txt"));
    assert!(files() == before);
    place.ok(&format!("{prepare} b/text.txt --out prepared/text"));
    assert!(files() != before && files().len() == 3);
}
