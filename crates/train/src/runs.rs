//! The runs in folders, and what is known of each while it trains.
//!
//! [`Runs`] gives each run a name and answers by names alone: what somebody asks for never becomes a path.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::Value;

use crate::log::LogError;
use crate::log::tail::{Mark, Piece, tail};
use crate::recognise::recognise;
use crate::run_folder::{METRICS, RunFolder, SETTINGS};
use crate::what::What;
use flashlm_model::io::read_limited;

/// How deep runs are looked for: in the folder itself, in its folders, and in theirs.
const DEPTH: usize = 2;
/// How long a list of runs is good.
const FRESH: Duration = Duration::from_secs(1);
/// Longest settings that are read.
const MAX_SETTINGS: u64 = 1 << 20;

/// The runs at a folder, or below it. Folders that cannot be read have none.
pub fn find(folder: &Path) -> Vec<PathBuf> {
    let mut runs = Vec::new();
    look(folder, DEPTH, &mut runs);
    runs
}

fn look(folder: &Path, depth: usize, runs: &mut Vec<PathBuf>) {
    if RunFolder::at(folder).is_marked() && matches!(recognise(folder), What::Run { .. }) {
        runs.push(folder.to_path_buf());
        return;
    }
    let Ok(entries) = folder.read_dir() else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| depth > 0 && path.is_dir()) {
        // `./a` as `a`.
        look(path.strip_prefix(".").unwrap_or(&path), depth - 1, runs);
    }
}

/// What is known of a run besides its log.
#[derive(Debug, Serialize)]
pub struct About {
    /// What it is called here.
    pub name: String,
    /// The name in its settings, that of a preset for one.
    pub preset: Option<String>,
    /// `finished` or `early stop`; none while it trains, or where it was stopped.
    pub outcome: Option<String>,
    /// Seconds since its log was last written to.
    pub quiet: Option<f64>,
    /// Bits per byte that no model can go below, where the text has a known bound.
    pub entropy_bound: Option<f64>,
    /// Bits per byte of the best checkpoint on the whole validation text, once it is finished.
    pub bpb: Option<f64>,
    /// What ends it: steps, else passes over the text; and minutes. 0 where that is no limit.
    pub steps: u64,
    /// Passes over the text; not where steps or minutes are set, which come first.
    pub epochs: f64,
    /// Minutes.
    pub minutes: f64,
}

impl About {
    fn of(name: String, folder: &RunFolder) -> About {
        // Any of these files may be half there: what cannot be read is not known.
        let (about, result) = (folder.about().unwrap_or_default(), folder.result().unwrap_or_default());
        let text = |value: &Value| value.as_str().map(String::from);
        let settings = read_limited(&folder.file(SETTINGS), MAX_SETTINGS).ok().and_then(|b| String::from_utf8(b).ok());
        let settings = settings.and_then(|text| text.parse::<toml::Table>().ok()).unwrap_or_default();
        let train = |key: &str| {
            let value = settings.get("train").and_then(|train| train.get(key));
            value.and_then(|v| v.as_float().or(v.as_integer().map(|n| n as f64))).filter(|&v| v > 0.0).unwrap_or(0.0)
        };
        let (steps, minutes) = (train("steps"), train("minutes"));
        let changed = folder.file(METRICS).metadata().and_then(|about| about.modified()).ok();
        About {
            name,
            preset: text(&about["name"]),
            outcome: text(&result["outcome"]),
            quiet: changed.map(|at| SystemTime::now().duration_since(at).unwrap_or_default().as_secs_f64()),
            entropy_bound: about["entropy_bound"].as_f64(),
            bpb: result["best"]["full"]["bpb"].as_f64(),
            steps: steps as u64,
            epochs: if steps > 0.0 || minutes > 0.0 { 0.0 } else { train("epochs") },
            minutes,
        }
    }
}

/// Runs that are watched, each by its name. Those that begin later in the same folders join them.
pub struct Runs {
    given: Vec<PathBuf>,
    found: Mutex<(Instant, Vec<(String, PathBuf)>)>,
}

impl Runs {
    /// The runs at these folders, or below them.
    pub fn new(given: Vec<PathBuf>) -> Runs {
        let found = Mutex::new((Instant::now(), named(&given)));
        Runs { given, found }
    }

    /// All of them, as they are now.
    pub fn list(&self) -> Vec<About> {
        self.found().into_iter().map(|(name, path)| About::of(name, &RunFolder::at(&path))).collect()
    }

    /// Rows of the log of one; none where none has this name.
    pub fn rows(&self, name: &str, after: Mark) -> Option<Result<Piece, LogError>> {
        let path = self.found().into_iter().find(|run| run.0 == name)?.1;
        Some(tail(&path.join(METRICS), after))
    }

    fn found(&self) -> Vec<(String, PathBuf)> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.0.elapsed() > FRESH {
            *found = (Instant::now(), named(&self.given));
        }
        found.1.clone()
    }
}

/// Every run with a name of its own: that of its folder, below a folder of runs the way to it.
fn named(given: &[PathBuf]) -> Vec<(String, PathBuf)> {
    let mut all: Vec<(String, PathBuf)> = Vec::new();
    for folder in given {
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        let mut runs = find(&whole);
        runs.sort();
        for path in runs {
            let below = path.strip_prefix(&whole).ok().filter(|below| *below != Path::new(""));
            let own = below.or(path.file_name().map(Path::new)).unwrap_or(&path);
            let own = own.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
            if all.iter().any(|run| run.1 == path) {
                continue;
            }
            let names = (1..).map(|n| if n == 1 { own.clone() } else { format!("{own} ({n})") });
            let name = names.into_iter().find(|name| all.iter().all(|run| run.0 != *name));
            all.extend(name.map(|name| (name, path)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn run(folder: &Path, about: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("run.json"), about).unwrap();
        fs::write(folder.join(METRICS), "{\"kind\":\"sample\",\"step\":1,\"prompt\":\"\",\"text\":\"a\"}\n{\"kind\"")
            .unwrap();
    }

    #[test]
    fn runs_have_names_of_their_own_and_names_are_no_paths() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for name in ["x/a", "x/deep/a", "y/a"] {
            run(&at(name), "{\"name\":\"tiny\",\"entropy_bound\":0.25}");
        }
        fs::create_dir(at("x/not")).unwrap();
        let runs = Runs::new(vec![at("x"), at("y/a"), at("x/a")]);
        let names: Vec<String> = runs.list().into_iter().map(|about| about.name).collect();
        assert_eq!(names, ["a", "deep/a", "a (2)"]);
        let rows = |name: &str| runs.rows(name, Mark::start()).map(|piece| piece.unwrap().rows.len());
        assert_eq!([rows("deep/a"), rows("a (2)")], [Some(1), Some(1)]);
        let whole = at("x/a").display().to_string();
        for name in ["", "x", "not", "../x/a", "./a", "a/", whole.as_str(), "a/../a"] {
            assert_eq!(rows(name), None, "{name}");
        }
        run(&at("x/new"), "{\"name\":\"tiny\",\"entropy_bound\":null}");
        runs.found.lock().unwrap().0 -= 2 * FRESH;
        assert_eq!(rows("new"), Some(1), "a run that began later");
    }

    #[test]
    fn what_is_known_of_a_run_is_told_and_what_is_damaged_is_not_known() {
        let place = tempfile::tempdir().unwrap();
        run(place.path(), "{\"name\":\"tiny\",\"entropy_bound\":0.25}");
        fs::write(place.path().join(SETTINGS), "[train]\nsteps = 400\nepochs = 3.0\nminutes = 0.5\n").unwrap();
        let runs = Runs::new(vec![place.path().into()]);
        let about = runs.list().remove(0);
        assert_eq!((about.steps, about.epochs, about.minutes, about.outcome), (400, 0.0, 0.5, None));
        assert_eq!((about.preset.as_deref(), about.entropy_bound), (Some("tiny"), Some(0.25)));
        assert!(about.quiet.unwrap() < 60.0);
        fs::write(place.path().join("result.json"), "{\"outcome\":\"finished\",\"best\":{\"full\":{\"bpb\":0.5}}}")
            .unwrap();
        fs::write(place.path().join(SETTINGS), "[train\n").unwrap();
        let about = runs.list().remove(0);
        assert_eq!((about.outcome.as_deref(), about.bpb, about.steps), (Some("finished"), Some(0.5), 0));
    }
}
