//! A run is one timeline, in a folder of its own, and nothing outside ends it in silence.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Place, TINY, checkpoint_bytes, text};

/// The tiny model with a batch and a vocabulary of its own.
fn with(flags: &str) -> String {
    TINY.replace("--vocab 300 ", "").replace("--batch 4 ", "") + " " + flags
}

/// Validations and checkpoints at steps that differ.
const EVERY: &str =
    "--set train.checkpoint_every=10 --set train.eval_every=1000000 --set train.log_every=5 --set train.keep=9";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

fn names(place: &Place, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(place.path(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn rows(place: &Place, file: &str) -> Vec<Value> {
    fs::read_to_string(place.path(file)).unwrap_or_default().lines().map(json).collect()
}

fn steps(rows: &[Value]) -> Vec<u64> {
    rows.iter().map(|row| row["step"].as_u64().unwrap()).collect()
}

fn result(place: &Place, run: &str) -> Value {
    json(&fs::read_to_string(place.path(run).join("result.json")).unwrap())
}

#[test]
fn a_step_back_sets_the_later_steps_aside() {
    let place = Place::new();
    place.ok(&format!("train {TINY} {EVERY} --steps 30 --save-dir run"));
    let first = checkpoint_bytes(&place.path("run/checkpoints/step-00000030"));
    let output = place.run("train --resume run/checkpoints/step-00000010 --steps 25 --set train.keep=1");
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    for step in [20, 30] {
        let now = format!("run/checkpoints/step-000000{step}.abandoned");
        assert!(
            stderr.contains("set aside, since the run continues from step 10") && stderr.contains(&now),
            "{stderr}"
        );
    }
    // The best is the last of the new line; of the old one nothing is pruned or changed.
    let left = names(&place, "run/checkpoints");
    assert_eq!(left, ["step-00000010", "step-00000020.abandoned", "step-00000025", "step-00000030.abandoned"]);
    assert!(first == checkpoint_bytes(&place.path("run/checkpoints/step-00000030.abandoned")));
    let log = steps(&rows(&place, "run/metrics.jsonl"));
    assert!(log.is_sorted() && log.iter().max() == Some(&25), "{log:?}");
    let aside = steps(&rows(&place, "run/metrics.abandoned.jsonl"));
    assert!(aside.is_sorted() && aside.first() == Some(&15) && aside.last() == Some(&30), "{aside:?}");
    let info = json(&place.ok("info run --json"));
    let listed: Vec<u64> = info["set_aside"].as_array().unwrap().iter().map(|c| c["step"].as_u64().unwrap()).collect();
    assert_eq!(listed, [20, 30], "{info}");
    assert_eq!(info["step"], 25, "{info}");
    // What was set aside can be used, and gone on from in a folder of its own.
    place.ok("generate run/checkpoints/step-00000030.abandoned -n 3");
    place.fails("train --resume run/checkpoints/step-00000030.abandoned", &["set aside", "--save-dir"]);
    place.ok("train --resume run/checkpoints/step-00000030.abandoned --save-dir other --steps 31");
    // The run goes on from the new line.
    let output = place.run("train --resume run --steps 26");
    assert!(text(&output.stderr).contains("resumed from step 25"), "{}", text(&output.stderr));
}

#[test]
fn another_folder_begins_with_a_checkpoint_of_its_own() {
    let place = Place::new();
    place.ok(&format!("train {TINY} {EVERY} --steps 10 --save-dir a"));
    let before = names(&place, "a");
    // Stopped before its first step: the folder holds what it went on from.
    let mut child =
        place.command("train --resume a --save-dir b --minutes 5 --set train.steps=0 --set train.log_every=1");
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let own = place.path("b/checkpoints/step-00000010");
    let began = Instant::now();
    while !own.exists() {
        assert!(began.elapsed().as_secs() < 60, "nothing is saved");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(checkpoint_bytes(&own) == checkpoint_bytes(&place.path("a/checkpoints/step-00000010")));
    assert_eq!(names(&place, "a"), before);
    place.fails("train --resume a --save-dir b", &["b already holds a run", "--resume b"]);
    place.ok("train --resume b --steps 12 --set train.minutes=0");
    assert_eq!(result(&place, "b")["steps"], 12);
}

#[test]
fn a_checkpoint_elsewhere_is_no_part_of_what_is_around_it() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --steps 2 --save-dir run"));
    fs::create_dir_all(place.path("project/backup/step-00000002")).unwrap();
    for name in names(&place, "run/checkpoints/step-00000002") {
        let from = place.path("run/checkpoints/step-00000002").join(&name);
        fs::copy(from, place.path("project/backup/step-00000002").join(&name)).unwrap();
    }
    fs::write(place.path("project/README.md"), "# My notes").unwrap();
    place.fails("train --resume project/backup/step-00000002 --steps 4", &["not inside a run", "--save-dir"]);
    assert_eq!(names(&place, "project"), ["README.md", "backup"]);
    place.ok("train --resume project/backup/step-00000002 --steps 4 --save-dir new");
}

#[test]
fn nothing_of_the_users_is_written_over() {
    let place = Place::new();
    fs::create_dir(place.path("project")).unwrap();
    for (name, content) in [("README.md", "# mine"), ("metrics.jsonl", "mine"), ("config.toml", "[train]\nseed = 7\n")]
    {
        fs::write(place.path("project").join(name), content).unwrap();
    }
    let refused = ["project", "README.md", "--save-dir"];
    // Said before the text is read, and by the plan as by the run.
    for flags in ["", "--dry-run", "--config project/config.toml"] {
        let stderr = place.fails(&format!("train {TINY} --steps 1 --save-dir project {flags}"), &refused);
        assert!(!stderr.contains("text:"), "{stderr}");
    }
    assert_eq!(names(&place, "project"), ["README.md", "config.toml", "metrics.jsonl"]);
    // Settings in the folder of their run stay as they are.
    fs::create_dir(place.path("own")).unwrap();
    fs::copy(place.path("project/config.toml"), place.path("own/config.toml")).unwrap();
    place.ok(&format!("train {TINY} --config own/config.toml --steps 1 --save-dir own"));
    assert_eq!(fs::read_to_string(place.path("own/config.toml")).unwrap(), "[train]\nseed = 7\n");
    assert!(fs::read_to_string(place.path("own/settings.toml")).unwrap().contains("seed = 7"));
    // A folder that was made for a run which never began goes again.
    place.fails("train --data nothing.txt --steps 1 --save-dir none", &["nothing.txt"]);
    assert!(!place.path("none").exists());
    place.write("checkpoints", "a file");
    place.ok(&format!("train {TINY} --steps 1"));
    assert!(place.path("checkpoints-2/result.json").exists());
}

#[test]
fn a_closed_pipe_and_a_full_one_do_not_end_a_run() {
    let place = Place::new();
    let args = format!("train {TINY} --steps 40 --set train.sample_every=5");
    let mut child = place.command(&format!("{args} --save-dir pipe"));
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert!(output.status.success() && stderr.contains("standard output cannot be written"), "{stderr}");
    assert_eq!(result(&place, "pipe")["steps"], 40);
    if let Ok(full) = fs::File::options().write(true).open("/dev/full") {
        let output = place.command(&format!("{args} --save-dir full")).stdout(full).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(result(&place, "full")["steps"], 40);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_stopped_process_does_not_train() {
    let place = Place::new();
    let args = format!("train {TINY} --minutes 1 --set train.log_every=1 --save-dir run");
    let mut child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let signal = |name: &str| {
        let status = std::process::Command::new("kill").args([name, &child.id().to_string()]).status();
        assert!(status.unwrap().success());
    };
    let began = Instant::now();
    while rows(&place, "run/metrics.jsonl").len() < 3 {
        assert!(began.elapsed().as_secs() < 60, "training does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal("-STOP");
    let before = began.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(5));
    signal("-CONT");
    std::thread::sleep(Duration::from_millis(700));
    signal("-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let all = began.elapsed().as_secs_f64();
    let elapsed =
        rows(&place, "run/metrics.jsonl").iter().filter_map(|row| row["elapsed"].as_f64()).fold(0.0, f64::max);
    assert!(
        elapsed < all - 4.0 && elapsed > 0.0,
        "{elapsed} s of training in {all} s, {before} of them before the stop"
    );
}

#[test]
fn a_finished_run_says_so_and_changes_nothing() {
    let place = Place::new();
    // The last step is one of a scheduled validation too.
    place.ok(&format!("train {TINY} --steps 20 --set train.eval_every=10 --save-dir run"));
    let evals = rows(&place, "run/metrics.jsonl").into_iter().filter(|row| row["kind"] == "eval");
    assert_eq!(steps(&evals.collect::<Vec<_>>()), [0, 10, 20]);
    let files = |run: &str| {
        let all = names(&place, run).into_iter().filter(|name| place.path(run).join(name).is_file());
        all.map(|name| (name.clone(), fs::read(place.path(run).join(&name)).unwrap())).collect::<Vec<_>>()
    };
    let before = files("run");
    for flags in ["", "--steps 20", "--steps 10"] {
        let output = place.run(&format!("train --resume run {flags}"));
        let stderr = text(&output.stderr);
        assert!(output.status.success() && stderr.contains("run is finished at step 20"), "{stderr}");
        assert!(stderr.contains("--steps 40 trains on"), "{stderr}");
        if flags.is_empty() {
            assert!(files("run") == before, "something was written");
        }
    }
    assert_eq!(rows(&place, "run/metrics.jsonl").len(), steps(&rows(&place, "run/metrics.jsonl")).len());
    let output = place.run(&format!(
        "train {TINY} --lr 0.3 --steps 400 --set train.eval_every=2 --set train.patience=1 --save-dir early"
    ));
    let stderr = text(&output.stderr);
    assert!(output.status.success() && stderr.contains("stopped early"), "{stderr}");
    let stderr = text(&place.run("train --resume early").stderr);
    assert!(stderr.contains("it stopped early") && stderr.contains("train.patience=0"), "{stderr}");
}

#[test]
fn everything_describes_the_model_that_people_get() {
    let place = Place::new();
    let valid: Vec<String> = (0..30).map(|i| flashlm_train::data::synthetic::story(77, i)).collect();
    place.write("valid.txt", valid.join("\n<|endoftext|>\n"));
    // A learning rate that is kept high after the best: the last weights are not the best ones.
    let output = place.run(&format!(
        "train {TINY} --valid valid.txt --precision f32 --lr 0.5 --steps 60 --set train.min_lr=0.5 \
         --set train.eval_every=3 --set train.patience=2 --save-dir run"
    ));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (stdout, end) = (text(&output.stdout), result(&place, "run"));
    let (best, last) = (end["best"]["step"].as_u64().unwrap(), end["steps"].as_u64().unwrap());
    assert!(best < last, "{end}");
    assert_eq!((&end["outcome"], &end["last"]["step"]), (&Value::from("early stop"), &Value::from(last)));
    assert!(place.path("run").join(end["best"]["checkpoint"].as_str().unwrap()).is_dir());
    let bpb = end["best"]["full"]["bpb"].as_f64().unwrap();
    assert!(bpb < end["last"]["full"]["bpb"].as_f64().unwrap(), "{end}");
    let eval = json(&place.ok("eval run --data valid.txt --precision f32 --json"));
    assert_eq!(eval["step"], best);
    assert!((eval["latent"]["bpb"].as_f64().unwrap() - bpb).abs() < 1e-6, "{eval} for {bpb}");
    let card = fs::read_to_string(place.path("run/MODEL_CARD.md")).unwrap();
    for page in [&card, &stdout] {
        assert!(page.contains(&format!("{bpb:.4}")) && page.contains(&format!("step {best} of {last}")), "{page}");
    }
    // The samples are its own, and not rows of a later step.
    assert!(stdout.contains(&format!("--- step {best}\n")), "{stdout}");
    let log = steps(&rows(&place, "run/metrics.jsonl"));
    assert!(log.is_sorted(), "{log:?}");
    assert_eq!(json(&place.ok("info run --json"))["step"], best);
}

#[test]
fn what_can_be_known_at_once_is_said_at_once() {
    let place = Place::new();
    let refused = |args: &str, words: &[&str]| {
        let stderr = place.fails(args, words);
        assert!(!stderr.contains("text:") && !stderr.contains("validation:"), "after the text was read: {stderr}");
    };
    for plan in ["", "--dry-run"] {
        refused(
            &format!("train {} --steps 1 --save-dir a {plan}", with("--vocab 10 --batch 4")),
            &["vocabulary size 10", "257"],
        );
        refused(&format!("train {TINY} --minutes 0 --save-dir a {plan}"), &["--minutes 0", "above 0"]);
        refused(&format!("train {TINY} --steps 0 --save-dir a {plan}"), &["--steps 0", "above 0"]);
        refused(&format!("train {TINY} --steps 1 --lr 0 --save-dir a {plan}"), &["train.lr = 0", "above 0"]);
        refused(
            &format!("train {} --steps 1 {plan}", with("--vocab 300 --batch 65536 --set train.seq_len=65536")),
            &["65536", "one step"],
        );
    }
    // Before the size is chosen, too.
    for (flags, words) in [
        ("--minutes -1", ["--minutes -1", "above 0"]),
        ("--minutes inf", ["train.minutes = inf", "between 0 and 1000000"]),
        ("--set train.minutes=nan", ["train.minutes = NaN", "between 0 and 1000000"]),
        ("--epochs 0", ["train.epochs = 0", "above 0"]),
        ("--vocab 10", ["vocabulary size 10", "257"]),
        ("--set train.learning_rate=1", ["train.learning_rate", "train.lr"]),
    ] {
        let stderr = place.fails(&format!("train --data synthetic:50 --save-dir a {flags}"), &words);
        assert!(!stderr.contains("tokens/s"), "after the speed was measured: {stderr}");
    }
    place.ok(&format!("train {TINY} --steps 2 --save-dir run"));
    for plan in ["", "--dry-run"] {
        refused(&format!("train {TINY} --steps 1 --save-dir run {plan}"), &["already holds a run"]);
        refused(&format!("train --resume run --steps 4 --set model.dim=32 {plan}"), &["cannot change within a run"]);
        refused(
            &format!("train --resume run --steps 4 --set data.source=other.txt {plan}"),
            &["other.txt", "no such file"],
        );
    }
    let stderr = text(&place.run("train --resume run --dry-run").stderr);
    assert!(stderr.contains("is finished"), "{stderr}");
    // A plan is of what is left.
    let plan = json(&place.ok("train --resume run --steps 12 --dry-run --json"));
    assert_eq!(plan["updates"], 10, "{plan}");
}

#[test]
fn a_learning_rate_may_change_and_is_told() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --steps 4 --save-dir run"));
    let output = place.run("train --resume run --steps 8 --lr 0.001");
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("train.lr was") && stderr.contains("is 0.001 from here on"), "{stderr}");
    // A diverged run leaves something good to go on from, even where its only checkpoint was of the step that failed.
    let flags =
        "--lr 10 --precision f32 --set model.block_norm=false --set train.clip=1000000 --set train.warmup_steps=0";
    let args = format!("train {TINY} --steps 60 {flags} --set train.checkpoint_every=1 --save-dir bad");
    place.fails(&args, &["not a number", "last good checkpoint", "--lr"]);
    place.ok("train --resume bad --lr 0.001");
}

#[cfg(unix)]
#[test]
fn one_long_update_hears_ctrl_c() {
    let place = Place::new();
    // Thousands of passes to a step.
    let args = format!(
        "train {} --steps 3 --threads 1 --save-dir run",
        with("--vocab 300 --batch 65536 --set train.accumulation=8")
    );
    let child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !place.path("run/run.json").exists() {
        assert!(began.elapsed().as_secs() < 60, "training does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    let asked = Instant::now();
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(asked.elapsed().as_secs_f64() < 3.0, "it took {:?}", asked.elapsed());
    assert!(text(&output.stderr).contains("step 0 is saved in run"), "{}", text(&output.stderr));
}

#[cfg(unix)]
#[test]
fn the_last_validation_can_be_stopped_and_made_later() {
    let place = Place::new();
    // A validation text of a million tokens, of which 2,000 are scored while training.
    let args = format!("train {TINY} --valid synthetic:1500 --steps 2 --threads 1 --save-dir run");
    let child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let best = place.path("run/best");
    let began = Instant::now();
    while !best.exists() {
        assert!(began.elapsed().as_secs() < 120, "training does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("step 2 is saved in run") && !place.path("run/result.json").exists(), "{stderr}");
    let before = rows(&place, "run/metrics.jsonl");
    place.ok("train --resume run");
    let after = rows(&place, "run/metrics.jsonl");
    let evals = |rows: &[Value]| rows.iter().filter(|row| row["kind"] == "eval").count();
    assert_eq!((evals(&before), evals(&after)), (2, 2), "one before the first step, one after the last");
    assert_eq!(result(&place, "run")["last"]["full"]["protocol"], "full");
}
