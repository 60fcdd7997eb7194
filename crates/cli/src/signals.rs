//! Ctrl-C, SIGTERM and a closed terminal: the first asks to stop, the second ends the process at once.

use std::cell::OnceCell;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::common::say;
use crate::report::Report;

/// The exit code of a command that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// What signals set.
pub struct Stop {
    /// Whether to stop.
    pub flag: Arc<AtomicBool>,
    /// Whether there is something to save.
    pub training: Arc<AtomicBool>,
}

impl Stop {
    /// Listens from now on.
    pub fn listen() -> anyhow::Result<Stop> {
        let stop = Stop { flag: quiet()?, training: Arc::default() };
        let (flag, training) = (stop.flag.clone(), stop.training.clone());
        thread::spawn(move || {
            while !flag.load(Relaxed) {
                thread::sleep(Duration::from_millis(50));
            }
            match training.load(Relaxed) {
                true => say!("\nstopping and saving; press Ctrl-C again to stop at once, without saving"),
                false => say!("\nstopping; nothing has been trained yet"),
            }
        });
        Ok(stop)
    }
}

/// A flag that the first signal raises, without a word; the second ends the process.
pub fn quiet() -> anyhow::Result<Arc<AtomicBool>> {
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if !hangup_is_ignored() {
        signals.push(signal_hook::consts::SIGHUP);
    }
    raised_by(&signals)
}

/// Runs a command that writes a file and then reports. A signal that comes before it asks whether to stop ends the process at once; one
/// that comes later, and is the first, has it remove what is half written.
pub fn writing(
    json: bool,
    write: impl FnOnce(&dyn Fn() -> bool) -> anyhow::Result<Report>,
) -> anyhow::Result<ExitCode> {
    let raised = OnceCell::new();
    let stop = || raised.get_or_init(|| quiet().unwrap_or_default()).load(Relaxed);
    match write(&stop) {
        Err(_) if raised.get().is_some_and(|raised| raised.load(Relaxed)) => {
            say!("interrupted; nothing was written");
            Ok(ExitCode::from(INTERRUPTED))
        }
        done => {
            done?.print(json);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The same for these signals.
pub fn raised_by(signals: &[i32]) -> anyhow::Result<Arc<AtomicBool>> {
    let raised = Arc::new(AtomicBool::new(false));
    for &signal in signals {
        // In this order: the first signal finds the flag down and raises it.
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), raised.clone())
            .and_then(|_| flag::register(signal, raised.clone()))
            .context("cannot listen for Ctrl-C")?;
    }
    Ok(raised)
}

/// Whether the process was started so as to outlive its terminal, as by `nohup`: the first bit of the ignored signals.
#[cfg(unix)]
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
