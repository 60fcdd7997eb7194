//! `flashlm bench kernels`: time of each op on each instruction set, at the sizes of a training pass of v4-small.
//!
//! Before an op is timed its result on the same operands is compared with that of the op in f64 on one scalar lane: the RMS
//! of the difference must be at most [`BOUND`] times the RMS of the reference ([`BOUND_BF16`] for outputs kept in bf16), for
//! every output. No check, no figure. GB/s counts each operand once, read or written; GFLOP/s counts `2 m n k`.

mod case;
mod ops;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use flashlm_kernels::{Bf16, Exec, Isa, Store};
use serde_json::json;

use flashlm_kernels::profile::Work;

use self::case::{Output, Subject};
use self::ops::{OPS, Op, make};
use super::measure::{median, rate, seconds, windows};
use crate::common::{out, say, threads};

/// Largest RMS ratio of f32 to the f64 reference.
const BOUND: f64 = 1e-5;
/// The same where the output itself is rounded to bf16.
const BOUND_BF16: f64 = 4e-3;
/// Windows of the median.
const WINDOWS: usize = 5;

/// Time each kernel on each instruction set, after checking its result against the scalar reference
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  flashlm bench kernels\n  flashlm bench kernels --isa avx2 --seconds 0.1")]
pub struct Args {
    /// Instruction set to time [default: FLASHLM_ISA, else all of this machine]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// Seconds of measurement per kernel and instruction set
    #[arg(long, default_value = "0.25", value_parser = seconds)]
    seconds: f64,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let threads = threads(None)?;
    let isas: Vec<Exec> = isas(args.isa.as_deref())?.into_iter().map(|isa| Exec::new(isa, threads)).collect();
    let scalar = Exec::new(Isa::SCALAR, threads);
    if !args.json {
        out!("{:<18} {:<17} {:<10} {:<4} {:>11}  {:>14}  {:>7}", "op", "size", "isa", "in", "us/call", "rate", "error");
    }
    let mut rows = Vec::new();
    for &op in OPS {
        let reference = Reference::new(op, &scalar);
        for cx in &isas {
            for (kept, subject) in [(f32::NAME, make::<f32>(op, cx)), (Bf16::NAME, make::<Bf16>(op, cx))] {
                let row = reference.compare(subject, kept, cx, args.seconds);
                if !args.json {
                    out!("{}", row.line());
                }
                rows.push(row);
            }
        }
    }
    let failed = rows.iter().filter(|row| row.seconds.is_none()).count();
    if args.json {
        let all: Vec<_> = rows.iter().map(Row::json).collect();
        out!("{}", json!({ "threads": threads, "bound": BOUND, "failed": failed, "rows": all }));
    }
    if failed > 0 {
        say!("{failed} of {} results differ from the scalar reference by more than {BOUND:e}", rows.len());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The one named, or the one of `FLASHLM_ISA`, or all, the best first.
fn isas(name: Option<&str>) -> anyhow::Result<Vec<Isa>> {
    match name {
        Some(name) => {
            let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
            let found =
                Isa::named(name).with_context(|| format!("--isa {name}: this machine has {}", names.join(", ")));
            Ok(vec![found?])
        }
        None => Isa::wanted().map_err(anyhow::Error::msg),
    }
}

/// The right outputs of one op.
struct Reference {
    outputs: Vec<Vec<f64>>,
}

impl Reference {
    fn new(op: Op, scalar: &Exec) -> Self {
        let mut case = make::<f64>(op, scalar).case;
        case.call(scalar);
        Reference { outputs: case.outputs().into_iter().map(|output| output.values).collect() }
    }

    /// Checks one call, then times more.
    fn compare(&self, mut subject: Subject, kept: &'static str, cx: &Exec, seconds: f64) -> Row {
        let start = Instant::now();
        subject.case.call(cx);
        let first = start.elapsed().as_secs_f64();
        let (error, ok) = self.error(&subject.case.outputs());
        let Subject { name, size, work, mut case } = subject;
        // Where a window holds few calls they are long, and fewer windows do.
        let count = if first * WINDOWS as f64 > seconds { 3 } else { WINDOWS };
        let seconds = ok.then(|| median(&windows(seconds, count, || case.call(cx))));
        Row { name, size, isa: cx.isa().name(), kept, work, error, seconds }
    }

    /// The largest RMS ratio of any output, and whether each is within its bound. A NaN is no pass.
    fn error(&self, outputs: &[Output]) -> (f64, bool) {
        let matches = outputs.len() == self.outputs.len();
        let ratio = |(got, want): (&Output, &Vec<f64>)| {
            let bound = if got.kept == Bf16::NAME { BOUND_BF16 } else { BOUND };
            let ratio = rms_ratio(&got.values, want);
            (ratio, ratio <= bound)
        };
        // A NaN stays, which `f64::max` would drop.
        let worse = |a: f64, b: f64| if a.is_nan() || a >= b { a } else { b };
        let start = (if matches { 0.0 } else { f64::NAN }, matches);
        outputs.iter().zip(&self.outputs).map(ratio).fold(start, |a, b| (worse(a.0, b.0), a.1 && b.1))
    }
}

/// RMS of the difference over RMS of what is wanted; NaN where the lengths differ.
fn rms_ratio(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// One line of the table; without a time if the check failed.
struct Row {
    name: &'static str,
    size: String,
    isa: &'static str,
    kept: &'static str,
    work: Work,
    error: f64,
    seconds: Option<f64>,
}

impl Row {
    fn line(&self) -> String {
        let Row { name, size, isa, kept, error, .. } = self;
        let figures = match self.seconds {
            Some(seconds) => {
                let (rate, unit) = rate(self.work, seconds);
                format!("{:>11.1}  {rate:>7.1} {unit:<7} ", 1e6 * seconds)
            }
            None => format!("{:>11}  {:>7} {:<7} ", "FAILED", "", ""),
        };
        format!("{name:<18} {size:<17} {isa:<10} {kept:<4} {figures} {error:>7.0e}")
    }

    fn json(&self) -> serde_json::Value {
        let rated = self.seconds.map(|seconds| rate(self.work, seconds).0);
        json!({
            "op": self.name, "size": self.size, "isa": self.isa, "precision": self.kept, "ok": self.seconds.is_some(), "error": self.error,
            "us": self.seconds.map(|s| 1e6 * s), "rate": rated, "unit": rate(self.work, 1.0).1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::ops::case;
    use super::*;

    fn output(values: &[f64], kept: &'static str) -> Output {
        Output { values: values.to_vec(), kept }
    }

    #[test]
    fn a_wrong_result_has_no_figure() {
        let cx = Exec::new(Isa::SCALAR, 1);
        let reference = Reference { outputs: vec![vec![1.0, 2.0, 2.0]] };
        let row = |values: [f64; 3], kept| {
            let case = case((), |_, _| (), move |()| vec![output(&values, kept)]);
            let subject = Subject { name: "test", size: "3".into(), work: Work::Bytes(12.0), case };
            reference.compare(subject, kept, &cx, 0.001)
        };
        let good = row([1.0, 2.0, 2.0 + 1e-6], "f32");
        assert!(good.seconds.is_some() && good.line().contains("GB/s"), "{}", good.line());
        assert!(row([1.0, 2.0, 2.001], "bf16").seconds.is_some());
        for bad in [[1.0, 2.0, 2.001], [f64::NAN, 2.0, 2.0], [f64::INFINITY, 2.0, 2.0]] {
            let row = row(bad, "f32");
            assert!(row.seconds.is_none() && row.line().contains("FAILED"), "{}", row.line());
            assert_eq!(row.json()["us"], serde_json::Value::Null);
        }
    }

    #[test]
    fn every_output_counts() {
        let reference = Reference { outputs: vec![vec![3.0, 4.0], vec![1.0]] };
        let error = |a: &[f64], b: &[f64]| reference.error(&[output(a, "f32"), output(b, "f32")]);
        // 0.5 / 5 and 0.25 / 1.
        assert_eq!(error(&[3.0, 4.5], &[1.0]), (0.1, false));
        assert_eq!(error(&[3.0, 4.5], &[1.25]), (0.25, false));
        assert_eq!(error(&[3.0, 4.0], &[1.25]), (0.25, false));
        assert_eq!(error(&[3.0, 4.0], &[1.0]), (0.0, true));
        for (a, b) in [(&[f64::NAN, 4.0][..], &[1.25]), (&[3.0, 4.0], &[f64::NAN]), (&[3.0], &[1.0])] {
            let (error, ok) = error(a, b);
            assert!(error.is_nan() && !ok);
        }
        assert!(reference.error(&[output(&[3.0, 4.0], "f32")]).0.is_nan());
    }

    /// Every op on every instruction set of the machine, as the command itself checks them.
    #[test]
    fn all_ops_agree() {
        let scalar = Exec::new(Isa::SCALAR, 2);
        for &op in OPS {
            let reference = Reference::new(op, &scalar);
            for isa in isas(None).unwrap() {
                let cx = Exec::new(isa, 2);
                for mut subject in [make::<f32>(op, &cx), make::<Bf16>(op, &cx)] {
                    subject.case.call(&cx);
                    let (error, ok) = reference.error(&subject.case.outputs());
                    assert!(ok, "{} {} on {}: {error:e}", subject.name, subject.size, isa.name());
                }
            }
        }
    }

    #[test]
    fn an_unknown_isa_is_answered_with_the_known() {
        let error = isas(Some("mmx")).unwrap_err().to_string();
        assert!(error.contains("mmx") && error.contains("scalar"), "{error}");
        assert_eq!(isas(Some("scalar")).unwrap(), [Isa::SCALAR]);
    }
}
