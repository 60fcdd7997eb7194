//! The clock of training: seconds in which the process could run. What passes while it is stopped (Ctrl-Z), or the machine asleep, is
//! no time of training: a thread looks at the time four times per second, and where two looks lie more than two seconds apart,
//! nothing ran between them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(250);
/// More than any busy machine keeps a thread waiting.
const GAP: Duration = Duration::from_secs(2);

/// Counts from when it is made until it is dropped.
pub struct Clock {
    face: Arc<Mutex<Face>>,
}

struct Face {
    counted: Duration,
    last: Instant,
    paused: bool,
}

impl Face {
    fn look(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.last);
        if !self.paused && passed <= GAP {
            self.counted += passed;
        }
        self.last = now;
    }
}

impl Clock {
    /// A clock that has counted nothing yet.
    pub fn start() -> Self {
        let face = Face { counted: Duration::ZERO, last: Instant::now(), paused: false };
        let face = Arc::new(Mutex::new(face));
        let watched = Arc::downgrade(&face);
        thread::spawn(move || {
            loop {
                thread::sleep(TICK);
                let Some(face) = watched.upgrade() else { return };
                open(&face).look(Instant::now());
            }
        });
        Clock { face }
    }

    /// Seconds counted so far.
    pub fn seconds(&self) -> f64 {
        let mut face = open(&self.face);
        face.look(Instant::now());
        face.counted.as_secs_f64()
    }

    /// Until this is called with `false` again, nothing is counted.
    pub fn pause(&self, pause: bool) {
        let mut face = open(&self.face);
        face.look(Instant::now());
        face.paused = pause;
    }
}

fn open(face: &Mutex<Face>) -> MutexGuard<'_, Face> {
    // A number is never half changed.
    face.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_while_nothing_runs_is_not_counted() {
        let start = Instant::now();
        let mut face = Face { counted: Duration::ZERO, last: start, paused: false };
        let at = |millis| start + Duration::from_millis(millis);
        // A second in four looks, fifteen seconds stopped, half a second more.
        [250, 500, 750, 1000, 16_000, 16_250, 16_500].into_iter().for_each(|millis| face.look(at(millis)));
        assert_eq!(face.counted, Duration::from_millis(1500));
        face.paused = true;
        face.look(at(17_000));
        face.paused = false;
        [17_100, 18_900].into_iter().for_each(|millis| face.look(at(millis)));
        assert_eq!(face.counted, Duration::from_millis(3400));
    }

    #[test]
    fn it_counts_as_the_world_does_and_stops_when_told() {
        let clock = Clock::start();
        let began = Instant::now();
        thread::sleep(Duration::from_millis(600));
        let (counted, passed) = (clock.seconds(), began.elapsed().as_secs_f64());
        assert!(counted >= 0.6 && counted <= passed + 0.05, "{counted} s of {passed}");
        clock.pause(true);
        let counted = clock.seconds();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(clock.seconds(), counted);
        clock.pause(false);
        thread::sleep(Duration::from_millis(50));
        assert!(clock.seconds() > counted);
    }
}
