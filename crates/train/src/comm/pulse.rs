//! Whether the thread that trains does something, as another thread of its process sees it. It counts what it does: passes, and looks
//! whether a message has come. In a long pass, where it does not count, it uses processor time (Linux, `/proc/PID/task/TID/stat`; where
//! there is no `/proc`, nothing is known of it). Source: proc(5).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// What the thread that made it is doing.
pub(super) struct Pulse {
    step: AtomicU64,
    count: AtomicU64,
    /// Whether others wait for it.
    wanted: AtomicBool,
    leaving: AtomicBool,
    stat: Option<PathBuf>,
}

impl Pulse {
    /// Of the calling thread.
    pub fn new() -> Pulse {
        let thread = fs::read_link("/proc/thread-self").ok();
        let stat = thread.map(|thread| Path::new("/proc").join(thread).join("stat"));
        let [step, count] = [0, 0].map(AtomicU64::new);
        Pulse { step, count, wanted: false.into(), leaving: false.into(), stat }
    }

    /// It has done something.
    pub fn beat(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    /// It computes for a step, or does what others do not wait for.
    pub fn at(&self, step: Option<u64>) {
        self.beat();
        step.inspect(|&step| self.step.store(step, Relaxed));
        self.wanted.store(step.is_some(), Relaxed);
    }

    /// The last step.
    pub fn step(&self) -> u64 {
        self.step.load(Relaxed)
    }

    /// It leaves in order.
    pub fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Whether it leaves in order.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// What changes while it does something; nothing where it may rest, or nothing is known.
    pub fn seen(&self) -> Option<(u64, u64)> {
        if !self.wanted.load(Relaxed) {
            return None;
        }
        let stat = fs::read_to_string(self.stat.as_ref()?).ok()?;
        // The name of the thread stands in parentheses, and may hold any character; user and system time are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some((self.count.load(Relaxed), ticks(14)? + ticks(15)?))
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_thread_that_computes_is_told_from_one_that_does_nothing() {
        if !Path::new("/proc/thread-self/stat").exists() {
            eprintln!("skipped: there is no /proc");
            return;
        }
        let (give, take) = channel();
        let (go, come) = channel::<&str>();
        thread::spawn(move || {
            let pulse = std::sync::Arc::new(Pulse::new());
            give.send(pulse.clone()).unwrap();
            while let Ok(what) = come.recv() {
                match what {
                    "rest" => pulse.at(None),
                    "compute" => {
                        pulse.at(Some(7));
                        let until = Instant::now() + Duration::from_secs(2);
                        while Instant::now() < until {
                            black_box((0..1000).sum::<u64>());
                        }
                    }
                    _ => pulse.at(Some(7)),
                }
            }
        });
        let pulse = take.recv().unwrap();
        let sleep = || thread::sleep(Duration::from_millis(300));
        assert_eq!(pulse.seen(), None, "nothing is wanted of it yet");
        // Other programs may have the processor.
        let until = |what: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !what() && began.elapsed() < Duration::from_secs(10) {
                sleep();
            }
            what()
        };
        go.send("stand still").unwrap();
        assert!(until(&|| pulse.seen().is_some()));
        // It goes to sleep.
        sleep();
        let still = pulse.seen();
        sleep();
        assert!(still.is_some() && pulse.seen() == still && pulse.step() == 7);
        go.send("compute").unwrap();
        assert!(until(&|| pulse.seen() > still));
        let busy = pulse.seen();
        assert!(until(&|| pulse.seen() > busy));
        go.send("rest").unwrap();
        assert!(until(&|| pulse.seen().is_none()) && pulse.step() == 7);
        assert!(!pulse.is_leaving());
        pulse.leave();
        assert!(pulse.is_leaving());
    }
}
