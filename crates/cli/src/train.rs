//! `flashlm train`: settings from preset, file and flags; text to tokens; then the trainer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, bail, ensure};
use flashlm_kernels::cpu::Machine;
use flashlm_kernels::{Buf, Exec, Isa};
use flashlm_model::io::read_limited;
use flashlm_model::tok::Tokenizer;
use flashlm_model::{ModelConfig, Precision};
use flashlm_train::checkpoint::Checkpoint;
use flashlm_train::config::{DataSettings, Layers, Settings, TrainSettings, preset, preset_names};
use flashlm_train::data::DataError;
use flashlm_train::data::cache::TokenCache;
use flashlm_train::load::{Found, Model, unpacked};
use flashlm_train::run_folder::{CARD, CURVE, Claim, METRICS, RESULT, RunError, RunFolder};
use flashlm_train::stage::{Stage, StageSource};
use flashlm_train::trainer::{self, Ending, Event, Inputs, Outcome, TrainError, Trainer, finished};
use flashlm_train::units;
use flashlm_train::what::{Unwanted, What, quoted};
use toml::Value;

use crate::common::{Status, counted, data_spec, exec, in_full, precision, say, set_all, threads, try_out};
use crate::plan;
use crate::prepared::Prepared;
use crate::signals::{INTERRUPTED, Stop};

/// Longest file of settings.
const MAX_CONFIG: u64 = 1 << 20;

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
    /// Text: a file (text, JSON, CSV, Parquet), a folder, a pattern such as 'notes/*.md', `-` for standard input; tinystories (the
    /// default), tinystories-v2, simplestories, fineweb-edu, `hf:OWNER/DATASET[:CONFIG[:SPLIT[:COLUMN]]]`; `synthetic` or
    /// `synthetic:N`. Several files or folders are one text; SOURCE@WEIGHT for each mixes them by weights
    #[arg(long, value_name = "SOURCE")]
    data: Vec<String>,
    /// Field of JSON or CSV, or column of .parquet, that holds the text [default: text, or that of the dataset]; --set
    /// data.valid_column=NAME where --valid has another
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Text for validation; without it that of the dataset, if it has one, else 1 % of the text is held out, more of a small one
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
    /// Start from the weights and the vocabulary of a model (a run, a checkpoint, a model file, a packed model), with a fresh
    /// optimizer and schedule: fine-tuning
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["resume", "tokenizer", "vocab"])]
    from: Option<PathBuf>,
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
        Err(error) if matches!(error.downcast_ref(), Some(DataError::Stopped)) => Ok(ExitCode::from(INTERRUPTED)),
        Err(error) => match error.downcast_ref() {
            Some(TrainError::Finished(what)) => {
                say!("{what}");
                Ok(ExitCode::SUCCESS)
            }
            _ => Err(error),
        },
        result => result,
    }
}

fn train(args: Args) -> anyhow::Result<ExitCode> {
    let machine = Machine::detect();
    let resume = args.resume.as_deref().map(Resume::open).transpose()?;
    let from = resume.as_ref().map(|resume| &resume.from);
    let start = args.from.as_deref().map(Start::load).transpose()?;
    let mut settings = resolve(&args, from, start.as_ref(), &machine)?;
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
    if !args.data.is_empty()
        && settings.stages().iter().flat_map(|stage| &stage.sources).all(|s| s.source != settings.data.source)
        && !args.data.iter().any(|spec| weighted(spec).is_some())
    {
        bail!("--data is not used: every stage of train.stages names its own sources");
    }
    // What needs no text is refused before any is read, by a plan as by the run.
    trainer::check(&settings, from, threads, machine.memory)?;
    let run = Folder::choose(&args, resume.as_ref())?;
    if let (Folder::Own(folder), Some(from)) = (&run, from)
        && let Some(over) = finished(folder, &settings, from.step())
    {
        return Err(over.into());
    }
    let stop = Stop::listen()?;
    let (tokenizer, weights) = match (from, start) {
        (Some(from), _) => (Some(Tokenizer::from_json(&from.bytes("tokenizer.json")?)?), None),
        (None, Some(start)) => (Some(start.tokenizer), Some(start.params)),
        (None, None) => (None, None),
    };
    if args.dry_run {
        return plan::dry_run(settings, from, tokenizer, isa, threads, &stop.flag, &mut status, args.json);
    }
    let claim = run.claim(args.config.as_deref())?;
    let folder = claim.folder().clone();
    let text = Prepared::new(&mut settings, tokenizer, threads, args.offline, &stop.flag, &mut status)?;

    settings.validate()?;
    let mut product = Product { open: true };
    product.print(format_args!("{}\n", settings.to_toml().trim_end()));
    let cx = Exec::new(isa, threads);
    let Prepared { tokenizer, texts, valid, entropy_bound } = text;
    let count = |of: fn(&TokenCache) -> u64| texts.texts().iter().map(|text| of(&text.cache)).sum::<u64>();
    let (train_stories, doubles) = (count(|cache| cache.stories() as u64), count(TokenCache::doubles));
    let left_out =
        if doubles > 0 { format!(", {} of them left out", units::thousands(doubles)) } else { String::new() };
    let (valid_stories, valid_bytes) = (valid.len(), valid.totals().bytes);
    let inputs = Inputs { settings: settings.clone(), tokenizer, texts, valid, entropy_bound, start: weights, claim };
    let mut trainer = Trainer::new(&cx, inputs, from)?;
    say!(
        "{}: {} parameters, {} to train on{left_out}, {} ({}) to validate, {} in {} on {}",
        settings.name,
        units::thousands(trainer.layout().parameters() as u64),
        counted(train_stories + doubles, "story"),
        units::thousands(valid_stories as u64),
        units::bytes(valid_bytes),
        isa.name(),
        settings.train.precision.name(),
        counted(threads as u64, "thread")
    );
    if let Some(from) = from {
        say!("resumed from step {} of {}", from.step(), from.path().display());
    }
    if let Some(bound) = entropy_bound {
        say!("entropy bound: {bound:.4} bits per byte: no model can go below it on this validation text");
    }
    stop.training.store(true, SeqCst);
    let (outcome, ending) = trainer.run(&stop.flag, &mut |event| match event {
        Event::Progress(line) => status.show(line),
        Event::Note(line) => status.note(line),
        Event::Sample(sample) => {
            status.clear();
            product.print(format_args!("--- step {}\n{}{}\n", sample.step, sample.prompt, sample.text));
        }
    })?;
    status.clear();
    if let Some(ending) = ending {
        product.print(format_args!("{}", summary(&ending, &folder)));
    }
    match outcome {
        Outcome::Finished => Ok(ExitCode::SUCCESS),
        Outcome::EarlyStop => {
            say!("stopped early: {} without improvement", counted(settings.train.patience, "validation"));
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted => {
            let run = folder.path();
            let step = trainer.saved_step().unwrap_or_default();
            say!(
                "interrupted; step {step} is saved in {}. Go on with: flashlm train --resume {}",
                run.display(),
                quoted(run)
            );
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

/// Standard output. A run does not end where nobody reads it any longer.
struct Product {
    open: bool,
}

impl Product {
    fn print(&mut self, text: std::fmt::Arguments) {
        if !self.open {
            return;
        }
        if let Err(error) = try_out(text, true) {
            self.open = false;
            say!("standard output cannot be written any longer ({error}): samples are not shown, training goes on");
        }
    }
}

/// What `--resume` names: a checkpoint, and the run where that was named.
struct Resume {
    from: Checkpoint,
    run: Option<RunFolder>,
}

impl Resume {
    /// One checkpoint folder, or the latest good one of a run.
    fn open(path: &Path) -> anyhow::Result<Resume> {
        let wanted = |found| Unwanted::new(path, "a run with a checkpoint, or one of its checkpoints", found);
        let run = match What::of(path) {
            What::Checkpoint { folder, .. } => return Ok(Resume { from: Checkpoint::open(&folder)?, run: None }),
            What::Run { folder, checkpoints: 1.. } => RunFolder::at(&folder),
            found => bail!(wanted(found)),
        };
        let Some((from, skipped)) = run.latest()? else { bail!(wanted(What::of(path))) };
        for why in skipped {
            say!("passed over: {why}");
        }
        Ok(Resume { from, run: Some(run) })
    }
}

/// Where a run is written.
enum Folder {
    /// That of the run which goes on.
    Own(RunFolder),
    /// A new one, of this name.
    Named(PathBuf),
    /// The first free one of checkpoints/, checkpoints-2/, ...
    Free,
}

impl Folder {
    /// The folder, checked and not yet touched.
    fn choose(args: &Args, resume: Option<&Resume>) -> anyhow::Result<Folder> {
        let own = resume.map(|resume| match &resume.run {
            Some(run) => Ok(run.clone()),
            None => RunFolder::of(resume.from.path()),
        });
        let folder = match (&args.save_dir, own) {
            (Some(dir), Some(Ok(own))) if own.is(dir) => Folder::Own(own),
            (Some(dir), _) => Folder::Named(dir.clone()),
            (None, Some(own)) => Folder::Own(own?),
            (None, None) => Folder::Free,
        };
        match &folder {
            Folder::Own(run) => run.check_resume()?,
            Folder::Named(dir) => RunFolder::at(dir).check_new(args.config.as_deref())?,
            Folder::Free => {}
        }
        Ok(folder)
    }

    /// The folder for this process alone.
    fn claim(self, config: Option<&Path>) -> Result<Claim, RunError> {
        match self {
            Folder::Own(run) => Claim::resume(run),
            Folder::Named(dir) => Claim::new(&dir, config),
            Folder::Free => {
                let names = (1..).map(|n| if n == 1 { "checkpoints".into() } else { format!("checkpoints-{n}") });
                let taken = |error: &RunError| {
                    matches!(
                        error,
                        RunError::Exists { .. }
                            | RunError::Occupied { .. }
                            | RunError::NotAFolder { .. }
                            | RunError::Locked { .. }
                    )
                };
                let mut claims = names.map(|name| Claim::new(Path::new(&name), config));
                claims.find(|claim| claim.as_ref().err().is_none_or(|e| !taken(e))).expect("one of all numbers is free")
            }
        }
    }
}

/// The model that `--from` names.
struct Start {
    config: ModelConfig,
    params: Buf<f32>,
    tokenizer: Tokenizer,
    /// Of the checkpoint that it is.
    path: PathBuf,
}

impl Start {
    fn load(path: &Path) -> anyhow::Result<Start> {
        match Found::load(path)? {
            Found::Latent(model) => {
                let Model { config, params, tokenizer, path, step } = *model;
                let step = step.map_or(String::new(), |step| format!(" (step {step})"));
                say!("starting from {}{step}, with a fresh optimizer and schedule", path.display());
                Ok(Start { config, params, tokenizer, path })
            }
            Found::Packed(model) => {
                say!(
                    "starting from {}: a packed model has lost its master weights; they begin at the ternary ones, which takes some \
                     steps to make up for",
                    path.display()
                );
                Ok(Start {
                    config: model.config().clone(),
                    params: unpacked(&exec(None)?, path)?,
                    tokenizer: Tokenizer::from_json(&model.tokenizer().to_json())?,
                    path: path.to_path_buf(),
                })
            }
        }
    }

    /// How the model was trained, without its text and length; none where that is not known.
    fn recipe(&self) -> Option<Settings> {
        let saved = trainer::continued(&Checkpoint::open(&self.path).ok()?).ok()?;
        let Settings { data, tokenizer, train, .. } = Settings::default();
        let (steps, minutes, epochs, stages) = (train.steps, train.minutes, train.epochs, train.stages);
        let boundaries = saved.data.boundaries;
        Some(Settings {
            data: DataSettings { boundaries, ..data },
            tokenizer,
            train: TrainSettings { steps, minutes, epochs, stages, ..saved.train },
            ..saved
        })
    }
}

/// The source and the weight of `SOURCE@WEIGHT`.
fn weighted(spec: &str) -> Option<(&str, f64)> {
    let (source, weight) = spec.rsplit_once('@')?;
    let weight = weight.parse().ok().filter(|weight: &f64| weight.is_finite())?;
    (!source.is_empty() && !Path::new(spec).exists()).then_some((source, weight))
}

/// The texts of one stage, where `--data` gives weights.
fn mixed(data: &[String]) -> anyhow::Result<Option<Vec<StageSource>>> {
    let parts: Vec<_> = data.iter().map(|spec| weighted(spec)).collect();
    if parts.iter().all(Option::is_none) {
        return Ok(None);
    }
    let source = |(part, spec): (Option<(&str, f64)>, &String)| match part {
        Some((source, weight)) => {
            Ok(StageSource { weight, ..StageSource::new(&in_full(&data_spec(&[source.to_string()])?)) })
        }
        None => bail!("--data {spec} has no weight; give each a weight, such as --data {spec}@1, or none"),
    };
    parts.into_iter().zip(data).map(source).collect::<anyhow::Result<_>>().map(Some)
}

/// Preset, file, flags, then what is left to the hardware.
fn resolve(
    args: &Args,
    resume: Option<&Checkpoint>,
    start: Option<&Start>,
    machine: &Machine,
) -> anyhow::Result<Settings> {
    let minutes = args.minutes.or(args.hours.map(|hours| hours * 60.0));
    for (flag, none, key) in [
        ("--minutes 0", args.minutes == Some(0.0), "minutes"),
        ("--hours 0", args.hours == Some(0.0), "minutes"),
        ("--steps 0", args.steps == Some(0), "steps"),
    ] {
        if none && args.resume.is_some() {
            bail!("{flag}: must be above 0; --set train.{key}=0 lifts the limit that the run was saved with");
        }
        ensure!(!none, "{flag}: must be above 0; leave it out for a run without this limit");
    }
    let named = match (&args.preset, args.small, args.large) {
        (Some(name), ..) => Some(name.as_str()),
        (None, true, _) => Some("v4-small"),
        (None, _, true) => Some("v4-large"),
        _ => None,
    };
    let mut layers = match (resume, named) {
        (Some(from), named) => {
            let saved = trainer::continued(from)?;
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
        (None, None) if start.is_some() => Layers::of(&start.and_then(Start::recipe).unwrap_or_default()),
        (None, None) => {
            let (name, why) = size_for(machine, minutes);
            say!("preset {name}: {why}. Others: {}", preset_names().join(", "));
            Layers::preset(name)?
        }
    };
    let model = start.map(|start| &start.config);
    if let Some(model) = model {
        layers.set_value("model", Value::try_from(model)?)?;
    }
    if let Some(path) = &args.config {
        let text = String::from_utf8(read_limited(path, MAX_CONFIG)?);
        let text = text.with_context(|| format!("{}: settings are text in UTF-8", path.display()))?;
        layers.merge_text(&text, &path.display().to_string())?;
    }
    set_all(&mut layers, &args.set)?;
    let text = |value: &Option<String>| value.clone().map(Value::String);
    let mixed = mixed(&args.data)?;
    let data = if args.data.is_empty() || mixed.is_some() { None } else { Some(in_full(&data_spec(&args.data)?)) };
    let valid =
        args.valid.as_ref().map(|spec| Ok::<_, anyhow::Error>(in_full(&data_spec(std::slice::from_ref(spec))?)));
    let valid = valid.transpose()?;
    let float = |value: Option<f64>| value.map(Value::Float);
    let whole = |value: Option<u64>| -> anyhow::Result<Option<Value>> {
        value.map(|n| Ok(Value::Integer(i64::try_from(n).context("a number above 9223372036854775807")?))).transpose()
    };
    let flags = [
        ("data.source", data.map(Value::String)),
        ("data.column", text(&args.column)),
        ("data.valid", valid.map(Value::String)),
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
        && args.data.is_empty()
        && args.config.is_none()
        && !args.set.iter().any(|s| s.starts_with("data."))
    {
        say!("no --data given: training on {}; --data FILE takes a text of yours", Settings::default().data.source);
    }
    let mut settings = layers.settings()?;
    if let Some(sources) = mixed {
        let (seq_len, column) = (settings.train.seq_len, settings.data.column.clone());
        let sources = sources.into_iter().map(|source| StageSource { column: column.clone(), ..source }).collect();
        settings.train.stages = vec![Stage { seq_len, share: 1.0, sources }];
    }
    if resume.is_none() {
        // So that the run can go on from anywhere.
        let texts = settings.train.stages.iter_mut().flat_map(|stage| &mut stage.sources).map(|text| &mut text.source);
        texts.chain([&mut settings.data.source, &mut settings.data.valid]).for_each(|spec| *spec = in_full(spec));
    }
    if let Some(model) = model.filter(|model| **model != settings.model) {
        let wanted = Settings { model: model.clone(), ..settings.clone() };
        let differs = wanted.conflict(&settings).unwrap_or_default();
        bail!("--from: the model is what it is ({differs}); leave out the setting, or train a new model");
    }
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
            let noun = if minutes == 1.0 { "minute" } else { "minutes" };
            let cores = counted(cores as u64, "core");
            ("flash-tiny", format!("{minutes} {noun} on {cores}: enough for a small model only"))
        }
        _ if cores >= 8 && gib >= 32 => ("flash-large", format!("{cores} cores and {gib} GiB of memory")),
        _ => ("flash-small", format!("{cores} cores and {gib} GiB of memory; flash-large wants 8 cores and 32 GiB")),
    }
}

fn summary(ending: &Ending, folder: &RunFolder) -> String {
    let Ending { steps, best, last, entropy_bound, tokens, seconds, .. } = ending;
    let report = &best.full;
    let weights = match best.step == *steps {
        true => format!("step {}", units::thousands(*steps)),
        false => format!(
            "step {} of {}, the best in validation; the last has {:.4} bits per byte",
            units::thousands(best.step),
            units::thousands(*steps),
            last.full.bpb
        ),
    };
    let run = folder.path();
    let rows = [
        ("bpb", format!("{:.4}", report.bpb)),
        ("entropy bound", entropy_bound.map_or(String::new(), |bound| format!("{bound:.4}"))),
        ("bpb with EOS", format!("{:.4}", report.bpb_with_eos)),
        ("loss per token", format!("{:.4}", report.loss_per_token)),
        ("perplexity", format!("{:.3}", report.perplexity)),
        ("bytes per token", format!("{:.3}", report.bytes_per_token)),
        ("weights", weights),
        ("tokens trained", units::thousands(*tokens)),
        ("time", units::duration(*seconds)),
        ("run", format!("{} ({CURVE}, {CARD}, {METRICS}, {RESULT})", run.display())),
        ("next", format!("flashlm generate {} -p \"Once upon a time\"", quoted(run))),
    ];
    let rows = rows.iter().filter(|(_, value)| !value.is_empty());
    rows.map(|(name, value)| format!("{name:<15}  {value}")).collect::<Vec<_>>().join("\n")
}
