//! `flashlm bench train`: tokens per second of whole training steps on random tokens.
//!
//! A step is the trainer's own ([`Steps`]): quantise and pack the weights, forward and backward in micro-batches, global
//! norm, clip, optimizer. The figure is the median of three windows after one step of warm-up.
//! `GFLOP/s` counts 6 operations per token for each weight that multiplies (2 forward, 4 backward): matrices, taps and the
//! tied head; what is computed again in the backward pass is not counted twice.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::ensure;
use flashlm_kernels::Exec;
use flashlm_kernels::cpu::peak_rss;
use flashlm_kernels::profile::{Entry, profile};
use flashlm_model::params::{Group, Layout};
use flashlm_model::{ModelConfig, Precision, Shape};
use flashlm_train::config::Layers;
use flashlm_train::run::Steps;
use flashlm_train::units::{counted, thousands};

use super::measure::{PEAK, median, peak, rate, seconds, windows};
use crate::common::{self, out, say};
use crate::terminal::{columns, stdout_width};

/// Windows of the median.
const WINDOWS: usize = 3;
/// Sequences of a step where the preset leaves it to the hardware.
pub(crate) const BATCH: usize = 32;
/// Most tokens of a step.
const MAX_TOKENS: usize = 1 << 22;

/// Measure whole training steps on random tokens: tokens per second, memory, percentage of the machine's peak
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm bench train --preset v4-small --batch 32\n  flashlm bench train --preset flash-tiny --seconds 5 --ops"
)]
pub struct Args {
    /// Preset to train
    #[arg(long, default_value = "v4-small")]
    preset: String,
    /// Set one setting, such as train.optimizer=muon; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Sequences per step [default: the preset's, else 32]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,
    /// Tokens per sequence [default: the preset's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    seq: Option<u32>,
    /// Total seconds of measurement
    #[arg(long, default_value = "15", value_parser = seconds)]
    seconds: f64,
    /// Number of threads [default: FLASHLM_THREADS, else all processors]
    #[arg(long)]
    threads: Option<usize>,
    /// Precision of matmuls: f32, bf16, int8 (ternary matrices and logits in int8, the rest in bf16, or in f32 as int8-f32 does), or auto (bf16 where this machine is clearly faster with it)
    #[arg(long, value_name = "P", default_value = "auto", value_parser = common::precision)]
    precision: Precision,
    /// Add a table of the time spent in each op
    #[arg(long)]
    ops: bool,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut layers = Layers::preset(&args.preset)?;
    common::set_all(&mut layers, &args.set)?;
    let settings = layers.settings()?;
    let model = ModelConfig { vocab_size: settings.tokenizer.vocab, ..settings.model.clone() };
    let batch = match (args.batch, settings.train.batch) {
        (Some(batch), _) => batch as usize,
        (None, 0) => BATCH,
        (None, batch) => batch,
    };
    let seq = args.seq.map_or(settings.train.seq_len, |seq| seq as usize);
    let tokens = batch * seq;
    ensure!(tokens <= MAX_TOKENS, "{batch} sequences of {seq} tokens: a step can have at most {MAX_TOKENS} tokens");
    let cx = common::exec(args.threads)?;
    let (isa, threads) = (cx.isa().name(), cx.pool().threads());
    let precision = args.precision.resolve(cx.isa());
    let mut steps = Steps::new(&cx, &model, precision, settings.train, Shape { batch, seq_len: seq })?;
    let parameters = steps.stepper.lm.layout().parameters();
    let kept = precision.name();
    say!(
        "{}: {} parameters, batch {batch}, T {seq}, {isa}, {kept}, {}",
        args.preset,
        thousands(parameters as u64),
        counted(threads as u64, "thread")
    );

    let before = peak(&cx, precision);
    steps.step(&cx)?;
    let mut failure = None;
    let times = windows(args.seconds, WINDOWS, || failure = failure.take().or(steps.step(&cx).err()));
    if let Some(error) = failure {
        return Err(error.into());
    }
    let peak_gflops = before.max(peak(&cx, precision));

    // Apart from the windows above: measuring each op takes time itself.
    let (wall, entries) = if args.ops { profiled(&mut steps, &cx)? } else { (0.0, Vec::new()) };
    let table = Table { entries, seconds: wall * threads as f64, threads };

    let seconds = median(&times);
    let speeds: Vec<f64> = times.iter().map(|t| tokens as f64 / t).collect();
    let tokens_per_second = tokens as f64 / seconds;
    let gflops = tokens_per_second * flops_per_token(steps.stepper.lm.layout()) / 1e9;
    let percent_of_peak = 100.0 * gflops / peak_gflops;
    let peak_rss_mb = peak_rss() as f64 / f64::from(1 << 20);
    if args.json {
        let mut result = serde_json::json!({
            "preset": args.preset, "batch": batch, "seq": seq, "threads": threads, "isa": isa, "precision": kept,
            "parameters": parameters, "tokens_per_second": tokens_per_second, "windows": speeds,
            "ms_per_step": 1e3 * seconds, "peak_rss_mb": peak_rss_mb, "gflops": gflops,
            "peak_gflops": peak_gflops, "percent_of_peak": percent_of_peak, "peak": PEAK,
        });
        if args.ops {
            result["ops"] = table.json();
        }
        out!("{result}");
    } else {
        let listed: Vec<String> = speeds.iter().map(|speed| format!("{speed:.0}")).collect();
        let rows = [
            ("tokens/s", format!("{tokens_per_second:>10.0}  median of {}", listed.join(" "))),
            ("ms/step", format!("{:>10.1}", 1e3 * seconds)),
            ("GFLOP/s", format!("{gflops:>10.1}  {percent_of_peak:.0} % of {peak_gflops:.0}, the {PEAK}")),
            ("peak MB", format!("{peak_rss_mb:>10.0}  resident")),
        ];
        let rows = rows.iter().map(|(name, value)| (*name, value.as_str()));
        columns(rows, stdout_width()).iter().for_each(|line| out!("{line}"));
        if args.ops {
            table.print();
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Steps of a profile.
const PROFILED: usize = 2;

/// Wall time of some steps, and where it went.
fn profiled(steps: &mut Steps, cx: &Exec) -> anyhow::Result<(f64, Vec<Entry>)> {
    let start = Instant::now();
    let (result, entries) = profile(|| (0..PROFILED).try_for_each(|_| steps.step(cx).map(drop)));
    result?;
    Ok((start.elapsed().as_secs_f64(), entries))
}

/// Ops by the time they took; what is no op (waiting for each other, moving on) is what is left of the whole.
struct Table {
    entries: Vec<Entry>,
    /// Of all threads together.
    seconds: f64,
    threads: usize,
}

impl Table {
    fn print(&self) {
        out!("\n{:<20} {:>13} {:>7} {:>9} {:>9} {:>16}", "op", "size", "calls", "ms/step", "share", "rate per thread");
        for e in &self.entries {
            let (rate, unit) = rate(e.work, e.seconds);
            let size = match e.size {
                (0, _) => String::new(),
                (a, 0) => format!("{a}"),
                (a, b) => format!("{a} x {b}"),
            };
            let calls = e.calls / PROFILED as u64;
            let ms = 1e3 * e.seconds / (PROFILED * self.threads) as f64;
            let share = 100.0 * e.seconds / self.seconds;
            out!("{:<20} {size:>13} {calls:>7} {ms:>9.2} {share:>7.1} % {rate:>8.1} {unit}", e.name);
        }
        let rest = 100.0 * (1.0 - self.entries.iter().map(|e| e.seconds).sum::<f64>() / self.seconds);
        out!("{:<20} {:>13} {:>7} {:>9} {rest:>7.1} %", "rest", "", "", "");
    }

    fn json(&self) -> serde_json::Value {
        let row = |e: &Entry| {
            let (rate, unit) = rate(e.work, e.seconds);
            serde_json::json!({
                "op": e.name, "size": [e.size.0, e.size.1], "calls": e.calls, "seconds": e.seconds,
                "share": e.seconds / self.seconds, "rate_one_thread": rate, "unit": unit,
            })
        };
        self.entries.iter().map(row).collect()
    }
}

/// Floating-point operations of one token's forward and backward pass in weights that multiply.
fn flops_per_token(layout: &Layout) -> f64 {
    let multiply = |group| matches!(group, Group::Matrix | Group::Gate | Group::Embedding | Group::Conv);
    let weights: usize = layout.specs().iter().filter(|s| multiply(s.group)).map(|s| s.range.len()).sum();
    6.0 * weights as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_small_costs_what_its_shapes_say() {
        let (d, f, v, n, k) = (192.0, 512.0, 10_000.0, 6.0, 8.0);
        let block = 2.0 * d * d + d * d + d * k + 3.0 * d * f;
        assert_eq!(flops_per_token(&Layout::of(&ModelConfig::v4_small())), 6.0 * (n * block + v * d));
    }
}
