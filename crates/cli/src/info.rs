//! `flashlm info`: what a run, checkpoint, model, tokenizer, token cache, prepared folder or text is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use flashlm_model::config::ScaleKind;
use flashlm_model::io::safetensors::Header;
use flashlm_model::original::Original;
use flashlm_model::params::{Group, Layout};
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Exec, Isa, ModelConfig, PackedModel, Peer};
use flashlm_train::data::cache::{Expect, TokenCache};
use flashlm_train::load::{load_model, packed_file};
use flashlm_train::log::card::ternary_share;
use flashlm_train::log::{EvalRow, Row, jsonl};
use flashlm_train::recognise::recognise;
use flashlm_train::run_folder::{Listed, METRICS, RunFolder};
use flashlm_train::units::{bytes, counted, duration, thousands};
use flashlm_train::what::{Unwanted, What, quoted};
use serde_json::{Value, json};

use crate::common::{Hub, model_or_own};
use crate::data::summary;
use crate::report::Report;

/// Show what a file or folder is, and what is in it
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  flashlm info\n  flashlm info model.safetensors --json")]
pub struct Args {
    /// A run, checkpoint, model (packed or not, a .pt, or one of another program, also hf:OWNER/NAME[@REVISION][:FILE]), tokenizer,
    /// token cache, prepared folder, metrics.jsonl, test vectors or text [default: checkpoints]
    path: Option<PathBuf>,
    #[command(flatten)]
    hub: Hub,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = &model_or_own(args.path, args.hub)?;
    let mut report = Report::default();
    let found = recognise(path);
    match &found {
        What::Run { folder, .. } => about_run(folder, &mut report)?,
        What::Checkpoint { .. } => about_model(path, "checkpoint", &mut report)?,
        What::Model => about_model(path, "model", &mut report)?,
        What::Peer(_) => about_peer(path, &mut report)?,
        What::Torch => about_torch(path, &mut report)?,
        What::Packed | What::Builtin => about_packed(path, &mut report)?,
        What::TokenCache => about_tokens(path, &mut report)?,
        What::Prepared => about_prepared(path, &mut report)?,
        What::Tokenizer(_) => {
            let tokenizer = Tokenizer::load(path)?;
            report.add("kind", "tokenizer", "tokenizer");
            about_tokenizer(&tokenizer, &mut report);
        }
        What::Log => {
            report.add("kind", &found, "log");
            about_log(&jsonl::read(path)?, &mut report);
        }
        What::Vectors => {
            let header = Header::open(path)?;
            report.add("kind", &found, "test vectors");
            report.add("tensors", header.tensors(), header.tensors());
            report.add("next", found.mend(path), format!("flashlm verify {}", quoted(path)));
        }
        What::Text(_) | What::TextFolder | What::Dataset | What::Synthetic => about_text(path, &found, &mut report)?,
        _ => bail!(Unwanted::new(
            path,
            "a run, a checkpoint, a model, a tokenizer, a token cache, a prepared folder, metrics or text",
            found
        )),
    }
    report.print(args.json);
    Ok(ExitCode::SUCCESS)
}

fn about_text(path: &Path, found: &What, report: &mut Report) -> anyhow::Result<()> {
    let form = found.to_string();
    report.add("kind", "text to train on", "text");
    report.add("form", &form, form.as_str());
    if path.is_file() {
        let size = path.metadata().with_context(|| format!("{}: cannot be read", path.display()))?.len();
        report.add("size", bytes(size), size);
    }
    let at = quoted(path);
    let next = [format!("flashlm data stats {at}"), format!("flashlm train --data {at}")];
    report.add("next", format!("{}   inspects it\n{}   trains on it", next[0], next[1]), next.to_vec());
    Ok(())
}

fn about_run(run: &Path, report: &mut Report) -> anyhow::Result<()> {
    report.add("kind", "run", "run");
    let folder = RunFolder::at(run);
    let about = folder.about()?;
    if let Some(name) = about["name"].as_str() {
        report.add("name", name, name);
    }
    let checkpoints = folder.list()?;
    let best = folder.best()?.map(|best| best.step);
    let lines = checkpoints.iter().map(|Listed { step, path }| {
        let mark = if best == Some(*step) { " (best)" } else { "" };
        format!("step {}{mark}  {}\n", thousands(*step), path.display())
    });
    let lines: String = lines.collect();
    let listed = checkpoints.iter().map(
        |Listed { step, path }| json!({"step": step, "path": path.display().to_string(), "best": best == Some(*step)}),
    );
    let listed: Vec<Value> = listed.collect();
    report.add("checkpoints", if lines.is_empty() { "none yet" } else { &lines }, listed);
    let abandoned = folder.abandoned()?;
    if !abandoned.is_empty() {
        let lines =
            abandoned.iter().map(|Listed { step, path }| format!("step {}  {}\n", thousands(*step), path.display()));
        let listed =
            abandoned.iter().map(|Listed { step, path }| json!({"step": step, "path": path.display().to_string()}));
        report.add("set aside", lines.collect::<String>(), listed.collect::<Value>());
    }
    let result = folder.result()?;
    if let (Some(outcome), Some(steps)) = (result["outcome"].as_str(), result["steps"].as_u64()) {
        let bpb = result["best"]["full"]["bpb"].as_f64().unwrap_or(f64::NAN);
        let best = thousands(result["best"]["step"].as_u64().unwrap_or(steps));
        let text = format!("{outcome} at step {}; step {best} has {bpb:.4} bits per byte", thousands(steps));
        report.add("result", text, result);
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
            // Before the first step nothing is trained.
            Row::Eval(row) if row.step > 0 => Some(row),
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
    let model = load_model(path)?;
    report.add("model", model.path.display(), model.path.display().to_string());
    if let Some(step) = model.step {
        report.add("step", thousands(step), step);
    }
    about_config(&model.config, report)?;
    about_tokenizer(&model.tokenizer, report);
    Ok(())
}

fn about_packed(path: &Path, report: &mut Report) -> anyhow::Result<()> {
    let file = packed_file(path)?;
    let number = |key| file.metadata(key).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    let (ternary, table) = (8.0 / number("per_byte"), number("table_bits"));
    let model = PackedModel::read(file)?;
    report.add("kind", "packed model, complete and undamaged", "packed model");
    report.add("model", path.display(), path.display().to_string());
    let parameters = about_config(model.config(), report)?;
    let (size, memory) = (model.file_bytes(), model.memory());
    let bits = 8.0 * size as f64 / parameters as f64;
    report.add("file size", format!("{}, {bits:.2} bits per parameter", bytes(size as u64)), size);
    report.add("in memory", bytes(memory as u64), memory);
    let text = format!("{ternary} bits per ternary weight, {table} bits per weight of embedding matrix and head");
    report.add("density", text, json!({"ternary_bits": ternary, "table_bits": table}));
    about_tokenizer(model.tokenizer(), report);
    Ok(())
}

fn about_peer(path: &Path, report: &mut Report) -> anyhow::Result<()> {
    let peer = Peer::weights(&Exec::new(Isa::detect().map_err(anyhow::Error::msg)?, 1), path)?;
    let (dim, blocks) = peer.shape();
    report.add("kind", format!("{} model, runs in float", peer.kind()), peer.kind());
    report.add("model", path.display(), path.display().to_string());
    report.add("parameters", thousands(peer.parameters() as u64), peer.parameters());
    report.add("file size", bytes(peer.file_bytes()), peer.file_bytes());
    let (vocab, context) = (peer.vocab_size(), peer.context());
    report.add(
        "architecture",
        format!(
            "{}, width {dim}, vocabulary {}, context {context}",
            counted(blocks as u64, "block"),
            thousands(vocab as u64)
        ),
        json!({"blocks": blocks, "dim": dim, "vocab_size": vocab, "context": context}),
    );
    Ok(())
}

fn about_torch(path: &Path, report: &mut Report) -> anyhow::Result<()> {
    let Original { config, step, .. } = Original::open(path)?;
    report.add("kind", "PyTorch file of the original scripts; sizes are inferred from the shapes", "original model");
    report.add("model", path.display(), path.display().to_string());
    if let Some(step) = step {
        report.add("step", thousands(step), step);
    }
    about_config(&config, report).map(drop)
}

/// Sizes and switches of a model; returns the number of its parameters.
fn about_config(c: &ModelConfig, report: &mut Report) -> anyhow::Result<usize> {
    let quant = serde_json::to_value(&c.quant)?;
    let ternary = match c.quant.quant() {
        None => "float weights".to_string(),
        Some(_) if c.quant.scale == ScaleKind::Unit => "ternary weights without a scale".to_string(),
        Some(_) => format!("ternary weights, one scale per {}", quant["scale"].as_str().unwrap_or_default()),
    };
    let of = match c.quant.size {
        size if ["block", "group"].map(Some).contains(&quant["scale"].as_str()) => format!(" of {size}"),
        _ => String::new(),
    };
    let mixers: Vec<&str> = (0..c.blocks.min(c.pattern.len().max(1))).map(|i| c.mixer_of(i)).collect();
    let blocks = match c.family.as_str() {
        "v3" => {
            let times = if c.blocks == 1 { "once".to_string() } else { counted(c.blocks as u64, "time") };
            format!("one block, applied {times}: dilated convolutions and GLU")
        }
        _ => format!("{} of mixer ({}) and GLU", counted(c.blocks as u64, "block"), mixers.join(", ")),
    };
    report.add(
        "architecture",
        format!(
            "{blocks}, width {}, hidden {}, vocabulary {}\n{ternary}{of}",
            c.dim,
            c.ffn_hidden,
            thousands(c.vocab_size as u64)
        ),
        serde_json::to_value(c)?,
    );
    let layout = Layout::of(c);
    about_parameters(&layout, c.quant.quant().is_some(), report);
    Ok(layout.parameters())
}

fn about_parameters(layout: &Layout, ternary: bool, report: &mut Report) {
    let mut groups = BTreeMap::new();
    for spec in layout.specs() {
        let name = match spec.group {
            Group::Matrix => "matrices",
            Group::Embedding => "embedding",
            Group::Table => "tables",
            Group::Norm => "norms",
            Group::Conv => "convolutions",
            Group::Gate => "gates",
            Group::Scalar => "scalars",
            Group::Unused => "unused",
            // No parameters.
            Group::Constant => continue,
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
        Some(unk) => format!("lossy: UNK {unk} stands for {} other tokens", thousands(tokenizer.unk_bases() as u64)),
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
    report.add("kind", "token cache, complete and undamaged", "token cache");
    report.add("stories", thousands(stories), stories);
    report.add("tokens", format!("{}, EOS of each document included", thousands(tokens)), tokens);
    let per_token = cache.bytes() as f64 / tokens as f64;
    report.add("bytes", format!("{}, {per_token:.3} per token", bytes(cache.bytes())), cache.bytes());
    report.add("unk", thousands(cache.unk()), cache.unk());
    report.add(
        "mojibake",
        format!("{} repaired in the whole source", counted(cache.repaired(), "sequence")),
        cache.repaired(),
    );
    report.add("vocabulary", thousands(cache.vocab_size() as u64), cache.vocab_size());
    report.add("side", split, split.to_string());
    report.add("tokenizer hash", format!("{tokenizer:016x}"), format!("{tokenizer:016x}"));
    report.add("source", format!("{source:016x}"), format!("{source:016x}"));
    Ok(())
}

fn about_prepared(folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    report.add("kind", "folder that `flashlm data prepare` wrote", "prepared folder");
    let tokenizer = folder.join("tokenizer.json");
    if tokenizer.exists() {
        about_tokenizer(&Tokenizer::load(&tokenizer)?, report);
    }
    for side in ["train", "valid"] {
        let path = folder.join(side).with_extension("tok");
        if path.exists() {
            let (text, value) = summary(&TokenCache::inspect(&path)?);
            report.add(side, text, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use flashlm_train::data::build::open_or_build;
    use flashlm_train::data::cache::expected;
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
            let side = source.clone().with_split(split);
            open_or_build(&path, &side, &tokenizer, 1, go_on).unwrap();
            assert_eq!(TokenCache::inspect(&path).unwrap().made_from(), expected(&side, &tokenizer).unwrap());
        }
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..47]).unwrap();
        assert!(TokenCache::inspect(&path).unwrap_err().to_string().contains("cut off"));
    }
}
