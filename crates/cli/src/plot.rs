//! `flashlm plot`: the curves of one or more runs as one SVG file.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use flashlm_train::atomic::write_file;
use flashlm_train::log::jsonl;
use flashlm_train::log::svg::{Axis, Options, Series, draw};
use flashlm_train::recognise::recognise;
use flashlm_train::run_folder::{METRICS, RunFolder};
use flashlm_train::what::{Unwanted, What};

use crate::common::{may_write, out, own, say};

/// Plot the loss and validation curves of one or more runs as SVG
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  flashlm plot\n  flashlm plot runs/a runs/b --axis time -o curves.svg")]
pub struct Args {
    /// Run folders, or metrics.jsonl files [default: checkpoints]
    #[arg(value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// File to write
    #[arg(short, long, default_value = "curve.svg")]
    output: PathBuf,
    /// Overwrite an existing file
    #[arg(short, long)]
    force: bool,
    /// Horizontal axis
    #[arg(long, value_enum, default_value_t = By::Tokens)]
    axis: By,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum By {
    /// Tokens trained on
    Tokens,
    /// Training time
    Time,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    may_write(&args.output, "-o", args.force)?;
    let named = if args.runs.is_empty() { vec![own()?] } else { args.runs };
    let runs: Vec<Run> = named.iter().map(|path| Run::read(path)).collect::<anyhow::Result<_>>()?;
    let bounds: Vec<Option<f64>> = runs.iter().map(|run| run.entropy_bound).collect();
    let same = bounds.iter().all(|bound| *bound == bounds[0]);
    if !same {
        say!("note: the runs have different entropy bounds, so none is drawn");
    }
    let title = match &runs[..] {
        [run] => run.title.clone(),
        runs => format!("{} runs", runs.len()),
    };
    let axis = match args.axis {
        By::Tokens => Axis::Tokens,
        By::Time => Axis::Elapsed,
    };
    let options = Options { title, axis, entropy_bound: bounds[0].filter(|_| same) };
    let series: Vec<Series> = runs.into_iter().map(|run| run.series).collect();
    let picture = draw(&series, &options);
    write_file(&args.output, |w| w.write_all(picture.as_bytes()))?;
    out!("{}", args.output.display());
    Ok(ExitCode::SUCCESS)
}

struct Run {
    title: String,
    series: Series,
    entropy_bound: Option<f64>,
}

impl Run {
    fn read(path: &Path) -> anyhow::Result<Run> {
        let file = match recognise(path) {
            What::Run { folder, .. } => folder.join(METRICS),
            What::Log | What::Empty => path.to_path_buf(),
            found => bail!(Unwanted::new(path, "a run, or the metrics.jsonl of one", found)),
        };
        let rows = if file.exists() { jsonl::read(&file)? } else { Vec::new() };
        if rows.is_empty() {
            bail!("{}: there is nothing to draw yet", file.display());
        }
        // A link or `.` has no name.
        let whole = file.canonicalize().with_context(|| format!("{}: cannot be read", file.display()))?;
        let folder = whole.parent().unwrap_or(&whole);
        let own = if path.is_dir() || path.ends_with(METRICS) { folder.file_name() } else { whole.file_stem() };
        let name = own.unwrap_or_default().to_string_lossy().into_owned();
        // What lies beside a log may be anything's.
        let about = RunFolder::at(folder).about().unwrap_or_default();
        let title = about["name"].as_str().map_or(name.clone(), |run| format!("{run} ({name})"));
        Ok(Run { title, series: Series::new(name, rows), entropy_bound: about["entropy_bound"].as_f64() })
    }
}
