//! Texts as people have them: one book, several files, standard input, patterns; validation kept apart from training; runs that go
//! on with their text elsewhere or with more of it; fine-tuning.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::common::{Place, TINY, checkpoint_bytes, copy, text};

/// `TINY` without its text.
fn small() -> String {
    TINY.replace("--data synthetic:300 ", "").replace("--set data.holdout=0.05 ", "")
}

/// Runs to exit code 0 and returns stderr.
fn says(place: &Place, args: &str) -> String {
    let output = place.run(args);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "flashlm {args}: {stderr}");
    stderr
}

fn stories(from: u64, n: u64) -> Vec<String> {
    (from..from + n).map(|i| flashlm_train::data::synthetic::story(9, i)).collect()
}

fn separated(stories: &[String]) -> String {
    stories.join("\n<|endoftext|>\n")
}

fn settings(place: &Place, run: &str) -> toml::Table {
    fs::read_to_string(place.path(run).join("settings.toml")).unwrap().parse().unwrap()
}

/// Stories to train on, as the last line before training tells.
fn trained_on(stderr: &str) -> u64 {
    let before = stderr.split(" to train on").next().unwrap();
    let before = before.trim_end_matches(" documents").trim_end_matches(" document");
    before.rsplit(' ').next().unwrap().replace(',', "").parse().unwrap_or_else(|_| panic!("{stderr}"))
}

#[test]
fn one_book_is_enough() {
    let place = Place::new();
    let book = stories(0, 300).join("\n\n");
    place.write("book.txt", &book);
    let stderr = says(&place, &format!("train {} --data book.txt --steps 3 --save-dir run", small()));
    // A tenth of 300 kB, which is less than 64 KiB.
    let told = stderr.lines().find(|line| line.starts_with("validation: ")).unwrap();
    assert!(told.contains("the end of the text is held out: ") && told.contains("10.0 % of the text"), "{told}");
    assert_eq!(trained_on(&stderr), 1);
    // What is asked for in so many words is done.
    let stderr = says(
        &place,
        &format!("train {} --data book.txt --set data.holdout=0.25 --steps 3 --save-dir quarter", small()),
    );
    assert!(stderr.contains("25.0 % of the text"), "{stderr}");
    let prepared: Value =
        serde_json::from_str(&place.ok("data prepare --data book.txt --tokenizer bytes --out prepared --json"))
            .unwrap();
    let (train, valid) = (prepared["train"]["bytes"].as_u64().unwrap(), prepared["valid"]["bytes"].as_u64().unwrap());
    assert!(train + valid <= book.len() as u64 && train + valid + 4 >= book.len() as u64, "{prepared}");
    assert!((valid as f64 / book.len() as f64 - 0.1).abs() < 0.005, "{prepared}");
}

#[test]
fn nothing_held_out_is_scored_as_it_is_trained() {
    let place = Place::new();
    place.write("page.txt", stories(0, 4).join("\n\n"));
    let args = format!("train {} --data page.txt --set data.holdout=0 --steps 3 --save-dir run", small());
    assert!(says(&place, &args).contains("nothing is held out"));
}

/// A page learned by heart: windows that begin at the same places in every epoch would leave most of it unknown.
#[test]
fn what_is_learned_by_heart_is_known_from_start_to_end() {
    let place = Place::new();
    let mut seed = 5u32;
    let mut word = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ["red", "moon", "walks", "under", "seven", "stone", "doors", "and", "quietly", "sings"][seed as usize >> 8 & 7]
    };
    let page = (0..150).map(|_| word()).collect::<Vec<_>>().join(" ");
    place.write("page.txt", &page);
    let model = "--vocab 300 --set model.dim=64 --set model.blocks=3 --set model.ffn_hidden=128 --set model.pointer=64 --set train.seq_len=64 --batch 4";
    place.ok(&format!(
        "train --data page.txt --set data.holdout=0 --preset flash-tiny {model} --steps 500 --lr 0.01 --set train.eval_every=1000000 \
         --set train.sample_every=0 --save-dir run"
    ));
    let eval: Value = serde_json::from_str(&place.ok("eval run --data page.txt --json")).unwrap();
    assert!(eval["bpb"].as_f64().unwrap() < 0.02, "{eval}");
    let output = place
        .command("generate run -n 900 -t 0")
        .args(["-p", page.split_inclusive(' ').next().unwrap().trim()])
        .output();
    assert_eq!(text(&output.unwrap().stdout).trim_end(), page);
}

#[test]
fn few_stories_are_held_out_in_a_number_worth_the_name() {
    let place = Place::new();
    fs::create_dir(place.path("notes")).unwrap();
    for (i, story) in stories(0, 200).iter().enumerate() {
        place.write(&format!("notes/{i}.md"), format!("# Note {i}\n\n{story}\n"));
    }
    place.write("notes/picture.png", "x");
    place.write("notes/.hidden.md", "x");
    let stderr = says(&place, &format!("train {} --data notes --steps 3 --save-dir run", small()));
    assert!(stderr.contains("skipped: 1 file with hidden names, 1 file of other kinds (.png 1)"), "{stderr}");
    let told = stderr.lines().find(|line| line.starts_with("validation: ")).unwrap();
    let held: u64 = told.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(told.contains("of 200 documents held out") && (4..=18).contains(&held), "{told}");
    assert_eq!(trained_on(&stderr), 200 - held);
}

#[test]
fn files_and_stories_of_the_validation_text_are_not_trained_on() {
    let place = Place::new();
    fs::create_dir_all(place.path("corpus/deep")).unwrap();
    let (train, valid) = (stories(0, 150), stories(150, 30));
    // Two stories are in both.
    let doubled: Vec<String> = valid.iter().chain(&train[..2]).cloned().collect();
    place.write("corpus/train.txt", separated(&train));
    place.write("corpus/deep/valid.txt", separated(&doubled));
    let args = format!("train {} --data corpus --valid corpus/deep/valid.txt --steps 2", small());
    let stderr = says(&place, &format!("{args} --save-dir run"));
    assert!(stderr.contains("skipped: 1 file of the validation text"), "{stderr}");
    assert!(stderr.contains("left out of training because the validation text has them: 2 documents"), "{stderr}");
    assert_eq!(trained_on(&stderr), 150);
    assert!(
        stderr.contains("150 documents to train on, 2 of them left out") && stderr.contains("text: 148 documents"),
        "{stderr}"
    );
    let kept = says(&place, &format!("{args} --set data.keep_doubles=true --save-dir kept"));
    assert_eq!(trained_on(&kept), 150);
    // The other way round nothing is left to train on.
    let args = format!("train {} --data corpus/train.txt --valid corpus --steps 2 --save-dir none", small());
    place.fails(&args, &["train", "all its files are in the validation text"]);
    let prepared =
        place.ok("data prepare --data corpus --valid corpus/deep/valid.txt --tokenizer bytes --out prepared --json");
    let prepared: Value = serde_json::from_str(&prepared).unwrap();
    assert_eq!((&prepared["train"]["stories"], &prepared["doubles"]), (&148.into(), &2.into()), "{prepared}");
}

#[test]
fn a_folder_of_splits_has_its_own_validation_text() {
    let place = Place::new();
    fs::create_dir(place.path("set")).unwrap();
    let all = stories(0, 150);
    for (name, part) in [("train", &all[..120]), ("valid", &all[120..140]), ("test", &all[140..])] {
        place.write(&format!("set/{name}.txt"), separated(part));
    }
    let stderr = says(&place, &format!("train {} --data set --steps 2 --save-dir run", small()));
    assert!(stderr.contains("validation: the dataset's own split, ") && stderr.contains("set/valid.txt"), "{stderr}");
    assert!(stderr.contains("skipped: 2 files of other splits than train"), "{stderr}");
    assert!(stderr.contains("120 documents to train on, 20 ("), "{stderr}");
}

#[test]
fn columns_of_tables_are_named_alike_everywhere() {
    let place = Place::new();
    let all = stories(0, 120);
    let rows =
        |stories: &[String]| stories.iter().map(|s| format!("5,\"{}\"\n", s.replace('"', "\"\""))).collect::<String>();
    place.write("reviews.csv", format!("stars,review\n{}", rows(&all[..100])));
    place.write("valid.csv", format!("stars,review\n{}", rows(&all[100..])));
    place.fails(&format!("train {} --data reviews.csv --steps 2", small()), &["stars, review", "--column"]);
    let args =
        format!("train {} --data reviews.csv --valid valid.csv --column review --steps 2 --save-dir run", small());
    assert!(says(&place, &args).contains("100 documents to train on, 20 ("));
    let jsonl = |s: &String| format!("{}\n", serde_json::json!({ "text": s }));
    place.write("valid.jsonl", all[100..].iter().map(jsonl).collect::<String>());
    let args = "--data reviews.csv --column review --valid valid.jsonl --set data.valid_column=text --steps 2 --save-dir other";
    assert!(says(&place, &format!("train {} {args}", small())).contains("100 documents to train on, 20 ("));
    place.write("valid.txt", separated(&all[100..]));
    let bpb = |args: &str| {
        let eval: Value = serde_json::from_str(&place.ok(&format!("eval run {args} --json"))).unwrap();
        eval["bpb"].as_f64().unwrap()
    };
    assert_eq!(bpb("--data valid.csv --column review"), bpb("--data valid.txt"));
}

#[test]
fn several_texts_patterns_and_standard_input() {
    let place = Place::new();
    let all = stories(0, 120);
    place.write("a.txt", separated(&all[..70]));
    place.write("b.txt", separated(&all[70..]));
    place.write("all.txt", separated(&all));
    let rows = |args: &str| {
        let sample: Value = serde_json::from_str(&place.ok(&format!("data sample {args} -n 200 --json"))).unwrap();
        sample["stories"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["text"].as_str().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(rows("a.txt b.txt"), all);
    assert_eq!(rows("[ab].txt"), all);
    let mut command = place.command("data sample - -n 200 --json");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(separated(&all).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["of"], 120);

    let stderr = says(&place, &format!("train {} --data a.txt --data b.txt --steps 2 --save-dir both", small()));
    let one = says(&place, &format!("train {} --data all.txt --steps 2 --save-dir one", small()));
    assert_eq!(trained_on(&stderr), trained_on(&one));
    let bytes = |run: &str| fs::read(place.path(run).join("checkpoints/step-00000002/model.safetensors")).unwrap();
    assert!(bytes("both") == bytes("one"), "the same text in two files is another text");
    let mixed = format!("train {} --data a.txt@3 --data b.txt@1 --steps 2 --save-dir mixed", small());
    says(&place, &mixed);
    let settings = settings(&place, "mixed");
    let sources = settings["train"]["stages"][0]["sources"].as_array().unwrap();
    let weights: Vec<f64> = sources.iter().map(|source| source["weight"].as_float().unwrap()).collect();
    assert_eq!(weights, [3.0, 1.0]);
    place.fails(&format!("train {} --data a.txt@3 --data b.txt --steps 2", small()), &["b.txt has no weight"]);
    place.fails(&format!("train {} --data a.txt --data synthetic:9 --steps 2", small()), &["synthetic:9", "by weight"]);
}

#[test]
fn a_run_goes_on_where_its_text_has_moved() {
    let place = Place::new();
    place.write("text.txt", separated(&stories(0, 120)));
    let flags = format!("{} --set train.checkpoint_every=2", small());
    place.ok(&format!("train {flags} --data text.txt --steps 4 --save-dir whole"));
    copy(&place.path("whole/checkpoints/step-00000002"), &place.path("run/checkpoints/step-00000002"));
    // From another folder the saved path still leads there.
    fs::create_dir(place.path("elsewhere")).unwrap();
    let resumed = |args: &str| {
        let run = place.path("run");
        let mut command = place.command(&format!("train --resume {} {args}", run.display()));
        let output = command.current_dir(place.path("elsewhere")).output().unwrap();
        (output.status.success(), text(&output.stderr))
    };
    fs::rename(place.path("text.txt"), place.path("elsewhere/moved.txt")).unwrap();
    let (went, stderr) = resumed("--steps 4");
    assert!(!went && stderr.contains("text.txt: no such file"), "{stderr}");
    let (went, stderr) = resumed("--steps 4 --data moved.txt");
    assert!(went && !stderr.contains("another one"), "{stderr}");
    let last = |run: &str| {
        let all = checkpoint_bytes(&place.path(run).join("checkpoints/step-00000004"));
        all.into_iter().filter(|(name, _)| name.ends_with(".safetensors")).collect::<Vec<_>>()
    };
    assert!(last("run") == last("whole"), "the moved text gives other bits");
    // More text is said, and epochs are counted anew.
    place.write("elsewhere/more.txt", separated(&stories(120, 60)));
    let (went, stderr) = resumed("--steps 6 --data moved.txt --data more.txt");
    assert!(went && stderr.contains("the training text is another one") && stderr.contains("counted anew"), "{stderr}");
    assert!(stderr.contains("the validation text is another one"), "{stderr}");
    // Another batch goes on with the next windows.
    let (went, stderr) = resumed("--steps 8 --batch 2");
    assert!(went && stderr.contains("train.batch was 4 and is 2 from here on"), "{stderr}");
    let rows = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert!(rows.lines().last().is_some());
}

#[test]
fn a_model_is_trained_on_with_another_text() {
    let place = Place::new();
    place.write("first.txt", separated(&stories(0, 200)));
    let other: Vec<String> =
        (0..200).map(|i| format!("Item {i} costs {} coins and weighs {} stones.", i * 7 % 90, i % 13)).collect();
    place.write("second.txt", separated(&other));
    place.write("valid.txt", separated(&other[..40]));
    place.ok(&format!("train {} --data first.txt --steps 60 --lr 0.01 --save-dir base", small()));
    place.ok("pack base -o base.flm");
    let bpb = |model: &str| -> f64 {
        let eval: Value = serde_json::from_str(&place.ok(&format!("eval {model} --data valid.txt --json"))).unwrap();
        eval["bpb"].as_f64().unwrap()
    };
    let base = bpb("base");
    for (from, run, word) in [("base", "tuned", "(step 60)"), ("base.flm", "repacked", "has no master weights")] {
        let args = format!("train --from {from} --data second.txt --steps 1 --lr 1e-6 --save-dir {run}-0");
        let stderr = says(&place, &args);
        assert!(stderr.contains(word) && stderr.contains("starting from"), "{stderr}");
        // One tiny step changes next to nothing.
        let start = bpb(&format!("{run}-0"));
        assert!((start / base - 1.0).abs() < 0.02, "{run}: {start} from {base}");
        place.ok(&format!("train --from {from} --data second.txt --steps 60 --lr 0.01 --save-dir {run}"));
        let tuned = bpb(run);
        assert!(tuned < 0.8 * base, "{run}: {base} became {tuned}");
        let ids = |run: &str, step: &str| {
            fs::read(place.path(run).join(format!("checkpoints/{step}/tokenizer.json"))).unwrap()
        };
        assert!(ids(run, "step-00000060") == ids("base", "step-00000060"), "another vocabulary");
    }
    let dim = "train --from base --data second.txt --set model.dim=32 --steps 1 --save-dir x";
    place.fails(dim, &["--from: the model cannot change", "model.dim was 24 when saved and is 32 now"]);
    place.fails("train --from base --resume base", &["--from", "--resume"]);
    place.fails("train --from first.txt --data second.txt --steps 1", &["first.txt", "expected a model"]);
}
