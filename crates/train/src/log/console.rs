//! The lines a run prints on stderr. Pure functions, no colour, no cursor games: every line stands for itself and can be found
//! with grep.
//!
//! ```text
//! step 1200/5000  loss 2.314  lr 3.9e-3  norm 0.71  18,204 tok/s  12.4M tok  epoch 3.2  2m03s  eta 6m41s
//! valid  loss 1.980  bpb 0.731 (best)  entropy bound 0.310
//! ```

use super::{EvalRow, TrainRow};
use crate::units::{count, duration, thousands};

/// When a run will end: at the first limit it reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Seconds of training.
    pub seconds: Option<f64>,
}

impl Limits {
    /// Seconds still to go at the mean speed so far; none where nothing limits the run or nothing is known yet.
    pub fn remaining(&self, step: u64, elapsed: f64) -> Option<f64> {
        let by_steps =
            self.steps.filter(|_| step > 0).map(|total| elapsed / step as f64 * total.saturating_sub(step) as f64);
        let by_clock = self.seconds.map(|total| (total - elapsed).max(0.0));
        [by_steps, by_clock].into_iter().flatten().filter(|seconds| seconds.is_finite()).reduce(f64::min)
    }
}

/// One line of training progress.
pub fn progress(row: &TrainRow, limits: &Limits) -> String {
    let mut line = format!("step {}", row.step);
    if let Some(total) = limits.steps {
        line += &format!("/{total}");
    }
    line += &format!(
        "  loss {:.3}  lr {:.1e}  norm {:.2}  {} tok/s  {} tok  epoch {:.1}  {}",
        row.loss,
        row.lr,
        row.grad_norm,
        thousands(row.tokens_per_second.round() as u64),
        count(row.tokens),
        row.epoch,
        duration(row.elapsed),
    );
    if let Some(seconds) = limits.remaining(row.step, row.elapsed) {
        line += &format!("  eta {}", duration(seconds));
    }
    line
}

/// One line for an evaluation; `entropy_bound` in bits per byte where the data has a known one.
pub fn valid(row: &EvalRow, entropy_bound: Option<f64>) -> String {
    let mut line = format!("valid  loss {:.3}  bpb {:.3}", row.loss, row.bpb);
    if row.best {
        line += " (best)";
    }
    if let Some(bound) = entropy_bound {
        line += &format!("  entropy bound {bound:.3}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> TrainRow {
        TrainRow {
            step: 1200,
            loss: 2.3141,
            lr: 0.0039,
            grad_norm: 0.7123,
            tokens: 12_412_000,
            tokens_per_second: 18_203.6,
            elapsed: 123.2,
            epoch: 3.21,
            seq_len: 256,
            stage: 1,
            sources: Default::default(),
        }
    }

    #[test]
    fn a_line_of_progress() {
        // 123.2 s of 524.2 s; the steps alone would take 123.2 * 3800 / 1200 = 390 s.
        let limits = Limits { steps: Some(5000), seconds: None };
        let line =
            "step 1200/5000  loss 2.314  lr 3.9e-3  norm 0.71  18,204 tok/s  12.4M tok  epoch 3.2  2m03s  eta 6m30s";
        assert_eq!(progress(&row(), &limits), line);
        let limits = Limits { steps: None, seconds: Some(524.2) };
        let line = "step 1200  loss 2.314  lr 3.9e-3  norm 0.71  18,204 tok/s  12.4M tok  epoch 3.2  2m03s  eta 6m41s";
        assert_eq!(progress(&row(), &limits), line);
        assert!(progress(&row(), &Limits::default()).ends_with("epoch 3.2  2m03s"));
    }

    #[test]
    fn a_line_without_numbers() {
        let row = TrainRow {
            step: 0,
            loss: f64::NAN,
            lr: f64::INFINITY,
            tokens_per_second: f64::NAN,
            elapsed: f64::NAN,
            ..row()
        };
        let limits = Limits { steps: Some(10), seconds: Some(5.0) };
        let line = progress(&row, &limits);
        assert!(line.starts_with("step 0/10  loss NaN  lr inf  norm 0.71  0 tok/s"), "{line}");
        assert!(line.contains("  ?"), "{line}");
    }

    #[test]
    fn the_earlier_limit_counts() {
        let limits = Limits { steps: Some(100), seconds: Some(30.0) };
        assert_eq!(limits.remaining(50, 10.0), Some(10.0));
        assert_eq!(limits.remaining(25, 10.0), Some(20.0));
        assert_eq!(limits.remaining(100, 31.0), Some(0.0));
        assert_eq!(limits.remaining(0, 0.0), Some(30.0));
        assert_eq!(Limits::default().remaining(5, 1.0), None);
    }

    #[test]
    fn a_line_of_validation() {
        let row = EvalRow { step: 1, tokens: 1, elapsed: 1.0, loss: 1.98, bpb: 0.7306, best: true };
        assert_eq!(valid(&row, Some(0.31)), "valid  loss 1.980  bpb 0.731 (best)  entropy bound 0.310");
        let row = EvalRow { best: false, ..row };
        assert_eq!(valid(&row, None), "valid  loss 1.980  bpb 0.731");
    }
}
