//! `flashlm runs`: the runs in a folder, a line each.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use flashlm_train::log::{Row, jsonl};
use flashlm_train::run_folder::{METRICS, RESULT, RunFolder};
use flashlm_train::runs::find;
use flashlm_train::units::{count, date, thousands};
use serde_json::{Value, json};

use crate::common::out;
use crate::terminal::{fitted, stdout_width};

/// List the runs in a folder and in its folders: preset, bits per byte, tokens, date
///
/// Bits per byte are those of the best checkpoint on the whole validation text; where the run is not finished (marked by ~), of the
/// part that is scored while training. Only runs on the same text can be compared.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  flashlm runs\n  flashlm runs experiments --json")]
pub struct Args {
    /// Folder to look in
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// What a line says.
struct Run {
    path: PathBuf,
    name: String,
    finished: bool,
    step: u64,
    tokens: u64,
    bpb: Option<f64>,
    /// Seconds since 1970 at which it was last written to.
    changed: u64,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !args.folder.is_dir() {
        bail!("{}: no such folder; name one that holds runs", args.folder.display());
    }
    let mut runs = find(&args.folder).iter().map(|path| Run::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    runs.sort_by(|a, b| (b.changed, &a.path).cmp(&(a.changed, &b.path)));
    if args.json {
        let runs: Vec<Value> = runs.iter().map(Run::json).collect();
        out!("{:#}", json!(runs));
    } else if runs.is_empty() {
        out!("no runs in {}", args.folder.display());
    } else {
        table(&runs).iter().for_each(|line| out!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

impl Run {
    fn read(path: &Path) -> anyhow::Result<Run> {
        let folder = RunFolder::at(path);
        let (about, result) = (folder.about()?, folder.result()?);
        let log = folder.file(METRICS);
        // A log that is being written, or damaged, is no reason to list nothing.
        let rows = jsonl::read(&log).unwrap_or_default();
        let (mut step, mut tokens, mut bpb) = (0, 0, None);
        for row in &rows {
            match row {
                Row::Train(row) => (step, tokens) = (row.step, row.tokens),
                Row::Eval(row) if row.step > 0 && bpb.is_none_or(|best| row.bpb < best) => bpb = Some(row.bpb),
                _ => {}
            }
        }
        let finished = result["steps"].as_u64().is_some_and(|steps| steps >= step);
        if finished {
            step = result["steps"].as_u64().unwrap_or(step);
            tokens = result["tokens"].as_u64().unwrap_or(tokens);
            bpb = result["best"]["full"]["bpb"].as_f64();
        }
        let times =
            [log, folder.file(RESULT), path.to_path_buf()].map(|file| file.metadata().and_then(|m| m.modified()));
        let changed = times.into_iter().flatten().next().unwrap_or(SystemTime::UNIX_EPOCH);
        let changed = changed.duration_since(UNIX_EPOCH).context("a file from before 1970")?.as_secs();
        let name = about["name"].as_str().unwrap_or("?").to_string();
        Ok(Run { path: path.to_path_buf(), name, finished, step, tokens, bpb, changed })
    }

    fn json(&self) -> Value {
        json!({
            "run": self.path.display().to_string(),
            "name": self.name,
            "finished": self.finished,
            "steps": self.step,
            "tokens": self.tokens,
            "bpb": self.bpb,
            "changed": self.changed,
        })
    }

    /// Its cells; the first ones are left where there is little room.
    fn cells(&self) -> [String; 6] {
        let mark = if self.finished { "" } else { "~" };
        [
            self.path.display().to_string(),
            self.bpb.map_or("-".into(), |bpb| format!("{mark}{bpb:.4}")),
            self.name.clone(),
            count(self.tokens),
            date(self.changed),
            thousands(self.step),
        ]
    }
}

/// Aligned lines with a head, as wide as the terminal.
fn table(runs: &[Run]) -> Vec<String> {
    let head = ["run", "bpb", "preset", "tokens", "date (UTC)", "steps"].map(String::from);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(runs.iter().map(Run::cells)).collect();
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i {
            // Numbers end, and words begin, at the same column; no-break spaces keep a cell in one field.
            1 | 3 | 5 => format!("{cell:\u{a0}>width$}"),
            _ => format!("{cell:\u{a0}<width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let line = stdout_width().map_or(line.clone(), |width| fitted(&line, width));
        line.replace('\u{a0}', " ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}
