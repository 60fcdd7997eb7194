//! A run that is stopped and resumed gives the bits of one that was not, for any number of threads.

use flashlm_train::optim::{ADAMW, NAMES};

use crate::common::{Place, TINY, checkpoint_bytes, copy, text};

const EVERY: &str = "--set train.checkpoint_every=7 --set train.eval_every=10 --set train.sample_every=9 \
    --set train.log_every=3 --set train.keep=50 --set train.patience=0";

fn last(place: &Place, run: &str, step: u64) -> Vec<(String, Vec<u8>)> {
    checkpoint_bytes(&place.path(run).join(format!("checkpoints/step-{step:08}")))
}

#[test]
fn resumed_equals_never_stopped() {
    let place = Place::new();
    let stages = "--set train.stages=[{seq_len=8,share=0.3},{seq_len=16,share=0.3},{seq_len=32,share=0.4}]";
    let rounded = "--set model.activation_bits=8 --set train.activation_share=0.5";
    let optimizers = NAMES.iter().filter(|name| **name != ADAMW);
    let optimizers: Vec<(&str, String)> =
        optimizers.map(|name| (*name, format!("--set train.optimizer={name}"))).collect();
    // From these checkpoints on these numbers of threads: in each stage; before and after activations are rounded.
    type Starts = &'static [(u64, usize)];
    let mut runs: Vec<(&str, &str, Starts)> = vec![
        ("plain", "", &[(7, 2), (14, 3), (28, 1)]),
        ("staged", stages, &[(7, 1), (28, 2), (35, 1)]),
        ("accumulated", "--set train.accumulation=2", &[(14, 1)]),
        ("rounded", rounded, &[(14, 1), (28, 1)]),
    ];
    runs.extend(optimizers.iter().map(|(name, extra)| (*name, &**extra, &[(14, 1)][..])));
    for (name, extra, starts) in runs {
        let flags = format!("{TINY} {EVERY} {extra} --steps 40");
        place.ok(&format!("train {flags} --save-dir {name}"));
        for (step, threads) in starts {
            let copied = format!("{name}-{step}");
            let step = format!("checkpoints/step-{step:08}");
            copy(&place.path(name).join(&step), &place.path(&copied).join(&step));
            place.ok(&format!("train --resume {copied} --threads {threads}"));
            assert!(last(&place, name, 40) == last(&place, &copied, 40), "{copied} on {threads} threads");
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
        let (metrics, log) = (place.path("run/metrics.jsonl"), place.path("stderr"));
        let mut command = place.command(&format!("train {TINY} --minutes 5 --save-dir run"));
        let mut child = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        // The first row of metrics shows that steps have begun.
        let began = std::time::Instant::now();
        while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
            assert!(began.elapsed().as_secs() < 120, "training does not begin");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").args([format!("-{signal}"), pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "SIG{signal}");
        // The step it tells of is on the disk, and what it advises goes on from it.
        let told = text(&std::fs::read(&log).unwrap());
        let step = told.split("interrupted; step ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        let step = step.unwrap_or_else(|| panic!("no word of a step: {told}"));
        let info: serde_json::Value = serde_json::from_str(&place.ok("info run --json")).unwrap();
        assert_eq!(info["checkpoints"].as_array().unwrap().last().unwrap()["step"], step, "{info}");
        let output = place.run(&format!("train --resume run --set train.minutes=0 --steps {}", step + 1));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(&format!("resumed from step {step} ")), "{}", text(&output.stderr));
        last(&place, "run", step + 1);
    }
}
