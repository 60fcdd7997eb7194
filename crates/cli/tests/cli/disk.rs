//! A disk that fails: every call that changes something in a run's folder fails in turn, once or from then on, with "no space
//! left" and with "input/output error".
//!
//! What must hold each time: no panic; a failure ends the run only where a checkpoint cannot be saved at all, and then the error
//! names the file and the reason; a full disk is waited for; a checkpoint that was on the disk before stays; and the run goes on
//! from there to the same bits and the same rows as one that no failure met.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Place, TINY, checkpoint_bytes, copy, text};
use crate::shim::{self, EIO, ENOSPC, Fault};

/// Checkpoints at 4, 8 and 12, each the best so far.
const FLAGS: &str = "--set train.checkpoint_every=4 --set train.eval_every=4 --set train.sample_every=6 \
    --set train.log_every=1 --set train.patience=0";

/// A command, what its folder holds before, and how it ends where nothing fails.
struct Scenario {
    name: &'static str,
    place: Place,
    command: String,
    /// The newest checkpoint of the line that the command goes on with.
    from: u64,
    /// Checkpoints of another line that are in the folder before.
    other_line: BTreeSet<u64>,
    calls: Vec<Call>,
    last: Vec<(String, Vec<u8>)>,
    losses: Vec<(u64, f64)>,
}

/// A call of the run that nothing disturbed.
struct Call {
    kind: String,
    /// In the run's folder; a temporary is called as what it becomes.
    file: String,
    part: Part,
    /// The step whose checkpoint is whole and under its name with this call.
    publishes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    /// Before the first step.
    Start,
    Checkpoint,
    /// What a run can do without.
    Trimmings,
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("checkpoints/step-")?.split('/').next()?.parse().ok()
}

fn calls(log: &str, run: &Path) -> Vec<Call> {
    let root = format!("{}/", run.display());
    let relative = |path: &str| path.strip_prefix(&root).unwrap_or(".").to_string();
    let lines: Vec<Vec<String>> = log.lines().map(|line| line.split(' ').map(relative).collect()).collect();
    let kinds: Vec<&str> = log.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    let temporary = |name: &str| name.rsplit('/').next().unwrap().starts_with(".tmp-");
    let becomes = |from: usize, name: &str| {
        let names = name.split_inclusive('/').scan(String::new(), |path, piece| {
            path.push_str(piece);
            Some(path.clone())
        });
        let Some(folder) = names.map(|p| p.trim_end_matches('/').to_string()).find(|p| temporary(p)) else {
            return name.to_string();
        };
        let target = (from..lines.len()).find(|&i| kinds[i] == "rename" && lines[i][2] == folder);
        target.map_or(name.to_string(), |i| name.replacen(&folder, &lines[i][3], 1))
    };
    let begun = (0..lines.len()).find(|&i| kinds[i] == "write" && lines[i][2] == "metrics.jsonl").unwrap_or(0);
    let mut calls: Vec<Call> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let kind = kinds[i];
        let moved = kind == "rename";
        let file = if moved && !temporary(&line[3]) { line[3].clone() } else { becomes(i, &line[2]) };
        let folder = kind == "sync" && [".", "checkpoints"].contains(&file.as_str());
        let part = match calls.last() {
            // A folder is synced for what was made or renamed in it just before.
            Some(before) if folder => before.part,
            _ if file == "checkpoints" => Part::Checkpoint,
            _ if kind != "remove" && step_of(&file).is_some() && !(moved && temporary(&line[3])) => Part::Checkpoint,
            _ if i < begun => Part::Start,
            _ => Part::Trimmings,
        };
        let publishes = step_of(&file).filter(|_| moved && temporary(&line[2]));
        calls.push(Call { kind: kind.into(), file, part, publishes });
    }
    calls
}

impl Scenario {
    /// What `command` does with the run that `before` makes, by commands without failures.
    fn new(name: &'static str, from: u64, command: &str, before: impl FnOnce(&Place)) -> Result<Scenario, String> {
        let place = Place::new();
        // The token cache is made here, once.
        place.ok(&format!("train {TINY} --steps 1 --save-dir first"));
        fs::create_dir(place.path("before")).unwrap();
        before(&place);
        if place.path("run").exists() {
            fs::rename(place.path("run"), place.path("before/run")).unwrap();
            // Their names hold the second: one of the same second would be met by a call more.
            for name in names(&place.path("before/run")).filter(|name| name.starts_with("events.")).collect::<Vec<_>>()
            {
                fs::remove_file(place.path("before/run").join(name)).unwrap();
            }
        }
        let other_line = steps(&place.path("before/run")).into_iter().filter(|step| *step > from).collect();
        let command = command.to_string();
        let mut scenario = Scenario {
            name,
            place,
            command,
            from,
            other_line,
            calls: Vec::new(),
            last: Vec::new(),
            losses: Vec::new(),
        };
        let case = scenario.case();
        let mut command = scenario.run(&case, &scenario.command);
        shim::watch(&mut command, &case.path("run"), &case.path("log"));
        let output = command.output().unwrap();
        if !output.status.success() {
            return Err(format!("{name}, nothing fails: {}", end(&text(&output.stderr))));
        }
        let log = fs::read_to_string(case.path("log")).unwrap_or_default();
        scenario.calls = calls(&log, &case.path("run").canonicalize().unwrap());
        assert!(scenario.calls.iter().any(|call| call.publishes.is_some()), "{name}: the calls are not seen:\n{log}");
        scenario.last = checkpoint_bytes(&case.path("run/checkpoints/step-00000012"));
        scenario.losses = losses(&case.path("run")).unwrap();
        assert_eq!(scenario.losses.len(), 12);
        Ok(scenario)
    }

    fn case(&self) -> Place {
        let case = Place::new();
        copy(&self.place.path("before"), &case.path(""));
        case
    }

    fn run(&self, case: &Place, args: &str) -> Command {
        let mut command = case.command(args);
        command.env("FLASHLM_CACHE", self.place.path("cache"));
        command
    }

    /// Lets call `at` fail and says what then was not as it must be.
    fn violations(&self, at: usize, how: &'static str, errno: i32) -> Vec<String> {
        let call = &self.calls[at - 1];
        let (case, mut wrong) = (self.case(), Vec::new());
        let run = case.path("run");
        let mut command = self.run(&case, &self.command);
        shim::watch(&mut command, &run, &case.path("log"));
        shim::strike(&mut command, &Fault::error(at, how, errno));
        let (code, stderr) = ended(command, &case.path("stderr"));
        if stderr.contains("panicked") || code == Some(101) || code.is_none() {
            wrong.push(format!("ended by a panic, a signal or not at all ({code:?}): {stderr}"));
        }

        let needs_space = |call: &Call| !["sync", "rename", "remove"].contains(&call.kind.as_str());
        let waits = stderr.lines().any(is_waiting);
        // A folder that is there already need not be made.
        let harmless = call.kind == "mkdir" && call.file == "checkpoints";
        let hit = |call: &Call| call.part == Part::Checkpoint;
        let later = self.calls[at - 1..].iter().any(|call| hit(call) && (errno == EIO || needs_space(call)));
        let expected: &[i32] = match (how, errno) {
            // Nothing was begun: the same command is given again.
            _ if call.part == Part::Start => &[0, 1, 130],
            ("once", _) if harmless => &[0, 1],
            ("on", EIO) if later => &[1],
            ("on", ENOSPC) if later => &[1, 130],
            _ => &[0],
        };
        if !code.is_some_and(|code| expected.contains(&code)) {
            wrong.push(format!("exit code {code:?}, expected one of {expected:?}: {}", end(&stderr)));
        }
        let full = errno == ENOSPC && if how == "once" { hit(call) && !harmless } else { later };
        if (how, errno) == ("once", EIO) && hit(call) && !harmless && !stderr.contains("Trying again") {
            wrong.push(format!("no word of the second try: {}", end(&stderr)));
        }
        if full && call.part != Part::Start && !waits {
            wrong.push(format!("no word that the disk is full and that it is tried again: {}", end(&stderr)));
        }
        if code == Some(1) {
            let error = stderr.lines().rfind(|line| line.starts_with("error: ")).unwrap_or("");
            let reason = if errno == EIO { &["Input/output error"][..] } else { &["full", "No space left"] };
            if !error.contains("run") || !reason.iter().any(|reason| error.contains(reason)) {
                wrong.push(format!("the error names no file or no reason: {}", end(&stderr)));
            }
        }

        // What was on the disk before is on it still, and nothing is told that is not so.
        let published = self.calls[..at - 1].iter().filter_map(|call| call.publishes);
        let newest = published.chain([self.from]).max().unwrap();
        let mut whole = BTreeSet::new();
        for step in steps(&run) {
            match damage(&folder(&run, step)) {
                None => _ = whole.insert(step),
                Some(what) => wrong.push(format!("step {step} is damaged: {what}")),
            }
        }
        if newest > 0 && !whole.iter().any(|step| *step >= newest) {
            wrong.push(format!("step {newest} was saved, and {whole:?} are left: {}", end(&stderr)));
        }
        for line in stderr.lines().filter(|line| line.contains("is saved")) {
            let step = line.split("step ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
            if !step.is_some_and(|step| whole.contains(&step)) {
                wrong.push(format!("{line:?}, and {whole:?} are there"));
            }
        }
        wrong.extend(self.other_line_lost(&run));

        if code != Some(0) {
            // Not set aside yet, or not begun: the command again. Else the run goes on.
            let again = whole.is_empty() || self.other_line.iter().any(|&step| self.is_of_other_line(&run, step));
            let args = if again { self.command.clone() } else { "train --resume run --steps 12".to_string() };
            let output = self.run(&case, &args).output().unwrap();
            if !output.status.success() {
                wrong.push(format!("`flashlm {args}` then gave {:?}: {}", output.status, end(&text(&output.stderr))));
                return wrong;
            }
            let left = names(&run).chain(names(&run.join("checkpoints"))).filter(|name| name.starts_with(".tmp-"));
            for name in left {
                wrong.push(format!("{name} is left"));
            }
            wrong.extend(self.other_line_lost(&run));
        }
        wrong.extend(self.unfinished(&case, how == "on"));
        wrong
    }

    /// In what a run that is done differs from the one that nothing disturbed. Rows of metrics may be missing (`gaps`) where the
    /// disk failed to the end.
    fn unfinished(&self, case: &Place, gaps: bool) -> Vec<String> {
        let (run, mut wrong) = (case.path("run"), Vec::new());
        let last = folder(&run, 12);
        if let Some(what) = damage(&last) {
            wrong.push(format!("the last checkpoint: {what}; {:?} are there", steps(&run)));
        } else if checkpoint_bytes(&last) != self.last {
            wrong.push("the last checkpoint has other bytes".to_string());
        }
        match losses(&run) {
            Err(what) => wrong.push(what),
            Ok(losses) => {
                let strangers = losses.iter().filter(|row| !self.losses.contains(row)).count();
                if strangers > 0 || !losses.is_sorted_by_key(|row| row.0) || !losses.is_sorted_by(|a, b| a.0 < b.0) {
                    wrong.push(format!("rows of another line, or twice: {losses:?}"));
                } else if !gaps && losses != self.losses {
                    wrong.push(format!("rows are missing: {losses:?}"));
                }
            }
        }
        let output = self.run(case, "info run --json").output().unwrap();
        match serde_json::from_slice::<Value>(&output.stdout) {
            Ok(info) if output.status.success() => {
                let listed = info["checkpoints"].as_array().into_iter().flatten();
                let listed: BTreeSet<u64> = listed.filter_map(|one| one["step"].as_u64()).collect();
                if listed != steps(&run) {
                    wrong.push(format!("info tells of {listed:?}, and {:?} are there", steps(&run)));
                }
            }
            _ => wrong.push(format!("info: {}", end(&text(&output.stderr)))),
        }
        wrong
    }

    /// Whether the checkpoint under this name is still the one of the other line.
    fn is_of_other_line(&self, run: &Path, step: u64) -> bool {
        let manifest = |run: &Path| fs::read(folder(run, step).join("checkpoint.json")).ok();
        manifest(run).is_some() && manifest(run) == manifest(&self.place.path("before/run"))
    }

    /// Checkpoints of the other line that are neither under their name nor set aside.
    fn other_line_lost(&self, run: &Path) -> Vec<String> {
        let there: Vec<Vec<u8>> = names(&run.join("checkpoints"))
            .filter(|name| name.starts_with("step-"))
            .filter_map(|name| fs::read(run.join("checkpoints").join(name).join("checkpoint.json")).ok())
            .collect();
        let manifest =
            |step: u64| fs::read(folder(&self.place.path("before/run"), step).join("checkpoint.json")).unwrap();
        let lost = self.other_line.iter().filter(|&&step| !there.contains(&manifest(step)));
        lost.map(|step| format!("step {step} of the line left behind is gone")).collect()
    }

    /// Lets calls fail in all four ways, of these the ones that `chosen` takes; returns how many.
    fn sweep(&self, chosen: impl Fn(usize) -> bool, found: &Mutex<Vec<String>>) -> usize {
        let ways = [("once", EIO), ("on", EIO), ("once", ENOSPC), ("on", ENOSPC)];
        let all = (1..=self.calls.len()).flat_map(|at| ways.map(|way| (at, way)));
        let cases: Vec<(usize, (&'static str, i32))> =
            all.enumerate().filter(|(i, _)| chosen(*i)).map(|(_, case)| case).collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some((at, (how, errno))) = cases.get(next.fetch_add(1, Relaxed)) {
                        let call = &self.calls[at - 1];
                        let name = if *errno == EIO { "EIO" } else { "ENOSPC" };
                        let case = format!(
                            "{}, call {at} of {}, {} {}, {name} {how}",
                            self.name,
                            self.calls.len(),
                            call.kind,
                            call.file
                        );
                        for what in self.violations(*at, how, *errno) {
                            found.lock().unwrap().push(format!("{case}: {what}"));
                        }
                    }
                });
            }
        });
        cases.len()
    }
}

/// A new run, one that goes on, and one that goes back to an older checkpoint of another line.
fn scenarios() -> [Result<Scenario, String>; 3] {
    let new = format!("train {TINY} {FLAGS} --set train.keep=1 --steps 12 --save-dir run");
    let killed = |place: &Place, args: &str, before: &str| {
        let mut command = place.command(args);
        shim::watch(&mut command, &place.path("run"), &place.path("log"));
        let mut fault = Fault::new(1, "before");
        (fault.kind, fault.path) = (Some("rename"), Some(before.to_string()));
        shim::strike(&mut command, &fault);
        assert!(command.output().unwrap().status.code().is_none(), "the run was not killed");
    };
    let longer = new.replace("keep=1", "keep=9").replace("--steps 12", "--steps 16");
    let back = "train --resume run/checkpoints/step-00000004 --steps 12 --set train.keep=1";
    [
        Scenario::new("new", 0, &new, |_| ()),
        Scenario::new("gone on with", 8, "train --resume run", |place| killed(place, &new, "step-00000012")),
        Scenario::new("gone back", 4, back, |place| killed(place, &longer, "step-00000016")),
    ]
}

/// All ways to fail, of which `chosen` takes some; none may be a violation.
fn sweep(chosen: impl Fn(usize) -> bool + Copy) {
    let (found, began, mut cases) = (Mutex::new(Vec::new()), Instant::now(), 0);
    for scenario in scenarios() {
        match scenario {
            Ok(scenario) => cases += scenario.sweep(chosen, &found),
            Err(what) => found.lock().unwrap().push(what),
        }
    }
    let found = found.into_inner().unwrap();
    eprintln!("{cases} failures in {} s, {} violations", began.elapsed().as_secs(), found.len());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_failing_disk_loses_nothing_that_was_saved() {
    // Four ways at each call; 53 and 4 have no common divisor.
    sweep(|i| i % 53 == 7);
}

/// All of them: `benches/faults.sh`.
#[test]
#[ignore = "takes minutes"]
fn a_disk_that_fails_at_any_call_loses_nothing_that_was_saved() {
    sweep(|_| true);
}

/// The program's end, where it ends by itself; where it waits for space, Ctrl-C twice ends it.
fn ended(mut command: Command, stderr: &Path) -> (Option<i32>, String) {
    let file = fs::File::create(stderr).unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
    let told = || text(&fs::read(stderr).unwrap());
    let fails_on = command.get_envs().any(|(key, value)| key == "FAULT_HOW" && value.is_some_and(|how| how == "on"));
    if fails_on && !within(&mut child, 60, || told().lines().any(is_waiting)) {
        shim::signal(&child, "INT");
        within(&mut child, 1, || told().contains("press Ctrl-C again"));
        if child.try_wait().unwrap().is_none() {
            shim::signal(&child, "INT");
        }
    }
    if !within(&mut child, 60, || false) && child.try_wait().unwrap().is_none() {
        child.kill().unwrap();
    }
    (child.wait().unwrap().code(), told())
}

/// Waits for the end of the program, at most so long and until `enough`; whether it ended.
pub fn within(child: &mut Child, seconds: u64, enough: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        if enough() || began.elapsed().as_secs() >= seconds {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The word about a full disk that is waited for.
pub fn is_waiting(line: &str) -> bool {
    line.contains("the disk is full") && line.contains("The run waits")
}

fn end(stderr: &str) -> &str {
    stderr.trim_end().lines().next_back().unwrap_or("no word on stderr")
}

/// The folder of a step. Between two renames, while it is saved a second time, that is the old one.
fn folder(run: &Path, step: u64) -> PathBuf {
    let folder = run.join(format!("checkpoints/step-{step:08}"));
    if folder.exists() { folder } else { folder.with_extension("old") }
}

/// The steps of the folders that bear one, without those set aside.
pub fn steps(run: &Path) -> BTreeSet<u64> {
    let step = |name: String| step_of(&format!("checkpoints/{}", name.strip_suffix(".old").unwrap_or(&name)));
    names(&run.join("checkpoints")).filter_map(step).collect()
}

pub fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap())
}

/// What is wrong with a checkpoint by its own manifest.
pub fn damage(folder: &Path) -> Option<String> {
    let check = || -> Result<(), String> {
        let read = |name: &str| fs::read(folder.join(name)).map_err(|e| format!("{name}: {e}"));
        let manifest: Value = serde_json::from_slice(&read("checkpoint.json")?).map_err(|e| e.to_string())?;
        for (name, entry) in manifest["files"].as_object().ok_or("no files")? {
            let bytes = read(name)?;
            let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes));
            if entry["bytes"] != bytes.len() || entry["xxh3"] != hash.as_str() {
                return Err(format!("{name} is not what the manifest says"));
            }
        }
        Ok(())
    };
    check().err()
}

/// The training rows of a run; a torn last line counts as not there.
pub fn rows(run: &Path) -> Result<Vec<Value>, String> {
    let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let mut rows = Vec::new();
    for line in log.split_inclusive('\n') {
        match serde_json::from_str::<Value>(line) {
            Ok(row) if row["kind"] == "train" => rows.push(row),
            Err(_) if line.ends_with('\n') => return Err(format!("metrics.jsonl holds a torn row: {line}")),
            _ => {}
        }
    }
    Ok(rows)
}

/// Their steps and losses.
pub fn losses(run: &Path) -> Result<Vec<(u64, f64)>, String> {
    let pair = |row: &Value| (row["step"].as_u64().unwrap(), row["loss"].as_f64().unwrap());
    Ok(rows(run)?.iter().map(pair).collect())
}
