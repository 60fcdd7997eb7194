//! `flashlm sweep`: runs that are made once, continued, and compared.

use std::fs;

use serde_json::Value;

use crate::common::{Place, text};

const SHARED: &str = "preset = \"flash-tiny\"\ndata = \"synthetic:300\"\nseeds = [1, 2]\n\
    set = [\"tokenizer.vocab=300\", \"model.dim=16\", \"model.blocks=1\", \"model.ffn_hidden=16\", \"train.seq_len=32\", \
    \"train.batch=4\", \"data.holdout=0.05\", \"train.eval_tokens=2000\", \"train.sample_tokens=2\", \"train.precision=f32\"]\n";

fn spec(length: &str, arms: &[(&str, &str)]) -> String {
    let arms = arms.iter().map(|(name, set)| format!("[[arms]]\nname = \"{name}\"\nset = [{set}]\n"));
    format!("{length}\n{SHARED}{}", arms.collect::<String>())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

#[test]
fn a_sweep_is_made_once_and_a_run_that_is_lost_again() {
    let place = Place::new();
    // Weight decay of 10 * 1 a step multiplies every weight by -9.
    let wild = "\"train.lr=10\", \"train.weight_decay=1\", \"train.warmup_steps=0\", \"train.clip=1000000\", \
        \"model.block_norm=false\"";
    let arms = [("base", ""), ("slow", "\"train.lr=1e-5\""), ("wild one", wild)];
    place.write("s.toml", spec("steps = 60", &arms));
    let first = json(&place.ok("sweep s.toml --save-dir out --json"));
    let (runs, summaries) = (first["runs"].as_array().unwrap(), first["arms"].as_array().unwrap());
    let names: Vec<_> = runs.iter().map(|run| run["run"].as_str().unwrap()).collect();
    assert_eq!(names, ["base-s1", "slow-s1", "wild-one-s1", "base-s2", "slow-s2", "wild-one-s2"]);
    let bpb = |run: usize| runs[run]["bpb"].as_f64().unwrap();
    assert!(bpb(0) < bpb(1) && bpb(3) < bpb(4) && bpb(0) != bpb(3), "{first}");
    assert!((summaries[0]["bpb"].as_f64().unwrap() - (bpb(0) + bpb(3)) / 2.0).abs() < 1e-12);
    let spread = (bpb(0) - bpb(3)).abs() / 2f64.sqrt();
    assert!((summaries[0]["spread"].as_f64().unwrap() - spread).abs() < 1e-12, "{first}");
    assert_eq!((&summaries[2]["diverged"], &runs[2]["outcome"]), (&2.into(), &"diverged".into()), "{first}");
    assert_eq!(runs[0]["tokens"], 60 * 4 * 32);
    // What `eval` gives for the whole validation text of the run, with its master weights.
    let result = json(&fs::read_to_string(place.path("out/base-s1/result.json")).unwrap());
    assert_eq!(result["best"]["full"]["bpb"], runs[0]["bpb"]);
    assert!(fs::read_to_string(place.path("out/sweep.svg")).unwrap().starts_with("<svg"));

    // A second time nothing is trained; what was removed is.
    let lines = fs::read_to_string(place.path("out/results.jsonl")).unwrap();
    assert_eq!(lines.lines().map(json).collect::<Vec<_>>(), *runs);
    fs::remove_dir_all(place.path("out/slow-s1")).unwrap();
    let written = |run: &str| fs::metadata(place.path(run).join("metrics.jsonl")).unwrap().modified().unwrap();
    let before = (written("out/base-s1"), written("out/wild-one-s2"));
    let table = place.ok("sweep s.toml --save-dir out");
    assert_eq!((written("out/base-s1"), written("out/wild-one-s2")), before);
    assert_eq!(fs::read_to_string(place.path("out/table.md")).unwrap(), table);
    assert_eq!(fs::read_to_string(place.path("out/results.jsonl")).unwrap().lines().count(), 6);
    for word in ["| base |", "| wild one |", "2 diverged"] {
        assert!(table.contains(word), "{word} is not in {table}");
    }
}

#[test]
fn mistakes_come_before_any_run() {
    let place = Place::new();
    for (name, set, words) in [
        ("key", "\"model.dimm=3\"", &["key", "model.dimm", "dim"][..]),
        ("value", "\"model.dim=-3\"", &["value"]),
        ("text", "\"data.source=nowhere.txt\"", &["text", "nowhere.txt"]),
    ] {
        place.write("s.toml", spec("steps = 2", &[("base", ""), (name, set)]));
        place.fails("sweep s.toml --save-dir out", words);
        assert!(!place.path("out").exists(), "{name}");
    }
    place.fails("sweep nowhere.toml --save-dir out", &["nowhere.toml"]);

    place.write("s.toml", spec("tokens = 300", &[("base", "")]).replace("[1, 2]", "[1]"));
    let made = json(&place.ok("sweep s.toml --save-dir out --json"));
    // The fewest steps of 4 * 32 tokens.
    assert_eq!(made["runs"][0]["tokens"], 384, "{made}");
    place.write("s.toml", spec("tokens = 300", &[("base", "\"train.lr=0.5\"")]));
    place.fails("sweep s.toml --save-dir out", &["base-s1", "train.lr was", "0.5", "rename"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_sweep_goes_on_with_the_same_command() {
    let place = Place::new();
    place.write(
        "s.toml",
        spec("steps = 400", &[("base", ""), ("other", "\"train.lr=0.002\"")]).replace("[1, 2]", "[1]"),
    );
    place.write("whole.toml", fs::read(place.path("s.toml")).unwrap());
    let whole = json(&place.ok("sweep whole.toml --save-dir whole --json"));
    let log = place.path("stderr");
    let mut command = place.command("sweep s.toml --save-dir out");
    let mut child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    // The first row of metrics shows that steps have begun.
    let (metrics, began) = (place.path("out/base-s1/metrics.jsonl"), std::time::Instant::now());
    while fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
        assert!(began.elapsed().as_secs() < 120, "training does not begin");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let told = text(&fs::read(&log).unwrap());
    assert!(told.contains("flashlm sweep s.toml --save-dir out"), "{told}");
    assert!(!place.path("out/other-s1/result.json").exists(), "it was not interrupted in time: {told}");
    let continued = json(&place.ok("sweep s.toml --save-dir out --json"));
    for run in 0..2 {
        assert_eq!(continued["runs"][run]["bpb"], whole["runs"][run]["bpb"], "{continued} {whole}");
    }
}
