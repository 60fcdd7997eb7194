//! `flashlm completions`: what a shell needs to complete commands and options.

use std::process::ExitCode;

use clap_complete::{Shell, generate};

use crate::common::write_out;

/// Print the completions of a shell
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm completions bash > ~/.local/share/bash-completion/completions/flashlm\n  flashlm completions zsh > ~/.zfunc/_flashlm\n  flashlm completions fish > ~/.config/fish/completions/flashlm.fish"
)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Runs the command, for the definitions of the program.
pub fn run(args: Args, mut program: clap::Command) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    generate(args.shell, &mut program, "flashlm", &mut text);
    write_out(format_args!("{}", String::from_utf8_lossy(&text)), false);
    Ok(ExitCode::SUCCESS)
}
