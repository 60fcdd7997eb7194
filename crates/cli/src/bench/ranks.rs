//! `flashlm bench ranks`: tokens per second of training on several machines, from steps measured on this one and a network as it is
//! described ([`Work`]).

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use flashlm_kernels::Exec;
use flashlm_kernels::measure::fastest;
use flashlm_model::params::Layout;
use flashlm_model::{ModelConfig, Precision, Shape};
use flashlm_train::config::{Layers, TrainSettings, preset_names};
use flashlm_train::ranks::{Link, Work};
use flashlm_train::run::Steps;
use flashlm_train::stepper::ROWS;
use flashlm_train::units::{counted, thousands};
use serde_json::json;

use super::measure::{median, windows};
use crate::common::{self, out};

/// Seconds of measurement on a step of one pass, and on one of several.
const SECONDS: f64 = 4.0;
const WINDOWS: usize = 3;
/// Passes of the longer step.
const SEVERAL: usize = 3;

/// Forecast training on several machines: a step is measured here, and shared out over a network as it is described
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm bench ranks --preset v4-small --gigabits 1,10\n  flashlm bench ranks --preset v4-large --gigabits 0.1 --delay 10 --ranks 1,2"
)]
pub struct Args {
    /// Preset to train
    #[arg(long, value_name = "NAME", default_value = "v4-small", value_parser = PossibleValuesParser::new(preset_names()))]
    preset: String,
    /// Set one setting, such as model.dim=1024; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Passes of an update; no more ranks than these can take part
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    passes: u32,
    /// Numbers of ranks, separated by commas: powers of two
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8,16,32,64,128,256", value_parser = power)]
    ranks: Vec<usize>,
    /// Speeds of the network in Gb/s, separated by commas
    #[arg(long, value_name = "GB", value_delimiter = ',', default_value = "1,10", value_parser = positive)]
    gigabits: Vec<f64>,
    /// Delay between two machines in milliseconds, one way
    #[arg(long, value_name = "MS", default_value = "0.05", value_parser = positive)]
    delay: f64,
    /// Tokens per second of one rank alone, for machines that are not at hand [default: measured here]
    #[arg(long, value_name = "N", value_parser = positive)]
    speed: Option<f64>,
    /// Number of threads of a rank [default: FLASHLM_THREADS, else all processors]
    #[arg(long)]
    threads: Option<usize>,
    /// Precision of matmuls: f32, bf16, int8 (ternary matrices and logits in int8, the rest in bf16, or in f32 as int8-f32 does), or auto (bf16 where this machine is clearly faster with it)
    #[arg(long, value_name = "P", default_value = "auto", value_parser = common::precision)]
    precision: Precision,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

fn power(text: &str) -> Result<usize, String> {
    let n: Option<usize> = text.parse().ok().filter(|n: &usize| n.is_power_of_two() && *n <= 65_536);
    n.ok_or_else(|| "expected a power of two, at most 65536".into())
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(n) if (1e-6..=1e6).contains(&n) => Ok(n),
        _ => Err("expected a number between 0.000001 and 1000000".into()),
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut layers = Layers::preset(&args.preset)?;
    common::set_all(&mut layers, &args.set)?;
    let settings = layers.settings()?;
    let cx = common::exec(args.threads)?;
    let precision = args.precision.resolve(cx.isa());
    let model = ModelConfig { vocab_size: settings.tokenizer.vocab, ..settings.model };
    let passes = args.passes as usize;
    let work = match args.speed {
        Some(speed) => described(&model, &settings.train, passes, speed),
        None => measure(&cx, &model, precision, settings.train, passes)?,
    };
    anyhow::ensure!(
        args.ranks.iter().any(|&ranks| ranks <= work.passes),
        "--ranks: a step of --passes {} is for at most as many ranks; raise --passes",
        work.passes
    );
    let fit = args.ranks.iter().copied().filter(|&ranks| ranks <= work.passes);
    let (threads, delay) = (cx.pool().threads(), args.delay);
    if !args.json {
        let (parameters, tokens) =
            (thousands(work.parameters as u64), thousands((work.passes * work.pass_tokens) as u64));
        out!(
            "{}: {parameters} parameters, {tokens} tokens an update in passes of {}",
            args.preset,
            thousands(work.pass_tokens as u64)
        );
        let (pass, fixed, add) = (1e3 * work.pass, 1e3 * work.fixed, 1e9 * work.add);
        let (threads, kept) = (counted(threads as u64, "thread"), precision.name());
        let how =
            args.speed.map_or(format!("measured here, on {threads} in {kept}"), |n| format!("at {n} tokens/s a rank"));
        out!("{how}: a pass {pass:.1} ms, the rest of a step {fixed:.1} ms, to add a value {add:.2} ns");
        let names: String =
            args.gigabits.iter().map(|gb| format!("{:>20}", format!("{gb} Gb/s, {delay} ms"))).collect();
        out!("{:>6} {names}  (tokens/s, efficiency; in brackets with train.rank_sums = bf16)", "ranks");
    }
    let mut rows = Vec::new();
    for ranks in fit {
        let mut line = String::new();
        for &gigabits in &args.gigabits {
            let link = Link { bytes_per_second: gigabits * 1e9 / 8.0, delay: 1e-3 * delay };
            let [whole, rounded] = [4.0, 2.0].map(|bytes| work.speed(ranks, link, bytes));
            let efficiency = |speed: f64| speed / (ranks as f64 * work.speed(1, link, 4.0));
            line += &format!("{whole:>10.0} {:.2} ({:.2})", efficiency(whole), efficiency(rounded));
            let (compute, talk) = work.seconds(ranks, link, 4.0);
            rows.push(json!({
                "ranks": ranks, "gigabits": gigabits, "tokens_per_second": whole, "efficiency": efficiency(whole),
                "tokens_per_second_bf16": rounded, "compute_seconds": compute, "talk_seconds": talk,
            }));
        }
        if !args.json {
            out!("{ranks:>6} {line}");
        }
    }
    if args.json {
        let result = json!({
            "preset": args.preset, "parameters": work.parameters, "passes": work.passes, "pass_tokens": work.pass_tokens,
            "pass_seconds": work.pass, "fixed_seconds": work.fixed, "add_seconds": work.add, "threads": threads,
            "precision": precision.name(), "delay_ms": delay, "rows": rows,
        });
        out!("{result}");
    }
    Ok(ExitCode::SUCCESS)
}

/// A value is read and written where it is added, and where it is copied.
const ADD: f64 = 1e-9;

/// Sequences of a pass.
fn sequences(t: &TrainSettings) -> usize {
    let rows = if t.pass_rows == 0 { ROWS } else { t.pass_rows };
    (rows / t.seq_len).max(1)
}

/// A step of a machine with this speed.
fn described(model: &ModelConfig, t: &TrainSettings, passes: usize, speed: f64) -> Work {
    let pass_tokens = sequences(t) * t.seq_len;
    let pass = pass_tokens as f64 / speed;
    Work { parameters: Layout::of(model).len(), passes, pass_tokens, pass, fixed: 0.0, add: ADD }
}

/// Steps of one pass and of several: what a pass takes, and what comes to it in each step.
fn measure(
    cx: &Exec,
    model: &ModelConfig,
    precision: Precision,
    t: TrainSettings,
    passes: usize,
) -> anyhow::Result<Work> {
    let (seq_len, batch) = (t.seq_len, sequences(&t));
    let mut seconds = [0.0; 2];
    let mut parameters = 0;
    for (n, seconds) in [1, SEVERAL].into_iter().zip(&mut seconds) {
        let settings = TrainSettings { pass_rows: batch * seq_len, ..t.clone() };
        let mut steps = Steps::new(cx, model, precision, settings, Shape { batch: n * batch, seq_len })?;
        parameters = steps.stepper.params.len();
        steps.step(cx)?;
        let mut failure = None;
        let times = windows(SECONDS, WINDOWS, || failure = failure.take().or(steps.step(cx).err()));
        failure.map_or(Ok(()), Err)?;
        *seconds = median(&times);
    }
    let [one, several] = seconds;
    let pass = ((several - one) / (SEVERAL - 1) as f64).max(0.0);
    let (mut to, from) = (vec![0f32; parameters], vec![1f32; parameters]);
    // What comes is added or copied, and once copied from the gradient.
    let added = fastest(0.2, || to.iter_mut().zip(&from).for_each(|(to, from)| *to += *from));
    let copied = fastest(0.2, || to.copy_from_slice(&from));
    let add = (added + 2.0 * copied) / parameters as f64;
    Ok(Work { parameters, passes, pass_tokens: batch * seq_len, pass, fixed: (one - pass).max(0.0), add })
}
