//! `flashlm info`: what a run, checkpoint, model, token cache or tokenizer is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use flashlm_model::io::read_limited;
use flashlm_model::params::{Group, Layout};
use flashlm_model::tok::Tokenizer;
use flashlm_model::{LanguageModel, Lm};
use flashlm_train::config::ternary_share;
use flashlm_train::data::cache::{Expect, TokenCache};
use flashlm_train::load::Model;
use flashlm_train::log::console::{bytes, duration, thousands};
use flashlm_train::log::{EvalRow, Row, jsonl};
use flashlm_train::run_folder::RunFolder;
use serde_json::{Value, json};

use crate::report::Report;

/// The log in a run folder.
pub const METRICS: &str = "metrics.jsonl";

/// Say what a file or folder is, and what is in it
#[derive(clap::Args)]
pub struct Args {
    /// Run folder, checkpoint folder, .safetensors file, token cache (.tok) or tokenizer.json
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a path turns out to be.
enum Kind {
    Run,
    Checkpoint,
    Model,
    Tokens,
    Tokenizer,
    Text,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = &args.path;
    let mut report = Report::default();
    match recognise(path)? {
        Kind::Run => about_run(path, &mut report)?,
        Kind::Checkpoint => about_model(path, "checkpoint", &mut report)?,
        Kind::Model => about_model(path, "model", &mut report)?,
        Kind::Tokens => about_tokens(path, &mut report)?,
        Kind::Tokenizer => {
            report.add("kind", "tokenizer", "tokenizer");
            about_tokenizer(&Tokenizer::load(path)?, &mut report);
        }
        Kind::Text => bail!(
            "{path}: this is text to train on; `flashlm data prepare --data {path}` counts its stories and tokens",
            path = path.display()
        ),
    }
    report.print(args.json);
    Ok(ExitCode::SUCCESS)
}

fn recognise(path: &Path) -> anyhow::Result<Kind> {
    if path.to_str().is_some_and(|spec| spec == "synthetic" || spec.starts_with("synthetic:")) && !path.exists() {
        return Ok(Kind::Text);
    }
    let about = path.metadata().with_context(|| format!("{}: cannot be read", path.display()))?;
    let text = |path: &Path| {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        ["txt", "jsonl", "zst"].iter().any(|known| ending == *known)
    };
    if about.is_dir() {
        if path.join("checkpoint.json").exists() {
            return Ok(Kind::Checkpoint);
        }
        if path.join("checkpoints").is_dir() || path.join(METRICS).exists() {
            return Ok(Kind::Run);
        }
        let entries = path.read_dir().with_context(|| format!("{}: cannot be listed", path.display()))?;
        if entries.flatten().any(|entry| text(&entry.path())) {
            return Ok(Kind::Text);
        }
        bail!("{}: a folder of neither a run, nor a checkpoint, nor text; name a file in it", path.display());
    }
    if !about.is_file() {
        bail!("{}: neither a file nor a folder", path.display());
    }
    let mut start = Vec::new();
    let file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
    file.take(9).read_to_end(&mut start).with_context(|| format!("{}: cannot be read", path.display()))?;
    // A safetensors file is a length of 8 bytes, then a JSON object.
    if start.starts_with(b"FLMTOKS\0") {
        Ok(Kind::Tokens)
    } else if start.len() == 9 && start[8] == b'{' && start[4..8] == [0; 4] {
        Ok(Kind::Model)
    } else if text(path) {
        Ok(Kind::Text)
    } else if start.trim_ascii_start().starts_with(b"{") {
        Ok(Kind::Tokenizer)
    } else {
        bail!(
            "{}: expected a run, a checkpoint, a .safetensors model, a token cache or a tokenizer.json, found another file",
            path.display()
        )
    }
}

fn about_run(run: &Path, report: &mut Report) -> anyhow::Result<()> {
    report.add("kind", "run", "run");
    let about = run_json(run)?;
    if let Some(name) = about["name"].as_str() {
        report.add("name", name, name);
    }
    let folder = RunFolder::at(run);
    let checkpoints = folder.list()?;
    let best = folder.best()?.map(|(step, _)| step);
    let lines = checkpoints.iter().map(|(step, path)| {
        let mark = if best == Some(*step) { "  (best)" } else { "" };
        format!("step {}  {}{mark}\n", thousands(*step), path.display())
    });
    let lines: String = lines.collect();
    let listed = checkpoints
        .iter()
        .map(|(step, path)| json!({"step": step, "path": path.display().to_string(), "best": best == Some(*step)}));
    let listed: Vec<Value> = listed.collect();
    report.add("checkpoints", if lines.is_empty() { "none yet" } else { &lines }, listed);
    let abandoned = folder.abandoned()?;
    if !abandoned.is_empty() {
        let lines = abandoned.iter().map(|(step, path)| format!("step {}  {}\n", thousands(*step), path.display()));
        let listed = abandoned.iter().map(|(step, path)| json!({"step": step, "path": path.display().to_string()}));
        report.add("set aside", lines.collect::<String>(), listed.collect::<Value>());
    }
    let log = run.join(METRICS);
    if log.exists() {
        about_log(&jsonl::read(&log)?, report);
    }
    if let Some(bound) = about["entropy_bound"].as_f64() {
        report.add("entropy bound", format!("{bound:.4} bits per byte: no model can go below it"), bound);
    }
    if checkpoints.is_empty() { Ok(()) } else { add_model(run, report) }
}

fn about_log(rows: &[Row], report: &mut Report) {
    let last = rows.iter().rev().find_map(|row| match row {
        Row::Train(row) => Some(row),
        _ => None,
    });
    if let Some(row) = last {
        let (step, tokens, time) = (thousands(row.step), thousands(row.tokens), duration(row.elapsed));
        report.add(
            "training",
            format!(
                "step {step}, {tokens} tokens in {time}, loss {:.4}, {:.0} tokens/s",
                row.loss, row.tokens_per_second
            ),
            json!({"step": row.step, "tokens": row.tokens, "seconds": row.elapsed, "loss": row.loss,
                   "tokens_per_second": row.tokens_per_second}),
        );
    }
    let evals = || {
        rows.iter().filter_map(|row| match row {
            Row::Eval(row) => Some(row),
            _ => None,
        })
    };
    let best = evals().filter(|row| row.bpb.is_finite()).min_by(|a, b| a.bpb.total_cmp(&b.bpb));
    for (key, row) in [("last validation", evals().next_back()), ("best validation", best)] {
        if let Some(EvalRow { step, loss, bpb, .. }) = row {
            let text = format!("{bpb:.4} bits per byte, loss {loss:.4}, at step {}", thousands(*step));
            report.add(key, text, json!({"step": step, "bpb": bpb, "loss": loss}));
        }
    }
}

fn about_model(path: &Path, kind: &str, report: &mut Report) -> anyhow::Result<()> {
    report.add("kind", kind, kind);
    add_model(path, report)
}

fn add_model(path: &Path, report: &mut Report) -> anyhow::Result<()> {
    let model = Model::load(path)?;
    let c = &model.config;
    report.add("model", model.path.display(), model.path.display().to_string());
    if let Some(step) = model.step {
        report.add("step", thousands(step), step);
    }
    let quant = serde_json::to_value(&c.quant)?;
    let ternary = match c.quant.quant() {
        None => "float weights".to_string(),
        Some(_) => format!("ternary weights, one scale a {}", quant["scale"].as_str().unwrap_or_default()),
    };
    let of = match c.quant.size {
        size if ["block", "group"].map(Some).contains(&quant["scale"].as_str()) => format!(" of {size}"),
        _ => String::new(),
    };
    let mixers: Vec<&str> = (0..c.blocks.min(c.pattern.len().max(1))).map(|i| c.mixer_of(i)).collect();
    let mixers = mixers.join(", ");
    report.add(
        "architecture",
        format!(
            "{} blocks of mixer ({mixers}) and GLU, width {}, hidden {}, vocabulary {}\n{ternary}{of}",
            c.blocks,
            c.dim,
            c.ffn_hidden,
            thousands(c.vocab_size as u64)
        ),
        serde_json::to_value(c)?,
    );
    let lm = Lm::<f32>::new(c, 1, false)?;
    about_parameters(lm.layout(), c.quant.quant().is_some(), report);
    about_tokenizer(&model.tokenizer, report);
    Ok(())
}

fn about_parameters(layout: &Layout, ternary: bool, report: &mut Report) {
    let mut groups = BTreeMap::new();
    for spec in layout.specs() {
        let name = match spec.group {
            Group::Matrix => "matrices",
            Group::Embedding => "embedding",
            Group::Norm => "norms",
            Group::Conv => "convolutions",
            Group::Gate => "gates",
            Group::Scalar => "scalars",
        };
        *groups.entry(name).or_insert(0) += spec.range.len() as u64;
    }
    let share = if ternary { ternary_share(layout) } else { 0.0 };
    let parts: Vec<String> = groups.iter().map(|(name, n)| format!("{name} {}", thousands(*n))).collect();
    let total = layout.parameters() as u64;
    report.add(
        "parameters",
        format!("{}, {:.1} % of them ternary\n{}", thousands(total), share * 100.0, parts.join(", ")),
        json!({"total": total, "ternary_share": share, "groups": groups}),
    );
}

fn about_tokenizer(tokenizer: &Tokenizer, report: &mut Report) {
    let (kind, size, eos) = (tokenizer.kind(), tokenizer.vocab_size(), tokenizer.eos());
    let lossy = match tokenizer.unk() {
        None => "lossless".to_string(),
        Some(unk) => format!("lossy: UNK {unk} stands for {} others", thousands(tokenizer.unk_bases() as u64)),
    };
    report.add(
        "tokenizer",
        format!("{kind}, {} tokens, EOS {eos}, {lossy}", thousands(size as u64)),
        json!({"kind": kind, "vocab_size": size, "eos": eos, "unk": tokenizer.unk(),
               "unk_bases": tokenizer.unk_bases(), "hash": format!("{:016x}", tokenizer.hash())}),
    );
}

fn about_tokens(path: &Path, report: &mut Report) -> anyhow::Result<()> {
    let cache = TokenCache::inspect(path)?;
    let Expect { tokenizer, source, split } = cache.made_from();
    let (stories, tokens) = (cache.stories() as u64, cache.tokens().len() as u64);
    report.add("kind", "token cache, whole and undamaged", "token cache");
    report.add("stories", thousands(stories), stories);
    report.add("tokens", format!("{}, EOS of each story included", thousands(tokens)), tokens);
    let per_token = cache.bytes() as f64 / tokens as f64;
    report.add("bytes", format!("{}, {per_token:.3} a token", bytes(cache.bytes())), cache.bytes());
    report.add("unk", thousands(cache.unk()), cache.unk());
    report.add(
        "mojibake",
        format!("{} sequences repaired in the whole source", thousands(cache.repaired())),
        cache.repaired(),
    );
    report.add("vocabulary", thousands(cache.vocab_size() as u64), cache.vocab_size());
    report.add("side", split, split.to_string());
    report.add("tokenizer hash", format!("{tokenizer:016x}"), format!("{tokenizer:016x}"));
    report.add("source", format!("{source:016x}"), format!("{source:016x}"));
    Ok(())
}

/// What the trainer wrote about its run; null where it wrote nothing.
pub fn run_json(run: &Path) -> anyhow::Result<Value> {
    let path = run.join("run.json");
    if !path.exists() {
        return Ok(Value::Null);
    }
    let json = read_limited(&path, 1 << 20)?;
    serde_json::from_slice(&json)
        .with_context(|| format!("{}: not valid JSON; the run does not need it, remove it", path.display()))
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use flashlm_train::data::source::Source;
    use flashlm_train::data::split::Split;

    use super::*;

    #[test]
    fn a_header_says_what_the_cache_was_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tok");
        let source = Source::parse("synthetic:40").unwrap();
        for split in [Split::All, Split::Train(0.3), Split::Valid(0.3)] {
            let tokenizer = Tokenizer::bytes();
            let go_on = &mut |_: &_| ControlFlow::Continue(());
            TokenCache::open_or_build(&path, &source, &tokenizer, split, 1, go_on).unwrap();
            assert_eq!(
                TokenCache::inspect(&path).unwrap().made_from(),
                Expect::new(&source, &tokenizer, split).unwrap()
            );
        }
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..47]).unwrap();
        assert!(TokenCache::inspect(&path).unwrap_err().to_string().contains("cut off"));
    }

    #[test]
    fn files_are_known_by_their_content_and_folders_by_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            path
        };
        let cases = [
            (file("a", b"FLMTOKS\0 and so on"), "tokens"),
            (file("b.txt", b"\x10\0\0\0\0\0\0\0{\"a\":1}"), "model"),
            (file("c", b" {\"kind\":\"bytes\"}"), "tokenizer"),
            (file("d.JSONL", b"{\"text\":\"x\"}"), "text"),
            (file("run/metrics.jsonl", b"").parent().unwrap().into(), "run"),
            (file("point/checkpoint.json", b"").parent().unwrap().into(), "checkpoint"),
            (file("texts/a.txt", b"x").parent().unwrap().into(), "text"),
            ("synthetic:7".into(), "text"),
            (file("e", b"GIF89a..."), "neither"),
            (file("f", b""), "neither"),
            (folder.path().join("none"), "neither"),
        ];
        for (path, expected) in cases {
            let found = match recognise(&path) {
                Ok(Kind::Run) => "run",
                Ok(Kind::Checkpoint) => "checkpoint",
                Ok(Kind::Model) => "model",
                Ok(Kind::Tokens) => "tokens",
                Ok(Kind::Tokenizer) => "tokenizer",
                Ok(Kind::Text) => "text",
                Err(error) => {
                    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
                    "neither"
                }
            };
            assert_eq!(found, expected, "{}", path.display());
        }
    }
}
