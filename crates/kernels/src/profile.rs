//! Where the time goes, op by op: every op tells how much work it was given, and while a profile is taken its time is added
//! up. Threads that run an op together count as often as there are of them, so that shares add up over all threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use crate::exec::Exec;

/// What one call does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Floating-point operations.
    Flops(f64),
    /// Bytes of all operands, each counted once.
    Bytes(f64),
}

/// One op at one size, summed over calls.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The op.
    pub name: &'static str,
    /// What tells its calls apart: inner and outer size of a matmul, width of a row.
    pub size: (usize, usize),
    /// Number of calls.
    pub calls: u64,
    /// Seconds, summed over threads.
    pub seconds: f64,
    /// All that was done.
    pub work: Work,
}

static ON: AtomicBool = AtomicBool::new(false);
static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Runs `f` and returns what it spent its time on, most first. One profile at a time.
pub fn profile<T>(f: impl FnOnce() -> T) -> (T, Vec<Entry>) {
    let entries = || std::mem::take(&mut *ENTRIES.lock().unwrap_or_else(|e| e.into_inner()));
    entries();
    ON.store(true, Relaxed);
    let out = f();
    ON.store(false, Relaxed);
    let mut all = entries();
    all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    (out, all)
}

/// Ends the measurement of one call when it is dropped.
pub(crate) struct Timer {
    start: Option<Instant>,
    threads: usize,
    name: &'static str,
    size: (usize, usize),
    work: Work,
}

/// Begins the measurement of one call; costs next to nothing while no profile is taken.
pub(crate) fn time(cx: &Exec, name: &'static str, size: (usize, usize), work: Work) -> Timer {
    let start = ON.load(Relaxed).then(Instant::now);
    Timer { start, threads: cx.pool().threads(), name, size, work }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let Some(start) = self.start else { return };
        let seconds = start.elapsed().as_secs_f64() * self.threads as f64;
        let mut entries = ENTRIES.lock().unwrap_or_else(|e| e.into_inner());
        match entries.iter_mut().find(|entry| entry.name == self.name && entry.size == self.size) {
            Some(entry) => {
                entry.calls += 1;
                entry.seconds += seconds;
                entry.work = match (entry.work, self.work) {
                    (Work::Flops(a), Work::Flops(b)) => Work::Flops(a + b),
                    (Work::Bytes(a), Work::Bytes(b)) => Work::Bytes(a + b),
                    (a, _) => a,
                };
            }
            None => {
                let (name, size, work) = (self.name, self.size, self.work);
                entries.push(Entry { name, size, calls: 1, seconds, work });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::ops::add;

    #[test]
    fn calls_and_work_are_added_up_while_a_profile_is_taken() {
        let cx = Exec::new(Isa::SCALAR, 1);
        let (x, mut y) = (vec![1f32; 4096], vec![2f32; 4096]);
        // A name that no op has: other tests run ops at the same time.
        let mut call = |size, bytes| {
            let _time = time(&cx, "a test", size, Work::Bytes(bytes));
            add(&cx, &mut y, &x);
        };
        call((1, 2), 100.0);
        let ((), entries) = profile(|| {
            call((1, 2), 3.0);
            call((1, 2), 4.0);
            call((1, 3), 5.0);
        });
        let found = |size| entries.iter().find(|entry| entry.name == "a test" && entry.size == size).unwrap();
        assert_eq!((found((1, 2)).calls, found((1, 2)).work), (2, Work::Bytes(7.0)));
        assert_eq!((found((1, 3)).calls, found((1, 3)).work), (1, Work::Bytes(5.0)));
        assert!(found((1, 2)).seconds > 0.0);
        assert!(entries.iter().any(|entry| entry.name == "add"));
    }
}
