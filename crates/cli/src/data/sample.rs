//! `flashlm data sample`: documents drawn at random.

use std::process::ExitCode;

use anyhow::bail;
use flashlm_train::data::stats::{Drawn, Sample, sample};
use serde_json::{Value, json};

use super::select::Select;
use crate::common::out;

/// Print a few documents drawn at random
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  flashlm data sample book.txt\n  flashlm data sample tinystories -n 2 --seed 7")]
pub struct Args {
    /// Text: files, folders or patterns, `-` for standard input, a dataset (see `train`), or synthetic:N
    #[arg(value_name = "SOURCE", required = true)]
    data: Vec<String>,
    #[command(flatten)]
    select: Select,
    /// Number of documents
    #[arg(short, value_name = "N", default_value_t = 5)]
    n: usize,
    /// Seed of the draw; the same seed draws the same documents
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let source = args.select.open_all(&args.data, 0)?;
    let Sample { stories, read } = sample(&source, args.n, args.seed)?;
    if read.stories == 0 {
        bail!(
            "{}: no documents{}",
            args.data.join(", "),
            if read.dropped.total() > 0 { "; the filter drops all of them" } else { "" }
        );
    }
    if args.json {
        let stories = stories.into_iter().map(|Drawn { number, text }| json!({"number": number, "text": text}));
        out!("{:#}", json!({"of": read.stories, "stories": stories.collect::<Value>()}));
    } else {
        // As text files have them, so that a sample is data again.
        for Drawn { text, .. } in stories {
            out!("{text}\n<|endoftext|>");
        }
    }
    Ok(ExitCode::SUCCESS)
}
