//! What regions would take on more threads than there are: one thread does the work of each, and the clock of the one that would
//! have done it goes on by the time that it took.
//!
//! A region lasts as long as the clock that is ahead; what lies between regions is done by one thread. Not in it: what a
//! region costs to begin and to end, memory bandwidth, caches (here all threads have one), and clock rates.

use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Regions that begin at one place of the program. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The place.
    pub at: &'static Location<'static>,
    /// How often a region began there.
    pub regions: u64,
    /// Time before these regions in which one thread alone worked.
    pub before: f64,
    /// Time in them, summed over threads.
    pub busy: f64,
    /// Time that they last.
    pub span: f64,
}

/// All that happened in some time.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The places where regions began.
    pub places: Vec<Place>,
    /// Seconds after the last region.
    pub after: f64,
}

/// Threads that are played by one.
pub(crate) struct Replay {
    threads: usize,
    /// Places so far, and when the last region ended.
    done: Mutex<(Vec<Place>, Instant)>,
}

impl Replay {
    pub fn new(threads: usize) -> Self {
        Replay { threads, done: Mutex::new((Vec::new(), Instant::now())) }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// One region, in which `next(id)` has the pieces of a thread.
    pub fn region<P>(&self, at: &'static Location<'static>, next: impl FnMut(usize) -> Option<P>, work: impl Fn(P)) {
        let start = Instant::now();
        let clocks = play(self.threads, next, |piece| {
            let start = Instant::now();
            work(piece);
            start.elapsed().as_secs_f64()
        });
        let (busy, span) = (clocks.iter().sum::<f64>(), clocks.iter().copied().fold(0.0, f64::max));
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (start - done.1).as_secs_f64();
        match done.0.iter_mut().find(|place| place.at == at) {
            Some(place) => {
                place.regions += 1;
                (place.before, place.busy, place.span) = (place.before + before, place.busy + busy, place.span + span);
            }
            None => done.0.push(Place { at, regions: 1, before, busy, span }),
        }
        done.1 = Instant::now();
    }

    /// What happened since the last call, or since the beginning.
    pub fn timeline(&self) -> Timeline {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let after = (now - std::mem::replace(&mut done.1, now)).as_secs_f64();
        Timeline { places: std::mem::take(&mut done.0), after }
    }
}

/// The clocks of threads that begin together: of all for which `next(id)` still has a piece, the one whose clock is least takes it,
/// and it goes on by the time of the piece.
fn play<P>(threads: usize, mut next: impl FnMut(usize) -> Option<P>, mut time: impl FnMut(P) -> f64) -> Vec<f64> {
    let mut clocks = vec![0.0; threads];
    let mut open: Vec<usize> = (0..threads).collect();
    while let Some(first) = (0..open.len()).min_by(|&a, &b| f64::total_cmp(&clocks[open[a]], &clocks[open[b]])) {
        let id = open[first];
        match next(id) {
            Some(piece) => clocks[id] += time(piece),
            None => _ = open.remove(first),
        }
    }
    clocks
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Exec, Isa};

    #[test]
    fn the_thread_that_is_free_first_takes_the_next_piece() {
        let mut pieces = [5.0, 1.0, 2.0, 3.0, 4.0].into_iter();
        let mut taken = Vec::new();
        let next = |id| {
            let piece = pieces.next();
            taken.extend(piece.map(|_| id));
            piece
        };
        assert_eq!(play(3, next, |time| time), [5.0, 4.0, 6.0]);
        assert_eq!(taken, [0, 1, 2, 1, 2]);
        // Each its own piece, whatever the others do.
        let mut own = [Some(3.0), None, Some(1.0)];
        assert_eq!(play(3, |id| own[id].take(), |time| time), [3.0, 0.0, 1.0]);
    }

    #[test]
    fn time_before_a_region_and_in_it_is_told() {
        let replay = Replay::new(2);
        std::thread::sleep(Duration::from_millis(3));
        let mut all = [Some(8), Some(2)];
        let at = Location::caller();
        replay.region(at, |id| all[id].take(), |ms| std::thread::sleep(Duration::from_millis(ms)));
        let places = replay.timeline().places;
        let [Place { regions: 1, before, busy, span, .. }] = places[..] else { panic!("{places:?}") };
        assert!(before >= 0.003 && busy >= 0.010 && span >= 0.008 && span <= busy - 0.002, "{places:?}");
        assert!(replay.timeline().places.is_empty());
    }

    #[test]
    fn ops_have_the_same_result_and_are_told_by_their_places() {
        let (real, played) = (Exec::new(Isa::SCALAR, 1), Exec::replay(Isa::SCALAR, 5));
        assert_eq!(played.pool().threads(), 5);
        let x: Vec<f32> = (0..20_000).map(|i| (i % 97) as f32).collect();
        assert_eq!(crate::ops::sum_squares(&real, &x), crate::ops::sum_squares(&played, &x));
        let (mut a, mut b) = (x.clone(), x.clone());
        crate::ops::add(&real, &mut a, &x);
        crate::ops::add(&played, &mut b, &x);
        assert_eq!(a, b);
        let places = played.pool().timeline().unwrap().places;
        assert!(places.len() == 2 && places.iter().all(|place| place.at.file().ends_with("reduce.rs")), "{places:?}");
        assert!(places.iter().all(|place| place.span <= place.busy && place.span > place.busy / 5.1), "{places:?}");
        assert!(real.pool().timeline().is_none());
    }
}
