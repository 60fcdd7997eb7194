//! A fork-join pool for short regions. A training step is hundreds of regions of tens of microseconds to milliseconds with serial
//! stretches between them, so who waits stays awake for a moment, and the calling thread is worker 0.
//!
//! Work is taken, not given (`shares`), and a region ends when all of it is done: a thread whose processor is busy with another
//! program is not waited for, unless it has taken a piece. Who waits longer than 50 us sleeps, so that others get the processor, and
//! after 0.2 ms gives it to the thread that has the piece (`seat`).
//!
//! Regions do not nest: a thread in one that asks for another panics, whatever the number of threads, as it would wait for
//! itself. The exception is a pool of one thread, which has nobody to wait for. A region that another thread asks for
//! meanwhile waits for its turn.

mod seat;
mod shares;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::replay::{Replay, Timeline};
use seat::{Seat, make_room};
use shares::{Piece, Shares};

/// How long a thread waits awake: some times what it takes to wake one.
const AWAKE: Duration = Duration::from_micros(if cfg!(miri) { 0 } else { 50 });
/// Looks at what is waited for between two looks at the clock.
const LOOKS: u32 = 64;
/// How long the caller sleeps before it looks whether the others run.
const PATIENCE: Duration = Duration::from_micros(200);

type Job = *const (dyn Fn(Range<usize>) + Sync);

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
    /// Counts regions.
    generation: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// What nobody has taken yet.
    shares: Shares,
    /// Units that are not done yet.
    left: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
    /// Whether the caller sleeps until nothing is left.
    asleep: AtomicBool,
    done: (Mutex<()>, Condvar),
    seats: Vec<Seat>,
}

// SAFETY: `job` is written only between regions, when there is no piece to take, and read only by who has taken one.
unsafe impl Sync for Shared {}
// SAFETY: the job pointer is only followed while a region keeps the closure alive.
unsafe impl Send for Shared {}

impl Shared {
    /// Takes pieces until there is none.
    fn work(&self, id: usize) {
        while let Some(units) = self.shares.next(id) {
            let n = units.len();
            self.seats[id].set_busy(true);
            // SAFETY: the job was written before its pieces were dealt out, and the region lasts until they are done: this one is not.
            let result = unsafe {
                let job = *self.job.get();
                catch_unwind(AssertUnwindSafe(|| job.map(|job| (*job)(units))))
            };
            if let Err(panic) = result {
                self.keep(panic);
            }
            self.seats[id].set_busy(false);
            if self.left.fetch_sub(n, SeqCst) == n && self.asleep.load(SeqCst) {
                drop(self.done.0.lock());
                self.done.1.notify_one();
                make_room(&self.seats, id, 0);
            }
        }
    }

    /// Waits until all pieces are done.
    fn join(&self) {
        let done = || self.left.load(SeqCst) == 0;
        if awake_until(done) {
            return;
        }
        self.seats[0].rest();
        let mut lock = self.done.0.lock().unwrap_or_else(|e| e.into_inner());
        // The last piece is counted off before `asleep` is looked at, so one of the two threads sees the other.
        self.asleep.store(true, SeqCst);
        while !done() {
            lock = self.done.1.wait_timeout(lock, PATIENCE).unwrap_or_else(|e| e.into_inner()).0;
            if !done() {
                self.seats[1..].iter().any(Seat::help);
                self.seats[0].rest();
            }
        }
        self.asleep.store(false, SeqCst);
    }

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

/// Waits awake until `done`, for [`AWAKE`] at most; whether it came to that.
fn awake_until(done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= AWAKE {
            return done();
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
        Pool::with_parts(threads, threads)
    }

    /// A pool of `threads`, whose regions are cut into `parts`.
    fn with_parts(threads: usize, parts: usize) -> Self {
        let shared = Arc::new(Shared {
            generation: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            shares: Shares::new(parts),
            left: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            asleep: AtomicBool::new(false),
            done: (Mutex::new(()), Condvar::new()),
            seats: (0..threads).map(|_| Seat::default()).collect(),
        });
        let spawn = |id| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("flashlm-{id}")).spawn(move || serve(&shared, id))
        };
        // Fewer threads than asked for change no result, only the speed.
        let workers: Vec<_> = (1..threads).map_while(|id| spawn(id).ok()).collect();
        Pool { shared, workers, running: Mutex::new(()), replay: None }
    }

    /// The caller alone, which plays `threads` threads and keeps a timeline of what they would have taken.
    pub(crate) fn replay(threads: usize) -> Self {
        let mut pool = Pool::with_parts(1, threads);
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
        self.region(self.threads(), Piece::Own, &|ids| ids.for_each(&f));
    }

    /// Runs `f` on ranges that make up `0..n`, cut at multiples of `align`: large ones first, each on the thread that takes it.
    ///
    /// # Panics
    /// As [`Pool::run`].
    #[track_caller]
    pub fn split(&self, n: usize, align: usize, f: impl Fn(Range<usize>) + Sync) {
        // As many units as can be counted.
        let align = align.max(n.div_ceil(shares::MOST));
        let end = |unit: usize| unit.saturating_mul(align).min(n);
        self.region(n.div_ceil(align), Piece::Half, &|units| f(units.start * align..end(units.end)));
    }

    /// Runs `f` on each of `0..n`, at most 2^32 - 1.
    ///
    /// # Panics
    /// As [`Pool::run`].
    #[track_caller]
    pub fn each(&self, n: usize, f: impl Fn(usize) + Sync) {
        self.region(n, Piece::One, &|units| units.for_each(&f));
    }

    /// Runs `f` on pieces that make up `0..units`. Compiled once, not for each of the hundreds of closures.
    #[track_caller]
    fn region(&self, units: usize, piece: Piece, f: &(dyn Fn(Range<usize>) + Sync)) {
        let _region = self.enter();
        if units == 0 {
            return;
        }
        if let Some(replay) = &self.replay {
            let shares = &self.shared.shares;
            shares.deal(units, self.threads(), piece);
            return replay.region(Location::caller(), |id| shares.next(id), f);
        }
        if self.workers.is_empty() || units == 1 {
            return f(0..units);
        }
        let _running = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let shared = &*self.shared;
        // SAFETY: the lifetime is erased, but this function returns only when every piece is done, and only who has one calls `f`.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(Range<usize>) + Sync), Job>(f) };
        // SAFETY: no worker reads `job` now: there is no piece.
        unsafe { *shared.job.get() = Some(job) };
        shared.left.store(units, SeqCst);
        shared.seats[0].sit();
        shared.shares.deal(units, self.threads(), piece);
        shared.generation.fetch_add(1, SeqCst);
        for (id, (worker, parked)) in (1..).zip(self.workers.iter().zip(&shared.parked)) {
            if parked.swap(false, SeqCst) {
                worker.thread().unpark();
                make_room(&shared.seats, 0, id);
            }
        }
        shared.work(0);
        shared.join();
        let panic = shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
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

/// What worker `id` does as long as there is a pool.
fn serve(shared: &Shared, id: usize) {
    REGION.set(shared);
    let (seat, parked) = (&shared.seats[id], &shared.parked[id - 1]);
    seat.sit();
    let mut seen = 0;
    loop {
        let begun = || shared.generation.load(SeqCst) != seen;
        while !awake_until(begun) {
            #[cfg(target_arch = "x86_64")]
            crate::isa::amx::release();
            seat.rest();
            // A swap, because emulators of other processors let a plain store be passed by the load that follows.
            parked.swap(true, SeqCst);
            // The caller moves the generation before it looks at `parked`, so one of the two sees the other.
            if !begun() {
                thread::park();
            }
            parked.store(false, SeqCst);
        }
        seen = shared.generation.load(SeqCst);
        if shared.stop.load(SeqCst) {
            return;
        }
        shared.work(id);
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
