//! `flashlm bench mixers`: tokens per second of whole training steps of v4-small with each token mixer in all of its blocks, at
//! several sequence lengths, 4,096 tokens per step, on random tokens. Rounds go over all of them in turns; the figure is the
//! median.

use std::process::ExitCode;

use flashlm_kernels::Exec;
use flashlm_model::{ModelConfig, Precision, Shape, mixer};
use flashlm_train::config;
use flashlm_train::run::Steps;
use flashlm_train::units::counted;
use serde_json::Value;

use super::measure::{median, seconds, windows};
use crate::common::{self, out, say};

/// Tokens of a step.
const TOKENS: usize = 4096;
/// Tokens of a sequence.
const LENGTHS: [usize; 3] = [256, 512, 4096];
/// Times that each is measured.
const ROUNDS: usize = 3;

/// Measure whole training steps with each token mixer, at several sequence lengths: tokens per second
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  flashlm bench mixers\n  flashlm bench mixers --seconds 20 --precision f32 --json")]
pub struct Args {
    /// Total seconds of measurement
    #[arg(long, default_value = "45", value_parser = seconds)]
    seconds: f64,
    /// Number of threads [default: FLASHLM_THREADS, else all processors]
    #[arg(long)]
    threads: Option<usize>,
    /// Precision of matmuls: f32, bf16, int8 (ternary matrices and logits in int8, the rest in bf16, or in f32 as int8-f32 does), or auto (bf16 where this machine is clearly faster with it)
    #[arg(long, value_name = "P", default_value = "auto", value_parser = common::precision)]
    precision: Precision,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

struct Row {
    mixer: &'static str,
    len: usize,
    parameters: usize,
    /// Tokens per second of each round.
    speeds: Vec<f64>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let cx = common::exec(args.threads)?;
    let precision = args.precision.resolve(cx.isa());
    let rows = measure(&cx, precision, TOKENS, &LENGTHS, args.seconds)?;
    if args.json {
        out!("{}", json(&rows, &cx, precision));
        return Ok(ExitCode::SUCCESS);
    }
    let (isa, kept, threads, first) = (cx.isa().name(), precision.name(), cx.pool().threads(), median(&rows[0].speeds));
    out!("v4-small with each mixer, {TOKENS} tokens per step, {isa}, {kept}, {}", counted(threads as u64, "thread"));
    out!(
        "{:<12} {:>6} {:>12} {:>10}  of {} at T {}",
        "mixer",
        "T",
        "parameters",
        "tokens/s",
        rows[0].mixer,
        LENGTHS[0]
    );
    for row in &rows {
        let (speed, parameters) = (median(&row.speeds), row.parameters);
        out!("{:<12} {:>6} {parameters:>12} {speed:>10.0}  {:.2}", row.mixer, row.len, speed / first);
    }
    Ok(ExitCode::SUCCESS)
}

/// Every mixer at every length, in steps of so many tokens.
fn measure(
    cx: &Exec,
    precision: Precision,
    tokens: usize,
    lengths: &[usize],
    seconds: f64,
) -> anyhow::Result<Vec<Row>> {
    let settings = config::preset("v4-small")?.train;
    let of =
        |&mixer: &&'static str| lengths.iter().map(move |&len| Row { mixer, len, parameters: 0, speeds: Vec::new() });
    let mut rows: Vec<Row> = mixer::NAMES.iter().flat_map(of).collect();
    let seconds = seconds / (ROUNDS * rows.len()) as f64;
    for round in 0..ROUNDS {
        say!("round {} of {ROUNDS}", round + 1);
        for row in &mut rows {
            let model = ModelConfig { mixer: row.mixer.into(), ..ModelConfig::v4_small() };
            let shape = Shape { batch: tokens / row.len, seq_len: row.len };
            let mut steps = Steps::new(cx, &model, precision, settings.clone(), shape)?;
            row.parameters = steps.stepper.lm.layout().parameters();
            // Memory is touched for the first time before it counts.
            steps.step(cx)?;
            let mut failure = None;
            let times = windows(seconds, 1, || failure = failure.take().or(steps.step(cx).err()));
            if let Some(error) = failure {
                return Err(error.into());
            }
            row.speeds.push(tokens as f64 / times[0]);
        }
    }
    Ok(rows)
}

fn json(rows: &[Row], cx: &Exec, precision: Precision) -> Value {
    let first = median(&rows[0].speeds);
    let row = |row: &Row| {
        let speed = median(&row.speeds);
        serde_json::json!({
            "mixer": row.mixer, "seq": row.len, "parameters": row.parameters,
            "tokens_per_second": speed, "rounds": row.speeds, "ratio": speed / first,
        })
    };
    let listed: Vec<Value> = rows.iter().map(row).collect();
    let (isa, kept, threads) = (cx.isa().name(), precision.name(), cx.pool().threads());
    serde_json::json!({"isa": isa, "precision": kept, "threads": threads, "rows": listed})
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::Isa;

    use super::*;

    /// The command itself takes half a minute at the least, so its parts are tried with short steps.
    #[test]
    fn every_mixer_is_measured_at_every_length() {
        let cx = Exec::new(Isa::detect().unwrap(), 2);
        let rows = measure(&cx, Precision::F32, 64, &[16, 64], 0.001).unwrap();
        let result = json(&rows, &cx, Precision::F32);
        let listed = result["rows"].as_array().unwrap();
        let found: Vec<_> =
            listed.iter().map(|row| (row["mixer"].as_str().unwrap(), row["seq"].as_u64().unwrap())).collect();
        let expected: Vec<_> = mixer::NAMES.iter().flat_map(|name| [(*name, 16), (*name, 64)]).collect();
        assert_eq!(found, expected);
        for row in listed {
            assert_eq!(row["rounds"].as_array().unwrap().len(), ROUNDS);
            for key in ["tokens_per_second", "ratio"] {
                assert!(row[key].as_f64().is_some_and(|n| n > 0.0 && n.is_finite()), "{key}: {row}");
            }
        }
        assert_eq!(listed[0]["ratio"], 1.0);
        let conv = listed.iter().find(|row| row["mixer"] == "conv").unwrap();
        assert_eq!(conv["parameters"], 4_364_736, "as PyTorch counts those of the original");
    }
}
