//! `flashlm eval`: bits per byte of a model on a text.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, ensure};
use flashlm_kernels::Exec;
use flashlm_model::{Engine, Peer, Precision};
use flashlm_train::atomic::write_file;
use flashlm_train::config::Settings;
use flashlm_train::data::source::Source;
use flashlm_train::eval::bpb::{Float, Master, Published, Report, Scorer, UNDERSTATED};
use flashlm_train::eval::consistency::{Consistency, write_stories};
use flashlm_train::eval::source::{Progress, Scored, full, published};
use flashlm_train::load::{Found, load_peer};
use flashlm_train::units::{counted, thousands};
use serde_json::{Value, json};

use crate::common::{Status, data_spec, exec, located, may_write, open_source, out, own, passed_over, precision};
use crate::terminal::{columns, stdout_width};

mod table;

use table::{Wanted, show};

/// Most rows of one micro-batch with master weights.
const ROWS: usize = 2048;
/// Most rows of the packed runtime at once, per thread.
const PACKED_ROWS: usize = 64;
/// Label smoothing of the loss that v3 was published with.
const SMOOTHING: f64 = 0.1;
/// How far the packed model may be above its master weights without a word.
const APART: f64 = 0.005;

/// Evaluate a model, or several in one table: bits per byte on a text, every byte counted, every document scored whole from a
/// fresh state
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm eval --data book.txt\n  flashlm eval model.safetensors --data hf:roneneldan/TinyStories::validation\n  flashlm eval runs/book --data synthetic:200 --json --per-document documents.jsonl\n  flashlm eval --data synthetic:200 --consistency 200\n  flashlm eval runs/book stories260K.bin TinyStories-1M --data valid.txt --svg models.svg\n\nEvery byte counts. Each document is scored whole, from a fresh state."
)]
pub struct Args {
    /// Model: a run folder (its best checkpoint), a checkpoint folder, a packed model, or a .safetensors file beside its
    /// tokenizer.json; a folder of a Llama or GPT-Neo model, a .bin of llama2.c, or a .pt of the original scripts;
    /// hf:OWNER/NAME[@REVISION][:FILE], a model of the hub; builtin: the model in the program. Several give one table [default:
    /// checkpoints]
    #[arg(value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Text to score: a file, folder or pattern (repeatable), `-`, a dataset (hf:OWNER/DATASET::validation) or synthetic:N; see
    /// `train`
    #[arg(short, long, value_name = "SOURCE", required = true)]
    data: Vec<String>,
    /// JSON field, or CSV or Parquet column, that holds the text [default: text, or the dataset's]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Never use the network: datasets and models of the hub must be in the cache (same as HF_HUB_OFFLINE=1)
    #[arg(long)]
    offline: bool,
    /// What is counted
    #[arg(long, value_enum, default_value_t = Protocol::Full)]
    protocol: Protocol,
    /// Of a model trained on `synthetic`: let it write N stories, without a prompt and at temperature 1, and count those that
    /// contradict themselves
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    consistency: Option<u32>,
    /// Seed of the stories of --consistency
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Write a line of JSON for each document: index, bytes, tokens, bits of the packed model
    #[arg(long, value_name = "FILE.jsonl")]
    per_document: Option<PathBuf>,
    /// Draw the table as SVG: bars of bits per byte, and of the size on disk
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(short, long)]
    force: bool,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
    /// Number of threads [default: FLASHLM_THREADS, else all processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Precision of matmuls of the master weights: f32, bf16, int8 (ternary matrices and logits in int8, the rest in bf16, or in f32 as int8-f32 does), or auto (bf16 where this machine is clearly faster with it)
    #[arg(long, value_name = "P", default_value = "f32", value_parser = precision)]
    precision: Precision,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Protocol {
    /// Every byte of every document
    Full,
    /// Understated, for comparison with published tables only: the bits of the first 256 tokens of each of the first 500 documents,
    /// divided by the characters of the whole documents; every byte of these documents is scored, too
    Published,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.per_document {
        ensure!(
            args.protocol == Protocol::Full,
            "--per-document: only with --protocol full, which scores whole documents"
        );
        may_write(path, "--per-document", args.force)?;
    }
    if args.models.len() > 1 || args.svg.is_some() {
        let named = if args.models.is_empty() { vec![own()?] } else { args.models.clone() };
        let models = |path: PathBuf| Ok((path.display().to_string(), located(&path, args.offline)?));
        let models: Vec<(String, PathBuf)> = named.into_iter().map(models).collect::<anyhow::Result<_>>()?;
        ensure!(
            args.per_document.is_none() && args.consistency.is_none(),
            "--per-document and --consistency are for one model: name one, without --svg"
        );
        ensure!(
            args.precision == Precision::F32,
            "--precision is for the master weights of one model: name one, without --svg"
        );
        let source = open_text(&args)?;
        let wanted = Wanted {
            svg: args.svg.as_deref(),
            force: args.force,
            json: args.json,
            published: args.protocol == Protocol::Published,
            threads: args.threads,
            data: args.data.join(", "),
        };
        return table::run(&wanted, &models, &source);
    }
    let path = args.models.first().map_or_else(own, |path| located(path, args.offline))?;
    let cx = exec(args.threads)?;
    let precision = args.precision.resolve(cx.isa());
    if let Some(peer) = load_peer(&cx, &path)? {
        return of_peer(peer, cx, &args);
    }
    let (packed, latent) = match Found::load(&path)? {
        Found::Master(model) => (model.packed(&cx)?, Some(*model)),
        Found::Packed(packed) => (*packed, None),
    };
    let packed = Arc::new(packed);
    let source = open_text(&args)?;
    if args.consistency.is_some() && !source.is_synthetic() {
        bail!("--consistency judges stories of the built-in grammar; it goes with --data synthetic, or synthetic:N");
    }
    let step = latent.as_ref().and_then(|model| model.step);
    let from = latent.as_ref().map_or(&path, |model| &model.path).display();
    let mut status = Status::new();
    match step {
        Some(step) => status.note(&format!("model {from} (step {})", thousands(step))),
        None => status.note(&format!("model {from}")),
    }
    let mut lm = latent.as_ref().map(|model| precision.build(&model.config, ROWS, false)).transpose()?;
    let activation_bits = latent.as_ref().map_or(0, |model| model.config.activation_bits);
    let mut engine = Engine::new(packed.clone(), exec(args.threads)?, PACKED_ROWS);
    let mut float = match (&latent, &mut lm) {
        (Some(model), Some(lm)) => Some(Master::new(&cx, &mut **lm, &model.params)),
        _ => None,
    };
    // The figure that v3 was published with.
    let smoothing = latent.as_ref().filter(|model| model.config.family == "v3").map(|model| smoothing(&model.path));
    let mut scorers: Vec<&mut dyn Scorer> = vec![&mut engine];
    scorers.extend(float.as_mut().map(|float| float as &mut dyn Scorer));
    let tokenizer = packed.tokenizer();
    let start = Instant::now();
    // Of the packed model first.
    let tell = &mut |p: &Progress| show(&mut status, start, p);
    let mut smoothed = None;
    let (mut objects, bits, read, mut rows) = match args.protocol {
        Protocol::Full => {
            let Scored { reports, documents, read } = full(scorers, tokenizer, &source, tell)?;
            if let Some(path) = &args.per_document {
                write_file(path, |file| {
                    documents.iter().try_for_each(|document| writeln!(file, "{}", json!(document)))
                })?;
            }
            if let (Some(float), Some(smoothing)) = (float.take(), smoothing) {
                let mut float = float.smoothed(smoothing);
                let again = full(vec![&mut float], tokenizer, &source, tell)?;
                smoothed = Some((smoothing, again.reports[0].loss_per_token));
            }
            let bits: Vec<f64> = reports.iter().map(|report| report.bpb).collect();
            (reports.iter().map(|report| json!(report)).collect::<Vec<_>>(), bits, read, full_rows(&reports[0]))
        }
        Protocol::Published => {
            let Scored { reports, read, .. } = published(scorers, tokenizer, &source, tell)?;
            let bits: Vec<f64> = reports.iter().map(|report| report.0.understated_bits_per_character).collect();
            (reports.iter().map(published_object).collect(), bits, read, published_rows(&reports[0]))
        }
    };
    status.clear();
    if bits.iter().any(|bits| !bits.is_finite()) {
        bail!("{from}: the model's output is not a number, since training diverged; use an earlier checkpoint");
    }
    let apart = bits.get(1).map(|latent| bits[0] / latent - 1.0);
    if let (Some(apart), Some(latent)) = (apart, bits.get(1)) {
        let why = why(apart, activation_bits);
        let kept = if activation_bits == 8 { "int8" } else { precision.name() };
        rows.insert(
            1,
            (
                "  of master weights",
                format!("{latent:.4}, activations in {kept}; packed is {:+.2} %{why}", 100.0 * apart),
            ),
        );
    }
    if let Some((smoothing, loss)) = smoothed {
        let why = format!(
            "{loss:.4} nats per token of the master weights: with {smoothing} label smoothing, as v3 was published; no other figure compares"
        );
        rows.push(("label-smoothed loss", why));
    }
    let sense = match args.consistency {
        Some(n) => {
            let stories = write_stories(&mut engine, n as usize, args.seed, &mut |done| {
                status.show(&format!("writing stories: {done} of {n}"));
                ControlFlow::Continue(())
            });
            status.clear();
            stories?.map(|stories| Consistency::of(&stories))
        }
        None => None,
    };
    if let Some(sense) = &sense {
        rows.push(("consistency", sense.told()));
        rows.push(("  with one", sense.kinds()));
    }
    let runtime = "packed: ternary weights, int8 activations, int8 embedding matrix, as `generate` runs it";
    if args.json {
        let latent = objects.get(1).cloned();
        let object = &mut objects[0];
        let own = [
            ("latent", json!(latent)),
            ("latent_activation_bits", json!(activation_bits)),
            ("packed_over_latent", json!(apart.map(|apart| 1.0 + apart))),
            ("model", json!(from.to_string())),
            ("step", json!(step)),
            ("data", json!(args.data.join(", "))),
            ("repaired", json!(read.repaired)),
            ("runtime", json!(runtime)),
            ("precision", json!(precision)),
            ("isa", json!(cx.isa().name())),
            ("seconds", json!(start.elapsed().as_secs_f64())),
        ];
        own.into_iter().for_each(|(key, value)| object[key] = value);
        if let Some((_, loss)) = smoothed {
            object["label_smoothed_loss"] = json!(loss);
        }
        if let Some(Consistency { consistent, stories, contradictions }) = sense {
            object["consistent"] = json!(consistent);
            object["stories_written"] = json!(stories);
            object["contradictions"] = json!(contradictions);
        }
        out!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    if read.repaired > 0 {
        rows.push(("repaired", format!("{} in the text, before scoring", counted(read.repaired, "mojibake sequence"))));
    }
    rows.push(("runtime", runtime.into()));
    print(&rows);
    Ok(ExitCode::SUCCESS)
}

/// The label smoothing that a run was trained with, else that of the original.
fn smoothing(checkpoint: &Path) -> f64 {
    let text = std::fs::read_to_string(checkpoint.join("config.toml")).ok();
    let settings = text.and_then(|text| Settings::from_toml(&text, "config.toml").ok());
    settings.map(|settings| settings.train.label_smoothing).filter(|&s| s > 0.0).unwrap_or(SMOOTHING)
}

/// What `--data` names, what is skipped of it told.
fn open_text(args: &Args) -> anyhow::Result<Source> {
    let source = open_source(&data_spec(&args.data)?, 0, args.offline)?;
    let source = args.column.iter().fold(source, |source, column| source.with_column(column));
    passed_over(&args.data.join(", "), &source);
    Ok(source)
}

/// How a model with a bounded context is scored.
const PEER_CONTEXT: &str = "each story from EOS; beyond the model's context, from the last half of it on";

/// Scores a model of another program.
fn of_peer(peer: Peer, cx: Exec, args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.consistency.is_none(), "--consistency: models of other programs are only scored; leave it out");
    let source = open_text(args)?;
    let (peer, isa, start) = (Arc::new(peer), cx.isa().name(), Instant::now());
    let (from, mut status) = (peer.path().display(), Status::new());
    status.note(&format!("model {from} ({}, float)", peer.kind()));
    let Some(tokenizer) = peer.tokenizer() else { bail!("{from}: there is no tokenizer") };
    let mut float = Float::new(peer.clone(), cx);
    let scorers: Vec<&mut dyn Scorer> = vec![&mut float];
    let tell = &mut |p: &Progress| show(&mut status, start, p);
    let (mut object, mut rows) = match args.protocol {
        Protocol::Full => {
            let Scored { reports, documents, .. } = full(scorers, tokenizer, &source, tell)?;
            if let Some(path) = &args.per_document {
                write_file(path, |file| {
                    documents.iter().try_for_each(|document| writeln!(file, "{}", json!(document)))
                })?;
            }
            (json!(reports[0]), full_rows(&reports[0]))
        }
        Protocol::Published => {
            let Scored { reports, .. } = published(scorers, tokenizer, &source, tell)?;
            (published_object(&reports[0]), published_rows(&reports[0]))
        }
    };
    object["context"] = json!(PEER_CONTEXT);
    rows.iter_mut().filter(|row| row.0 == "context").for_each(|row| row.1 = PEER_CONTEXT.into());
    status.clear();
    let runtime = format!(
        "float weights and activations, {}; a token sees at most {} others, and at least half as many where its document has them",
        peer.kind(),
        thousands(peer.context() as u64)
    );
    let own = [
        ("model", json!(from.to_string())),
        ("parameters", json!(peer.parameters())),
        ("file_bytes", json!(peer.file_bytes())),
        ("data", json!(args.data.join(", "))),
        ("runtime", json!(runtime)),
        ("isa", json!(isa)),
        ("seconds", json!(start.elapsed().as_secs_f64())),
    ];
    if args.json {
        own.into_iter().for_each(|(key, value)| object[key] = value);
        out!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    rows.push(("parameters", thousands(peer.parameters() as u64)));
    rows.push(("runtime", runtime));
    print(&rows);
    Ok(ExitCode::SUCCESS)
}

/// Said where the packed model is that much worse.
const WHY: &str = ": it was trained with float activations, which the runtime rounds to int8; model.activation_bits=8 \
                   trains for them";

/// Explains why the packed model is worse than its master weights; empty where it is not.
fn why(apart: f64, activation_bits: u32) -> &'static str {
    if apart > APART && activation_bits != 8 { WHY } else { "" }
}

type Rows = Vec<(&'static str, String)>;

/// Rows that have something to say, as wide as the terminal.
fn print(rows: &Rows) {
    let rows = rows.iter().filter(|(_, value)| !value.is_empty());
    columns(rows.map(|(name, value)| (*name, value.as_str())), stdout_width()).iter().for_each(|line| out!("{line}"));
}

fn full_rows(r: &Report) -> Rows {
    let unk = match (r.unk_bases, r.unk) {
        (0, _) => "none, the tokenizer is lossless".into(),
        (bases, n) => format!("{}, each charged ln {} nats on top", thousands(n), thousands(bases as u64)),
    };
    vec![
        ("bits per byte", format!("{:.4}", r.bpb)),
        ("  with end of document", format!("{:.4}", r.bpb_with_eos)),
        ("loss per token", format!("{:.4} nats", r.loss_per_token)),
        ("perplexity", format!("{:.3}", r.perplexity)),
        ("bytes per token", format!("{:.3}", r.bytes_per_token)),
        ("stories", thousands(r.stories)),
        ("tokens", thousands(r.tokens)),
        ("bytes", thousands(r.bytes)),
        ("unknown tokens", unk),
        ("context", r.context.into()),
        ("protocol", r.protocol.into()),
    ]
}

fn published_object((published, whole): &(Published, Report)) -> Value {
    let mut object = json!(published);
    object["full"] = json!(whole);
    object["why_understated"] = json!(UNDERSTATED);
    object
}

fn published_rows((r, whole): &(Published, Report)) -> Rows {
    vec![
        ("understated bits/char", format!("{:.4}", r.understated_bits_per_character)),
        ("loss per token", format!("{:.4} nats", r.loss_per_token)),
        ("perplexity", format!("{:.3}", r.perplexity)),
        ("stories", thousands(r.stories)),
        ("tokens", thousands(r.tokens)),
        ("characters", thousands(r.characters)),
        ("unknown tokens", format!("{}, not charged", thousands(r.unk))),
        ("context", r.context.into()),
        ("protocol", format!("published, {UNDERSTATED}")),
        ("bits per byte", format!("{:.4}, every byte of the same documents", whole.bpb)),
        ("  with end of document", format!("{:.4}", whole.bpb_with_eos)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_explained_and_a_gain_is_not() {
        for (apart, bits, explained) in
            [(0.02, 0, true), (-0.02, 0, false), (0.02, 8, false), (0.004, 0, false), (-0.0072, 0, false)]
        {
            assert_eq!(!why(apart, bits).is_empty(), explained, "{apart} {bits}");
        }
    }
}
