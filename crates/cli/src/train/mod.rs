//! `flashlm train`: settings from preset, file and flags; text to tokens; then the trainer.

mod asked;
mod flags;
mod plan;
mod product;
mod ranks;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering::SeqCst;

use flashlm_kernels::Isa;
use flashlm_train::data::DataError;
use flashlm_train::eval::consistency::Consistency;
use flashlm_train::log::{Row, jsonl};
use flashlm_train::ranks::{Fit, Leader};
use flashlm_train::run_folder::{CARD, CURVE, METRICS, RESULT, RunFolder, SETTINGS};
use flashlm_train::trainer::{Ended, Ending, Event, Outcome, TrainError};
use flashlm_train::units::{bytes, counted, duration, thousands};
use flashlm_train::what::quoted;
use serde_json::json;

use crate::common::{Status, say};
use crate::signals::{INTERRUPTED, Stop};
use crate::terminal::{columns, stdout_width};
pub use asked::Asked;
pub use flags::Args;
use product::Product;

/// Runs the command; `given` are its arguments as they were typed.
pub fn run(args: Args, given: &[OsString]) -> anyhow::Result<ExitCode> {
    // Before the ranks meet: one that fails alone later would be waited for.
    let isa = Isa::detect().map_err(anyhow::Error::msg)?;
    let comm = ranks::join()?;
    let alike = ranks::compare(&*comm, isa, &args, given);
    if comm.rank() > 0 {
        // Rank 0 tells what is not alike, and fails: a rank that fails before it would have it killed.
        return Ok(alike.map_or(ExitCode::SUCCESS, |()| ranks::work(&*comm, args.threads)));
    }
    alike?;
    let leader = Leader::of(&*comm);
    let mut product = Product::new(args.json && !args.dry_run);
    let error = match train(args, leader.as_ref()) {
        Err(error) => error,
        done => return done,
    };
    match error.downcast_ref() {
        Some(TrainError::Data(DataError::Stopped)) => {
            product.end("interrupted", "nothing has been trained yet");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Some(TrainError::Finished(what)) => {
            say!("{what}");
            product.end("unchanged", what);
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            product.end("failed", &format!("{error:#}"));
            Err(error)
        }
    }
}

fn train(args: Args, leader: Option<&Leader>) -> anyhow::Result<ExitCode> {
    let mut status = Status::new();
    let Asked { resolved, place, config } = Asked::of(&args, &mut |event| status.tell(&event))?;
    let ranks = leader.map_or(1, Leader::ranks);
    Fit::of(resolved.settings()).check(ranks)?;
    let stop = Stop::listen()?;
    if args.dry_run {
        return plan::dry_run(resolved, &stop.flag, &mut status, args.json);
    }
    let claim = place.claim(config.as_deref())?;
    let folder = claim.folder().clone();
    let (cx, threads) = (resolved.exec(), resolved.threads());
    let resumed = resolved.checkpoint().map(|from| (from.step(), from.path().to_path_buf()));
    let prepared = resolved.prepare(&stop.flag, &mut |event| status.tell(&event));
    status.clear();
    let prepared = prepared?;

    let settings = prepared.settings().clone();
    let mut product = Product::new(args.json);
    product.settings(&settings, &folder.file(SETTINGS));
    let (stories, duplicates) = (prepared.stories(), prepared.duplicates());
    let left_out = if duplicates > 0 { format!(", {} of them left out", thousands(duplicates)) } else { String::new() };
    let (valid_stories, valid_bytes) = (prepared.valid.len(), prepared.valid.totals().bytes);
    let (entropy_bound, zstd_bpb) = (prepared.entropy_bound, prepared.zstd_bpb);
    // What cannot be measured ends no run; of several ranks it would measure one.
    let forecast = (ranks == 1).then(|| prepared.forecast(&cx, &mut |_| ()).ok()).flatten();
    let mut trainer = prepared.on_ranks(&cx, claim, leader)?;
    product.start(json!({
        "run": folder.path().display().to_string(),
        "settings": settings,
        "parameters": trainer.layout().parameters(),
        "documents": stories,
        "valid_documents": valid_stories,
        "valid_bytes": valid_bytes,
        "entropy_bound": entropy_bound,
        "zstd_bpb": zstd_bpb,
        "step": resumed.as_ref().map_or(0, |(step, _)| *step),
        "isa": cx.isa().name(),
        "threads": threads,
        "ranks": ranks,
    }));
    status.note(&format!(
        "{}: {} parameters, {} to train on{left_out}, {} ({}) to validate, {} in {} on {}",
        settings.name,
        thousands(trainer.layout().parameters() as u64),
        counted(stories + duplicates, "document"),
        thousands(valid_stories as u64),
        bytes(valid_bytes),
        cx.isa().name(),
        settings.train.precision.name(),
        if ranks > 1 { format!("{ranks} ranks") } else { counted(threads as u64, "thread") }
    ));
    if let Some((step, from)) = resumed {
        status.note(&format!("resumed from step {step} of {}", from.display()));
    }
    if let Some(forecast) = &forecast {
        status.note(&plan::expected(forecast));
        plan::repeated(forecast).into_iter().for_each(|line| status.note(&line));
    }
    if let Some(bound) = entropy_bound {
        status.note(&format!(
            "entropy bound: {bound:.4} bits per byte: no model can go below it on this validation text"
        ));
    }
    if let Some(zstd_bpb) = zstd_bpb {
        status.note(&format!("to compare: `zstd -19` needs {zstd_bpb:.3} bits per byte for the validation text"));
    }
    stop.training.store(true, SeqCst);
    let Ended { outcome, ending } = trainer.run(&stop.flag, &mut |event| {
        if let Event::Sample(_) = event {
            status.clear();
        }
        product.tell(&event);
        status.tell(&event);
    })?;
    status.clear();
    let run = folder.path().display().to_string();
    match &ending {
        Some(ending) if args.json => product.result(&run, json!(ending)),
        Some(ending) => product.print(format_args!("{}", summary(ending, &folder, zstd_bpb, &settings.train.prompts))),
        None => {
            let steps = trainer.saved_step().unwrap_or_default();
            product.result(&run, json!({"outcome": outcome.name(), "steps": steps}));
        }
    }
    match outcome {
        Outcome::Finished => Ok(ExitCode::SUCCESS),
        Outcome::EarlyStop => {
            say!("stopped early: {} without improvement", counted(settings.train.patience, "validation"));
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted => {
            let run = folder.path();
            let step = trainer.saved_step().unwrap_or_default();
            say!(
                "interrupted; step {step} is saved in {}. Continue with: flashlm train --resume {}",
                run.display(),
                quoted(run)
            );
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

fn summary(ending: &Ending, folder: &RunFolder, zstd_bpb: Option<f64>, prompts: &[String]) -> String {
    let Ending { steps, best, last, entropy_bound, consistency, tokens, seconds, .. } = ending;
    let report = &best.full;
    let weights = match best.step == *steps {
        true => format!("step {}", thousands(*steps)),
        false => format!(
            "step {} of {}, the best in validation; the last step has {:.4} bits per byte",
            thousands(best.step),
            thousands(*steps),
            last.full.bpb
        ),
    };
    let run = folder.path();
    let compared = [zstd_bpb.map(|bpb| format!("zstd -19 needs {bpb:.4}")), before(folder)];
    let compared = compared.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let prompt = quoted(Path::new(prompts.first().map_or("Once upon a time", String::as_str)));
    let rows = [
        ("bpb", format!("{:.4}", report.bpb)),
        ("to compare", compared),
        ("entropy bound", entropy_bound.map_or(String::new(), |bound| format!("{bound:.4}"))),
        ("bpb with EOS", format!("{:.4}", report.bpb_with_eos)),
        ("loss per token", format!("{:.4}", report.loss_per_token)),
        ("perplexity", format!("{:.3}", report.perplexity)),
        ("bytes per token", format!("{:.3}", report.bytes_per_token)),
        ("sense", consistency.as_ref().map_or(String::new(), Consistency::told)),
        ("weights", weights),
        ("tokens trained", thousands(*tokens)),
        ("time", duration(*seconds)),
        ("run", format!("{} ({CURVE}, {CARD}, {METRICS}, {RESULT})", run.display())),
        ("next", format!("flashlm generate {} -p {prompt}", quoted(run))),
    ];
    let rows = rows.iter().filter(|(_, value)| !value.is_empty());
    columns(rows.map(|(name, value)| (*name, value.as_str())), stdout_width()).join("\n")
}

/// What the model needed before it was trained, if the log has it.
fn before(folder: &RunFolder) -> Option<String> {
    let rows = jsonl::read(&folder.file(METRICS)).unwrap_or_default();
    let first = rows.iter().find_map(|row| match row {
        Row::Eval(row) if row.step == 0 => Some(row.bpb),
        _ => None,
    });
    first.map(|bpb| format!("the model before training {bpb:.4}"))
}
