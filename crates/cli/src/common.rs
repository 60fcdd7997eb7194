//! What commands share: output that survives a closed pipe, the executor, numbers of threads.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::{Context, bail};
use flashlm_kernels::cpu::Machine;
use flashlm_kernels::{Exec, Isa};
use flashlm_model::Precision;
use flashlm_train::config::Layers;
use flashlm_train::data::DataError;
use flashlm_train::data::hub::Client;
use flashlm_train::data::source::Source;
use flashlm_train::log::console::{bytes, duration};

/// Prints a line to stdout, the product. A reader that has gone away ends the command quietly.
macro_rules! out {
    ($($arg:tt)*) => { $crate::common::write_out(format_args!($($arg)*), true) };
}

/// Prints a line to stderr, the progress; a closed stderr is no reason to stop.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

pub(crate) use {out, say};

/// Writes to stdout at once; see `out!`.
pub fn write_out(text: std::fmt::Arguments, newline: bool) {
    if let Err(error) = try_out(text, newline) {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        say!("error: cannot write to standard output: {error}");
        std::process::exit(1);
    }
}

/// Writes to stdout at once.
pub fn try_out(text: std::fmt::Arguments, newline: bool) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_fmt(text)?;
    if newline {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()
}

/// A number with its noun: `1 thread`, `2 threads`.
pub fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A path as a shell takes it.
pub fn quoted(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// The number of threads: the flag, else `FLASHLM_THREADS`, else the processors of this process.
pub fn threads(flag: Option<usize>) -> anyhow::Result<usize> {
    let threads = match (flag, std::env::var("FLASHLM_THREADS")) {
        (Some(n), _) => n,
        (None, Ok(text)) if !text.is_empty() => {
            text.parse().with_context(|| format!("FLASHLM_THREADS={text} is not a number of threads"))?
        }
        _ => Machine::detect().cores,
    };
    if !(1..=1024).contains(&threads) {
        bail!("{threads} threads: must be between 1 and 1024");
    }
    Ok(threads)
}

/// The executor for a command.
pub fn exec(flag: Option<usize>) -> anyhow::Result<Exec> {
    Ok(Exec::new(Isa::detect().map_err(anyhow::Error::msg)?, threads(flag)?))
}

/// The source that a specification names, a dataset of the hub fetched if it is not here yet.
pub fn open_source(spec: &str, seed: u64, offline: bool, stop: &dyn Fn() -> bool) -> anyhow::Result<Source> {
    let source = Source::parse(spec)?.with_seed(seed);
    if !source.is_remote() {
        return Ok(source);
    }
    let mut status = Status::new();
    let fetched = source.fetch(&Client::from_env(offline)?, &mut |p| {
        if let Some(note) = p.note {
            status.note(&format!("{spec}: {note}"));
        }
        let eta = p.total.saturating_sub(p.done) as f64 / p.bytes_per_second.max(1.0);
        let (done, total, speed) = (bytes(p.done), bytes(p.total), bytes(p.bytes_per_second as u64));
        status.show(&match p.waiting {
            Some(waiting) => format!("{}: {waiting}", p.file),
            None if p.total == 0 => format!("{}: asking the hub for its files", p.file),
            None => format!("{}  {done} of {total}  {speed}/s  eta {}", p.file, duration(eta)),
        });
        if stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    status.clear();
    if matches!(fetched, Err(DataError::Stopped)) {
        say!("stopped; what has arrived is kept, and the same command goes on from there");
    }
    Ok(fetched?)
}

/// Lays every `--set KEY=VALUE` over the settings.
pub fn set_all(layers: &mut Layers, settings: &[String]) -> anyhow::Result<()> {
    for setting in settings {
        let Some((key, value)) = setting.split_once('=') else {
            bail!("--set {setting}: must be KEY=VALUE, such as --set train.lr=3e-3");
        };
        layers.set(key.trim(), value.trim())?;
    }
    Ok(())
}

/// Reads `--precision`.
pub fn precision(text: &str) -> Result<Precision, String> {
    let all = [Precision::Auto, Precision::F32, Precision::Bf16];
    let known = all.into_iter().find(|precision| precision.name() == text);
    known.ok_or_else(|| format!("expected one of {}", all.map(Precision::name).join(", ")))
}

/// One line of status on stderr, redrawn in place on a terminal, a line now and then elsewhere.
pub struct Status {
    terminal: bool,
    shown: bool,
    last: Option<std::time::Instant>,
}

impl Status {
    /// Nothing shown yet.
    pub fn new() -> Self {
        Status { terminal: std::io::IsTerminal::is_terminal(&std::io::stderr()), shown: false, last: None }
    }

    /// Replaces the line. Where stderr is no terminal, at most one line in ten seconds is written.
    pub fn show(&mut self, line: &str) {
        let mut stderr = std::io::stderr().lock();
        let recently = |seconds| self.last.is_some_and(|last| last.elapsed().as_secs_f64() < seconds);
        if self.terminal && !recently(0.1) {
            let _ = write!(stderr, "\r\x1b[2K{line}").and_then(|()| stderr.flush());
            self.shown = true;
        } else if !self.terminal && !recently(10.0) {
            let _ = writeln!(stderr, "{line}");
        } else {
            return;
        }
        self.last = Some(std::time::Instant::now());
    }

    /// Writes a line that stays.
    pub fn note(&mut self, line: &str) {
        self.clear();
        say!("{line}");
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[2K").and_then(|()| stderr.flush());
        }
    }
}
