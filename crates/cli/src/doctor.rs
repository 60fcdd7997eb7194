//! `flashlm doctor`: what this machine is, what it can do, and what to expect of it. Takes some seconds.

use std::process::ExitCode;

use flashlm_kernels::cpu::{CpuTime, Machine};
use flashlm_kernels::measure::{self, fastest};
use flashlm_kernels::ops::narrow;
use flashlm_kernels::{Bf16, Buf, Exec, Isa, Store};
use flashlm_model::{ModelConfig, Precision, Shape};
use flashlm_train::config;
use flashlm_train::run::{Dial, Steps};
use flashlm_train::units::{bytes, counted, thousands};
use serde_json::json;

use crate::bench::measure::{median, windows};
use crate::bench::train::BATCH;
use crate::common::{busy, threads};
use crate::report::Report;

/// Rows, columns and inner size of the matmul that is timed: operands that stay in the cache.
const PRODUCT: (usize, usize, usize) = (448, 512, 192);
/// Bytes that are copied: far more than any cache holds.
const COPIED: usize = 128 << 20;
/// Seconds spent on the training steps, in so many windows, and on each other figure.
const TRAINING: f64 = 3.0;
const WINDOWS: usize = 3;
const PART: f64 = 0.15;

/// Show what this machine can do: instruction sets, speed, and what `train` would choose for it; takes some seconds
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  flashlm doctor\n  FLASHLM_ISA=avx2 flashlm doctor --json")]
pub struct Args {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let machine = Machine::detect();
    let threads = threads(None)?;
    let isa = Isa::detect().map_err(anyhow::Error::msg)?;
    let cx = Exec::new(isa, threads);
    let mut report = Report::default();

    report.add("machine", &machine.name, machine.name.as_str());
    let cores = machine.cores;
    let text = format!(
        "{cores} for this process; {} used, set by FLASHLM_THREADS or --threads",
        counted(threads as u64, "thread")
    );
    report.add("processors", text, json!({"available": cores, "used": threads}));
    let text = match machine.memory {
        0 => "unknown: the system does not report it".to_string(),
        memory => bytes(memory),
    };
    report.add("memory", text, machine.memory);
    let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let why = match std::env::var("FLASHLM_ISA") {
        Ok(name) if !name.is_empty() => "FLASHLM_ISA asks for it",
        _ => "the best available",
    };
    let text = format!("{}: {why}; this machine has {}", isa.name(), names.join(", "));
    report.add("instruction set", text, json!({"chosen": isa.name(), "why": why, "available": names}));

    for isa in Isa::available() {
        let (one, all) = (Exec::new(isa, 1), Exec::new(isa, threads));
        let (f32, bf16) =
            ((product::<f32>(&one), product::<f32>(&all)), (product::<Bf16>(&one), product::<Bf16>(&all)));
        let key = format!("product {}", isa.name());
        let busy = threads > 1 && f32.1 < 1.2 * f32.0;
        let text = format!(
            "{:.0} GFLOP/s in f32 and {:.0} in bf16 on 1 thread, {:.0} and {:.0} on {threads}{}",
            f32.0,
            bf16.0,
            f32.1,
            bf16.1,
            if busy { ": threads gain nothing, since other programs use the processors" } else { "" }
        );
        let value = json!({
            "gflops_one_thread": f32.0, "gflops_all_threads": f32.1,
            "bf16_gflops_one_thread": bf16.0, "bf16_gflops_all_threads": bf16.1,
        });
        report.add(&key, text, value);
    }
    let precision = Precision::Auto.resolve(isa);
    let why = match precision {
        _ if isa.has_tiles() => "tile registers",
        Precision::Bf16 => "its matmuls were timed and are more than a third faster",
        _ if isa.has_bf16() => "bf16 matmuls were timed and are not a third faster",
        _ => "this instruction set has no bf16 matmuls",
    };
    let text = format!("{}: {why}; --precision changes it", precision.name());
    report.add("precision", text, json!({"chosen": precision.name(), "why": why}));
    let latency = 1e6 * measure::fork_join(&cx);
    let text = match latency {
        _ if threads == 1 => "none: there is one thread".to_string(),
        us if us < 20.0 => format!("{us:.1} us to start and join all threads: short enough for every operation"),
        us => format!("{us:.1} us to start and join all threads: long; stop other programs, or use fewer threads"),
    };
    report.add("fork and join", text, latency);
    let bandwidth = bandwidth(&cx);
    let text = format!("{bandwidth:.1} GB/s read and written by a large copy: limits the optimizer and large models");
    report.add("memory speed", text, bandwidth);
    let before = CpuTime::now();
    let speed = training(&cx, precision)?;
    let share = CpuTime::share_since(before);
    let text = format!("about {} tokens/s with v4-small, batch {BATCH}", thousands(rounded(speed)));
    report.add("training", text, json!({"preset": "v4-small", "batch": BATCH, "tokens_per_second": speed}));
    let text = busy(share).map_or("none: the threads had the time that they asked for".to_string(), |text| {
        format!("{}: all speeds are too low", text.to_lowercase())
    });
    report.add("other programs", text, json!({"cpu_share": share}));
    for minutes in [2.0, 10.0, 60.0] {
        let chosen = Dial { minutes: Some(minutes), ..Dial::default() }.choose(&cx, precision)?;
        let value =
            json!({"name": chosen.layers.settings()?.name, "tokens_per_second": chosen.speed, "bpb": chosen.bpb});
        report.add(&format!("{minutes} minutes"), chosen.told, value);
    }
    #[cfg(feature = "mpi")]
    let library = Some(flashlm_train::comm::library());
    #[cfg(not(feature = "mpi"))]
    let library: Option<String> = None;
    let text = match &library {
        Some(name) => format!("{name}: `mpirun -n 2 flashlm train ...` trains on several ranks (docs/cluster.md)"),
        None => "not in this build: `cargo build --release --features mpi` adds training on several machines".into(),
    };
    report.add("MPI", text, json!({"library": library}));
    report.print(args.json);
    Ok(ExitCode::SUCCESS)
}

/// GFLOP/s of a matmul of [`PRODUCT`]'s sizes.
fn product<A: Store>(cx: &Exec) -> f64 {
    measure::product::<A>(cx, PRODUCT, |call| fastest(PART, call)) / 1e9
}

/// GB/s of a copy, what is read and what is written added up.
fn bandwidth(cx: &Exec) -> f64 {
    let n = COPIED / size_of::<f32>() / 2;
    let mut from = Buf::<f32>::zeros(n);
    from.fill(1.0);
    let mut to = Buf::<f32>::zeros(n);
    COPIED as f64 / fastest(PART, || narrow(cx, &mut to, &from)) / 1e9
}

/// Tokens per second of training v4-small, measured as `flashlm bench train` does it.
fn training(cx: &Exec, precision: Precision) -> anyhow::Result<f64> {
    let settings = config::preset("v4-small")?.train;
    let shape = Shape { batch: BATCH, seq_len: settings.seq_len };
    let mut steps = Steps::new(cx, &ModelConfig::v4_small(), precision, settings, shape)?;
    steps.step(cx)?;
    let mut failure = None;
    let times = windows(TRAINING, WINDOWS, || failure = failure.take().or(steps.step(cx).err()));
    failure.map_or(Ok(shape.rows() as f64 / median(&times)), |error| Err(error.into()))
}

/// To two figures: more would be a promise.
fn rounded(speed: f64) -> u64 {
    let unit = 10f64.powf(speed.max(1.0).log10().floor() - 1.0).max(1.0);
    ((speed / unit).round() * unit) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_figures_are_kept() {
        for (speed, shown) in [(18_204.6, 18_000), (18_504.6, 19_000), (99.6, 100), (104.0, 100), (7.4, 7), (0.2, 0)] {
            assert_eq!(rounded(speed), shown, "{speed}");
        }
    }
}
