//! `flashlm verify`: runs test vectors and compares with what their maker computed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use flashlm_model::io::safetensors::TensorFile;
use flashlm_train::eval::verify::verify;
use serde_json::json;

use crate::common::{exec, out};

/// Run the test vectors of a file: logits, loss, gradients and a training trajectory; exit code 1 past their bounds.
#[derive(clap::Args)]
pub struct Args {
    /// A .safetensors file of vectors, like those of tests/reference.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Threads to compute with [default: all processors].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let cx = exec(args.threads)?;
    let file = TensorFile::open(&args.file)?;
    let outcome = verify(&cx, &file).with_context(|| format!("{}: cannot be verified", args.file.display()))?;
    let (checks, passed) = (outcome.checks(), outcome.passed());
    if args.json {
        let mut object = json!(outcome);
        object["file"] = json!(args.file.display().to_string());
        object["isa"] = json!(cx.isa().name());
        object["checks"] = json!(checks);
        object["pass"] = json!(passed);
        out!("{object}");
    } else {
        out!("{}: {}, {} training steps, {}", args.file.display(), outcome.arch, outcome.steps, cx.isa().name());
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
