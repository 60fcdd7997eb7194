//! Who has been heard of: every rank sends a sign of life from a thread of its own, however long it computes. Rank 0 listens to all, the
//! others to rank 0. Each watches over itself, too: over the thread that trains (`pulse`).

use std::time::{Duration, Instant};

/// More than any busy machine keeps a thread waiting: what lies between two looks this far apart is a machine that slept, or a job
/// that was stopped as a whole.
const GAP: Duration = Duration::from_secs(2);

/// What rank 0, or another, knows of those that it listens to.
pub(super) struct Watch {
    others: Vec<Other>,
    limit: Duration,
    last: Instant,
    seen: Option<(u64, u64)>,
}

struct Other {
    rank: usize,
    step: u64,
    silent: Duration,
    left: bool,
}

/// The first that has been silent for too long.
#[derive(Debug, PartialEq)]
pub(super) struct Silent {
    pub rank: usize,
    /// The last step that it was heard of in.
    pub step: u64,
}

impl Watch {
    pub fn new(ranks: impl IntoIterator<Item = usize>, limit: Duration, now: Instant) -> Watch {
        let other = |rank| Other { rank, step: 0, silent: Duration::ZERO, left: false };
        Watch { others: ranks.into_iter().map(other).collect(), limit, last: now, seen: None }
    }

    /// A sign of life; without a step it is the last.
    pub fn heard(&mut self, rank: usize, step: Option<u64>) {
        if let Some(other) = self.others.iter_mut().find(|other| other.rank == rank) {
            other.silent = Duration::ZERO;
            other.left = step.is_none();
            other.step = step.unwrap_or(other.step);
        }
    }

    /// What is seen of the thread that trains on this rank: that is a sign of life where it changes, where the thread may rest, and where
    /// it leaves.
    pub fn own(&mut self, rank: usize, seen: Option<(u64, u64)>, step: Option<u64>) {
        let before = std::mem::replace(&mut self.seen, seen);
        if step.is_none() || seen.is_none() || seen != before {
            self.heard(rank, step);
        }
    }

    /// To be called often.
    pub fn look(&mut self, now: Instant) -> Option<Silent> {
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.last, now));
        let passed = if passed > GAP { Duration::ZERO } else { passed };
        self.others.iter_mut().for_each(|other| other.silent += passed);
        let silent = self.others.iter().find(|other| !other.left && other.silent > self.limit);
        silent.map(|other| Silent { rank: other.rank, step: other.step })
    }

    /// Whether all have left in order.
    pub fn all_left(&self) -> bool {
        self.others.iter().all(|other| other.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_named_and_who_has_left_is_not() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut watch = Watch::new(1..4, Duration::from_secs(5), start);
        for second in 1..=5 {
            assert_eq!(watch.look(at(second.into())), None);
            watch.heard(1, Some(7));
            watch.heard(2, (second < 3).then_some(6));
        }
        watch.heard(3, Some(9));
        // A night, in which none could be heard.
        assert_eq!(watch.look(at(30_000.0)), None);
        (30_001..30_005).for_each(|second| assert_eq!(watch.look(at(second.into())), None));
        watch.heard(1, Some(8));
        assert_eq!(watch.look(at(30_005.0)), None);
        assert_eq!(watch.look(at(30_005.5)), Some(Silent { rank: 3, step: 9 }));
        assert!(!watch.all_left());
        [1, 3].into_iter().for_each(|rank| watch.heard(rank, None));
        assert!(watch.all_left() && watch.look(at(30_007.0)).is_none());
    }

    #[test]
    fn a_thread_that_stands_still_is_named_and_one_that_rests_or_works_is_not() {
        let start = Instant::now();
        // What is seen each half second, for a limit of five seconds.
        let found = |seen: &dyn Fn(u64) -> Option<(u64, u64)>, step: Option<u64>| {
            let mut watch = Watch::new([0], Duration::from_secs(5), start);
            (1..=30).find_map(|half| {
                watch.own(0, seen(half), step);
                watch.look(start + Duration::from_millis(500 * half)).map(|silent| (half, silent))
            })
        };
        assert_eq!(found(&|half| Some((half, 3)), Some(7)), None, "it counts");
        assert_eq!(found(&|half| Some((3, half)), Some(7)), None, "it computes");
        assert_eq!(found(&|_| None, Some(7)), None, "it rests, or nothing is known");
        assert_eq!(found(&|_| Some((3, 3)), None), None, "it has left");
        assert_eq!(found(&|_| Some((3, 3)), Some(7)), Some((11, Silent { rank: 0, step: 7 })));
        assert_eq!(found(&|half| Some((half.min(10), 3)), Some(7)), Some((20, Silent { rank: 0, step: 7 })));
        // It went on just in time.
        assert_eq!(found(&|half| Some((half / 9, 3)), Some(7)), None);
    }
}
