use super::names::*;
use super::*;
use crate::atomic::tests::{Tmpfs, names};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::MANIFEST;
use crate::checkpoint::tests::{folder, save_value, value};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn run() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn claim(run: &Path) -> Claim {
    Claim::resume(RunFolder::at(run)).unwrap()
}

fn steps(run: &Path) -> Vec<u64> {
    RunFolder::at(run).list().unwrap().into_iter().map(|listed| listed.step).collect()
}

#[test]
fn every_state_a_kill_can_leave_is_recovered() {
    let run = run();
    let folder = folder(run.path());
    let (path, old) = (folder.join("step-00000001"), folder.join("step-00000001.old"));
    // Killed between moving the old one away and naming the new one.
    save_value(run.path(), 1, 1, 3).unwrap();
    fs::rename(&path, &old).unwrap();
    fs::create_dir(folder.join(".tmp-4294967295-1-0")).unwrap();
    let Latest { checkpoint: found, skipped } = RunFolder::at(run.path()).latest().unwrap().unwrap();
    assert_eq!((found.path(), value(&found), skipped.len()), (&*old, 1, 0));
    save_value(run.path(), 1, 2, 3).unwrap();
    assert_eq!(value(&RunFolder::at(run.path()).latest().unwrap().unwrap().checkpoint), 2);
    assert!(!old.exists());
    // Killed before removing the old one: the new one counts, and saving and pruning both go on.
    for again in [true, false] {
        fs::rename(&path, &old).unwrap();
        save_value(run.path(), 2, 3, 3).unwrap();
        fs::rename(folder.join("step-00000002"), &path).unwrap();
        let manifest = fs::read_to_string(path.join(MANIFEST)).unwrap();
        let manifest = manifest.replace("\"step\":2", "\"step\":1");
        fs::write(path.join(MANIFEST), manifest).unwrap();
        assert_eq!(value(&RunFolder::at(run.path()).latest().unwrap().unwrap().checkpoint), 3);
        if again {
            save_value(run.path(), 1, 4, 3).unwrap();
        } else {
            assert_eq!(claim(run.path()).prune(1, &[]).unwrap(), [0u64; 0]);
        }
        assert!(path.exists() && !old.exists());
    }
    drop(claim(run.path()));
    assert_eq!(names(&folder), ["step-00000001"]);
}

const KILL: &str = "FLASHLM_TEST_KILL";

/// Starts this very test again as a process that saves without end, kills it at some moment, and looks at
/// what is left.
#[test]
fn a_killed_trainer_never_loses_a_checkpoint() {
    if let Some(run) = std::env::var_os(KILL) {
        let _claim = claim(Path::new(&run));
        for value in (2..=200).cycle() {
            save_value(Path::new(&run), 7, value, 100_000).unwrap();
        }
    }
    let run = run();
    let path = save_value(run.path(), 7, 1, 100).unwrap();
    let module = module_path!().split_once("::").unwrap().1;
    let name = format!("{module}::a_killed_trainer_never_loses_a_checkpoint");
    let mut values = std::collections::BTreeSet::new();
    for round in 0..12u8 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([&name, "--exact"]).env(KILL, run.path()).stdout(Stdio::null());
        let mut child = child.stderr(Stdio::null()).spawn().unwrap();
        let pid = format!("{}\n", child.id());
        // A little later in its work each time, whatever the machine is doing besides.
        let at_work = (0..15_000).any(|_| {
            std::thread::sleep(Duration::from_millis(2));
            let ours = fs::read_to_string(run.path().join("run.lock")).is_ok_and(|text| text == pid);
            let saved = || Checkpoint::open(&path).ok()?.bytes("state.bin").ok()?.first().copied();
            ours && saved().is_some_and(|value| (2 + round..=200).contains(&value) && !values.contains(&value))
        });
        assert!(at_work, "the process saves nothing");
        child.kill().unwrap();
        child.wait().unwrap();
        let Latest { checkpoint: found, skipped } = RunFolder::at(run.path()).latest().unwrap().unwrap();
        assert_eq!((found.step(), skipped.len()), (7, 0));
        values.insert(value(&found));
    }
    assert!(values.len() > 6, "what was saved is not what is there: {values:?}");
    claim(run.path()).prune(1, &[]).unwrap();
    let left = names(&folder(run.path()));
    let superseded = left == ["step-00000007.old"];
    assert!(superseded || left == ["step-00000007"], "{left:?}");
}

#[test]
fn an_unwritable_run_is_said() {
    let Some(disk) = Tmpfs::mount("ro") else {
        return;
    };
    let text = save_value(disk.path(), 1, 1, 1).unwrap_err().to_string();
    assert!(text.contains("cannot write to its folder (Read-only"), "{text}");
    let text = Claim::new(disk.path(), None).unwrap_err().to_string();
    assert!(text.contains("run.lock: cannot write to its folder"), "{text}");
}

#[test]
fn prune_keeps_the_newest_the_protected_and_the_best() {
    let run = run();
    for step in 1..=8 {
        save_value(run.path(), step, 1, 1).unwrap();
    }
    let (mut claim, there) = (claim(run.path()), RunFolder::at(run.path()));
    assert!(there.best().unwrap().is_none());
    claim.mark_best(Some(4)).unwrap();
    claim.mark_best(Some(3)).unwrap();
    let path = folder(run.path()).join("step-00000003");
    assert_eq!(there.best().unwrap(), Some(Listed { step: 3, path }));
    assert_eq!(claim.prune(2, &[5, 99]).unwrap(), [6, 4, 2, 1]);
    assert_eq!(steps(run.path()), [3, 5, 7, 8]);
    assert_eq!(claim.prune(0, &[]).unwrap(), [7, 5]);
    assert_eq!(steps(run.path()), [3, 8]);
    assert_eq!(names(&folder(run.path())).len(), 2);
    // A mark of what is gone marks nothing; what cannot be read may be one of anything, and nothing is removed.
    fs::write(run.path().join("best"), b"{\"version\":1,\"step\":4}").unwrap();
    assert_eq!(there.best().unwrap(), None);
    fs::write(run.path().join("best"), b"{\"step\"").unwrap();
    let text = claim.prune(1, &[]).unwrap_err().to_string();
    assert!(text.contains("best: expected {\"version\":1,\"step\":..}"), "{text}");
    assert_eq!(steps(run.path()), [3, 8]);
    claim.mark_best(None).unwrap();
    assert_eq!(claim.prune(1, &[]).unwrap(), [3]);
}

#[test]
fn one_trainer_at_a_time() {
    let run = run();
    let path = run.path().join("new/run");
    let mut first = Claim::new(&path, None).unwrap();
    first.mark("a", None).unwrap();
    let error = Claim::new(&path, None).unwrap_err();
    let RunError::Locked { pid, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(pid, Some(std::process::id()));
    drop(first);
    // A stale number longer than ours must not show through.
    fs::write(path.join("run.lock"), b"99999999999999").unwrap();
    let _claim = Claim::new(&path, None).unwrap();
    let text = fs::read_to_string(path.join("run.lock")).unwrap();
    assert_eq!(text, format!("{}\n", std::process::id()));
}

#[test]
fn the_newest_good_one_is_found_and_the_others_are_told() {
    let run = run();
    let there = RunFolder::at(run.path());
    assert!(there.latest().unwrap().is_none() && there.chosen().unwrap().is_none());
    for step in 1..=3 {
        save_value(run.path(), step, 1, 1).unwrap();
    }
    fs::write(folder(run.path()).join("step-00000003/state.bin"), b"").unwrap();
    let Latest { checkpoint: found, skipped } = there.latest().unwrap().unwrap();
    assert_eq!((found.step(), skipped.len()), (2, 1));
    let mut claim = claim(run.path());
    claim.mark_best(Some(1)).unwrap();
    assert_eq!(there.chosen().unwrap().unwrap().step(), 1);
    // A best that is damaged gives way to the newest good one.
    claim.mark_best(Some(3)).unwrap();
    assert_eq!(there.chosen().unwrap().unwrap().step(), 2);
    for step in 1..=2 {
        fs::write(folder(run.path()).join(format!("step-0000000{step}/checkpoint.json")), b"").unwrap();
    }
    let error = there.latest().unwrap_err();
    assert!(matches!(error, RunError::NoneGood { count: 3, .. }), "{error}");
}

#[test]
fn a_step_back_leaves_one_timeline_and_removes_nothing() {
    let run = run();
    for step in [100, 200, 300] {
        save_value(run.path(), step, (step / 100) as u8, 1).unwrap();
    }
    let (mut claim, there) = (claim(run.path()), RunFolder::at(run.path()));
    let moved = claim.abandon_after(100).unwrap();
    let named = |name: &str| folder(run.path()).join(name);
    assert_eq!(moved, [named("step-00000300.abandoned"), named("step-00000200.abandoned")]);
    assert_eq!(steps(run.path()), [100]);
    // The new line is older than what was left; it is pruned among itself.
    save_value(run.path(), 150, 9, 1).unwrap();
    save_value(run.path(), 200, 9, 1).unwrap();
    assert_eq!(claim.prune(1, &[200]).unwrap(), [150, 100]);
    assert_eq!(claim.abandon_after(150).unwrap(), [named("step-00000200.abandoned-2")]);
    assert_eq!(steps(run.path()), [0u64; 0]);
    let aside = there.abandoned().unwrap();
    let values = aside.iter().map(|Listed { step, path }| (*step, value(&Checkpoint::open(path).unwrap())));
    assert_eq!(values.collect::<Vec<_>>(), [(200, 2), (200, 9), (300, 3)]);
    let error = Claim::new(run.path(), None).unwrap_err();
    assert!(matches!(error, RunError::Locked { .. } | RunError::Exists { .. }), "{error}");
}

#[test]
fn a_checkpoint_belongs_to_a_run_only_within_it() {
    let run = run();
    let path = save_value(run.path(), 5, 1, 1).unwrap();
    assert!(matches!(RunFolder::of(&path), Err(RunError::Outside { .. })), "nothing says that this is a run");
    claim(run.path()).mark("a", None).unwrap();
    assert!(RunFolder::of(&path).unwrap().is(run.path()));
    let copied = run.path().join("backup/step-00000005");
    fs::create_dir(run.path().join("backup")).unwrap();
    fs::rename(&path, &copied).unwrap();
    assert!(matches!(RunFolder::of(&copied), Err(RunError::Outside { .. })));
    let aside = path.with_extension("abandoned");
    fs::rename(&copied, &aside).unwrap();
    assert!(matches!(RunFolder::of(&aside), Err(RunError::SetAside { .. })));
}

#[test]
fn nothing_of_the_users_is_taken_for_a_run() {
    let place = run();
    let at = |name: &str| place.path().join(name);
    // New, empty, or with nothing but the settings it is started with.
    assert!(RunFolder::at(&at("new")).check_new(None).is_ok());
    fs::create_dir(at("project")).unwrap();
    assert!(RunFolder::at(&at("project")).check_new(None).is_ok());
    let config = at("project/config.toml");
    fs::write(&config, b"").unwrap();
    assert!(RunFolder::at(&at("project")).check_new(Some(&config)).is_ok());
    let text = RunFolder::at(&at("project")).check_new(None).unwrap_err().to_string();
    assert!(text.contains("the folder holds config.toml") && text.contains("--save-dir"), "{text}");
    fs::write(at("project/README.md"), b"# mine").unwrap();
    assert!(matches!(Claim::new(&at("project"), Some(&config)), Err(RunError::Occupied { .. })));
    assert_eq!(names(&at("project")), ["README.md", "config.toml"]);
    fs::create_dir(at("own")).unwrap();
    let config = at("own").join(SETTINGS);
    fs::write(&config, b"").unwrap();
    assert!(matches!(RunFolder::at(&at("own")).check_new(Some(&config)), Err(RunError::Config { .. })));
    for path in [&config, &config.join("run")] {
        assert!(matches!(RunFolder::at(path).check_new(None), Err(RunError::NotAFolder { .. })));
    }
    // Checkpoints alone may be resumed where nothing is in the way.
    save_value(&at("copy"), 5, 1, 1).unwrap();
    assert!(RunFolder::at(&at("copy")).check_resume().is_ok());
    fs::write(at("copy").join(METRICS), b"mine").unwrap();
    assert!(matches!(RunFolder::at(&at("copy")).check_resume(), Err(RunError::Occupied { .. })));
}

#[test]
fn a_folder_made_for_nothing_goes_again() {
    let place = run();
    let path = place.path().join("a/run");
    drop(Claim::new(&path, None).unwrap());
    assert!(!path.exists());
    let mut claim = Claim::new(&path, None).unwrap();
    claim.mark("a", None).unwrap();
    drop(claim);
    assert_eq!(names(&path), ["run.json", "run.lock"]);
}
