//! The runs of a sweep, one after the other; what is done is not done again.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use flashlm_model::Precision;
use flashlm_model::io::read_limited;
use flashlm_model::params::Layout;

use super::SweepError;
use super::row::{Row, Summary, summaries, table};
use super::spec::{Arm, Length, Spec};
use crate::atomic::write_file;
use crate::config::Settings;
use crate::data::DataError;
use crate::data::source::Source;
use crate::log::dots::{Group, draw};
use crate::run::{Hardware, Origin, Place, Request, Resume};
use crate::run_folder::{RunFolder, SETTINGS};
use crate::trainer::{Event, Outcome, Tell, TrainError, continued};

/// A line of JSON for each run that came to an end.
pub const RESULTS: &str = "results.jsonl";
/// The table of the arms.
pub const TABLE: &str = "table.md";
/// The picture of the arms.
pub const FIGURE: &str = "sweep.svg";
/// Longest file of either kind that is read.
const MAX: u64 = 16 << 20;

/// A sweep in its folder.
pub struct Sweep {
    spec: Spec,
    dir: PathBuf,
    turns: Vec<Turn>,
    rows: Vec<Row>,
}

/// One run of a sweep.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Name of its folder.
    pub run: String,
    /// Its place among all runs, from 1.
    pub number: usize,
    /// Number of all runs.
    pub of: usize,
    /// Seconds that it and all later ones take, where that is known.
    pub left: Option<f64>,
    arm: usize,
    seed: u64,
    /// As they are asked for; what is 0 or empty is chosen when the run begins.
    settings: Settings,
}

/// How a turn ended.
enum Done {
    Stopped,
    Diverged(Row),
    Ended,
}

impl Sweep {
    /// Resolves the settings of every run and looks at what is there of it. Nothing is written.
    pub fn plan(spec: Spec, dir: &Path, hardware: &Hardware) -> Result<Sweep, SweepError> {
        let of = spec.seeds.len() * spec.arms.len();
        let mut sweep = Sweep { dir: dir.to_path_buf(), turns: Vec::new(), rows: Vec::new(), spec };
        let before = sweep.read_rows()?;
        for &seed in &sweep.spec.seeds {
            for (i, arm) in sweep.spec.arms.iter().enumerate() {
                let settings = asked(&sweep.spec, arm, seed, hardware)
                    .map_err(|source| SweepError::Arm { arm: arm.name.clone(), source: source.into() })?;
                let run = format!("{}-s{seed}", arm.file_name());
                let turn = Turn { run, number: sweep.turns.len() + 1, of, left: None, arm: i, seed, settings };
                if let Some(saved) = sweep.saved(&turn)? {
                    let diverged = before.iter().find(|row| row.run == turn.run && row.bpb.is_none());
                    sweep.rows.extend(sweep.result(&turn, &saved)?.or_else(|| diverged.cloned()));
                }
                sweep.turns.push(turn);
            }
        }
        Ok(sweep)
    }

    /// Runs that are to be made, or continued.
    pub fn left(&self) -> usize {
        self.turns.len() - self.rows.len()
    }

    /// What is done.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Of each arm, what is done.
    pub fn summaries(&self) -> Vec<Summary> {
        summaries(self.spec.arms.iter().map(|arm| &*arm.name), &self.rows)
    }

    /// Makes all runs that are left; `false` where `stop` was set on the way. Table, results and picture are written anew after each.
    pub fn run(
        &mut self,
        hardware: &Hardware,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(&Turn, Event),
    ) -> Result<bool, SweepError> {
        for i in 0..self.turns.len() {
            let mut turn = self.turns[i].clone();
            if self.rows.iter().any(|row| row.run == turn.run) {
                continue;
            }
            turn.left = self.seconds_each().map(|each| each * self.left() as f64);
            let row = match self.take(&turn, hardware, stop, &mut |event| tell(&turn, event)) {
                Ok(Done::Stopped) => return Ok(false),
                Ok(Done::Diverged(row)) => Some(row),
                Ok(Done::Ended) => match self.saved(&turn)? {
                    Some(saved) => self.result(&turn, &saved)?,
                    None => None,
                },
                Err(error) => return Err(self.failed(&turn, error)),
            };
            let Some(row) = row else {
                let what = "its result.json was not written".to_string();
                return Err(SweepError::Spec { path: self.folder(&turn).path().to_path_buf(), what });
            };
            tell(&turn, Event::Note(&row.told()));
            self.rows.push(row);
            self.write()?;
        }
        self.write()?;
        Ok(true)
    }

    fn arm(&self, turn: &Turn) -> &Arm {
        &self.spec.arms[turn.arm]
    }

    fn failed(&self, turn: &Turn, source: TrainError) -> SweepError {
        SweepError::Arm { arm: self.arm(turn).name.clone(), source: source.into() }
    }

    fn folder(&self, turn: &Turn) -> RunFolder {
        RunFolder::at(&self.dir.join(&turn.run))
    }

    /// Seconds that a run takes.
    fn seconds_each(&self) -> Option<f64> {
        match self.spec.length() {
            Length::Minutes(minutes) => Some(60.0 * minutes),
            _ if self.rows.is_empty() => None,
            _ => Some(self.rows.iter().map(|row| row.seconds).sum::<f64>() / self.rows.len() as f64),
        }
    }

    /// Makes or continues one run.
    fn take(&self, turn: &Turn, hardware: &Hardware, stop: &AtomicBool, tell: Tell) -> Result<Done, TrainError> {
        let folder = self.folder(turn);
        let mut request = Request::new(turn.settings.clone());
        if folder.is_marked() && folder.latest()?.is_some() {
            let resume = Resume::open(folder.path())?;
            request.settings = continued(&resume.from)?;
            request.origin = Origin::Resumed(resume);
        }
        let resolved = request.resolve(hardware, tell)?;
        let claim = Place::choose(&resolved, Some(folder.path()), None)?.claim(None)?;
        let cx = resolved.exec();
        let prepared = match resolved.prepare(stop, tell) {
            Err(TrainError::Data(DataError::Stopped)) => return Ok(Done::Stopped),
            prepared => prepared?,
        };
        let mut trainer = prepared.trainer(&cx, claim)?;
        match trainer.run(stop, tell) {
            Ok(ended) if ended.outcome == Outcome::Interrupted => Ok(Done::Stopped),
            Ok(_) => Ok(Done::Ended),
            Err(TrainError::NotFinite { .. }) => {
                let (state, parameters) = (trainer.state(), trainer.layout().parameters());
                let figures = (state.tokens, state.elapsed, parameters);
                Ok(Done::Diverged(self.row(turn, "diverged", None, figures, None)))
            }
            Err(error) => Err(error),
        }
    }

    fn row(
        &self,
        turn: &Turn,
        outcome: &str,
        bpb: Option<f64>,
        (tokens, seconds, parameters): (u64, f64, usize),
        consistent: Option<f64>,
    ) -> Row {
        Row {
            run: turn.run.clone(),
            arm: self.arm(turn).name.clone(),
            seed: turn.seed,
            outcome: outcome.to_string(),
            bpb,
            tokens,
            seconds,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            parameters: parameters as u64,
            consistent,
        }
    }

    /// The settings of a run that is there, which must be those that are asked for.
    fn saved(&self, turn: &Turn) -> Result<Option<Settings>, SweepError> {
        let folder = self.folder(turn);
        let file = folder.file(SETTINGS);
        if !folder.is_marked() || !file.exists() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&read_limited(&file, MAX)?).into_owned();
        let saved = Settings::from_toml(&text, &file.display().to_string()).map_err(|e| self.failed(turn, e.into()))?;
        let asked = decided(&turn.settings, &saved);
        match saved.difference(&asked) {
            Some(what) => Err(SweepError::Changed { run: folder.path().to_path_buf(), what }),
            None => Ok(Some(saved)),
        }
    }

    /// What a finished run came to.
    fn result(&self, turn: &Turn, saved: &Settings) -> Result<Option<Row>, SweepError> {
        let result = self.folder(turn).result()?;
        let (Some(outcome), Some(tokens), Some(seconds)) =
            (result["outcome"].as_str(), result["tokens"].as_u64(), result["seconds"].as_f64())
        else {
            return Ok(None);
        };
        let parameters = Layout::of(&saved.model).parameters();
        let (bpb, consistent) = (&result["best"]["full"]["bpb"], &result["consistency"]["consistent"]);
        let figures = (tokens, seconds, parameters);
        Ok(Some(self.row(turn, outcome, bpb.as_f64(), figures, consistent.as_f64())))
    }

    /// The rows of an earlier process.
    fn read_rows(&self) -> Result<Vec<Row>, SweepError> {
        let path = self.dir.join(RESULTS);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = String::from_utf8_lossy(&read_limited(&path, MAX)?).into_owned();
        let row = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| SweepError::Results {
                path: path.clone(),
                line: i + 1,
                what: e.to_string(),
            })
        };
        text.lines().enumerate().map(row).collect()
    }

    /// Results, table and picture of what is done.
    fn write(&self) -> Result<(), SweepError> {
        let line = |row: &Row| serde_json::to_string(row).expect("numbers and texts have a JSON form") + "\n";
        let results: String = self.rows.iter().map(line).collect();
        let groups: Vec<Group> = self
            .spec
            .arms
            .iter()
            .map(|arm| {
                let own = self.rows.iter().filter(|row| row.arm == arm.name);
                Group { name: arm.name.clone(), values: own.filter_map(|row| row.bpb).collect() }
            })
            .collect();
        let title = self.dir.file_name().map_or("Sweep".into(), |name| name.to_string_lossy().into_owned());
        let picture = draw(&title, "Bits per byte of the validation text", &groups);
        for (name, text) in [(RESULTS, results), (TABLE, table(&self.summaries())), (FIGURE, picture)] {
            write_file(&self.dir.join(name), |w| w.write_all(text.as_bytes()))?;
        }
        Ok(())
    }
}

/// The settings of a run, which are refused where no run can have them.
fn asked(spec: &Spec, arm: &Arm, seed: u64, hardware: &Hardware) -> Result<Settings, TrainError> {
    let mut settings = spec.settings(arm, seed)?;
    let resolved = Request::new(settings.clone()).resolve(hardware, &mut |_| ())?;
    let resolved = resolved.settings();
    for text in resolved.texts() {
        Source::parse(&text.source)?;
    }
    if !resolved.data.valid.is_empty() {
        Source::parse(&resolved.data.valid)?;
    }
    if let Length::Tokens(tokens) = spec.length() {
        let longest = resolved.stages().iter().map(|stage| stage.seq_len).max().unwrap_or(resolved.train.seq_len);
        settings.train.steps = tokens.div_ceil((resolved.train.sequences() * longest) as u64);
    }
    Ok(settings)
}

/// The settings asked for, with all that was left to choose as it was chosen.
fn decided(asked: &Settings, saved: &Settings) -> Settings {
    let mut settings = asked.clone();
    (settings.model.vocab_size, settings.model.eos) = (saved.model.vocab_size, saved.model.eos);
    let (t, s) = (&mut settings.train, &saved.train);
    if t.batch == 0 {
        t.batch = s.batch;
    }
    if t.pass_rows == 0 {
        t.pass_rows = s.pass_rows;
    }
    if t.precision == Precision::Auto {
        t.precision = s.precision;
    }
    for text in t.stages.iter_mut().flat_map(|stage| &mut stage.sources) {
        text.source = Source::in_full(&text.source);
    }
    settings.data.source = Source::in_full(&settings.data.source);
    settings.data.valid = match &*settings.data.valid {
        "" => saved.data.valid.clone(),
        valid => Source::in_full(valid),
    };
    settings
}
