//! The flags of `flashlm train`, and the settings that they come to.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::builder::PossibleValuesParser;
use flashlm_model::io::read_limited;
use flashlm_model::{ModelConfig, Precision};
use flashlm_train::checkpoint::Checkpoint;
use flashlm_train::config::{Layers, Settings, preset, preset_names};
use flashlm_train::data::source::Source;
use flashlm_train::run::{Dial, MINUTES, Origin, Start};
use flashlm_train::stage::{Stage, StageSource};
use flashlm_train::tokenizer::TokenizerChoice;
use flashlm_train::trainer::{self, Event, Tell, TrainError};
use toml::Value;

use crate::common::{data_spec, exec, precision, set_all, whole};

const TEXT: &str = "Text";
const LENGTH: &str = "Length of the run";
const SETTINGS: &str = "Settings";
const RUN: &str = "Run folder";
/// Longest file of settings.
const MAX_CONFIG: u64 = 1 << 20;

/// Train a model
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm train --data synthetic --minutes 2\n  flashlm train -d book.txt -m 30 -o runs/book\n  flashlm train --resume runs/book\n  flashlm train --from runs/book -d letters.txt -m 10 --lr 1e-3\n  flashlm train -d book.txt -m 30 --json > events.jsonl\n\ndocs/formats.md lists all settings, docs/json.md describes the JSON."
)]
pub struct Args {
    /// Preset: model, tokenizer and training settings [default: the size of flash-small that is best for the time, the text and the
    /// measured speed of this machine]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(preset_names()), conflicts_with_all = ["small", "large"], help_heading = SETTINGS)]
    pub preset: Option<String>,
    /// Number of parameters to aim for, such as 2M, instead of the best size for the time
    #[arg(long, value_name = "N", value_parser = amount, conflicts_with_all = ["preset", "small", "large", "config", "resume", "from"], help_heading = SETTINGS)]
    pub params: Option<u64>,
    /// Same as --preset v4-small
    #[arg(long, conflicts_with = "large", help_heading = SETTINGS)]
    pub small: bool,
    /// Same as --preset v4-large
    #[arg(long, help_heading = SETTINGS)]
    pub large: bool,
    /// TOML file of settings, applied over the preset
    #[arg(long, value_name = "FILE", help_heading = SETTINGS)]
    pub config: Option<PathBuf>,
    /// Set one setting, such as train.lr=3e-3; applied over --config, repeatable
    #[arg(long, value_name = "KEY=VALUE", help_heading = SETTINGS)]
    pub set: Vec<String>,
    /// Training text: a file (text, JSON, CSV, Parquet), a folder, a pattern such as 'notes/*.md', `-` for standard input,
    /// `synthetic` or `synthetic:N` (N made-up stories), or a dataset: tinystories, tinystories-v2, simplestories, fineweb-edu,
    /// `hf:OWNER/DATASET[:CONFIG[:SPLIT[:COLUMN]]]`. Repeatable: several files or folders are joined; SOURCE@WEIGHT mixes sources
    /// by weight
    /// [default: the preset's, else tinystories]
    #[arg(short, long, value_name = "SOURCE", help_heading = TEXT)]
    pub data: Vec<String>,
    /// JSON field, or CSV or Parquet column, that holds the text; if --valid has another, also --set data.valid_column=NAME
    /// [default: text, or the dataset's]
    #[arg(long, value_name = "NAME", help_heading = TEXT)]
    pub column: Option<String>,
    /// Validation text, given like --data [default: the dataset's own, else 1 % of the text is held out, more of a small text]
    #[arg(long, value_name = "SOURCE", help_heading = TEXT)]
    pub valid: Option<String>,
    /// With several ranks: use rank 0's text, tokenizer and settings, and do not check whether the other machines have the same
    /// [default: compare, and refuse what differs]
    #[arg(long, help_heading = TEXT)]
    pub data_copy: bool,
    /// Never use the network: datasets must be in the cache (same as HF_HUB_OFFLINE=1)
    #[arg(long, help_heading = TEXT)]
    pub offline: bool,
    /// Tokenizer: bpe, bytes, gpt2, frequency (lossy: the most frequent GPT-2 tokens), or a tokenizer file [default: the preset's]
    #[arg(long, value_name = "KIND|FILE", help_heading = TEXT)]
    pub tokenizer: Option<String>,
    /// Vocabulary size in tokens [default: the preset's]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>, value_name = "N", help_heading = TEXT)]
    pub vocab: Option<u64>,
    /// Length of the run in minutes; the learning rate schedule follows the clock [default: 10 where neither a preset nor another
    /// length is given, else no limit]
    #[arg(short, long, allow_negative_numbers = true, value_name = "M", help_heading = LENGTH)]
    pub minutes: Option<f64>,
    /// Length of the run in hours [default: no limit]
    #[arg(long, allow_negative_numbers = true, value_name = "H", conflicts_with = "minutes", help_heading = LENGTH)]
    pub hours: Option<f64>,
    /// Length of the run in optimizer steps [default: no limit]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>, value_name = "N", help_heading = LENGTH)]
    pub steps: Option<u64>,
    /// Length of the run in epochs, if neither time nor steps limit it [default: 10]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = LENGTH)]
    pub epochs: Option<f64>,
    /// Sequences per step [default: the preset's, else chosen for this machine]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>, value_name = "N", help_heading = SETTINGS)]
    pub batch: Option<u64>,
    /// Peak learning rate [default: the preset's]
    #[arg(long, allow_negative_numbers = true, value_name = "F", help_heading = SETTINGS)]
    pub lr: Option<f64>,
    /// Seed of the initial weights and of the order of the text [default: 42]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>, value_name = "N", help_heading = SETTINGS)]
    pub seed: Option<u64>,
    /// Precision of matmuls: f32, bf16, int8 (ternary matrices and logits in int8, the rest in bf16, or in f32 as int8-f32 does), or auto (bf16 where this machine is clearly faster with it) [default: auto]
    #[arg(long, value_name = "P", value_parser = precision, help_heading = SETTINGS)]
    pub precision: Option<Precision>,
    /// Number of threads; results do not depend on it [default: FLASHLM_THREADS, else all processors]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>, value_name = "N")]
    pub threads: Option<u64>,
    /// Run folder [default: that of --resume, else checkpoints, or checkpoints-2 and so on if there is a run already]
    #[arg(short = 'o', long, value_name = "PATH", help_heading = RUN)]
    pub save_dir: Option<PathBuf>,
    /// Resume a run, one of its checkpoints, or a .pt of the original scripts with its tokenizer.json beside it
    #[arg(long, value_name = "PATH", help_heading = RUN)]
    pub resume: Option<PathBuf>,
    /// Fine-tune: start from the weights and the vocabulary of a model (a run, a checkpoint, a model file or a packed model),
    /// with a fresh optimizer and schedule
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["resume", "tokenizer", "vocab"], help_heading = RUN)]
    pub from: Option<PathBuf>,
    /// Print the plan without training: tokens, epochs and steps per stage, and measured time and memory
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON: an object on a line for each event, the result last; with --dry-run, the plan
    #[arg(long)]
    pub json: bool,
}

/// Preset, file, then flags, one over the other.
pub fn settings(args: &Args, origin: &Origin, tell: Tell) -> anyhow::Result<Settings> {
    let resume = origin.checkpoint();
    let start = match origin {
        Origin::Tuned(start) => Some(&**start),
        _ => None,
    };
    let minutes = args.minutes.or(args.hours.map(|hours| hours * 60.0));
    for (flag, given, key) in [
        ("--minutes", args.minutes, "minutes"),
        ("--hours", args.hours, "minutes"),
        ("--steps", args.steps.map(|steps| steps as f64), "steps"),
    ] {
        let Some(given) = given.filter(|&given| given.is_nan() || given <= 0.0) else { continue };
        if args.resume.is_some() {
            bail!("{flag} {given}: must be above 0; --set train.{key}=0 lifts the limit that the run was saved with");
        }
        bail!("{flag} {given}: must be above 0; leave it out for a run without this limit");
    }
    let mixed = mixed(&args.data)?;
    let data =
        if args.data.is_empty() || mixed.is_some() { None } else { Some(Source::in_full(&data_spec(&args.data)?)) };
    let text = |value: &Option<String>| value.clone().map(Value::String);
    let valid = args
        .valid
        .as_ref()
        .map(|spec| Ok::<_, anyhow::Error>(Source::in_full(&data_spec(std::slice::from_ref(spec))?)));
    let valid = valid.transpose()?;
    let float = |value: Option<f64>| value.map(Value::Float);
    let integer = |value: Option<u64>| -> anyhow::Result<Option<Value>> {
        value
            .map(|n| i64::try_from(n).map(Value::Integer).map_err(|_| anyhow!("{n}: must be at most {}", i64::MAX)))
            .transpose()
    };
    let flags: Vec<_> = [
        ("data.source", text(&data)),
        ("data.column", text(&args.column)),
        ("data.valid", valid.map(Value::String)),
        ("tokenizer.kind", text(&args.tokenizer)),
        ("tokenizer.vocab", integer(args.vocab)?),
        ("train.minutes", float(minutes)),
        ("train.steps", integer(args.steps)?),
        ("train.epochs", float(args.epochs)),
        ("train.batch", integer(args.batch)?),
        ("train.lr", float(args.lr)),
        ("train.seed", integer(args.seed)?),
        ("train.precision", text(&args.precision.map(|p| p.name().to_string()))),
        ("train.threads", integer(args.threads)?),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect();
    let mut layers = base(args, resume, start, data.as_deref(), &flags, tell)?;
    if let Some(start) = start {
        layers.set_value("model", Value::try_from(&start.config)?)?;
    }
    written(&mut layers, args)?;
    lay(&mut layers, &flags)?;
    if resume.is_none()
        && args.data.is_empty()
        && args.config.is_none()
        && !args.set.iter().any(|s| s.starts_with("data."))
    {
        let text = Settings::default().data.source;
        tell(Event::Note(&format!("no --data given: training on {text}; --data FILE trains on your own text")));
    }
    let mut settings = layers.settings()?;
    if let Some(sources) = mixed {
        let (seq_len, column) = (settings.train.seq_len, settings.data.column.clone());
        let sources = sources.into_iter().map(|source| StageSource { column: column.clone(), ..source }).collect();
        settings.train.stages = vec![Stage { seq_len, share: 1.0, batch: 0, sources }];
    }
    if !args.data.is_empty()
        && settings.stages().iter().flat_map(|stage| &stage.sources).all(|s| s.source != settings.data.source)
        && !args.data.iter().any(|spec| weighted(spec).is_some())
    {
        bail!("--data is not used: every stage of train.stages names its own sources");
    }
    Ok(settings)
}

/// Lays the file of settings over what is there, and single settings.
fn written(layers: &mut Layers, args: &Args) -> anyhow::Result<()> {
    if let Some(path) = &args.config {
        let text = String::from_utf8(read_limited(path, MAX_CONFIG)?);
        let text = text.with_context(|| format!("{}: settings must be UTF-8 text", path.display()))?;
        layers.merge_text(&text, &path.display().to_string())?;
    }
    if !args.data.is_empty() && args.resume.is_none() {
        // A preset's number of documents is of its own text.
        layers.set_value("data.documents", Value::Integer(0))?;
    }
    set_all(layers, &args.set)
}

/// Files that a new run is to read, as they are named: what each is, and its name. What they hold is not looked at, but for the settings.
pub fn named(args: &Args) -> Vec<(&'static str, String)> {
    let mut layers = Layers::defaults();
    // Rank 0 tells what is wrong with them.
    let settings = written(&mut layers, args).ok().and_then(|()| layers.settings().ok()).unwrap_or_default();
    let texts: Vec<String> = match &args.data[..] {
        [] => settings.texts().into_iter().map(|text| text.source).collect(),
        given => given.iter().map(|spec| weighted(spec).map_or(spec.as_str(), |(source, _)| source).into()).collect(),
    };
    let config = args.config.iter().map(|path| ("settings file", path.display().to_string()));
    let valid = args.valid.clone().or(Some(settings.data.valid).filter(|spec| !spec.is_empty()));
    let tokenizer = args.tokenizer.clone().unwrap_or(settings.tokenizer.kind);
    let texts = texts.into_iter().map(|spec| ("text", spec));
    let all = config.chain(texts).chain(valid.map(|spec| ("validation text", spec)));
    all.chain(matches!(tokenizer.parse(), Ok(TokenizerChoice::File(_))).then_some(("tokenizer", tokenizer))).collect()
}

/// What flags are laid over: the settings of the resumed run, a preset, the recipe of a model, or the defaults.
fn base(
    args: &Args,
    resume: Option<&Checkpoint>,
    start: Option<&Start>,
    data: Option<&str>,
    flags: &[(&str, Value)],
    tell: Tell,
) -> anyhow::Result<Layers> {
    let named = match (&args.preset, args.small, args.large) {
        (Some(name), ..) => Some(name.as_str()),
        (None, true, _) => Some("v4-small"),
        (None, _, true) => Some("v4-large"),
        _ => None,
    };
    Ok(match (resume, named) {
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
            // What no size allows is refused before the speed of this machine is measured.
            let mut any = Layers::preset("flash-small")?;
            set_all(&mut any, &args.set)?;
            lay(&mut any, flags)?;
            let Settings { tokenizer, train, .. } = any.settings()?;
            tokenizer.kind.parse::<TokenizerChoice>()?.check(tokenizer.vocab)?;
            let minutes = (train.minutes > 0.0).then_some(train.minutes);
            let source = data.map(Source::parse).transpose()?;
            let bytes = source.as_ref().and_then(Source::bytes);
            let grammar = source.is_some_and(|source| source.is_synthetic());
            let dial = Dial { minutes, parameters: args.params, bytes, grammar };
            let cx = exec(args.threads.filter(|&n| n > 0).map(|n| n as usize))?;
            let chosen = dial.choose(&cx, args.precision.unwrap_or(Precision::Auto).resolve(cx.isa()))?;
            tell(Event::Note(&format!("{}; --params N or --preset NAME takes another", chosen.told)));
            let mut layers = chosen.layers;
            let length =
                |set: &String| ["train.minutes", "train.steps", "train.epochs"].iter().any(|key| set.starts_with(key));
            if minutes.is_none() && args.steps.is_none() && args.epochs.is_none() && !args.set.iter().any(length) {
                tell(Event::Note(&format!("length {MINUTES} minutes: none is given; --minutes M sets it")));
                layers.set_value("train.minutes", Value::Float(MINUTES))?;
            }
            layers
        }
    })
}

/// Lays the flags over what is there.
fn lay(layers: &mut Layers, flags: &[(&str, Value)]) -> anyhow::Result<()> {
    for (key, value) in flags {
        layers.set_value(key, value.clone())?;
    }
    Ok(())
}

/// Reads a number, which may end in k or M.
fn amount(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1e3),
        None => text.strip_suffix(['m', 'M']).map_or((text, 1.0), |digits| (digits, 1e6)),
    };
    let number = digits.trim().parse::<f64>().ok().map(|n| n * unit).filter(|n| (1e3..1e12).contains(n));
    number.map(|n| n as u64).ok_or_else(|| "expected a number of parameters, such as 500k or 2M".into())
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
            Ok(StageSource { weight, ..StageSource::new(&Source::in_full(&data_spec(&[source.to_string()])?)) })
        }
        None => bail!("--data {spec} has no weight; give each a weight, such as --data {spec}@1, or none"),
    };
    parts.into_iter().zip(data).map(source).collect::<anyhow::Result<_>>().map(Some)
}
