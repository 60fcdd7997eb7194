//! What commands share: output that survives a closed pipe, the executor, numbers of threads.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use flashlm_kernels::cpu::{BUSY, Machine};
use flashlm_kernels::{Exec, Isa};
use flashlm_model::Precision;
use flashlm_model::io::not_a_file;
use flashlm_train::atomic::write_file;
use flashlm_train::builtin;
use flashlm_train::config::Layers;
use flashlm_train::data::cache::default_dir;
use flashlm_train::data::source::{Oddities, Source};
use flashlm_train::recognise::recognise;
use flashlm_train::run;
use flashlm_train::trainer::Event;
use flashlm_train::what::What;
use xxhash_rust::xxh3::Xxh3;

use crate::terminal::{fitted, stderr_width, wrapped};

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

/// Says in one line what readers met and went on from.
pub fn noted(what: &str, oddities: &Oddities) {
    let notes = oddities.notes();
    if !notes.is_empty() {
        say!("{what}: {}", notes.join(". "));
    }
}

/// Says in one line what was skipped in the folders of a source.
pub fn passed_over(what: &str, source: &Source) {
    let passed = source.passed_over();
    if !passed.is_empty() {
        say!("{what}: skipped: {passed}");
    }
}

/// The run that commands take where none is named: the one that `flashlm train` writes where it is told nothing else.
const OWN: &str = "checkpoints";

/// Of commands that take models by name.
#[derive(Clone, Copy, clap::Args)]
pub struct Hub {
    /// Never use the network: a model hf:OWNER/NAME[@REVISION][:FILE] must be in the cache (same as HF_HUB_OFFLINE=1)
    #[arg(long)]
    offline: bool,
}

impl Hub {
    /// The path of a model; one of the hub is fetched if it is not here yet.
    pub fn located(self, path: &Path) -> anyhow::Result<PathBuf> {
        located(path, self.offline)
    }
}

/// The path of a model; one of the hub is fetched if it is not here yet.
pub fn located(path: &Path, offline: bool) -> anyhow::Result<PathBuf> {
    let mut status = Status::new();
    let path = run::open_model(path, offline, &|| false, &mut |event| status.tell(&event));
    status.clear();
    Ok(path?)
}

/// The model that is named, else [`OWN`], else the built-in one.
pub fn model_or_builtin(named: Option<PathBuf>, hub: Hub) -> anyhow::Result<PathBuf> {
    match named {
        Some(path) => hub.located(&path),
        None if Path::new(OWN).exists() => Ok(OWN.into()),
        None => {
            say!(
                "no model is named, and there is no folder {OWN} here: the built-in model writes; `flashlm train` makes your own"
            );
            Ok(builtin::NAME.into())
        }
    }
}

/// The model or run that is named, else [`OWN`].
pub fn model_or_own(named: Option<PathBuf>, hub: Hub) -> anyhow::Result<PathBuf> {
    match named {
        Some(path) => hub.located(&path),
        None => own(),
    }
}

/// The run in [`OWN`].
pub fn own() -> anyhow::Result<PathBuf> {
    match Some(OWN).filter(|own| Path::new(own).exists()) {
        Some(own) => Ok(own.into()),
        None => bail!(
            "no model or run is named, and there is no folder {OWN} here, where `flashlm train` writes by itself; name one, or \
             train one"
        ),
    }
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

/// The text that `--data` names, once or several times: files and folders are one text, a line each, and `-` is standard input,
/// kept as a file among the caches, since a text is read more than once.
pub fn data_spec(given: &[String]) -> anyhow::Result<String> {
    if given.len() > 1
        && let Some(spec) = given.iter().find(|spec| *spec != "-" && !Source::is_of_files(spec))
    {
        bail!(
            "--data {spec}: a dataset or synthetic stories cannot be joined with files; mix them by weight, such as --data \
             {spec}@1 --data FILE@1"
        );
    }
    let line = |spec: &String| match spec.as_str() {
        "-" => from_stdin(),
        _ if given.len() > 1 && spec.contains('\n') => {
            bail!(
                "--data {spec:?}: a name that contains a line end cannot be given together with others; name its folder, \
             or rename it"
            )
        }
        _ => Ok(spec.clone()),
    };
    Ok(given.iter().map(line).collect::<anyhow::Result<Vec<_>>>()?.join("\n"))
}

/// Standard input as a file.
fn from_stdin() -> anyhow::Result<String> {
    let mut stdin = std::io::stdin().lock();
    if std::io::IsTerminal::is_terminal(&stdin) {
        say!("reading the text from the terminal; Ctrl-D ends it");
    }
    let folder = default_dir();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    let (mut hash, mut bytes, mut failed) = (Xxh3::new(), 0, None);
    let spool = folder.join(format!("stdin-{}", std::process::id()));
    let written = write_file(&spool, |file| {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    bytes += n;
                    hash.update(&buffer[..n]);
                    file.write_all(&buffer[..n])?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("standard input failed"));
                }
            }
        }
    });
    if let Some(error) = failed {
        bail!("cannot read standard input: {error}");
    }
    written?;
    if bytes == 0 {
        let _ = std::fs::remove_file(&spool);
        bail!(
            "standard input is empty; `--data -` reads a text from it, such as `zcat text.gz | flashlm train --data -`"
        );
    }
    // What is compressed or a table is known by its ending.
    let mut start = [0; 4];
    let read = std::fs::File::open(&spool).and_then(|mut file| file.read_exact(&mut start));
    let ending = match &start {
        [0x1f, 0x8b, ..] => ".gz",
        [0x28, 0xb5, 0x2f, 0xfd] => ".zst",
        b"PAR1" => ".parquet",
        _ => "",
    };
    drop(read);
    let path = folder.join(format!("stdin-{:016x}{ending}", hash.digest()));
    std::fs::rename(&spool, &path).with_context(|| format!("cannot rename {}", spool.display()))?;
    Ok(path.display().to_string())
}

/// The source that a specification names, a dataset of the hub fetched if it is not here yet.
pub fn open_source(spec: &str, seed: u64, offline: bool) -> anyhow::Result<Source> {
    let mut status = Status::new();
    let source = run::open_source(spec, seed, offline, &|| false, &mut |event| status.tell(&event));
    status.clear();
    Ok(source?)
}

/// Writes a file in pieces; an error once `stop` says so.
pub fn write_unless(stop: &dyn Fn() -> bool, file: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    bytes.chunks(1 << 20).try_for_each(|piece| ask(stop).and_then(|()| file.write_all(piece)))?;
    ask(stop)
}

/// An error once it is to stop; asked for the first time before anything is written.
pub fn ask(stop: &dyn Fn() -> bool) -> std::io::Result<()> {
    if stop() { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
}

/// That an output of `flag` may be written: nothing is there, or a file that `--force` replaces, or the curve that training
/// itself drew in the folder of its run.
pub fn may_write(output: &Path, flag: &str, force: bool) -> anyhow::Result<()> {
    let at = output.display();
    if output == Path::new("-") {
        bail!("{flag} -: results go to files, not to standard output; name one (`./-`, if that is its name)");
    }
    // A link that leads nowhere is something, too.
    if output.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Ok(());
    }
    if let Some(found) = output.metadata().ok().and_then(|about| not_a_file(&about)) {
        bail!("{at} is {found}, not a file; name another with {flag}");
    }
    let folder = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let own = || output.ends_with("curve.svg") && matches!(recognise(folder), What::Run { .. });
    if force || own() {
        return Ok(());
    }
    bail!("{at} already exists; name another file with {flag}, or overwrite it with --force")
}

/// Lays every `--set KEY=VALUE` over the settings.
pub fn set_all(layers: &mut Layers, settings: &[String]) -> anyhow::Result<()> {
    for setting in settings {
        let Some((key, value)) = setting.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
            bail!("--set {setting}: must be KEY=VALUE, such as --set train.lr=3e-3");
        };
        layers.set(key.trim(), value.trim())?;
    }
    Ok(())
}

/// What is told where a measurement was disturbed: threads had only this share of the time that they asked for.
pub fn busy(share: f64) -> Option<String> {
    let percent = 100.0 * share;
    (share < BUSY)
        .then(|| format!("Other programs are at work: the threads had {percent:.0} % of the time that they asked for"))
}

/// Reads a whole number of a flag.
pub fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let large = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u64>().ok().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| match large {
        true => format!("expected a whole number of at most {}", u64::MAX),
        false => "expected a whole number, 0 or more".into(),
    })
}

/// Reads `--precision`.
pub fn precision(text: &str) -> Result<Precision, String> {
    let all = Precision::ALL;
    let known = all.into_iter().find(|precision| precision.name() == text);
    known.ok_or_else(|| format!("expected one of {}", all.map(Precision::name).join(", ")))
}

/// One line of status on stderr, redrawn in place on a terminal, a line now and then elsewhere.
pub struct Status {
    stderr: Box<dyn Write>,
    terminal: bool,
    shown: bool,
    last: Option<Instant>,
    /// Where stderr is no terminal: what was to be shown since the last line that was.
    newer: Option<String>,
}

impl Status {
    /// Nothing shown yet.
    pub fn new() -> Self {
        Self::on(Box::new(std::io::stderr()), std::io::IsTerminal::is_terminal(&std::io::stderr()))
    }

    fn on(stderr: Box<dyn Write>, terminal: bool) -> Self {
        Status { stderr, terminal, shown: false, last: (!terminal).then(Instant::now), newer: None }
    }

    /// Replaces the line. Where stderr is no terminal, one line in ten seconds is written, the first after ten.
    pub fn show(&mut self, line: &str) {
        let seconds = if self.terminal { 0.1 } else { 10.0 };
        if self.last.is_some_and(|last| last.elapsed().as_secs_f64() < seconds) {
            self.newer = (!self.terminal).then(|| line.to_string());
            return;
        }
        if self.terminal {
            let line = stderr_width().map_or(line.to_string(), |width| fitted(line, width));
            self.write(&format!("\r\x1b[2K{line}"));
        } else {
            self.write(&format!("{line}\n"));
        }
        (self.shown, self.last, self.newer) = (true, Some(Instant::now()), None);
    }

    /// Shows what a run tells, but for its samples.
    pub fn tell(&mut self, event: &Event) {
        match event {
            Event::Progress(line) => self.show(line),
            Event::Note(line) => self.note(line),
            Event::Row(_) | Event::Sample(_) | Event::Saved { .. } => {}
        }
    }

    /// Writes a line that stays: of figures, as much as fits; a sentence goes on below.
    pub fn note(&mut self, line: &str) {
        self.clear();
        let lines = match stderr_width().filter(|_| self.terminal) {
            Some(width) if line.contains("  ") => vec![fitted(line, width + 1)],
            width => wrapped(line, width, 2),
        };
        self.write(&format!("{}\n", lines.join("\n")));
    }

    /// Removes the line. Where lines cannot be removed, the newest one follows, so that the last word is no stale one.
    pub fn clear(&mut self) {
        let newer = self.newer.take();
        match newer.filter(|_| self.shown) {
            Some(line) => self.write(&format!("{line}\n")),
            None if self.shown && self.terminal => self.write("\r\x1b[2K"),
            None => {}
        }
        self.shown = false;
    }

    /// A closed stderr is no reason to stop.
    fn write(&mut self, text: &str) {
        let _ = self.stderr.write_all(text.as_bytes()).and_then(|()| self.stderr.flush());
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Rc<RefCell<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_ends_with_the_newest_line_and_a_short_one_has_none() {
        let log = Log::default();
        let text = || String::from_utf8(log.0.borrow().clone()).unwrap();
        let mut status = Status::on(Box::new(log.clone()), false);
        status.show("eval 50 %");
        status.clear();
        assert_eq!(text(), "");
        status.last = Instant::now().checked_sub(Duration::from_secs(11));
        status.show("eval 50 %");
        status.show("eval 60 %");
        status.show("eval 100 %");
        status.clear();
        status.clear();
        assert_eq!(text(), "eval 50 %\neval 100 %\n");
        status.note("done");
        assert_eq!(text(), "eval 50 %\neval 100 %\ndone\n");
    }

    #[test]
    fn a_terminal_shows_at_once_and_is_left_clean() {
        let log = Log::default();
        let mut status = Status::on(Box::new(log.clone()), true);
        status.show("a");
        status.show("b");
        status.clear();
        assert_eq!(*log.0.borrow(), b"\r\x1b[2Ka\r\x1b[2K");
    }
}
