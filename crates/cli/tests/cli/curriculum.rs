//! Curricula: the plan, stages that follow each other, and runs that are interrupted in each of them and between.

use serde_json::Value;

use crate::common::{Place, TINY, checkpoint_bytes, copy, text};
#[cfg(target_os = "linux")]
use crate::shim::{self, Fault};

/// Three stages: two texts mixed, then one of them at twice the length, then a third.
const STAGES: &str = r#"
[[train.stages]]
seq_len = 8
share = 0.3
sources = [{ source = "counting.txt", weight = 3 }, { source = "tales.txt", weight = 1 }]
[[train.stages]]
seq_len = 16
share = 0.3
sources = [{ source = "tales.txt" }]
[[train.stages]]
seq_len = 32
share = 0.4
"#;

/// A folder with the texts of [`STAGES`], and the flags of a run of them.
fn place() -> (Place, String) {
    let place = Place::new();
    let story = |i: usize| format!("One is {i}, and two is {}, and then comes {}.", i + 1, i + 2);
    place.write("counting.txt", (0..200).map(story).collect::<Vec<_>>().join("\n<|endoftext|>\n"));
    let tale =
        |i: usize| format!("The {i}th fox met a crow. \"Good day,\" said the fox. {}", "It sang. ".repeat(i % 7));
    place.write("tales.txt", (0..300).map(tale).collect::<Vec<_>>().join("\n<|endoftext|>\n"));
    place.write("stages.toml", STAGES);
    let flags = format!(
        "{TINY} --config stages.toml --set train.eval_every=10 --set train.sample_every=9 --set train.log_every=1 \
         --set train.keep=100 --set train.patience=0"
    );
    (place, flags)
}

/// The first steps of the stages, and the last of all.
fn borders(place: &Place, flags: &str) -> Vec<u64> {
    let plan: Value = serde_json::from_str(&place.ok(&format!("train {flags} --dry-run --json"))).unwrap();
    let mut sum = 0;
    let ends = plan["stages"].as_array().unwrap().iter().map(|stage| {
        sum += stage["updates"].as_u64().unwrap();
        sum
    });
    std::iter::once(0).chain(ends).collect()
}

fn metrics(place: &Place, run: &str) -> Vec<Value> {
    let rows = std::fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    rows.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn interrupted_in_each_stage_and_at_each_border_a_curriculum_gives_the_same_bits() {
    for boundaries in ["reset", "packed", "padded"] {
        let (place, flags) = place();
        let flags = format!("{flags} --steps 24 --set train.checkpoint_every=1 --set data.boundaries={boundaries}");
        let borders = borders(&place, &flags);
        assert!(borders.len() == 4 && borders[3] == 24 && borders.is_sorted_by(|a, b| a + 2 < *b), "{borders:?}");
        assert!(!place.path("checkpoints").exists(), "a dry run leaves no run");
        place.ok(&format!("train {flags} --save-dir whole"));
        let last = |run: &str| checkpoint_bytes(&place.path(run).join("checkpoints/step-00000024"));
        let starts = [borders[1], borders[2] + 2, borders[1] / 2, borders[1] + 2, borders[2], 23];
        // Boundaries change the windows, not when stages end: all borders are tried with one kind.
        let tried = if boundaries == "reset" { starts.len() } else { 2 };
        for (i, step) in starts.into_iter().take(tried).enumerate() {
            let copied = format!("from-{step}");
            let step = format!("checkpoints/step-{step:08}");
            copy(&place.path("whole").join(&step), &place.path(&copied).join(&step));
            place.ok(&format!("train --resume {copied} --threads {}", i % 2 + 1));
            assert!(last("whole") == last(&copied), "{boundaries}, from {step}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_signalled_in_every_stage_gives_the_bits_of_one_that_was_not() {
    let (place, flags) = place();
    let flags = format!("{flags} --steps 60 --set train.eval_every=1000000 --set train.sample_every=0");
    let borders = borders(&place, &flags);
    place.ok(&format!("train {flags} --save-dir whole"));
    let (mut args, mut from) = (format!("train {flags} --save-dir stopped"), 0);
    for stage in 1..=3 {
        // SIGINT as the row of this step is written: it is the one that is saved.
        let step = (borders[stage - 1] + borders[stage]) / 2;
        let mut command = place.command(&args);
        shim::watch(&mut command, &place.path("stopped"), &place.path("calls"));
        // The first row of a run is that of the validation before the first step.
        let at = (step - from) as usize + usize::from(from == 0);
        let fault = Fault { milliseconds: 500, kind: Some("write"), ..Fault::new(at, "interrupt") };
        shim::strike(&mut command, &Fault { path: Some("metrics.jsonl".into()), ..fault });
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(130), "in stage {stage}: {}", text(&output.stderr));
        let saved = place.path("stopped").join(format!("checkpoints/step-{step:08}/state.json"));
        let state: Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
        assert_eq!(state["stage"], stage - 1);
        (args, from) = ("train --resume stopped".to_string(), step);
    }
    place.ok(&args);
    let last = |run: &str| checkpoint_bytes(&place.path(run).join("checkpoints/step-00000060"));
    assert!(last("whole") == last("stopped"));
}

#[test]
fn rows_and_curve_name_the_stages() {
    let (place, flags) = place();
    let flags = format!("{flags} --steps 40");
    let borders = borders(&place, &flags);
    place.ok(&format!("train {flags} --save-dir run"));
    let rows: Vec<Value> = metrics(&place, "run").into_iter().filter(|row| row["kind"] == "train").collect();
    assert_eq!(rows.len(), 40);
    let names = [vec!["counting", "tales"], vec!["tales"], vec!["synthetic-300"]];
    let mut tokens = 0;
    for row in &rows {
        let step = row["step"].as_u64().unwrap();
        let stage = (1..=3).find(|&stage| step <= borders[stage]).unwrap();
        assert_eq!(row["stage"], stage, "step {step}");
        tokens += 4 * [8, 16, 32][stage - 1];
        assert_eq!((row["seq_len"].as_u64(), row["tokens"].as_u64()), (Some([8, 16, 32][stage - 1]), Some(tokens)));
        let sources = row["sources"].as_object().unwrap();
        assert_eq!(sources.keys().map(String::as_str).collect::<Vec<_>>(), names[stage - 1]);
    }
    // Passes over a text go on where the stage before left them.
    let tales = |row: &Value| row["sources"]["tales"].as_f64();
    let of_tales: Vec<f64> = rows.iter().filter_map(tales).collect();
    assert!(of_tales.is_sorted() && of_tales.last() > of_tales.first());
    let curve = std::fs::read_to_string(place.path("run/curve.svg")).unwrap();
    for label in ["T 8: counting + tales", "T 16: tales", "T 32: synthetic-300"] {
        assert!(curve.contains(label), "{label} is not in the curve");
    }
}

#[test]
fn the_plan_counts_what_a_run_then_does() {
    let (place, flags) = place();
    let words = place.ok(&format!("train {flags} --epochs 0.1 --dry-run"));
    for word in
        ["stage 1 of 3: T 8, 30.0 % of the run", "counting: weight 75.0 %", "tokens", "epochs", "memory", "measured"]
    {
        assert!(words.contains(word), "{word:?} is not in:\n{words}");
    }
    let plan: Value = serde_json::from_str(&place.ok(&format!("train {flags} --epochs 0.1 --dry-run --json"))).unwrap();
    place.ok(&format!(
        "train {flags} --epochs 0.1 --set train.eval_every=1000000 --set train.sample_every=0 --save-dir run"
    ));
    let rows = metrics(&place, "run");
    let last = rows.iter().rfind(|row| row["kind"] == "train").unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    // The plan counts with windows of mean length; the last one of each epoch is shorter, wherever it comes.
    assert!((number(&plan["tokens"]) - number(&last["tokens"])).abs() < 32.0, "{plan} {last}");
    assert_eq!(number(&plan["updates"]), number(&last["step"]));
    // Shares are of tokens, and a tenth of an epoch is a tenth of all texts of the run.
    let (mut all, mut seen) = (0.0, Vec::new());
    for stage in plan["stages"].as_array().unwrap() {
        assert!((number(&stage["tokens"]) / number(&plan["tokens"]) - number(&stage["share"])).abs() < 0.05, "{stage}");
        for source in stage["sources"].as_array().unwrap() {
            if !seen.contains(&source["name"]) {
                seen.push(source["name"].clone());
                all += number(&source["tokens"]);
            }
        }
    }
    assert!((number(&plan["tokens"]) / (0.1 * all) - 1.0).abs() < 0.1);
    // A run by time is planned by the measured speed.
    let timed = place.ok(&format!("train {flags} --minutes 3 --dry-run --json"));
    let timed: Value = serde_json::from_str(&timed).unwrap();
    assert!((number(&timed["seconds"]) - 180.0).abs() < 1.0 && number(&timed["tokens"]) > 0.0);
}

#[test]
fn a_stage_keeps_the_stories_that_its_filter_keeps_and_reads_its_column() {
    let (place, flags) = place();
    let line = |i: usize| format!("{{\"body\": \"Page {i} says {}.\"}}\n", "very little ".repeat(1 + i % 4));
    place.write("pages.jsonl", (0..200).map(line).collect::<String>());
    let pages = "{ source = \"pages.jsonl\", column = \"body\", filter = { min_chars = 50 } }";
    place.write("stages.toml", STAGES.replace("{ source = \"tales.txt\", weight = 1 }", pages));
    let plan: Value = serde_json::from_str(&place.ok(&format!("train {flags} --steps 40 --dry-run --json"))).unwrap();
    let pages = &plan["stages"][0]["sources"][1];
    // Two of four pages have 50 characters; one in twenty of them is held out, more or less.
    assert_eq!(pages["name"], "pages");
    assert!((85..=100).contains(&pages["stories"].as_u64().unwrap()), "{pages}");
    place.ok(&format!("train {flags} --steps 40 --save-dir run"));
    let config = std::fs::read_to_string(place.path("run/settings.toml")).unwrap();
    assert!(config.contains("column = \"body\"") && config.contains("min_chars = 50"), "{config}");
}

#[test]
fn bad_stages_say_how_to_mend_them() {
    let (place, flags) = place();
    let with = |from: &str, to: &str| {
        assert!(STAGES.contains(from));
        place.write("stages.toml", STAGES.replace(from, to));
        format!("train {flags} --steps 40 --dry-run")
    };
    place.fails(&with("weight = 3", "wieght = 3"), &["train.stages.sources.wieght", "train.stages.sources.weight"]);
    place.fails(
        &with("weight = 3", "filter = { min_char = 3 }"),
        &["sources.filter.min_char", "sources.filter.min_chars"],
    );
    place.fails(&with("weight = 3", "filter = { min_simple = 3 }"), &["counting.txt", "min_simple is 3"]);
    place.fails(&with("share = 0.4", "shear = 0.4"), &["train.stages.shear", "train.stages.share"]);
    place.fails(&with("weight = 3", "weight = -3"), &["train.stages.sources.weight = -3 of counting.txt"]);
    place.fails(&with("share = 0.4", "share = 0.7"), &["shares add up to 1.300"]);
    place.fails(&with("seq_len = 32", "seq_len = 64"), &["train.seq_len = 32", "last stage"]);
    place.fails(&with("\"tales.txt\" }", "\"tails.txt\" }"), &["1 of the 4 texts", "tales.txt", "stage 2 of 3"]);
    place.fails(&with("\"counting.txt\"", "\"tales.txt\""), &["tales.txt given twice"]);
    let both = "[data]\nboundaries = \"packed\"\n[model]\nreset = true\n";
    place.write("stages.toml", format!("{both}{STAGES}"));
    place.fails(
        &format!("train {flags} --steps 40 --dry-run"),
        &["contradicts model.reset = true", "set only one of them"],
    );
    let unused = STAGES.replace("share = 0.4", "share = 0.4\nsources = [{ source = \"counting.txt\" }]");
    place.write("stages.toml", unused);
    place.fails(&format!("train {flags} --steps 40 --dry-run"), &["--data is not used"]);
}

#[test]
fn the_published_plan_says_what_is_not_here_yet() {
    let place = Place::new();
    let mut command = place.command("train --preset curriculum-small --minutes 60 --dry-run");
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"] {
        command.env_remove(name);
    }
    // Nothing listens there, and nothing is to ask.
    let output = command.env("HF_HOME", place.path("hf")).env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for word in [
        "stage 1 of 3: T 128, 30 % of the run: tinystories 100 %",
        "stage 2 of 3: T 256, 30 % of the run: simplestories 100 %",
        "stage 3 of 3: T 512, 40 % of the run: fineweb-edu 80 %, simplestories 20 %",
        "3 of the 3 texts of this run",
        "roneneldan/TinyStories: offline, and",
        "HuggingFaceFW/fineweb-edu: offline, and",
        "without --dry-run",
    ] {
        assert!(stderr.contains(word), "{word:?} is not in:\n{stderr}");
    }
    assert!(!place.path("checkpoints").exists() && !place.path("hf").exists());
}

#[test]
fn a_checkpoint_saved_before_there_were_curricula_goes_on() {
    let (place, _) = place();
    let flags = format!("{TINY} --steps 12 --set train.checkpoint_every=6 --set train.eval_every=1000000");
    place.ok(&format!("train {flags} --save-dir now"));
    let step = |run: &str, step: u64| place.path(run).join(format!("checkpoints/step-{step:08}"));
    let (from, to) = (step("now", 6), step("then", 6));
    std::fs::create_dir_all(&to).unwrap();
    let mut manifest = std::fs::read_to_string(from.join("checkpoint.json")).unwrap();
    for name in ["model.safetensors", "optimizer.safetensors", "state.json", "config.toml", "tokenizer.json"] {
        let bytes = std::fs::read(from.join(name)).unwrap();
        let older = match name {
            "state.json" => {
                let mut state: Value = serde_json::from_slice(&bytes).unwrap();
                state["epochs_before"] = state["epochs_before"][0].clone();
                state.to_string().into_bytes()
            }
            "config.toml" => text(&bytes).replace("boundaries = \"reset\"\n", "").into_bytes(),
            _ => bytes.clone(),
        };
        assert!(older != bytes || name.ends_with("safetensors") || name == "tokenizer.json", "{name}");
        let entry = |bytes: &[u8]| {
            let hash = xxhash_rust::xxh3::xxh3_64(bytes);
            format!("{{\"bytes\":{},\"xxh3\":\"{hash:016x}\"}}", bytes.len())
        };
        assert!(manifest.contains(&entry(&bytes)));
        manifest = manifest.replace(&entry(&bytes), &entry(&older));
        std::fs::write(to.join(name), older).unwrap();
    }
    std::fs::write(to.join("checkpoint.json"), manifest).unwrap();
    place.ok("train --resume then");
    assert!(checkpoint_bytes(&step("now", 12)) == checkpoint_bytes(&step("then", 12)));
}
