//! Which processor a thread runs on, on Linux, whose scheduler moves a thread that waits for its turn only now and then, and wakes one where
//! it last ran, though another of the pool may run there by now. Both leave a processor to other programs that the pool
//! could share. Elsewhere nothing is asked and nobody moves.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

/// What the others of a pool know of one thread.
#[derive(Default)]
pub(super) struct Seat {
    /// Its number in the system; 0: not known.
    thread: AtomicI32,
    /// The processor it last rested on, plus one; 0: not known.
    rested: AtomicI32,
    /// Whether it has a piece of work.
    busy: AtomicBool,
}

impl Seat {
    /// The calling thread takes this seat.
    pub fn sit(&self) {
        self.thread.store(sys::thread(), SeqCst);
    }

    /// Has a piece of work, or has none.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, SeqCst);
    }

    /// The thread of this seat is about to sleep.
    pub fn rest(&self) {
        self.rested.store(sys::processor().map_or(0, |at| at as i32 + 1), SeqCst);
    }

    /// If the thread of this seat has a piece of work and no processor, it gets that of the caller, who is about to sleep; whether
    /// it does.
    pub fn help(&self) -> bool {
        let thread = self.thread.load(SeqCst);
        let spent = || self.busy.load(SeqCst).then(|| sys::time_of(thread)).flatten();
        let Some(before) = spent() else { return false };
        std::thread::yield_now();
        match sys::processor() {
            Some(here) if spent() == Some(before) => sys::move_thread(thread, |processors| processors.keep(here)),
            _ => return false,
        }
        true
    }
}

/// The thread of seat `own` has just woken that of seat `woken`: it goes where none of the pool is, if that one will run here.
pub(super) fn make_room(seats: &[Seat], own: usize, woken: usize) {
    let rested = |seat: &Seat| usize::try_from(seat.rested.load(SeqCst) - 1).ok();
    let Some(here) = sys::processor() else { return };
    if rested(&seats[woken]) == Some(here) {
        let others = seats.iter().enumerate().filter(|&(id, _)| id != own);
        let taken = others.filter_map(|(_, seat)| rested(seat));
        sys::move_thread(0, |processors| taken.for_each(|at| processors.remove(at)));
    }
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod sys {
    //! The calls of glibc and musl that are needed, by their documented signatures.

    use std::ffi::{c_int, c_long};

    /// A set of processors as the system takes it: the first 1,024.
    #[repr(C)]
    pub(super) struct Processors([u64; 16]);

    impl Processors {
        pub fn remove(&mut self, processor: usize) {
            self.0[processor / 64] &= !(1 << (processor % 64));
        }

        pub fn keep(&mut self, processor: usize) {
            let has = self.0[processor / 64] & 1 << (processor % 64);
            self.0.fill(0);
            self.0[processor / 64] = has;
        }
    }

    #[repr(C)]
    #[derive(Default)]
    struct Time {
        seconds: c_long,
        nanoseconds: c_long,
    }

    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
        safe fn sched_getcpu() -> c_int;
        fn sched_getaffinity(thread: c_int, size: usize, processors: *mut Processors) -> c_int;
        fn sched_setaffinity(thread: c_int, size: usize, processors: *const Processors) -> c_int;
        fn clock_gettime(clock: c_int, time: *mut Time) -> c_int;
    }

    pub fn thread() -> i32 {
        // Old C libraries have no gettid(2).
        const GETTID: c_long = if cfg!(target_arch = "x86_64") { 186 } else { 178 };
        fn ask() -> i32 {
            // SAFETY: it takes nothing and cannot fail.
            unsafe { syscall(GETTID) as i32 }
        }
        thread_local!(static NUMBER: i32 = ask());
        NUMBER.with(|&number| number)
    }

    pub fn processor() -> Option<usize> {
        usize::try_from(sched_getcpu()).ok().filter(|&at| at < 1024)
    }

    /// Processor time of a thread of this process, in nanoseconds.
    pub fn time_of(thread: i32) -> Option<i64> {
        let mut time = Time::default();
        // The number of a thread's clock: clock_getcpuclockid(3), CPUCLOCK_PERTHREAD and CPUCLOCK_SCHED of the kernel.
        let clock = !thread << 3 | 6;
        // SAFETY: a clock is written to a place for one.
        let known = thread != 0 && unsafe { clock_gettime(clock, &mut time) } == 0;
        known.then_some(time.seconds * 1_000_000_000 + time.nanoseconds)
    }

    /// Moves a thread (0: the caller) to one of the processors that `choose` leaves of those it may use, and lets it use all of
    /// them again.
    pub fn move_thread(thread: i32, choose: impl FnOnce(&mut Processors)) {
        const SIZE: usize = size_of::<Processors>();
        let mut some = Processors([0; 16]);
        // SAFETY: the sets are as large as is said.
        unsafe {
            if sched_getaffinity(thread, SIZE, &mut some) < 0 {
                return;
            }
            let all = Processors(some.0);
            choose(&mut some);
            // An empty set is refused, and nothing changes.
            if sched_setaffinity(thread, SIZE, &some) == 0 {
                sched_setaffinity(thread, SIZE, &all);
            }
        }
    }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
mod sys {
    pub(super) struct Processors;

    impl Processors {
        pub fn remove(&mut self, _processor: usize) {}

        pub fn keep(&mut self, _processor: usize) {}
    }

    pub fn thread() -> i32 {
        0
    }

    pub fn processor() -> Option<usize> {
        None
    }

    pub fn time_of(_thread: i32) -> Option<i64> {
        None
    }

    pub fn move_thread(_thread: i32, _choose: impl FnOnce(&mut Processors)) {}
}

#[cfg(test)]
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    /// What Linux says the calling thread may use.
    fn allowed() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find(|line| line.starts_with("Cpus_allowed:")).unwrap().to_owned()
    }

    #[test]
    fn who_wakes_a_thread_that_rested_here_goes_elsewhere_and_may_use_all_again() {
        let before = allowed();
        let several = thread::available_parallelism().unwrap().get() > 1;
        let seats = [Seat::default(), Seat::default()];
        let mut moved = false;
        for _ in 0..100 {
            let here = sys::processor();
            seats[1].rest();
            make_room(&seats, 0, 1);
            moved |= here != sys::processor();
            assert_eq!(allowed(), before);
        }
        assert_eq!(moved, several);
    }

    #[test]
    fn a_thread_that_runs_or_has_nothing_to_do_is_left_alone() {
        let (seat, stop) = (Seat::default(), AtomicBool::new(false));
        assert!(!seat.help(), "nobody sits there");
        thread::scope(|scope| {
            scope.spawn(|| {
                seat.sit();
                while !stop.load(SeqCst) {
                    std::hint::spin_loop();
                }
            });
            assert!(!seat.help(), "it has no piece");
            stop.store(true, SeqCst);
        });
        let own = Seat::default();
        own.sit();
        own.set_busy(true);
        let (first, second) =
            (sys::time_of(own.thread.load(SeqCst)).unwrap(), || sys::time_of(own.thread.load(SeqCst)));
        while second().unwrap() == first {
            std::hint::spin_loop();
        }
        assert!(!own.help(), "a clock that goes on is of a thread that runs");
    }
}
