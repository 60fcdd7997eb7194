//! What is typed often and looked at often: defaults, short options, lists of runs, pages, validations over a run.

use std::fs;

use serde_json::Value;

use crate::common::{Place, TINY, text};

fn rows(place: &Place, run: &str) -> Vec<Value> {
    let log = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_command_takes_the_run_that_training_made() {
    let place = Place::new();
    for command in ["eval -d synthetic:3", "pack", "info", "plot", "export safetensors -o x.st", "score -c a"] {
        place.fails(command, &["no folder checkpoints here", "flashlm train"]);
    }
    place.ok(&format!("train {TINY} --steps 3"));
    let same = |command: &str, named: &str| assert_eq!(place.ok(command), place.ok(named), "{command}");
    same("generate -p Once -n 5", "generate checkpoints -p Once -n 5");
    same("info --json", "info checkpoints --json");
    same("score -c a --json", "score checkpoints -c a --json");
    place.ok("eval -d synthetic:3");
    for (command, file) in
        [("pack", "model.safetensors"), ("plot", "curve.svg"), ("export safetensors -o x.st", "x.st")]
    {
        place.ok(command);
        assert!(place.path(file).exists(), "{file}");
        place.fails(command, &[file, "--force"]);
    }
}

#[test]
fn the_model_in_the_box_is_a_model_like_others() {
    let place = Place::new();
    let prompt = "generate -p Once -n 20";
    let story = place.ok(prompt);
    assert_eq!(place.ok(&prompt.replacen("generate", "generate builtin", 1)), story);
    let output = place.run(prompt);
    assert!(text(&output.stderr).contains("the built-in model"), "{}", text(&output.stderr));
    place.ok("pack builtin -o box.safetensors");
    let file = fs::metadata(place.path("box.safetensors")).unwrap();
    assert!(file.len() <= 2_000_000, "{} bytes", file.len());
    assert_eq!(place.ok(&prompt.replacen("generate", "generate box.safetensors", 1)), story);
    let eval =
        |model: &str| serde_json::from_str::<Value>(&place.ok(&format!("eval {model} -d synthetic:3 --json"))).unwrap();
    assert_eq!(eval("builtin")["bpb"], eval("box.safetensors")["bpb"]);
    let same = |key: &str, info: &str, of: &str| {
        let read = |model: &str| serde_json::from_str::<Value>(&place.ok(&format!("{info} {model} --json"))).unwrap();
        assert_eq!(read("builtin")[key], read(of)[key], "{key}");
    };
    same("file_size", "info", "box.safetensors");
    // Training goes on from it, and a run in `checkpoints` comes first from then on.
    place.ok("train --from builtin -d synthetic:60 --steps 1");
    assert_ne!(place.ok(prompt), "");
    assert!(!text(&place.run(prompt).stderr).contains("built-in"));
}

#[test]
fn without_preset_and_length_the_dial_decides() {
    let place = Place::new();
    let tiny = "--set model.dim=16 --set model.attention.heads=2 --set model.bigram=16 --vocab 300 -d synthetic:60";
    let told = |flags: &str| text(&place.run(&format!("train {tiny} --dry-run {flags}")).stderr);
    let nothing = told("");
    assert!(nothing.contains("flash-64: 2.0M parameters, the best size for 10 minutes"), "{nothing}");
    assert!(nothing.contains("length 10 minutes: none is given"), "{nothing}");
    let steps = told("--steps 3 --params 9.7M");
    assert!(steps.contains("flash-192: 9.7M parameters, the size nearest to --params"), "{steps}");
    assert!(!steps.contains("length 10 minutes"), "{steps}");
    // Of two limits the one that comes first.
    let plan = place.ok(&format!("train {TINY} --steps 100000000 -m 0.01 --dry-run --json"));
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let seconds = plan["stages"][0]["seconds"].as_f64().unwrap();
    assert!((0.5..0.601).contains(&seconds) && plan["updates"].as_u64().unwrap() < 1_000_000, "{plan}");
    place.fails("train --params 12 -d synthetic:60", &["--params", "500k or 2M"]);
    place.fails("train --params 2M --preset flash-tiny", &["cannot be used with"]);
}

#[test]
fn runs_are_listed() {
    let place = Place::new();
    assert!(place.ok("runs").contains("no runs in ."));
    place.fails("runs nowhere", &["nowhere: no such folder"]);
    place.ok(&format!("train {TINY} --steps 3 -o runs/a"));
    place.ok(&format!("train {TINY} --steps 4 -o runs/b"));
    fs::remove_file(place.path("runs/b/result.json")).unwrap();
    let listed: Value = serde_json::from_str(&place.ok("runs --json")).unwrap();
    let find = |name: &str| listed.as_array().unwrap().iter().find(|run| run["run"] == name).unwrap().clone();
    let (a, b) = (find("runs/a"), find("runs/b"));
    let result: Value = serde_json::from_slice(&fs::read(place.path("runs/a/result.json")).unwrap()).unwrap();
    assert_eq!((&a["finished"], &a["steps"], &a["name"]), (&true.into(), &3.into(), &"hybrid-small".into()));
    assert_eq!((&a["bpb"], &a["tokens"]), (&result["best"]["full"]["bpb"], &result["tokens"]));
    let last = rows(&place, "runs/b").into_iter().rev().find(|row| row["kind"] == "eval").unwrap();
    assert_eq!((&b["finished"], &b["bpb"]), (&false.into(), &last["bpb"]));
    let table = place.ok("runs runs");
    let bpb = |run: &Value| format!("{:.4}", run["bpb"].as_f64().unwrap());
    assert!(
        table.starts_with("run") && table.contains(&bpb(&a)) && table.contains(&format!("~{}", bpb(&b))),
        "{table}"
    );
}

#[test]
fn ten_validations_and_one_before_the_first_step() {
    let place = Place::new();
    let steps = |run: &str| -> Vec<u64> {
        let evals = rows(&place, run).into_iter().filter(|row| row["kind"] == "eval");
        evals.map(|row| row["step"].as_u64().unwrap()).collect()
    };
    let auto = "--set train.eval_every=0";
    for (n, expected) in [(40, (0..=10).map(|i| 4 * i).collect::<Vec<u64>>()), (3, vec![0, 1, 2, 3])] {
        place.ok(&format!("train {TINY} {auto} --steps {n} -o r{n}"));
        assert_eq!(steps(&format!("r{n}")), expected);
    }
    // 25 steps: each tenth is over with the first step at or behind it.
    place.ok(&format!("train {TINY} {auto} --steps 25 -o odd"));
    assert_eq!(steps("odd"), [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25]);
    // By the clock: as many, wherever they fall.
    let output = place.run(&format!("train {TINY} {auto} -m 0.05 -o clock"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = steps("clock");
    assert!((8..=12).contains(&found.len()) && found[0] == 0, "{found:?}");
    // The step before the first is no model: the best is one that was trained.
    let log = text(&output.stderr);
    assert!(log.contains("before training  loss ") && log.contains("zstd -19"), "{log}");
}

#[test]
fn samples_begin_like_the_text() {
    let place = Place::new();
    let letter = |i: u32| format!("Dear number {i}, this is letter {} of many letters that I wrote.", i * 7919 % 1000);
    let letters: Vec<String> = (0..600).map(letter).collect();
    place.write("letters.txt", letters.join("\n<|endoftext|>\n"));
    let flags = TINY.replace("--data synthetic:300", "-d letters.txt");
    let printed = place.ok(&format!("train {flags} --steps 2 -o run"));
    assert!(printed.contains("\nDear number ") && !printed.contains("Once upon"), "{printed}");
    let next = printed.lines().find(|line| line.starts_with("next")).unwrap();
    assert!(next.contains("generate run -p 'Dear number "), "{next}");
    assert!(printed.contains("to compare       zstd -19 needs "), "{printed}");
    // Chosen prompts stay, and so do those of stories.
    place.ok(&format!("train {flags} --steps 2 -o own --set train.prompts=['Hello']"));
    let prompts = |run: &str| {
        rows(&place, run).into_iter().filter(|row| row["kind"] == "sample").map(|row| row["prompt"].clone())
    };
    assert!(prompts("own").all(|prompt| prompt == "Hello"));
}

#[test]
fn a_log_has_all_settings() {
    let place = Place::new();
    let printed = place.ok(&format!("train {TINY} --steps 1 -o run"));
    let saved = fs::read_to_string(place.path("run/settings.toml")).unwrap();
    assert!(printed.starts_with(saved.trim_end()), "{printed}");
}

#[test]
fn shells_and_man_know_every_command() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.ok(&format!("completions {shell}"));
        assert!(script.contains("generate") && script.contains("per-document"), "{shell}");
    }
    place.fails("completions dash", &["bash"]);
    let pages = place.ok("man pages");
    for page in ["flashlm.1", "flashlm-train.1", "flashlm-bench-train.1", "flashlm-data-stats.1"] {
        assert!(pages.contains(page));
        let text = fs::read_to_string(place.path("pages").join(page)).unwrap();
        assert!(text.contains(".SH NAME") && text.contains("flashlm"), "{page}: {text}");
    }
    place.fails("man pages", &["flashlm", "--force"]);
    place.ok("man pages --force");
}

#[test]
fn words_are_of_the_command_line() {
    let place = Place::new();
    place.write("blank.txt", " \n \n");
    place.write("c.toml", "[model]\ndim = -3\n");
    for (command, words) in [
        (
            "train --config c.toml -d synthetic:30",
            &["c.toml", "`model.dim` must be a whole number, 0 or more, found -3"][..],
        ),
        ("train --steps -5", &["'-5' for '--steps", "a whole number, 0 or more"]),
        ("train -d synthetic:9 --set train.prompts=[1]", &["a list of strings"]),
        ("train --init x", &["--from"]),
        ("train --learning-rate 1", &["--lr"]),
        ("train --batch_size 1", &["'--batch'"]),
        ("train --n-layer 2", &["'--set model.blocks=...'"]),
        ("train --minutes -1 -d synthetic:9", &["--minutes -1: must be above 0"]),
        ("train --hours nan -d synthetic:9", &["--hours NaN: must be above 0"]),
        ("train -d synthetic:9 --set =1", &["KEY=VALUE"]),
        (
            "train -d synthetic:9 --preset flash-tiny --set train.schedule=cosin",
            &["train.schedule: unknown value `cosin`, expected one of `cosine`"],
        ),
        ("train -d synthetic:9 --set train.optim=x", &["did you mean `train.optimizer`?"]),
        ("score builtin", &["--continuation", "--input"]),
        ("train --set train.learning_rate=1", &["did you mean `train.lr`?"]),
        ("train --set train.warmup=1", &["did you mean `train.warmup_steps`?"]),
        ("train --set model.n_head=1", &["did you mean `model.attention.heads`?"]),
        (
            "train --preset flash-tiny -d c.toml --valid blank.txt --vocab 300 --set train.seq_len=8 --steps 1",
            &["blank.txt", "holds no document"],
        ),
        ("generate x -t -3", &["--temperature: expected"]),
        ("generate x -n -1", &["'-1' for '--tokens", "a whole number, 0 or more"]),
        ("generate x -n 1e3", &["'1e3' for '--tokens", "a whole number, 0 or more"]),
        ("generate x --seed 99999999999999999999", &["--seed", "a whole number of at most 18446744073709551615"]),
        ("train --steps 99999999999999999999", &["--steps", "a whole number of at most 18446744073709551615"]),
        ("pack builtin -o -", &["-o -", "not to standard output"]),
        ("generate x --top-p 7", &["--top-p: expected"]),
    ] {
        place.fails(command, words);
    }
    for (command, word) in [
        ("train --gpu 1", "tip"),
        ("eval --finetune x", "tip"),
        ("train --set train.xyzzy=1", "did you mean"),
        ("generate -", "did you mean"),
    ] {
        let told =
            place.fails(command, &["xyzzy", "--gpu", "--finetune"].map(|w| if command.contains(w) { w } else { "" }));
        assert!(!told.contains(word), "{told}");
    }
    let mut cache = place.command("train -d synthetic:40 --preset flash-tiny --dry-run");
    let told = text(&cache.env("FLASHLM_CACHE", "/proc/nowhere").output().unwrap().stderr);
    assert!(
        told.contains("/proc/nowhere: this folder cannot be created") && told.contains("FLASHLM_CACHE=DIR"),
        "{told}"
    );
}
