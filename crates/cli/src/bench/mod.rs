//! `flashlm bench`: how fast this machine trains, with each token mixer and on many threads, writes, and how fast each kernel is.

mod decode;
mod kernels;
pub(crate) mod measure;
mod mixers;
mod ranks;
mod scaling;
pub(crate) mod train;

use std::process::ExitCode;

/// Benchmark training, generation and kernels
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm bench train --preset v4-small --batch 32\n  flashlm bench decode --preset v4-small\n  flashlm bench kernels"
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Measure whole training steps on random tokens: tokens per second
    Train(train::Args),
    /// Measure whole training steps with each token mixer, at several sequence lengths: tokens per second
    Mixers(mixers::Args),
    /// Measure generation by the packed runtime: tokens per second
    Decode(decode::Args),
    /// Forecast how training scales: work measured on one thread, shared out among many
    Scaling(scaling::Args),
    /// Forecast training on several machines: what a step takes here, and a network as it is described
    Ranks(ranks::Args),
    /// Time each kernel on each instruction set, after checking its result
    Kernels(kernels::Args),
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Train(args) => train::run(args),
        What::Mixers(args) => mixers::run(args),
        What::Decode(args) => decode::run(args),
        What::Scaling(args) => scaling::run(args),
        What::Ranks(args) => ranks::run(args),
        What::Kernels(args) => kernels::run(args),
    }
}
