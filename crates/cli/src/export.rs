//! `flashlm export`: a model as a file for other programs. The formats are those of `flashlm_model::export`.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::builder::{PossibleValue, PossibleValuesParser};
use flashlm_model::export::{Exported, FORMATS, write};
use flashlm_train::atomic::{write_dir, write_file};
use flashlm_train::load::export_source;
use flashlm_train::units::bytes;

use crate::common::{Hub, ask, exec, may_write, model_or_own, write_unless};
use crate::report::Report;
use crate::signals::writing;

/// Export a model as a file for other programs
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm export safetensors -o weights.safetensors\n  flashlm export safetensors model.safetensors -o weights.safetensors --json\n  flashlm export c -o story.c\n  flashlm export web builtin -o story.html\n  flashlm export gguf run -o story.gguf --weights f16\n  flashlm export hf run -o story-hf\n  flashlm export onnx run -o story-onnx --weights int8"
)]
pub struct Args {
    /// Format of the file
    #[arg(value_parser = formats())]
    format: String,
    /// Model: a run folder (its best checkpoint), a checkpoint folder, a packed model, a .safetensors file or a .pt of the
    /// original scripts beside its tokenizer.json; hf:OWNER/NAME[@REVISION][:FILE], such a file of the hub; builtin: the model in the
    /// program [default: checkpoints]
    model: Option<PathBuf>,
    /// File to write; with hf, onnx and separate weights a folder, which must not exist
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// What weights are written as: c: packed, or separate, in a file of their own; web: packed; gguf: q2_0, q4_0, f16, f32; onnx: f32,
    /// int8, the arithmetic of flashlm generate, or int2, ternary codes in two bits; safetensors and hf: f32 [default: the first of these]
    #[arg(long, value_name = "TYPE")]
    weights: Option<String>,
    /// Overwrite an existing file; never a folder
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    hub: Hub,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn formats() -> PossibleValuesParser {
    FORMATS.iter().map(|&(name, about, _)| PossibleValue::new(name).help(about)).collect::<Vec<_>>().into()
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.json;
    writing(json, |stop| export(args, stop))
}

/// Writes the file, unless it is to stop, and says what it is.
pub fn export(args: Args, stop: &dyn Fn() -> bool) -> anyhow::Result<Report> {
    may_write(&args.output, "-o", args.force)?;
    let (_, _, known) = FORMATS.iter().find(|format| format.0 == args.format).context("a format of the list")?;
    let weights = args.weights.as_deref().unwrap_or(known[0]);
    if !known.contains(&weights) {
        bail!("--weights {weights}: {} has {}", args.format, known.join(", "));
    }
    let model = model_or_own(args.model, args.hub)?;
    let source = export_source(&exec(Some(1))?, &model)?;
    let exported = write(&args.format, &source, weights).context("a format of the list")?;
    let exported = exported.with_context(|| model.display().to_string())?;
    ask(stop)?;
    let size = match exported {
        Exported::File(file) => {
            write_file(&args.output, |w| write_unless(stop, w, &file))?;
            file.len()
        }
        Exported::Folder(files) => {
            let write = |at: PathBuf, file| write_unless(stop, &mut File::create(at)?, file);
            write_dir(&args.output, |at| files.iter().try_for_each(|(name, file)| write(at.join(name), file)))?;
            files.iter().map(|(_, file)| file.len()).sum()
        }
    };
    let mut report = Report::default();
    report.add("file", args.output.display(), args.output.display().to_string());
    report.add("from", model.display(), model.display().to_string());
    report.add("format", &args.format, args.format.clone());
    report.add("weights", weights, weights);
    report.add("file size", bytes(size as u64), size);
    Ok(report)
}
