//! `flashlm export`: a model as a file for other programs. The formats are those of `flashlm_model::export`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::{PossibleValue, PossibleValuesParser};
use flashlm_model::export::{FORMATS, write};
use flashlm_train::atomic::write_file;
use flashlm_train::load::export_source;
use flashlm_train::units::bytes;

use crate::common::{exec, may_write, model_or_own};
use crate::report::Report;

/// Export a model as a file for other programs
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm export safetensors -o weights.safetensors\n  flashlm export safetensors model.safetensors -o weights.safetensors --json"
)]
pub struct Args {
    /// Format of the file
    #[arg(value_parser = formats())]
    format: String,
    /// Model: a run folder (its best checkpoint), a checkpoint folder, a packed model, or a .safetensors file beside its
    /// tokenizer.json; builtin: the model in the program [default: checkpoints]
    model: Option<PathBuf>,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite an existing file
    #[arg(short, long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn formats() -> PossibleValuesParser {
    FORMATS.iter().map(|&(name, about)| PossibleValue::new(name).help(about)).collect::<Vec<_>>().into()
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    may_write(&args.output, "-o", args.force)?;
    let model = model_or_own(args.model)?;
    let source = export_source(&exec(Some(1))?, &model)?;
    let file = write(&args.format, &source).context("a format of the list")?;
    let file = file.with_context(|| model.display().to_string())?;
    write_file(&args.output, |w| w.write_all(&file))?;
    let mut report = Report::default();
    report.add("file", args.output.display(), args.output.display().to_string());
    report.add("from", model.display(), model.display().to_string());
    report.add("format", &args.format, args.format.clone());
    report.add("file size", bytes(file.len() as u64), file.len());
    report.print(args.json);
    Ok(ExitCode::SUCCESS)
}
