//! A run that is stopped and resumed gives the bits of one that was not, for any number of threads.

use flashlm_train::optim::{ADAMW, NAMES};

use crate::common::{Place, TINY, checkpoint_bytes, text};

const EVERY: &str = "--set train.checkpoint_every=7 --set train.eval_every=10 --set train.sample_every=9 \
    --set train.log_every=3 --set train.keep=50 --set train.patience=0";

fn last(place: &Place, run: &str, step: u64) -> Vec<(String, Vec<u8>)> {
    checkpoint_bytes(&place.path(run).join(format!("checkpoints/step-{step:08}")))
}

#[test]
fn resumed_equals_never_stopped() {
    let place = Place::new();
    let stages = "--set train.stages=[{seq_len=8,share=0.3},{seq_len=16,share=0.3},{seq_len=32,share=0.4}]";
    let mut runs = vec![("plain", ""), ("staged", stages), ("accumulated", "--set train.accumulation=2")];
    runs.push(("rounded", "--set model.activation_bits=8 --set train.activation_share=0.5"));
    let other: Vec<(&str, String)> =
        NAMES.iter().map(|name| (*name, format!("--set train.optimizer={name}"))).collect();
    runs.extend(other.iter().map(|(name, extra)| (*name, &**extra)).filter(|(name, _)| *name != ADAMW));
    for (name, extra) in runs {
        let flags = format!("{TINY} {EVERY} {extra} --steps 40");
        place.ok(&format!("train {flags} --save-dir {name} --threads 2"));
        // From each checkpoint of the first third on, once at a stage's border, with other numbers of threads.
        for (step, threads) in [(7, 1), (14, 3), (28, 2)] {
            let copy = format!("{name}-{step}");
            let from = place.path(name).join(format!("checkpoints/step-{step:08}"));
            let to = place.path(&copy).join(format!("checkpoints/step-{step:08}"));
            std::fs::create_dir_all(&to).unwrap();
            for file in std::fs::read_dir(&from).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
            place.ok(&format!("train --resume {copy} --threads {threads}"));
            assert!(last(&place, name, 40) == last(&place, &copy, 40), "{name} resumed at {step} on {threads} threads");
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let place = Place::new();
    for threads in [1, 2, 3] {
        place.ok(&format!("train {TINY} {EVERY} --steps 20 --save-dir t{threads} --threads {threads}"));
    }
    let one = last(&place, "t1", 20);
    assert!(one == last(&place, "t2", 20) && one == last(&place, "t3", 20));
    let curve = |run: &str| {
        let rows = std::fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64();
        rows.lines().filter_map(loss).collect::<Vec<_>>()
    };
    assert!(curve("t1").len() >= 6);
    assert_eq!(curve("t1"), curve("t3"));
}

#[cfg(unix)]
#[test]
fn a_signal_finishes_the_step_saves_and_exits_130() {
    for signal in ["INT", "TERM"] {
        let place = Place::new();
        let mut child = place.command(&format!("train {TINY} --minutes 5 --save-dir run")).spawn().unwrap();
        // The first row of metrics shows that updates have begun.
        let metrics = place.path("run").join("metrics.jsonl");
        let began = std::time::Instant::now();
        while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
            assert!(began.elapsed().as_secs() < 120, "training does not begin");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").args([format!("-{signal}"), pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "SIG{signal}");
        let info = place.ok("info run --json");
        assert!(info.contains("step"), "{info}");
        let output = place.run("train --resume run --steps 1 --set train.minutes=0");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("resumed from step"), "{}", text(&output.stderr));
    }
}

#[cfg(unix)]
#[test]
fn a_killed_run_resumes_from_its_last_checkpoint() {
    let place = Place::new();
    let flags = format!("{TINY} --minutes 5 --set train.checkpoint_seconds=0.2 --set train.keep=3 --save-dir run");
    for round in 0..5u64 {
        let args = if round == 0 { format!("train {flags}") } else { "train --resume run".to_string() };
        let mut child = place.command(&args).stdout(std::process::Stdio::null()).spawn().unwrap();
        let wait = 900 + round * 337 % 500;
        std::thread::sleep(std::time::Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.ok("train --resume run --set train.minutes=0 --steps 1");
}
