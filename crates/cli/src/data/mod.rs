//! `flashlm data`: text made ready for training, and looked at before.

mod prepare;
mod sample;
mod select;
mod stats;

use std::process::ExitCode;

pub use prepare::summary;

/// Inspect text and prepare it for training
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm data stats book.txt\n  flashlm data sample book.txt -n 2\n  flashlm data prepare --data book.txt"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Prepare(prepare::Args),
    Stats(stats::Args),
    Sample(sample::Args),
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Prepare(args) => prepare::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Sample(args) => sample::run(args),
    }
}
