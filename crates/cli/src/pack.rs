//! `flashlm pack`: a run as one small file that holds all a runtime needs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use flashlm_model::PackedModel;
use flashlm_model::pack::{Density, Options, TableBits};
use flashlm_train::atomic::write_file;
use flashlm_train::builtin;
use flashlm_train::load::load_model;
use flashlm_train::recognise::recognise;
use flashlm_train::units::{bytes, thousands};
use flashlm_train::what::What;

use crate::common::{Hub, ask, exec, may_write, model_or_own, write_unless};
use crate::report::Report;
use crate::signals::writing;

/// Pack a model into one small file: ternary weights, int8 embedding, tokenizer and settings
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm pack -o model.safetensors\n  flashlm pack runs/book --ternary-bits 1.6 --table-bits 4 -o smaller.safetensors"
)]
pub struct Args {
    /// Model: a run folder (its best checkpoint), a checkpoint folder, a .safetensors file or a .pt of the original scripts beside its
    /// tokenizer.json; hf:OWNER/NAME[@REVISION][:FILE], such a file of the hub; builtin: the model in the program, written as it is
    /// [default: checkpoints]
    run: Option<PathBuf>,
    /// File to write
    #[arg(short, long, value_name = "FILE", default_value = "model.safetensors")]
    output: PathBuf,
    /// Bits per ternary weight in the file; in memory it is always 2
    #[arg(long, value_enum, default_value_t = Ternary::Two)]
    ternary_bits: Ternary,
    /// Bits per weight of the embedding matrix, the head and other tables in the file; in memory it is always 8
    #[arg(long, value_enum, default_value_t = Table::Eight)]
    table_bits: Table,
    /// Overwrite an existing file
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    hub: Hub,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Ternary {
    /// Four weights per byte
    #[value(name = "2")]
    Two,
    /// Five weights per byte
    #[value(name = "1.6")]
    Less,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Table {
    /// One scale per row
    #[value(name = "8")]
    Eight,
    /// One scale per 16 columns of a row; the most frequent eighth of the tokens keep 8 bits. Costs about 0.4 % in bits per byte
    #[value(name = "4")]
    Four,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.json;
    writing(json, |stop| pack(args, stop))
}

/// Writes the file, unless it is to stop, and says what it is.
pub fn pack(args: Args, stop: &dyn Fn() -> bool) -> anyhow::Result<Report> {
    let run = model_or_own(args.run, args.hub)?;
    let found = recognise(&run);
    if found == What::Packed {
        bail!("{} is already packed; `flashlm info` describes it, `flashlm generate` runs it", run.display());
    }
    may_write(&args.output, "-o", args.force)?;
    let density = match args.ternary_bits {
        Ternary::Two => Density::Four,
        Ternary::Less => Density::Five,
    };
    let table = match args.table_bits {
        Table::Eight => TableBits::Eight,
        Table::Four => TableBits::Four,
    };
    let (packed, from) = if found == What::Builtin {
        (builtin::FILE.to_vec(), run)
    } else {
        let model = load_model(&run)?;
        (model.pack(&exec(Some(1))?, Options { density, table }), model.path)
    };
    // Nothing is written that could not be read.
    let read = PackedModel::from_bytes(packed.clone(), &from.display().to_string())?;
    ask(stop)?;
    write_file(&args.output, |w| write_unless(stop, w, &packed))?;
    let parameters = read.config().parameters();
    let bits = 8.0 * packed.len() as f64 / parameters as f64;
    let mut report = Report::default();
    report.add("file", args.output.display(), args.output.display().to_string());
    report.add("from", from.display(), from.display().to_string());
    report.add("parameters", thousands(parameters as u64), parameters);
    report.add("file size", format!("{}, {bits:.2} bits per parameter", bytes(packed.len() as u64)), packed.len());
    report.add("in memory", bytes(read.memory() as u64), read.memory());
    Ok(report)
}
