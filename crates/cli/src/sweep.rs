//! `flashlm sweep`: settings compared, each trained for as long from several seeds.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use flashlm_kernels::Isa;
use flashlm_kernels::cpu::Machine;
use flashlm_train::run::Hardware;
use flashlm_train::sweep::{FIGURE, RESULTS, Spec, Sweep, TABLE, table};
use flashlm_train::trainer::Event;
use flashlm_train::units::{counted, duration};
use flashlm_train::what::quoted;
use serde_json::json;

use crate::common::{Status, out, say, threads};
use crate::signals::{INTERRUPTED, Stop};

/// Compare settings: train each for the same time, steps or tokens, from several seeds
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm sweep x0.toml --save-dir sweeps/x0\n\nx0.toml:\n  preset = \"flash-small\"\n  data = \"train.txt\"\n  valid = \"valid.txt\"\n  minutes = 10                  # or steps = N, or tokens = N\n  seeds = [1, 2, 3]\n  set = [\"train.optimizer=muon\"] # of all runs\n  [[arms]]\n  name = \"base\"\n  [[arms]]\n  name = \"no x0\"\n  set = [\"model.x0=false\"]\n\nThe same command continues a sweep that was interrupted; finished runs are not repeated."
)]
pub struct Args {
    /// TOML file: what all runs share, and the arms that are compared (docs/formats.md)
    file: PathBuf,
    /// Folder of the sweep: a run folder for each arm and seed, table.md, results.jsonl and sweep.svg
    #[arg(long, value_name = "PATH")]
    save_dir: PathBuf,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let spec = Spec::read(&args.file)?;
    let isa = Isa::detect().map_err(anyhow::Error::msg)?;
    let threads = NonZeroUsize::new(threads(None)?).unwrap_or(NonZeroUsize::MIN);
    let hardware = Hardware { machine: Machine::detect(), isa, threads };
    let mut sweep = Sweep::plan(spec, &args.save_dir, &hardware)?;
    say!("{} to make, {} finished before", counted(sweep.left() as u64, "run"), sweep.rows().len());
    let stop = Stop::listen()?;
    stop.training.store(true, SeqCst);
    let (mut status, mut turn, mut began) = (Status::new(), 0, Instant::now());
    let finished = sweep.run(&hardware, &stop.flag, &mut |now, event| {
        if turn != now.number {
            (turn, began) = (now.number, Instant::now());
            status.tell(&Event::Note(&format!("--- run {turn} of {}: {}", now.of, now.run)));
        }
        match event {
            Event::Progress(line) => {
                let left = now.left.map(|left| (left - began.elapsed().as_secs_f64()).max(0.0));
                let left = left.map_or(String::new(), |left| format!(", all in {}", duration(left)));
                status.tell(&Event::Progress(&format!("[{turn}/{} {}{left}] {line}", now.of, now.run)));
            }
            event => status.tell(&event),
        }
    })?;
    status.clear();
    if args.json {
        out!("{}", json!({ "finished": finished, "arms": sweep.summaries(), "runs": sweep.rows() }));
    } else {
        out!("{}", table(&sweep.summaries()).trim_end());
    }
    let dir = &args.save_dir;
    if finished {
        say!("{} ({TABLE}, {RESULTS}, {FIGURE})", dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    let same = format!("flashlm sweep {} --save-dir {}", quoted(&args.file), quoted(dir));
    say!("interrupted; {} left. Continue with: {same}", counted(sweep.left() as u64, "run"));
    Ok(ExitCode::from(INTERRUPTED))
}
