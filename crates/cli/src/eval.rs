//! `flashlm eval`: bits per byte of a model on a text.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use flashlm_kernels::Exec;
use flashlm_model::{LanguageModel, Precision};
use flashlm_train::data::source::{Source, SourceReport};
use flashlm_train::eval::Stories;
use flashlm_train::eval::bpb::{self, PUBLISHED_STORIES, PUBLISHED_TOKENS, Published, Report, Sums};
use flashlm_train::load::Model;
use flashlm_train::log::console::{duration, thousands};
use serde_json::json;

use crate::common::{Status, exec, out, precision, say};

/// Most rows of one pass.
const ROWS: usize = 2048;
/// Tokens that are read before they are scored; bounds the memory for any size of data.
const PART: usize = 1 << 20;

/// Score a model on a text in bits per byte. Every byte counts; each story starts afresh and is scored whole.
#[derive(clap::Args)]
pub struct Args {
    /// A run folder (its best checkpoint is taken), a checkpoint folder or a .safetensors file.
    model: PathBuf,
    /// A text, .jsonl or .zst file, a folder of those, or `synthetic:N`.
    #[arg(long, value_name = "SOURCE")]
    data: String,
    /// What is counted.
    #[arg(long, value_enum, default_value_t = Protocol::Full)]
    protocol: Protocol,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Threads to compute with [default: all processors].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// What products are computed in: f32, bf16, or auto for what this machine does fastest
    #[arg(long, value_name = "P", default_value = "f32", value_parser = precision)]
    precision: Precision,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Protocol {
    /// Every byte of every story.
    Full,
    /// Understated, for comparison with published tables only: the bits of 256 tokens of 500 stories over the characters
    /// of the whole stories.
    Published,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let cx = exec(args.threads)?;
    let model = Model::load(&args.model)?;
    let source = Source::parse(&args.data)?;
    let precision = args.precision.resolve(cx.isa());
    let bits = model.activation_bits()?;
    let runtime = match precision {
        _ if bits == 8 => "int8 activations as the run was trained for, ternary weights",
        Precision::Bf16 => "products of bf16, ternary weights; `flashlm generate` runs in float32",
        _ => "float32 activations, ternary weights; what `flashlm generate` runs",
    };
    let mut lm = precision.build(&model.config, ROWS, false)?;
    lm.set_activation_bits(bits);
    let from = model.path.display();
    match model.step {
        Some(step) => say!("model {from} (step {step})"),
        None => say!("model {from}"),
    }
    let start = Instant::now();
    let (mut object, bits, read, rows) = match args.protocol {
        Protocol::Full => {
            let (report, read) = full(&cx, &mut *lm, &model, &source)?;
            (json!(report), report.bpb, read, full_rows(&report))
        }
        Protocol::Published => {
            let (report, read) = published(&cx, &mut *lm, &model, &source)?;
            (json!(report), report.understated_bits_per_character, read, published_rows(&report))
        }
    };
    if !bits.is_finite() {
        bail!("{from}: the model's output is not a number; its training diverged: use an earlier checkpoint");
    }
    if args.json {
        let own = [
            ("model", json!(from.to_string())),
            ("step", json!(model.step)),
            ("data", json!(args.data)),
            ("repaired", json!(read.repaired)),
            ("runtime", json!(runtime)),
            ("precision", json!(precision)),
            ("isa", json!(cx.isa().name())),
            ("seconds", json!(start.elapsed().as_secs_f64())),
        ];
        own.into_iter().for_each(|(key, value)| object[key] = value);
        out!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    rows.iter().for_each(|(name, value)| out!("{name:<22}  {value}"));
    if read.repaired > 0 {
        out!("{:<22}  {} mojibake sequences in the text, before scoring", "repaired", thousands(read.repaired));
    }
    out!("{:<22}  {runtime}", "runtime");
    Ok(ExitCode::SUCCESS)
}

type Rows = Vec<(&'static str, String)>;

fn full_rows(r: &Report) -> Rows {
    let unk = match (r.unk_bases, r.unk) {
        (0, _) => "none, the tokenizer is lossless".into(),
        (bases, n) => format!("{}, each charged ln {} nats more", thousands(n), thousands(bases as u64)),
    };
    vec![
        ("bits per byte", format!("{:.4}", r.bpb)),
        ("  with end of story", format!("{:.4}", r.bpb_with_eos)),
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

fn published_rows(r: &Published) -> Rows {
    let protocol = format!(
        "published, UNDERSTATED: bits of the first {PUBLISHED_TOKENS} tokens over characters of whole stories, \
         first {PUBLISHED_STORIES} stories; compare with published tables only"
    );
    vec![
        ("understated bits/char", format!("{:.4}", r.understated_bits_per_character)),
        ("loss per token", format!("{:.4} nats", r.loss_per_token)),
        ("perplexity", format!("{:.3}", r.perplexity)),
        ("stories", thousands(r.stories)),
        ("tokens", thousands(r.tokens)),
        ("characters", thousands(r.characters)),
        ("unknown tokens", format!("{}, not charged", thousands(r.unk))),
        ("context", r.context.into()),
        ("protocol", protocol),
    ]
}

/// Scores the source in parts.
fn full(
    cx: &Exec,
    lm: &mut dyn LanguageModel<f32>,
    model: &Model,
    source: &Source,
) -> anyhow::Result<(Report, SourceReport)> {
    let mut sums = Sums::default();
    let mut stories = Stories::default();
    let mut progress = Progress::new();
    let mut score = |stories: &mut Stories, read: f64| {
        let part = stories.totals().tokens;
        let done = &mut |tokens| progress.show(tokens, part, read);
        let scored = bpb::score(cx, lm, &model.params, &model.tokenizer, stories, &mut sums, done);
        progress.end_part(part, read);
        stories.clear();
        scored
    };
    let mut failed = None;
    let read = source.stories_at(&mut |text, read| {
        stories.push(&model.tokenizer, text);
        if stories.totals().tokens < PART {
            return ControlFlow::Continue(());
        }
        match score(&mut stories, read) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    score(&mut stories, 1.0)?;
    Ok((sums.report(&model.tokenizer)?, read))
}

fn published(
    cx: &Exec,
    lm: &mut dyn LanguageModel<f32>,
    model: &Model,
    source: &Source,
) -> anyhow::Result<(Published, SourceReport)> {
    let mut stories = Stories::default();
    let read = source.stories(&mut |text| {
        stories.push(&model.tokenizer, text);
        if stories.len() < PUBLISHED_STORIES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let all = (0..stories.len()).map(|i| PUBLISHED_TOKENS.min(stories.story(i).len() - 1)).sum();
    let mut progress = Progress::new();
    let done = &mut |tokens| progress.show(tokens, all, 1.0);
    let report = bpb::published(cx, lm, &model.params, &model.tokenizer, &stories, done);
    progress.end_part(all, 1.0);
    Ok((report?, read))
}

/// The status line: share, speed, time to go.
struct Progress {
    status: Status,
    start: Instant,
    /// Tokens of the parts that are done, and the share of the source that they are.
    before: (usize, f64),
}

impl Progress {
    fn new() -> Self {
        Progress { status: Status::new(), start: Instant::now(), before: (0, 0.0) }
    }

    /// `tokens` of `part` are scored; the part reaches to the share `read` of the source.
    fn show(&mut self, tokens: usize, part: usize, read: f64) -> ControlFlow<()> {
        let seconds = self.start.elapsed().as_secs_f64();
        let done = self.before.1 + (read - self.before.1) * tokens as f64 / part.max(1) as f64;
        let all = self.before.0 + tokens;
        self.status.show(&format!(
            "eval {:.0} %  {} tok  {} tok/s  {}  eta {}",
            100.0 * done,
            thousands(all as u64),
            thousands((all as f64 / seconds) as u64),
            duration(seconds),
            duration(seconds * (1.0 - done) / done)
        ));
        ControlFlow::Continue(())
    }

    fn end_part(&mut self, part: usize, read: f64) {
        self.before = (self.before.0 + part, read);
        self.status.clear();
    }
}
