//! `flashlm train`: settings from preset, file and flags; text to tokens; then the trainer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use anyhow::{Context, bail};
use flashlm_kernels::cpu::Machine;
use flashlm_kernels::{Exec, Isa};
use flashlm_model::{ModelConfig, Precision};
use flashlm_train::checkpoint::{self, Checkpoint};
use flashlm_train::config::{Layers, Settings, preset, preset_names};
use flashlm_train::data::DataError;
use flashlm_train::eval::bpb::Report;
use flashlm_train::log::console;
use flashlm_train::trainer::{Event, Inputs, Outcome, TrainError, Trainer};
use toml::Value;

use crate::common::{Status, out, precision, say, set_all, threads};
use crate::plan;
use crate::prepared::Prepared;

/// Train a model.
#[derive(clap::Args)]
pub struct Args {
    /// What to train: flash-tiny, flash-small, flash-large, v4-small, v4-large, v4-blockwise-small, v4-blockwise-large,
    /// gdn-small, gdn-large, hybrid-small, curriculum-small
    #[arg(long, value_name = "NAME", conflicts_with_all = ["small", "large"])]
    preset: Option<String>,
    /// The preset v4-small
    #[arg(long, conflicts_with = "large")]
    small: bool,
    /// The preset v4-large
    #[arg(long)]
    large: bool,
    /// Settings laid over the preset
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, such as train.lr=3e-3; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Text: tinystories (the default), tinystories-v2, simplestories, fineweb-edu, `hf:OWNER/DATASET[:CONFIG[:SPLIT[:COLUMN]]]`,
    /// a file (text, .jsonl or .parquet with `text`), a folder, `synthetic` or `synthetic:N`
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,
    /// Text for validation; without it that of the dataset, if it has one, else one story in a hundred is held out
    #[arg(long, value_name = "SOURCE")]
    valid: Option<String>,
    /// Take datasets only from this machine, as with HF_HUB_OFFLINE=1
    #[arg(long)]
    offline: bool,
    /// frequency, bpe, bytes, or a tokenizer file
    #[arg(long, value_name = "KIND|FILE")]
    tokenizer: Option<String>,
    /// Tokens in the vocabulary
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Length of the run in minutes; the learning rate follows the clock
    #[arg(long, allow_negative_numbers = true, value_name = "M")]
    minutes: Option<f64>,
    /// Length of the run in hours
    #[arg(long, allow_negative_numbers = true, value_name = "H", conflicts_with = "minutes")]
    hours: Option<f64>,
    /// Length of the run in updates
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Passes over the text, where no other length is given
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    epochs: Option<f64>,
    /// Sequences in an update
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Peak learning rate
    #[arg(long, allow_negative_numbers = true, value_name = "F")]
    lr: Option<f64>,
    /// Seed of the start and of the order of the text
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// What products are computed in: f32, bf16, or auto for what this machine does fastest
    #[arg(long, value_name = "P", value_parser = precision)]
    precision: Option<Precision>,
    /// Threads; results do not depend on it
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Folder of the run; else that of --resume, else checkpoints/ or, where that holds a run, checkpoints-2/ and so on
    #[arg(long, value_name = "PATH")]
    save_dir: Option<PathBuf>,
    /// Go on with a run or from one of its checkpoints
    #[arg(long, value_name = "PATH")]
    resume: Option<PathBuf>,
    /// Print the plan and train nothing: for each stage its texts, tokens, epochs and updates; time and memory, measured
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: print the plan as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match train(args) {
        Err(error) if matches!(error.downcast_ref(), Some(DataError::Stopped)) => Ok(ExitCode::from(130)),
        result => result,
    }
}

fn train(args: Args) -> anyhow::Result<ExitCode> {
    let machine = Machine::detect();
    let resume = args.resume.as_deref().map(open_resume).transpose()?;
    let mut settings = resolve(&args, resume.as_ref(), &machine)?;
    let isa = Isa::detect().map_err(anyhow::Error::msg)?;
    settings.train.precision = settings.train.precision.resolve(isa);
    let threads = if settings.train.threads > 0 {
        settings.train.threads
    } else {
        let threads = threads(None)?;
        say!("threads {threads}: from FLASHLM_THREADS or the processors; --threads N sets it");
        threads
    };
    let mut status = Status::new();
    let stop = stop_flag()?;
    if args.data.is_some()
        && settings.stages().iter().flat_map(|stage| &stage.sources).all(|s| s.source != settings.data.source)
    {
        bail!("--data is not used: every stage of train.stages names its own sources");
    }
    if args.dry_run {
        return plan::dry_run(settings, resume.as_ref(), isa, threads, &stop, &mut status, args.json);
    }
    let run = match (&args.save_dir, &resume) {
        (Some(dir), _) => dir.clone(),
        (None, Some(from)) => run_of(from.path())?,
        (None, None) => fresh_folder(),
    };
    std::fs::create_dir_all(&run)
        .with_context(|| format!("cannot make the folder {}; --save-dir PATH takes another", run.display()))?;
    let text = Prepared::new(&mut settings, resume.as_ref(), threads, args.offline, &stop, &mut status)?;

    settings.validate()?;
    out!("{}", settings.to_toml().trim_end());
    out!("");
    let cx = Exec::new(isa, threads);
    let Prepared { tokenizer, texts, valid, entropy_bound } = text;
    let train_stories: usize = texts.texts().iter().map(|text| text.cache.stories()).sum();
    let (valid_stories, valid_bytes) = (valid.len(), valid.totals().bytes);
    let inputs = Inputs { settings: settings.clone(), tokenizer, texts, valid, entropy_bound, run: run.clone() };
    let mut trainer = Trainer::new(&cx, inputs, resume.as_ref())?;
    say!(
        "{}: {} parameters, {} stories to train on, {} ({}) to validate, {} in {} on {} threads",
        settings.name,
        console::thousands(trainer.layout().parameters() as u64),
        console::thousands(train_stories as u64),
        console::thousands(valid_stories as u64),
        console::bytes(valid_bytes),
        isa.name(),
        settings.train.precision.name(),
        threads
    );
    if let Some(from) = &resume {
        say!("resumed from step {} of {}", from.step(), run.display());
    }
    if let Some(bound) = entropy_bound {
        say!("entropy bound: {bound:.4} bits per byte: no model can go below it on this validation text");
    }
    let (outcome, report) = trainer.run(&stop, &mut |event| match event {
        Event::Progress(line) => status.show(line),
        Event::Note(line) => status.note(line),
        Event::Sample(sample) => {
            status.clear();
            out!("--- step {}\n{}{}\n", sample.step, sample.prompt, sample.text);
        }
    })?;
    status.clear();
    if let Some(report) = report {
        summary(&report, entropy_bound, trainer.state().tokens, trainer.state().elapsed, &run);
    }
    match outcome {
        Outcome::Finished => Ok(ExitCode::SUCCESS),
        Outcome::EarlyStop => {
            say!("stopped early: {} validations without improvement", settings.train.patience);
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted => {
            let step = trainer.state().step;
            say!("interrupted; step {step} is saved. Go on with: flashlm train --resume {}", run.display());
            Ok(ExitCode::from(130))
        }
    }
}

/// Preset, file, flags, then what is left to the hardware.
fn resolve(args: &Args, resume: Option<&Checkpoint>, machine: &Machine) -> anyhow::Result<Settings> {
    let minutes = args.minutes.or(args.hours.map(|hours| hours * 60.0));
    let named = match (&args.preset, args.small, args.large) {
        (Some(name), ..) => Some(name.as_str()),
        (None, true, _) => Some("v4-small"),
        (None, _, true) => Some("v4-large"),
        _ => None,
    };
    let mut layers = match (resume, named) {
        (Some(from), named) => {
            let text = String::from_utf8(from.bytes("config.toml")?).context("the checkpoint's config.toml")?;
            let saved = Settings::from_toml(&text, "the checkpoint's config.toml")?;
            if let Some(name) = named {
                let mut wanted = saved.clone();
                let ModelConfig { vocab_size, eos, activation_bits, .. } = saved.model;
                wanted.model = ModelConfig { vocab_size, eos, activation_bits, ..preset(name)?.model };
                if let Some(conflict) = saved.conflict(&wanted) {
                    return Err(TrainError::Conflict(conflict).into());
                }
            }
            Layers::of(&saved)
        }
        (None, Some(name)) => Layers::preset(name)?,
        (None, None) if args.config.is_some() => Layers::defaults(),
        (None, None) => {
            let (name, why) = size_for(machine, minutes);
            say!("preset {name}: {why}. Others: {}", preset_names().join(", "));
            Layers::preset(name)?
        }
    };
    if let Some(path) = &args.config {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        layers.merge_text(&text, &path.display().to_string())?;
    }
    set_all(&mut layers, &args.set)?;
    let text = |value: &Option<String>| value.clone().map(Value::String);
    let float = |value: Option<f64>| value.map(Value::Float);
    let whole = |value: Option<u64>| -> anyhow::Result<Option<Value>> {
        value.map(|n| Ok(Value::Integer(i64::try_from(n).context("a number above 9223372036854775807")?))).transpose()
    };
    let flags = [
        ("data.source", text(&args.data)),
        ("data.valid", text(&args.valid)),
        ("tokenizer.kind", text(&args.tokenizer)),
        ("tokenizer.vocab", whole(args.vocab.map(|n| n as u64))?),
        ("train.minutes", float(minutes)),
        ("train.steps", whole(args.steps)?),
        ("train.epochs", float(args.epochs)),
        ("train.batch", whole(args.batch.map(|n| n as u64))?),
        ("train.lr", float(args.lr)),
        ("train.seed", whole(args.seed)?),
        ("train.precision", text(&args.precision.map(|p| p.name().to_string()))),
        ("train.threads", whole(args.threads.map(|n| n as u64))?),
    ];
    for (key, value) in flags {
        if let Some(value) = value {
            layers.set_value(key, value)?;
        }
    }
    if resume.is_none()
        && args.data.is_none()
        && args.config.is_none()
        && !args.set.iter().any(|s| s.starts_with("data."))
    {
        say!("no --data given: training on {}; --data FILE takes a text of yours", Settings::default().data.source);
    }
    let mut settings = layers.settings()?;
    if settings.train.batch == 0 {
        let cores = machine.cores;
        settings.train.batch = if settings.model.dim >= 384 { (2 * cores).clamp(4, 64) } else { cores.clamp(2, 8) };
        say!("batch {}: from {cores} cores; --batch N sets it", settings.train.batch);
    }
    Ok(settings)
}

/// The preset for a machine and a time, and why.
pub(crate) fn size_for(machine: &Machine, minutes: Option<f64>) -> (&'static str, String) {
    let (cores, gib) = (machine.cores, machine.memory >> 30);
    match minutes {
        Some(minutes) if minutes * (cores as f64) < 20.0 => {
            ("flash-tiny", format!("{minutes} minutes on {cores} cores are enough for a small model only"))
        }
        _ if cores >= 8 && gib >= 32 => ("flash-large", format!("{cores} cores and {gib} GiB of memory")),
        _ => ("flash-small", format!("{cores} cores and {gib} GiB of memory; flash-large wants 8 cores and 32 GiB")),
    }
}

/// The checkpoint that `--resume PATH` means: one folder, or the latest good one of a run.
fn open_resume(path: &Path) -> anyhow::Result<Checkpoint> {
    if path.join("checkpoint.json").is_file() {
        return Ok(Checkpoint::open(path)?);
    }
    if !path.is_dir() {
        let what = if path.exists() { "no folder" } else { "not there" };
        bail!("{}: {what}; --resume takes the folder of a run or of one checkpoint", path.display());
    }
    let Some((found, skipped)) = checkpoint::latest_valid(path)? else {
        bail!("{}: no checkpoint in it; --resume takes the folder of a run or of one checkpoint", path.display());
    };
    for why in skipped {
        say!("passed over: {why}");
    }
    Ok(found)
}

/// The first of checkpoints/, checkpoints-2/, ... that holds no run.
fn fresh_folder() -> PathBuf {
    let names = (1..).map(|n| if n == 1 { "checkpoints".into() } else { format!("checkpoints-{n}") });
    let free = |path: &PathBuf| !path.join("checkpoints").exists();
    names.map(PathBuf::from).find(free).unwrap_or_else(|| "checkpoints".into())
}

/// The run that a checkpoint belongs to: `RUN/checkpoints/step-N`.
fn run_of(checkpoint: &Path) -> anyhow::Result<PathBuf> {
    let full = checkpoint.canonicalize().with_context(|| format!("cannot find {}", checkpoint.display()))?;
    match full.parent().and_then(Path::parent) {
        Some(run) => Ok(run.to_path_buf()),
        None => bail!("{}: a checkpoint lies in RUN/checkpoints/", checkpoint.display()),
    }
}

fn summary(report: &Report, bound: Option<f64>, tokens: u64, elapsed: f64, run: &Path) {
    out!("bpb              {:.4}", report.bpb);
    if let Some(bound) = bound {
        out!("entropy bound    {bound:.4}");
    }
    out!("bpb with EOS     {:.4}", report.bpb_with_eos);
    out!("loss per token   {:.4}", report.loss_per_token);
    out!("perplexity       {:.3}", report.perplexity);
    out!("bytes per token  {:.3}", report.bytes_per_token);
    out!("tokens trained   {}", console::thousands(tokens));
    out!("time             {}", console::duration(elapsed));
    out!("run              {} (curve.svg, README.md, metrics.jsonl)", run.display());
    out!("next             flashlm generate {} -p \"Once upon a time\"", run.display());
}

/// Set by the first SIGINT or SIGTERM; the second ends the process at once.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, SeqCst) {
            std::process::exit(130);
        }
        say!("\nfinishing this step and saving; once more to stop at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}
