//! `flashlm bench`: how fast this machine trains, with each token mixer, writes, and how fast each kernel is.

mod decode;
mod kernels;
mod measure;
mod mixers;
pub(crate) mod train;

use std::process::ExitCode;

/// Measures the speed of training and of kernels.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Tokens per second of whole training steps, on random tokens
    Train(train::Args),
    /// Tokens per second of whole training steps with each token mixer, at several sequence lengths
    Mixers(mixers::Args),
    /// Tokens per second of the packed runtime
    Decode(decode::Args),
    /// Time of each kernel on each instruction set, after checking its result
    Kernels(kernels::Args),
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Train(args) => train::run(args),
        What::Mixers(args) => mixers::run(args),
        What::Decode(args) => decode::run(args),
        What::Kernels(args) => kernels::run(args),
    }
}
