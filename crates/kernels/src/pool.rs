//! A fork-join pool for short regions: a generation counter, static partition, bounded spin, then park.
//!
//! A training step is thousands of regions of tens of microseconds with serial stretches between them, so workers spin for
//! a while before they sleep, and the calling thread is worker 0.
//!
//! Regions do not nest: a thread in one that asks for another panics, whatever the number of threads, as it would wait for
//! itself. The exception is a pool of one thread, which has nobody to wait for. A region that another thread asks for
//! meanwhile waits for its turn.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::replay::{Replay, Timeline};

/// Spins before a worker parks: some tens of microseconds.
const SPINS: u32 = if cfg!(miri) { 4 } else { 4000 };

type Job = *const (dyn Fn(usize) + Sync);

thread_local! {
    /// The pool whose region this thread is in, by its address.
    static REGION: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// This thread's stay in the outermost region.
struct Region;

impl Drop for Region {
    fn drop(&mut self) {
        REGION.set(std::ptr::null());
    }
}

struct Shared {
    generation: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    pending: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
}

// SAFETY: `job` is written only while no worker runs (pending is 0) and published by `generation`.
unsafe impl Sync for Shared {}
// SAFETY: the job pointer is only followed while `run` keeps the closure alive.
unsafe impl Send for Shared {}

impl Shared {
    /// Keeps the first panic of a region for its caller.
    fn keep(&self, panic: Box<dyn Any + Send>) {
        let mut first = self.panic.lock().unwrap_or_else(|e| e.into_inner());
        if first.is_none() {
            *first = Some(panic);
        } else if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            // What panics when it is dropped may throw another of its kind: the region has to end nevertheless.
            std::mem::forget(again);
        }
    }
}

/// Threads that run one closure together.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
    replay: Option<Replay>,
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
        Pool { shared, workers, running: Mutex::new(()), replay: None }
    }

    /// The caller alone, which plays `threads` threads and keeps a timeline of what they would have taken.
    pub(crate) fn replay(threads: usize) -> Self {
        let mut pool = Pool::new(1);
        pool.replay = Some(Replay::new(threads));
        pool
    }

    /// What happened since the last call, if threads are played.
    pub fn timeline(&self) -> Option<Timeline> {
        self.replay.as_ref().map(Replay::timeline)
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.replay.as_ref().map_or(self.workers.len() + 1, Replay::threads)
    }

    /// Marks this thread as being in a region of this pool, unless it is in another already.
    fn enter(&self) -> Option<Region> {
        let (outer, own) = (REGION.get(), Arc::as_ptr(&self.shared));
        if outer.is_null() {
            REGION.set(own);
            return Some(Region);
        }
        let alone = self.workers.is_empty() && outer != own;
        assert!(alone, "parallel regions do not nest: inside of one, use the executor that its closure is given");
        None
    }

    /// Runs `f(id)` once on every thread, `id` in `0..threads()`, and returns when all are done.
    ///
    /// # Panics
    /// With the first panic of any thread, once all are done; and if this thread is in a region already.
    #[track_caller]
    pub fn run(&self, f: impl Fn(usize) + Sync) {
        let _region = self.enter();
        if let Some(replay) = &self.replay {
            let mut all: Vec<Option<usize>> = (0..self.threads()).map(Some).collect();
            return replay.region(Location::caller(), |id| all[id].take(), f);
        }
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
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(0))) {
            self.shared.keep(panic);
        }
        let mut spins = 0u32;
        while self.shared.pending.load(SeqCst) > 0 {
            spins = spins.saturating_add(1);
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let panic = self.shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Splits `0..n` into one contiguous range a thread, cut at multiples of `align`, and runs `f` on each range that is
    /// not empty.
    #[track_caller]
    pub fn split(&self, n: usize, align: usize, f: impl Fn(Range<usize>) + Sync) {
        let units = n.div_ceil(align);
        let threads = self.threads();
        if threads == 1 || units <= 1 {
            let _region = self.enter();
            return if n > 0 {
                f(0..n)
            };
        }
        // `units * id / threads`, which could be more than fits.
        let first = |id: usize| units / threads * id + units % threads * id / threads;
        let at = |id: usize| first(id).saturating_mul(align).min(n);
        self.run(|id| {
            let own = at(id)..at(id + 1);
            if !own.is_empty() {
                f(own);
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
    REGION.set(shared);
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
            shared.keep(panic);
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
        assert_eq!(ids(&pool), 2);
    }

    /// How many threads take part in a region.
    fn ids(pool: &Pool) -> usize {
        let count = AtomicUsize::new(0);
        pool.run(|_| _ = count.fetch_add(1, SeqCst));
        count.into_inner()
    }

    /// What `f` panics with.
    fn message(f: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("no panic");
        panic.downcast_ref::<&str>().map_or_else(|| panic.downcast_ref::<String>().unwrap().clone(), |s| s.to_string())
    }

    #[test]
    fn a_region_in_a_region_is_a_panic_on_any_number_of_threads() {
        for threads in 1..4 {
            let (pool, other) = (Pool::new(threads), Pool::new(2));
            for inner in [&pool, &other] {
                for whose in 0..threads {
                    let text = message(|| {
                        pool.run(|id| {
                            if id == whose {
                                inner.run(|_| ())
                            }
                        })
                    });
                    assert!(text.starts_with("parallel regions do not nest"), "{text}");
                }
                // Ranges too short for a second thread are no exception, nor is what is empty.
                for n in [0, 1, 1000] {
                    let text = message(|| pool.split(1000, 1, |_| inner.split(n, 1, |_| ())));
                    assert!(text.starts_with("parallel regions do not nest"), "{text}");
                }
            }
            assert_eq!((ids(&pool), ids(&other)), (threads, 2), "both live on");
        }
    }

    #[test]
    fn a_pool_of_one_thread_runs_in_a_region_of_another() {
        for threads in 1..4 {
            let (pool, alone, count) = (Pool::new(threads), Pool::new(1), AtomicUsize::new(0));
            pool.run(|_| alone.split(7, 1, |all| alone.run(|_| _ = count.fetch_add(all.len(), SeqCst))));
            assert_eq!(count.load(SeqCst), 7 * threads);
        }
    }

    /// Panics once more when it is dropped.
    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            if !thread::panicking() {
                std::panic::panic_any(());
            }
        }
    }

    #[test]
    fn panics_of_all_threads_at_once_are_one_panic() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(|_| std::panic::panic_any(Again))));
            std::mem::forget(caught.unwrap_err());
            assert_eq!(ids(&pool), 3);
        }
    }

    #[test]
    fn a_panic_of_the_caller_waits_for_the_workers() {
        let (pool, done) = (Pool::new(3), AtomicUsize::new(0));
        let text = message(|| {
            pool.run(|id| {
                if id == 0 {
                    panic!("caller");
                }
                thread::sleep(std::time::Duration::from_millis(20));
                done.fetch_add(1, SeqCst);
            })
        });
        assert_eq!((text.as_str(), done.load(SeqCst)), ("caller", 2));
    }

    #[test]
    fn a_pool_may_be_made_and_dropped_in_a_region_of_another() {
        let pool = Pool::new(2);
        let others = Mutex::new(vec![Pool::new(3), Pool::new(1)]);
        pool.run(|_| {
            drop(Pool::new(2));
            drop(others.lock().unwrap().pop());
        });
        assert!(others.into_inner().unwrap().is_empty());
        assert_eq!(ids(&pool), 2);
    }

    #[test]
    fn threads_that_share_a_pool_take_turns() {
        let (pool, inside) = (Pool::new(2), AtomicUsize::new(0));
        thread::scope(|scope| {
            for caller in 0..4 {
                let (pool, inside) = (&pool, &inside);
                scope.spawn(move || {
                    for i in 0..200 {
                        // Written without synchronisation of its own: the pool must order it.
                        let mut values = [0; 64];
                        let shared = crate::exec::Shared::new(&mut values);
                        pool.split(64, 1, |own| {
                            assert!(inside.fetch_add(1, SeqCst) < 2, "two regions at once");
                            // SAFETY: ranges of different threads are disjoint.
                            unsafe { shared.range(own) }.fill(caller * 1000 + i);
                            inside.fetch_sub(1, SeqCst);
                        });
                        assert_eq!(values, [caller * 1000 + i; 64]);
                    }
                });
            }
        });
    }
}
