//! A fork-join pool for short regions: a generation counter, static partition, bounded spin, then park.
//!
//! A training step is thousands of regions of tens of microseconds with serial stretches between them, so workers spin for
//! a while before they sleep, and the calling thread is worker 0.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// Spins before a worker parks: some tens of microseconds.
const SPINS: u32 = 4000;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    generation: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    pending: AtomicUsize,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
}

// SAFETY: `job` is written only while no worker runs (pending is 0) and published by `generation`.
unsafe impl Sync for Shared {}
// SAFETY: the job pointer is only followed while `run` keeps the closure alive.
unsafe impl Send for Shared {}

/// Threads that run one closure together.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` (at least 1) with the caller as one of them.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            generation: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            pending: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let spawn = |id| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("flashlm-{id}")).spawn(move || work(&shared, id))
        };
        // Fewer threads than asked for change no result, only the speed.
        let workers: Vec<_> = (1..threads).map_while(|id| spawn(id).ok()).collect();
        Pool { shared, workers, running: Mutex::new(()) }
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(id)` once on every thread, `id` in `0..threads()`, and returns when all are done. Must not be nested.
    pub fn run(&self, f: impl Fn(usize) + Sync) {
        if self.workers.is_empty() {
            return f(0);
        }
        let _running = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let job: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: the lifetime is erased, but this function returns only when every worker is done with `f`.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        // SAFETY: no worker reads `job` now: pending is 0 and the generation has not moved.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared.pending.store(self.workers.len(), SeqCst);
        self.shared.generation.fetch_add(1, SeqCst);
        for (worker, parked) in self.workers.iter().zip(&self.shared.parked) {
            if parked.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| f(0)));
        let mut spins = 0u32;
        while self.shared.pending.load(SeqCst) > 0 {
            spins = spins.saturating_add(1);
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let theirs = self.shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }

    /// Splits `0..n` into one contiguous range a thread, cut at multiples of `align`, and runs `f` on each range that is
    /// not empty.
    pub fn split(&self, n: usize, align: usize, f: impl Fn(Range<usize>) + Sync) {
        let units = n.div_ceil(align);
        let threads = self.threads();
        if threads == 1 || units <= 1 {
            return if n > 0 {
                f(0..n)
            };
        }
        self.run(|id| {
            let start = (units * id / threads * align).min(n);
            let end = (units * (id + 1) / threads * align).min(n);
            if start < end {
                f(start..end);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.generation.fetch_add(1, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, id: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.generation.load(SeqCst) == seen {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            #[cfg(target_arch = "x86_64")]
            crate::isa::amx::release();
            // A swap, because emulators of other processors let a plain store be passed by the load that follows.
            shared.parked[id - 1].swap(true, SeqCst);
            // The caller moves the generation before it looks at `parked`, so one of the two sees the other.
            if shared.generation.load(SeqCst) == seen {
                thread::park();
            }
            shared.parked[id - 1].store(false, SeqCst);
            spins = 0;
        }
        seen = shared.generation.load(SeqCst);
        if shared.stop.load(SeqCst) {
            return;
        }
        // SAFETY: `run` published the job before the generation and waits for `pending` before it returns.
        let result = unsafe {
            let job = *shared.job.get();
            catch_unwind(AssertUnwindSafe(|| job.map(|job| (*job)(id))))
        };
        if let Err(panic) = result {
            *shared.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
        }
        shared.pending.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_once_and_ranges_tile() {
        for threads in 1..5 {
            let pool = Pool::new(threads);
            for n in [0usize, 1, 5, 64, 1000] {
                let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.split(n, 16, |r| r.for_each(|i| _ = hits[i].fetch_add(1, SeqCst)));
                assert!(hits.iter().all(|h| h.load(SeqCst) == 1), "{threads} threads, {n} items");
            }
        }
    }

    #[test]
    fn many_regions_with_pauses() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        for i in 0..2000 {
            if i % 500 == 0 {
                thread::sleep(std::time::Duration::from_millis(2));
            }
            pool.run(|_| _ = count.fetch_add(1, SeqCst));
        }
        assert_eq!(count.load(SeqCst), 6000);
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(|id| assert!(id != 1, "worker"))));
        assert!(caught.is_err());
        let count = AtomicUsize::new(0);
        pool.run(|_| _ = count.fetch_add(1, SeqCst));
        assert_eq!(count.load(SeqCst), 2);
    }
}
