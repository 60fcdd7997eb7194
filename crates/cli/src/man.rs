//! `flashlm man`: a manual page for the program and one for each command.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap_mangen::Man;
use flashlm_train::atomic::write_file;

use crate::common::out;

/// Write manual pages: flashlm.1 and one for each command
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  flashlm man ~/.local/share/man/man1\n  flashlm man pages --force")]
pub struct Args {
    /// Folder to write to
    folder: PathBuf,
    /// Overwrite existing files
    #[arg(short, long)]
    force: bool,
}

/// Runs the command, for the definitions of the program.
pub fn run(args: Args, mut program: clap::Command) -> anyhow::Result<ExitCode> {
    let folder = &args.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    program.build();
    let mut pages = Vec::new();
    collect(program, "flashlm", &mut pages)?;
    let path = |name: &str| folder.join(format!("{name}.1"));
    if let Some(there) = pages.iter().map(|(name, _)| path(name)).find(|path| path.exists() && !args.force) {
        bail!("{} already exists; name another folder, or overwrite the pages with --force", there.display());
    }
    for (name, page) in &pages {
        write_file(&path(name), |file| file.write_all(page))?;
        out!("{}", path(name).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The page of a command and of all below it, by their names.
fn collect(command: clap::Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        collect(below.clone(), &format!("{name}-{}", below.get_name()), pages)?;
    }
    let mut page = Vec::new();
    Man::new(command.disable_help_subcommand(true)).title(name).render(&mut page).context("a page in memory")?;
    pages.push((name.to_string(), page));
    Ok(())
}
