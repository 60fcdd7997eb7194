//! `flashlm verify`: runs test vectors, or a model on tokens, and compares with what their maker computed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use flashlm_model::Precision;
use flashlm_model::io::safetensors::TensorFile;
use flashlm_train::eval::verify::verify;
use flashlm_train::expect::{BOUND, Compared, compare};
use flashlm_train::recognise::recognise;
use flashlm_train::units::counted;
use flashlm_train::what::{Unwanted, What};
use serde_json::json;

use crate::common::{exec, out, precision};

/// Verify this build against test vectors: logits, loss, gradients and a training trajectory; exit code 1 if any is out of bounds
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm verify tests/reference/relu2_subnorm.safetensors\n  flashlm verify tests/reference/delta_published.safetensors --precision bf16 --json\n  flashlm verify TinyStories-1M --expect expected.safetensors\n\nThe exit code is 1 if any result is out of bounds."
)]
pub struct Args {
    /// Test vectors: a .safetensors file like those in tests/reference; with --expect a model
    file: PathBuf,
    /// Compare the model, a folder of a Llama or GPT-Neo model, a .bin of llama2.c, a .pt of the original scripts or one of
    /// FlashLM, with what its maker computed: a .safetensors file with `ids`, `logits` and `nll`. No tokenizer is needed
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
    /// Number of threads [default: FLASHLM_THREADS, else all processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Precision of matmuls: f32, bf16, int8 (ternary matrices and logits in int8, the rest in bf16, or in f32 as int8-f32 does), or auto (bf16 where this machine is clearly faster with it); bf16 and int8 have wider bounds
    #[arg(long, value_name = "P", default_value = "f32", value_parser = precision)]
    precision: Precision,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(file) = &args.expect {
        return expect(&args, file);
    }
    let found = recognise(&args.file);
    if found != What::Vectors {
        bail!(Unwanted::new(&args.file, "test vectors, a .safetensors file like those in tests/reference", found));
    }
    let cx = exec(args.threads)?;
    let file = TensorFile::open(&args.file)?;
    let precision = args.precision.resolve(cx.isa());
    let outcome =
        verify(&cx, &file, precision).with_context(|| format!("{}: cannot be verified", args.file.display()))?;
    let (checks, passed) = (outcome.checks(), outcome.passed());
    if args.json {
        let mut object = json!(outcome);
        object["file"] = json!(args.file.display().to_string());
        object["isa"] = json!(cx.isa().name());
        object["checks"] = json!(checks);
        object["pass"] = json!(passed);
        out!("{object}");
    } else {
        let (file, isa, precision) = (args.file.display(), cx.isa().name(), precision.name());
        out!("{file}: {}, {}, {isa}, {precision}", outcome.arch, counted(outcome.steps as u64, "training step"));
        for check in checks {
            let verdict = if check.pass { "pass" } else { "FAIL" };
            let worst = match check.name {
                "grad_rms_ratio_max" => format!("  {}", outcome.grad_worst),
                _ => String::new(),
            };
            out!("  {:<24}  {:>8.1e}  at most {:.0e}  {verdict}{worst}", check.name, check.value, check.bound);
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares a model with a file of ids and logits.
fn expect(args: &Args, file: &Path) -> anyhow::Result<ExitCode> {
    let cx = exec(args.threads)?;
    let compared = compare(&cx, &args.file, &TensorFile::open(file)?)?;
    let (passed, Compared { logits_rms_ratio, nll_abs_diff_max }) = (compared.passed(), compared);
    if args.json {
        let model = args.file.display().to_string();
        out!(
            "{}",
            json!({"model": model, "isa": cx.isa().name(), "logits_rms_ratio": logits_rms_ratio,
                   "nll_abs_diff_max": nll_abs_diff_max, "bound": BOUND, "pass": passed})
        );
    } else {
        out!("{}: {}, at most {BOUND:.0e}", args.file.display(), if passed { "pass" } else { "FAIL" });
        out!("  logits_rms_ratio  {logits_rms_ratio:>8.1e}");
        if let Some(nll) = nll_abs_diff_max {
            out!("  nll_abs_diff_max  {nll:>8.1e}");
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
