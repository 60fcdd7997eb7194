//! What is said to whoever waits for a fetch.

use std::ops::ControlFlow;
use std::time::Instant;

use super::address::Address;

/// How far a fetch is, given to its callback at least ten times per second.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file being fetched.
    pub file: &'a str,
    /// Bytes that are here, of all files.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Speed since the start.
    pub bytes_per_second: f64,
    /// What it waits for, if it does.
    pub waiting: Option<&'a str>,
    /// Something worth a line that stays.
    pub note: Option<&'a str>,
}

/// What the callback is told.
pub(super) struct Watch<'a> {
    pub address: Address,
    pub file: String,
    /// Bytes of the files before this one.
    pub before: u64,
    /// Bytes of this one.
    pub now: u64,
    pub total: u64,
    /// Bytes that came over the network.
    pub arrived: u64,
    began: Instant,
    callback: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
}

impl Watch<'_> {
    pub fn new<'a>(address: Address, callback: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Watch<'a> {
        let file = address.repo.clone();
        Watch { address, file, before: 0, now: 0, total: 0, arrived: 0, began: Instant::now(), callback }
    }

    pub fn tell(&mut self, waiting: Option<&str>) -> ControlFlow<()> {
        self.say(waiting, None)
    }

    pub fn note(&mut self, note: &str) {
        // Whoever wants to stop will say so again.
        let _ = self.say(None, Some(note));
    }

    fn say(&mut self, waiting: Option<&str>, note: Option<&str>) -> ControlFlow<()> {
        let bytes_per_second = self.arrived as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        let (file, done, total) = (self.file.as_str(), self.before + self.now, self.total);
        (self.callback)(&Progress { file, done, total, bytes_per_second, waiting, note })
    }
}
