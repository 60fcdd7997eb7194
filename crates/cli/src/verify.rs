//! `flashlm verify`: runs test vectors, or a model on tokens, and compares with what their maker computed; or asks a model whether it
//! sees the future.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use flashlm_model::Precision;
use flashlm_model::io::safetensors::TensorFile;
use flashlm_train::causal::{Causality, Verdict, check};
use flashlm_train::eval::verify::verify;
use flashlm_train::expect::{BOUND, Compared, compare};
use flashlm_train::recognise::recognise;
use flashlm_train::subject::Subject;
use flashlm_train::units::{counted, thousands};
use flashlm_train::what::{Unwanted, What};
use serde_json::json;

use crate::common::{Hub, exec, out, precision};

/// Verify this build against test vectors (logits, loss, gradients, a training trajectory), or a model: that it does not see the
/// future, and predicts the next token
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm verify tests/reference/relu2_subnorm.safetensors\n  flashlm verify tests/reference/delta_published.safetensors --precision bf16 --json\n  flashlm verify runs/book\n  flashlm verify TinyStories-1M --expect expected.safetensors\n\nOf a model, one token at a time is changed: no output before it may move. On stories, it must give the next token better than the one after.\nThe exit code is 1 if any result is out of bounds."
)]
pub struct Args {
    /// Test vectors, a .safetensors file like those in tests/reference; or a model: a run, a checkpoint, a packed model, a .pt of
    /// the original scripts, a folder of a Llama or GPT-Neo model, a .bin of llama2.c, hf:OWNER/NAME[@REVISION][:FILE]
    file: PathBuf,
    /// Compare the model, a folder of a Llama or GPT-Neo model, a .bin of llama2.c, a .pt of the original scripts or one of
    /// FlashLM, with what its maker computed: a .safetensors file with `ids`, `logits` and `nll`. No tokenizer is needed
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    #[command(flatten)]
    hub: Hub,
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
    let args = Args { file: args.hub.located(&args.file)?, ..args };
    if let Some(file) = &args.expect {
        return expect(&args, file);
    }
    match recognise(&args.file) {
        What::Vectors => {}
        What::Run { .. } | What::Checkpoint { .. } | What::Model | What::Packed | What::Builtin => {
            return causal(&args);
        }
        What::Peer(_) | What::Torch => return causal(&args),
        found => bail!(Unwanted::new(&args.file, "a model, or test vectors like those in tests/reference", found)),
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
            let verdict = verdict(check.pass);
            let worst = match check.name {
                "grad_rms_ratio_max" => format!("  {}", outcome.grad_worst),
                _ => String::new(),
            };
            out!("  {:<24}  {:>8.1e}  at most {:.0e}  {verdict}{worst}", check.name, check.value, check.bound);
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a model, in each of its forms, sees the future.
fn causal(args: &Args) -> anyhow::Result<ExitCode> {
    let cx = exec(args.threads)?;
    let subjects = Subject::all(&cx, &args.file)?;
    let found: Vec<Causality> = subjects.iter().map(|subject| check(&cx, subject)).collect::<Result<_, _>>()?;
    let (passed, model) = (found.iter().all(Causality::passed), args.file.display().to_string());
    if args.json {
        out!("{}", json!({"model": model, "isa": cx.isa().name(), "forms": found, "pass": passed}));
    } else {
        out!("{model}: {}", if passed { "pass" } else { "FAIL" });
        for one in &found {
            out!("  {}", one.form);
            let (moved, compared) = (thousands(one.moved as u64), thousands(one.compared as u64));
            out!("    outputs before a changed token that moved  {moved} of {compared}  {}", verdict(one.moved == 0));
            if let Some((output, token)) = one.first {
                out!("      the first: output {output}, after token {token} was changed: the model sees the future");
            }
            if !one.looks && one.compared > 0 {
                out!("    outputs after a changed token that moved   none: the model does not look at its text  FAIL");
            }
            match &one.shift {
                None => {
                    out!("    which token it predicts                    not asked: there is no tokenizer beside it")
                }
                Some(shift) => {
                    let (next, after) = (shift.next, shift.after);
                    let nats = format!("{next:.3} nats of the next token, {after:.3} of the one after");
                    let told = match shift.verdict {
                        Verdict::Next => "pass",
                        Verdict::After => "FAIL: its targets were shifted twice",
                        Verdict::Undecided => "not decided: the model does not know such text",
                    };
                    out!("    {nats}  {told}");
                }
            }
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(pass: bool) -> &'static str {
    if pass { "pass" } else { "FAIL" }
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
