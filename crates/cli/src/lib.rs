//! `flashlm`: trains small ternary language models on the CPU at hand, evaluates, runs and inspects them.
//!
//! Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted and saved.
#![forbid(unsafe_code)]

mod bench;
mod common;
mod completions;
mod data;
mod doctor;
mod eval;
mod export;
mod generate;
mod info;
mod input;
mod man;
mod pack;
mod plot;
mod report;
mod runs;
mod score;
mod scored;
mod serve;
mod signals;
mod sweep;
mod terminal;
mod tips;
mod train;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::bail;
use clap::{CommandFactory, Parser, Subcommand};
use flashlm_train::trainer::Tell;
use serde_json::Value;

pub use train::Asked;

/// Train and run small ternary language models on CPUs
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Examples:\n  flashlm train --data synthetic --minutes 2\n  flashlm generate -p \"Once upon a time\"\n\n`flashlm COMMAND --help` describes a command. Results go to stdout, progress to stderr.\nFLASHLM_THREADS sets the number of threads, FLASHLM_ISA the instruction set, FLASHLM_CACHE the cache folder."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model
    Train(Box<train::Args>),
    /// Evaluate a model: bits per byte on a text
    Eval(eval::Args),
    /// Generate text
    Generate(generate::Args),
    /// Score continuations of a prompt: log-probabilities per token
    Score(score::Args),
    /// Serve models over HTTP: the API of OpenAI's clients, and a page
    Serve(serve::Args),
    /// Pack a model into one small file
    Pack(pack::Args),
    /// Export a model for other programs
    Export(export::Args),
    /// Inspect text and prepare it for training
    Data(data::Args),
    /// List runs: preset, bits per byte, tokens, date
    Runs(runs::Args),
    /// Verify this build against test vectors, or that a model does not see the future
    Verify(verify::Args),
    /// Show what a file or folder is
    Info(info::Args),
    /// Show what this machine can do
    Doctor(doctor::Args),
    /// Plot the curves of runs as SVG
    Plot(plot::Args),
    /// Compare settings: several runs, one table
    Sweep(sweep::Args),
    /// Benchmark training, generation and kernels
    Bench(bench::Args),
    /// Print the completions of a shell
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
}

/// The program with these arguments, its own name first.
pub fn program(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = parsed(&args).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Train(asked) => train::run(*asked, &args),
        Command::Eval(args) => eval::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Pack(args) => pack::run(args),
        Command::Export(args) => export::run(args),
        Command::Data(args) => data::run(args),
        Command::Runs(args) => runs::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Info(args) => info::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Plot(args) => plot::run(args),
        Command::Sweep(args) => sweep::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => completions::run(args, Cli::command()),
        Command::Man(args) => man::run(args, Cli::command()),
    };
    result.unwrap_or_else(|error| {
        common::say!("error: {}", told(&error));
        ExitCode::FAILURE
    })
}

/// What a run with these arguments of `flashlm train` is to do, for a program that trains by itself.
pub fn asked(args: impl IntoIterator<Item = OsString>, tell: Tell) -> anyhow::Result<Asked> {
    let args: Vec<OsString> = args.into_iter().collect();
    match parsed(&args)?.command {
        Command::Train(args) => Asked::of(&args, tell),
        _ => bail!("expected the arguments of `flashlm train`"),
    }
}

/// Packs or exports with these arguments, and returns what the command would print as JSON. Once `stop` says so, nothing is written any
/// more, and what is half written is removed.
pub fn report(args: impl IntoIterator<Item = OsString>, stop: &dyn Fn() -> bool) -> anyhow::Result<Value> {
    let args: Vec<OsString> = args.into_iter().collect();
    Ok(match parsed(&args)?.command {
        Command::Pack(args) => pack::pack(args, stop)?.json(),
        Command::Export(args) => export::export(args, stop)?.json(),
        _ => bail!("expected the arguments of `flashlm pack` or `flashlm export`"),
    })
}

/// An error as it is told: causes that their own error already tells are not told twice.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(|cause| cause.to_string()) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn parsed(args: &[OsString]) -> Result<Cli, clap::Error> {
    let command = args.get(1).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Cli::try_parse_from(args).map_err(|error| tips::sensible(error, &command))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_command_is_sound_and_has_an_example() {
        fn check(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(check);
            } else {
                let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                let (name, example) = (command.get_name(), format!("{} ", command.get_name()));
                let line = after.lines().find(|line| line.starts_with("  ")).unwrap_or_default();
                assert!(after.starts_with("Examples:") && format!("{line} ").contains(&example), "{name}: {after}");
            }
        }
        Cli::command().debug_assert();
        check(&Cli::command());
    }

    #[test]
    fn every_example_is_understood() {
        fn check(command: &clap::Command, all: &mut usize) {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            // What follows an empty line is no command.
            for line in after.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  ")) {
                // As a shell would split it, as far as examples go: settings before, words in quotes, redirections after.
                let line = line.split(['<', '>']).next().unwrap_or_default();
                let start = line.find("flashlm").unwrap_or_else(|| panic!("{line}"));
                let quoted = |(i, part): (usize, &str)| match i % 2 {
                    0 => part.split_whitespace().map(String::from).collect(),
                    _ => vec![part.to_string()],
                };
                let words = line[start..].split('"').enumerate().flat_map(quoted);
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{line}: {error}");
                }
                *all += 1;
            }
            command.get_subcommands().for_each(|command| check(command, all));
        }
        let mut all = 0;
        check(&Cli::command(), &mut all);
        assert!(all > 40, "{all} examples");
    }

    #[test]
    fn every_file_of_a_command_is_one() {
        let commands: Vec<_> = Cli::command().get_subcommands().map(|command| command.get_name().to_string()).collect();
        let mut found = 0;
        for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join("src").read_dir().unwrap() {
            let path = entry.unwrap().path();
            let file = if path.is_dir() { path.join("mod.rs") } else { path.clone() };
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.lines().any(|line| line.starts_with("pub fn run(")) {
                let name = path.file_stem().unwrap().to_str().unwrap();
                assert!(commands.iter().any(|command| command == name), "{} wants a line in lib.rs", file.display());
                found += 1;
            }
        }
        assert_eq!(found, commands.len());
    }
}
