//! When a run that time limits is validated: at each tenth of it, but no more than a fifth of its time.

/// Seconds of training for each second of validation, at least.
const TRAINING: f64 = 4.0;

/// The validations of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Tenths that are done with.
    tenths: u64,
    /// When the next may begin, in seconds.
    free: f64,
}

impl Pace {
    /// Of a run that begins, or goes on, after so many tenths.
    pub(super) fn new(tenths: u64) -> Pace {
        Pace { tenths, free: 0.0 }
    }

    /// A validation took this long.
    pub(super) fn took(&mut self, began: f64, ended: f64) {
        self.free = ended + TRAINING * (ended - began);
    }

    /// Whether one is due after so many tenths.
    pub(super) fn due(&mut self, tenths: u64, now: f64) -> bool {
        let due = tenths > self.tenths && now >= self.free;
        if due {
            self.tenths = tenths;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Validations after the first step, and seconds of training, of a run of 100 seconds.
    fn run(step: f64, validation: f64) -> (usize, f64) {
        let (mut now, mut trained, mut count) = (validation, 0.0, 0);
        let mut pace = Pace::new(0);
        pace.took(0.0, now);
        while now < 100.0 {
            if pace.due((now / 10.0) as u64, now) {
                pace.took(now, now + validation);
                now += validation;
                count += 1;
            }
            now += step;
            trained += step;
        }
        (count, trained)
    }

    #[test]
    fn validations_that_take_long_leave_time_to_train() {
        assert_eq!(run(0.1, 0.001).0, 9, "one for each tenth, the last follows the run");
        for validation in [1.0, 3.0, 9.0, 12.0, 19.0] {
            let (count, trained) = run(0.1, validation);
            // After the last one may come the end.
            assert!(trained >= 80.0 - validation, "{validation} s: {trained} s of training");
            assert!(count >= (20.0 / validation) as usize - 1 || count == 9, "{validation} s: {count}");
        }
    }
}
