//! `flashlm`: trains small ternary language models on the CPU at hand, evaluates, runs and inspects them.
//!
//! Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted and saved.
#![forbid(unsafe_code)]

mod common;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Language models that train and run on the CPU you have.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model
    Train(Box<train::Args>),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train(args) => train::run(*args),
    };
    result.unwrap_or_else(|error| {
        // Causes that their own error already tells are not told twice.
        let mut text = error.to_string();
        for cause in error.chain().skip(1).map(|cause| cause.to_string()) {
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        common::say!("error: {text}");
        ExitCode::FAILURE
    })
}
