//! `flashlm data prepare`: text made ready for training.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use flashlm_model::tok::Tokenizer;
use flashlm_train::atomic::write_file;
use flashlm_train::config::Settings;
use flashlm_train::data::DataError;
use flashlm_train::data::build::{Opened, Progress, open_or_build};
use flashlm_train::data::cache::{Stale, TokenCache, default_dir};
use flashlm_train::data::filter::Dropped;
use flashlm_train::data::holdout::{Holdout, stories_of};
use flashlm_train::data::source::{Source, Weighted};
use flashlm_train::data::split::Split;
use flashlm_train::recognise::recognise;
use flashlm_train::tokenizer::{TokenizerChoice, tokenizer};
use flashlm_train::units::{bytes, count, counted, duration, thousands};
use flashlm_train::what::What;
use serde_json::{Value, json};

use super::select::{Select, report_dropped};
use crate::common::{Status, noted, say, threads};
use crate::report::Report;

/// Prepare text without training: write tokenizer.json, train.tok and valid.tok
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm data prepare --data book.txt --vocab 2048\n  flashlm data prepare --data tinystories --tokenizer bytes --out prepared/bytes"
)]
pub struct Args {
    /// Text: a file, folder or pattern (repeatable), `-` for standard input, a dataset (tinystories, hf:OWNER/DATASET; see
    /// `train`), or synthetic:N (N made-up stories)
    #[arg(short, long, value_name = "SOURCE", required = true)]
    data: Vec<String>,
    #[command(flatten)]
    select: Select,
    /// Tokenizer: bpe, bytes, gpt2, frequency (lossy: the most frequent GPT-2 tokens), or a tokenizer file
    #[arg(long, value_name = "KIND", default_value_t = Settings::default().tokenizer.kind)]
    tokenizer: String,
    /// Vocabulary size to aim for when a bpe or frequency tokenizer is trained
    #[arg(long, value_name = "N", default_value_t = Settings::default().tokenizer.vocab)]
    vocab: usize,
    /// Number of documents, from the first on, that a frequency tokenizer counts
    #[arg(long, value_name = "N", default_value_t = Settings::default().tokenizer.stories)]
    stories: usize,
    /// Validation text [default: the dataset's own, else 1 % of the text is held out, more of a small text]
    #[arg(long, value_name = "SOURCE")]
    valid: Option<String>,
    /// Folder to write to [default: prepared/NAME-OF-THE-DATA]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also write train.u16 and valid.u16: little-endian tokens without a header, each document ended by EOS
    #[arg(long)]
    raw: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Number of threads [default: FLASHLM_THREADS, else all processors]
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let threads = threads(args.threads)?;
    let choice: TokenizerChoice = args.tokenizer.parse()?;
    let defaults = Settings::default();
    let (share, seed) = (defaults.data.holdout, defaults.train.seed);
    let data = args.select.open_all(&args.data, seed)?;
    let other = args.valid.or_else(|| data.validation().map(str::to_string));
    let (train, valid) = match &other {
        None => {
            let Holdout { train, valid } = Holdout::of(&data, share, &|| false)?;
            (data.clone().with_split(train), data.with_split(valid))
        }
        Some(spec) => {
            // Another seed, or synthetic validation would repeat the documents of synthetic training.
            let valid = args.select.open(spec, seed.wrapping_add(1))?;
            if valid.place() == data.place() {
                bail!(
                    "--valid {spec} is the training text itself; name another text, or leave --valid out to hold out part of \
                     the text"
                );
            }
            let mut train = data;
            train.leave_out_files_of(&valid)?;
            (train, valid)
        }
    };
    let train = match (&other, valid.split()) {
        (None, Split::Valid(_)) => train,
        _ => train.without(Arc::new(stories_of(&valid, &|| false)?)),
    };
    let chosen = args.out.is_some();
    let dir = args.out.unwrap_or_else(|| Path::new("prepared").join(train.name()));
    match recognise(&dir) {
        // Two texts of one name have one folder, but for whom has chosen it.
        What::Prepared if !chosen && is_of_another(&dir, &train)? => bail!(
            "{at} holds the tokens of another text, or of this one before it changed; `--out {at}` replaces them, another \
             --out keeps them",
            at = dir.display()
        ),
        What::Missing(_) | What::EmptyFolder | What::Prepared => {}
        found => bail!(
            "{}: expected a new or empty folder, or one that `flashlm data prepare` wrote, found {found}; name another with --out",
            dir.display()
        ),
    }
    let mut status = Status::new();
    let mut told = |p: &Progress| progress(&mut status, "tokenizer", p);
    let sources = [Weighted::alone(train.clone())];
    let tokenizer = tokenizer(&default_dir(), &choice, args.vocab, args.stories, &sources, &mut told)?;
    status.clear();
    let stage = Stage::new(&dir)?;
    let mut report = Report::default();
    report.add("folder", dir.display(), dir.display().to_string());
    let (kind, size) = (tokenizer.kind(), tokenizer.vocab_size());
    let lossy = if tokenizer.unk().is_some() { "lossy" } else { "lossless" };
    report.add(
        "tokenizer",
        format!("{kind}, {} tokens, {lossy}", thousands(size as u64)),
        json!({"kind": kind, "vocab_size": size, "eos": tokenizer.eos(), "hash": format!("{:016x}", tokenizer.hash())}),
    );
    let sides = [("train", train), ("valid", valid)];
    let build = |(name, source): &(&str, Source)| build(&stage, name, source, &tokenizer, threads);
    let caches: Vec<TokenCache> = match sides.iter().map(build).collect() {
        Err(e @ DataError::NoStories { .. }) if other.is_none() => bail!("{e}, or name a validation text with --valid"),
        caches => caches?,
    };
    write_file(&stage.folder.join(TOKENIZER), |w| w.write_all(&tokenizer.to_json()))?;
    stage.publish()?;
    for ((name, _), cache) in sides.iter().zip(&caches) {
        if args.raw {
            let path = dir.join(name).with_extension("u16");
            write_file(&path, |w| cache.tokens().iter().try_for_each(|token| w.write_all(&token.to_le_bytes())))?;
        }
        let (text, value) = summary(cache);
        report.add(name, text, value);
    }
    // Of a whole source, whatever the side.
    let sources = if other.is_some() { &caches[..] } else { &caches[..1] };
    let repaired: u64 = sources.iter().map(TokenCache::repaired).sum();
    if sources.iter().any(|cache| cache.dropped().total() > 0) {
        let sum = |count: fn(&Dropped) -> u64| sources.iter().map(|cache| count(&cache.dropped())).sum();
        let dropped =
            Dropped { score: sum(|d| d.score), short: sum(|d| d.short), long: sum(|d| d.long), hard: sum(|d| d.hard) };
        report_dropped(&mut report, &dropped);
    }
    let (cache, side) = (&caches[0], sides[1].1.split());
    let (all, held) = (cache.read().bytes, caches[1].bytes());
    let part = 100.0 * held as f64 / all.max(1) as f64;
    match side {
        Split::All => report.add("held out", "nothing: validation has its own source", Value::Null),
        Split::Valid(share) => {
            let text = format!("{part:.2} % of the text: documents chosen by their hash");
            report.add("held out", text, share);
        }
        _ => report.add(
            "held out",
            format!("{part:.2} % of the text: its end, since it has few documents"),
            part / 100.0,
        ),
    }
    if cache.duplicates() > 0 {
        let text = format!("{} left out of train because valid has them", counted(cache.duplicates(), "document"));
        report.add("doubles", text, cache.duplicates());
    }
    let text =
        format!("{} repaired (text that was once decoded wrongly, like â€™ for ’)", counted(repaired, "sequence"));
    report.add("mojibake", text, repaired);
    report.print(args.json);
    Ok(ExitCode::SUCCESS)
}

/// Whether the folder has tokens of another source.
fn is_of_another(dir: &Path, source: &Source) -> anyhow::Result<bool> {
    // What is damaged is nobody's.
    let Ok(cache) = TokenCache::inspect(&dir.join(CACHES[0])) else { return Ok(false) };
    Ok(cache.made_from().source != source.fingerprint()?)
}

const CACHES: [&str; 2] = ["train.tok", "valid.tok"];
const TOKENIZER: &str = "tokenizer.json";

/// A folder within the one to write to, for files that take their places when all are there: what cannot be prepared leaves
/// everything as it was.
struct Stage<'a> {
    dir: &'a Path,
    folder: PathBuf,
    /// Whether `dir` was not there before.
    new: bool,
}

impl<'a> Stage<'a> {
    fn new(dir: &'a Path) -> anyhow::Result<Self> {
        let stage = Stage { dir, folder: dir.join(".tmp-prepare"), new: !dir.exists() };
        // From a process that was killed.
        let _ = fs::remove_dir_all(&stage.folder);
        let created = fs::create_dir_all(&stage.folder);
        created.with_context(|| format!("cannot create the folder {}", stage.folder.display()))?;
        for name in CACHES {
            let path = dir.join(name);
            match path.symlink_metadata() {
                // A cache that serves need not be built. Where links cannot be made, it is.
                Ok(about) if about.is_file() => drop(fs::hard_link(&path, stage.folder.join(name))),
                Ok(_) => drop(TokenCache::inspect(&path)?),
                Err(_) => {}
            }
        }
        Ok(stage)
    }

    fn publish(&self) -> anyhow::Result<()> {
        for name in CACHES.into_iter().chain([TOKENIZER]) {
            let to = self.dir.join(name);
            fs::rename(self.folder.join(name), &to).with_context(|| format!("{}: cannot be written", to.display()))?;
        }
        Ok(())
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
        if self.new {
            // Empty unless all went well.
            let _ = fs::remove_dir(self.dir);
        }
    }
}

/// The cache of one side.
fn build(
    stage: &Stage,
    name: &str,
    source: &Source,
    tokenizer: &Tokenizer,
    threads: usize,
) -> Result<TokenCache, DataError> {
    let (path, mut status) = (stage.folder.join(name).with_extension("tok"), Status::new());
    let mut told = |p: &Progress| progress(&mut status, name, p);
    let Opened { cache, built } = open_or_build(&path, source, tokenizer, threads, &mut told)?;
    status.clear();
    noted(name, &built.as_ref().map(|built| built.read.oddities).unwrap_or_default());
    let path = stage.dir.join(name).with_extension("tok");
    match built.map(|built| built.reason) {
        None => say!("{name}: {} is up to date", path.display()),
        Some(Stale::Missing) => {}
        Some(reason) => say!("{name}: {} was rebuilt: {reason}", path.display()),
    }
    Ok(cache)
}

/// Documents, tokens and bytes of one side, in words and as JSON.
pub fn summary(cache: &TokenCache) -> (String, Value) {
    let (stories, tokens, text) = (cache.stories() as u64, cache.tokens().len() as u64, cache.bytes());
    let per_token = text as f64 / tokens as f64;
    // EOS is never unknown, so it says nothing about coverage.
    let coverage = 1.0 - cache.unk() as f64 / (tokens - stories).max(1) as f64;
    let words = format!(
        "{}, {} tokens (EOS included), {}, {per_token:.3} bytes per token, {} UNK (coverage {:.3} %)",
        counted(stories, "document"),
        thousands(tokens),
        bytes(text),
        thousands(cache.unk()),
        coverage * 100.0
    );
    let value = json!({
        "stories": stories,
        "tokens": tokens,
        "bytes": text,
        "bytes_per_token": per_token,
        "unk": cache.unk(),
        "coverage": coverage,
    });
    (words, value)
}

/// Shows how far it is on stderr.
fn progress(status: &mut Status, name: &str, p: &Progress) -> ControlFlow<()> {
    let left = p.seconds * (1.0 / p.fraction.max(1e-9) - 1.0);
    status.show(&format!(
        "{name} {:3.0} %  {} documents  {}  {}/s  eta {}",
        p.fraction * 100.0,
        count(p.stories),
        bytes(p.bytes),
        bytes(p.bytes_per_second() as u64),
        duration(left)
    ));
    ControlFlow::Continue(())
}
