//! SIGKILL: half of them before, in the middle of or right after a chosen call (saving, marking the best, pruning, setting a line
//! aside, logging, the final validation, a full disk), the other half at any moment.
//!
//! After each one every checkpoint is whole, none that counts is gone, at most one interval of steps is lost, the rows of metrics
//! are one line, and `flashlm info` agrees. Some rounds go back to an older checkpoint: then what was newer is set aside,
//! neither mixed with the new line nor removed. In the end there are the bytes of a run that was never killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use flashlm_model::rng::Rng;
use serde_json::Value;

use crate::common::{Place, TINY, checkpoint_bytes, text};
use crate::disk::{damage, is_waiting, losses, names, rows, steps};
use crate::shim::{self, ENOSPC, Fault};

const EVERY: u64 = 4;
/// The learning rate is the same at any length, so that a run may end anywhere and go on to the same bits.
const FLAGS: &str = "--set train.eval_every=4 --set train.sample_every=12 --set train.log_every=1 --set train.keep=3 \
    --set train.patience=0 --set train.warmup_steps=0 --lr 0.001 --set train.min_lr=0.001";

/// The moments at which a chosen call kills: among how many, their kind, a part of their path.
const MOMENTS: [(&str, usize, Option<&str>, &str); 10] = [
    ("setting aside", 3, None, "abandoned"),
    ("the final validation", 1, Some("rename"), "checkpoints/step-"),
    ("writing a checkpoint", 80, None, "checkpoints/.tmp-"),
    ("naming a checkpoint", 3, Some("rename"), "checkpoints/step-"),
    ("syncing", 40, Some("sync"), ""),
    ("marking the best", 3, None, "/best"),
    ("pruning", 14, Some("remove"), "checkpoints/"),
    ("logging", 20, Some("write"), "metrics"),
    ("starting", 40, None, ""),
    ("a full disk", 120, None, ""),
];

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}

/// What a run's folder holds. A checkpoint is known by its `state.json`, which has the time of training to the nanosecond.
#[derive(Default)]
struct Folder {
    line: BTreeMap<u64, Vec<u8>>,
    aside: BTreeSet<Vec<u8>>,
    best: Option<u64>,
    last_row: u64,
}

impl Folder {
    fn look(run: &Path, wrong: &mut Vec<String>) -> Folder {
        let mut folder = Folder::default();
        for name in names(&run.join("checkpoints")).filter(|name| name.starts_with("step-")) {
            let at = run.join("checkpoints").join(&name);
            if let Some(what) = damage(&at) {
                wrong.push(format!("{name}: {what}"));
                continue;
            }
            let state = fs::read(at.join("state.json")).unwrap();
            // While a step is saved a second time the first is called `.old`; alone it counts.
            match (name[5..].parse(), name[5..].trim_end_matches(".old").parse()) {
                (Ok(step), _) => _ = folder.line.insert(step, state),
                (_, Ok(step)) => _ = folder.line.entry(step).or_insert(state),
                _ => _ = folder.aside.insert(state),
            }
        }
        folder.best = fs::read(run.join("best")).ok().and_then(|best| json(&best)["step"].as_u64());

        // The rows are one line if none is missing and time goes on, and the line of the checkpoints if their times fit.
        let rows = rows(run).unwrap_or_else(|what| {
            wrong.push(what);
            Vec::new()
        });
        let times: Vec<f64> = rows.iter().map(|row| row["elapsed"].as_f64().unwrap()).collect();
        if !times.is_sorted() || rows.iter().enumerate().any(|(i, row)| row["step"] != i + 1) {
            let line: Vec<_> = rows.iter().map(|row| (row["step"].as_u64(), row["elapsed"].as_f64())).collect();
            wrong.push(format!("the rows are not one line: {line:?}"));
        }
        for (step, state) in &folder.line {
            let (at, saved) = (*step as usize, json(state)["elapsed"].as_f64().unwrap());
            let (own, next) = (times.get(at - 1), times.get(at));
            if own.is_some_and(|time| *time > saved) || next.is_some_and(|time| *time < saved) {
                wrong.push(format!("step {step} was saved at {saved}, its row is of {own:?}, the next of {next:?}"));
            }
        }
        folder.last_row = times.len() as u64;
        folder
    }

    fn newest(&self) -> u64 {
        self.line.last_key_value().map_or(0, |(step, _)| *step)
    }

    /// What is wrong after a round that began so, went on from the step `from`, and left `after`.
    fn violations(&self, from: u64, after: &Folder, stderr: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let told = stderr.split("resumed from step ").nth(1).map(|rest| rest.split(' ').next().unwrap());
        if told.is_some_and(|told| told != from.to_string()) {
            wrong.push(format!("resumed from step {told:?}, not {from}"));
        }
        if after.newest() < from {
            wrong.push(format!("step {from} was there, now the newest is {}", after.newest()));
        }
        if !self.aside.is_subset(&after.aside) {
            wrong.push("what was set aside is gone".into());
        }
        let left_behind: Vec<_> = self.line.iter().filter(|(step, _)| **step > from).collect();
        for (step, state) in &left_behind {
            if after.line.get(step) != Some(state) && !after.aside.contains(*state) {
                wrong.push(format!("step {step} of the line left behind is gone"));
            }
        }
        let old = left_behind.iter().any(|(step, state)| after.line.get(step) == Some(state));
        let new = after.line.iter().any(|(step, state)| *step > from && self.line.get(step) != Some(state));
        if old && new {
            wrong.push(format!("checkpoints of two lines, from step {from}: {:?}", after.line.keys()));
        }
        if self.lost(after) > EVERY {
            wrong.push(format!("updates up to {} were logged, saved is {}", after.last_row, after.newest()));
        }
        // A kill between saving the best and marking it is mended when the run goes on.
        if let Some(known) = self.line.get(&from).and_then(|state| json(state)["best"]["step"].as_u64())
            && (told.is_some() && after.last_row > from && after.last_row != self.last_row)
            && !after.best.is_some_and(|best| best == known || best > from && after.line.contains_key(&best))
        {
            wrong.push(format!("step {known} was the best when step {from} was saved, marked is {:?}", after.best));
        }
        let good = |folder: &Folder| folder.best.is_none_or(|best| folder.line.contains_key(&best));
        if left_behind.is_empty() && good(self) && !good(after) {
            wrong.push(format!("best is step {:?}, and {:?} are there", after.best, after.line.keys()));
        }
        wrong
    }

    /// Steps of a round that were logged and not saved. Without rows of its own it made none.
    fn lost(&self, after: &Folder) -> u64 {
        if after.last_row == self.last_row { 0 } else { after.last_row.saturating_sub(after.newest()) }
    }
}

/// Kills one run so often, then lets it finish; returns a line about it, or what was wrong.
fn kill(kills: usize, seed: u64) -> Result<String, String> {
    let (place, mut rng, began) = (Place::new(), Rng::new(seed), Instant::now());
    let mut below = |n: usize| rng.below(n as u64) as usize;
    let train = format!("train {TINY} {FLAGS} --set train.checkpoint_every={EVERY}");
    // Makes the token cache.
    place.ok(&format!("{train} --steps 1 --save-dir first"));
    let (run, log) = (place.path("run"), place.path("stderr"));
    let mut counts = BTreeMap::<&str, usize>::new();
    let (mut killed, mut backs, mut lost) = (0, 0, 0);
    let mut folder = Folder::default();
    while killed < kills {
        let newest = folder.newest();
        let older: Vec<u64> = folder.line.keys().copied().filter(|step| *step < newest).collect();
        let back = !older.is_empty() && below(5) == 0;
        let from = if back { older[below(older.len())] } else { newest };
        let by_clock = below(2) == 0;
        let chosen = if back && below(2) == 0 { 0 } else { 1 + below(MOMENTS.len() - 1) };
        let (mut moment, most, kind, path) = MOMENTS[chosen];
        if by_clock {
            moment = "any moment";
        }
        let steps_to = if moment == "the final validation" { from + EVERY } else { 1_000_000 };
        let args = if newest == 0 {
            format!("{train} --steps {steps_to} --save-dir run")
        } else if back {
            format!("train --resume run/checkpoints/step-{from:08} --steps {steps_to}")
        } else {
            format!("train --resume run --steps {steps_to}")
        };

        let mut command = place.command(&args);
        let (at, sleep) = (1 + below(most), 50 + below(500) as u64);
        if !by_clock {
            shim::watch(&mut command, &run, &place.path("calls"));
            let mut fault = match moment {
                "a full disk" => Fault::error(at, "on", ENOSPC),
                "the final validation" => Fault { milliseconds: below(30) as u64, ..Fault::new(at, "later") },
                _ => Fault::new(at, ["before", "half", "after"][below(3)]),
            };
            (fault.kind, fault.path) = (kind, Some(path.to_string()));
            shim::strike(&mut command, &fault);
        }
        let mut child = command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let told = || text(&fs::read(&log).unwrap());
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            // A call that does not come is not waited for.
            let patience = Duration::from_millis(if by_clock { sleep } else { 1500 });
            let waits = moment == "a full disk" && told().lines().any(is_waiting);
            if waits || started.elapsed() >= patience {
                if !waits {
                    moment = "any moment";
                }
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let (status, stderr, mut wrong) = (child.wait().unwrap(), told(), Vec::new());
        match status.code() {
            None => {
                killed += 1;
                backs += usize::from(back);
                *counts.entry(moment).or_default() += 1;
            }
            // It was faster, or had nothing to write on.
            Some(0) if moment == "the final validation" => {}
            Some(1) if moment == "a full disk" && stderr.contains("full") => {}
            _ => wrong.push(format!("ended with {status}")),
        }
        let after = Folder::look(&run, &mut wrong);
        wrong.extend(folder.violations(from, &after, &stderr));
        if !after.line.is_empty() {
            let output = place.run("info run --json");
            let info: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let listed = info["checkpoints"].as_array().into_iter().flatten();
            let listed: BTreeSet<u64> = listed.filter_map(|one| one["step"].as_u64()).collect();
            if !output.status.success() || listed != steps(&run) {
                wrong.push(format!("info tells of {listed:?}: {}", text(&output.stderr)));
            }
        }
        if !wrong.is_empty() {
            let (wrong, lines) = (wrong.join("\n"), stderr.lines().collect::<Vec<_>>());
            let last = lines[lines.len().saturating_sub(3)..].join("\n");
            return Err(format!("kill {killed}, {moment}, call {at}, flashlm {args}:\n{wrong}\n...\n{last}"));
        }
        lost = lost.max(folder.lost(&after));
        folder = after;
    }

    let end = folder.newest() + 2 * EVERY;
    let resume = if folder.newest() == 0 { format!("{train} --save-dir run") } else { "train --resume run".into() };
    place.ok(&format!("{resume} --steps {end}"));
    place.ok(&format!("{train} --steps {end} --save-dir whole"));
    let last = |run: &str| checkpoint_bytes(&place.path(run).join(format!("checkpoints/step-{end:08}")));
    if last("run") != last("whole") {
        return Err(format!("step {end} has other bytes than that of a run never killed"));
    }
    if losses(&run)? != losses(&place.path("whole"))? {
        return Err("the rows are not those of a run never killed".into());
    }
    let counts: Vec<String> = counts.iter().map(|(moment, n)| format!("{n} at {moment}")).collect();
    Ok(format!(
        "{killed} kills of one run ({}), {backs} of them gone back to an older checkpoint; each resumed, at most {lost} updates \
         lost where {EVERY} are an interval; after {end} updates the bytes of a run never killed; {} s",
        counts.join(", "),
        began.elapsed().as_secs()
    ))
}

#[test]
fn a_killed_run_goes_on_as_if_it_had_not_been() {
    if let Err(wrong) = kill(12, 1) {
        panic!("{wrong}");
    }
}

/// As many as `FLASHLM_KILLS` says: `benches/kill.sh`.
#[test]
#[ignore = "takes minutes"]
fn a_run_killed_many_times_goes_on_as_if_it_had_not_been() {
    let kills = std::env::var("FLASHLM_KILLS").map_or(200, |n| n.parse().expect("a number of kills"));
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    match kill(kills, seed) {
        Ok(line) => eprintln!("{line}"),
        Err(wrong) => panic!("seed {seed}:\n{wrong}"),
    }
}
