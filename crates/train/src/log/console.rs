//! The lines a run prints on stderr. Pure functions, no colour, no cursor games: every line stands for itself and can be found
//! with grep.
//!
//! ```text
//! step 1200/5000  loss 2.314  eta 6m41s  18,204 tok/s  epoch 3.2  12.4M tok  2m03s  lr 3.9e-3  norm 0.71
//! before training  loss 7.624  bpb 3.127
//! valid  loss 1.980  bpb 0.731 (best)  entropy bound 0.310
//! ```

use super::{EvalRow, TrainRow};
use crate::units::{count, duration, thousands};

/// One line of training progress; `total` steps and `eta` seconds to go, where known. What matters most comes first: a narrow
/// terminal shows the first fields only.
pub fn progress(row: &TrainRow, total: Option<u64>, eta: Option<f64>) -> String {
    let mut line = format!("step {}", row.step);
    if let Some(total) = total {
        line += &format!("/{total}");
    }
    line += &format!("  loss {:.3}", row.loss);
    if let Some(seconds) = eta {
        line += &format!("  eta {}", duration(seconds));
    }
    line += &format!(
        "  {} tok/s  epoch {:.1}  {} tok  {}  lr {:.1e}  norm {:.2}",
        thousands(row.tokens_per_second.round() as u64),
        row.epoch,
        count(row.tokens),
        duration(row.elapsed),
        row.lr,
        row.grad_norm,
    );
    line
}

/// One line for an evaluation; `entropy_bound` in bits per byte where the data has a known one.
pub fn valid(row: &EvalRow, entropy_bound: Option<f64>) -> String {
    let when = if row.step == 0 { "before training" } else { "valid" };
    let mut line = format!("{when}  loss {:.3}  bpb {:.3}", row.loss, row.bpb);
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
            waited: Vec::new(),
        }
    }

    #[test]
    fn a_line_of_progress() {
        let line =
            "step 1200/5000  loss 2.314  eta 6m30s  18,204 tok/s  epoch 3.2  12.4M tok  2m03s  lr 3.9e-3  norm 0.71";
        assert_eq!(progress(&row(), Some(5000), Some(390.1)), line);
        let line = "step 1200  loss 2.314  eta 6m41s  18,204 tok/s  epoch 3.2  12.4M tok  2m03s  lr 3.9e-3  norm 0.71";
        assert_eq!(progress(&row(), None, Some(401.0)), line);
        assert!(progress(&row(), None, None).starts_with("step 1200  loss 2.314  18,204 tok/s  epoch 3.2"));
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
        let line = progress(&row, Some(10), Some(f64::NAN));
        assert!(
            line.starts_with("step 0/10  loss NaN  eta ?  0 tok/s") && line.ends_with("lr inf  norm 0.71"),
            "{line}"
        );
        assert!(line.contains("  ?"), "{line}");
    }

    #[test]
    fn a_line_of_validation() {
        let row = EvalRow { step: 1, tokens: 1, elapsed: 1.0, loss: 1.98, bpb: 0.7306, best: true };
        assert_eq!(valid(&row, Some(0.31)), "valid  loss 1.980  bpb 0.731 (best)  entropy bound 0.310");
        let row = EvalRow { best: false, ..row };
        assert_eq!(valid(&row, None), "valid  loss 1.980  bpb 0.731");
        assert_eq!(valid(&EvalRow { step: 0, ..row }, None), "before training  loss 1.980  bpb 0.731");
    }
}
