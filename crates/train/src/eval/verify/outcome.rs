//! Figures and their bounds.

use flashlm_model::Precision;
use serde::Serialize;

/// How far this program is from the vectors. What is not a number has failed.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The architecture.
    pub arch: String,
    /// What was computed in.
    pub precision: Precision,
    /// Steps of the trajectory.
    pub steps: usize,
    /// RMS of the difference of the logits over the RMS of those in the file.
    pub logits_rms_ratio: f64,
    /// Difference of the loss, nats.
    pub loss_abs_diff: f64,
    /// RMS ratio of the gradient that is furthest off.
    pub grad_rms_ratio_max: f64,
    /// Its parameter.
    pub grad_worst: String,
    /// Largest relative difference of the first three losses of the trajectory.
    pub traj_loss_rel_diff_first: f64,
    /// Largest relative difference of all losses of the trajectory.
    pub traj_loss_rel_diff_max: f64,
}

/// One figure and its bound.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Check {
    /// The figure's name in [`Outcome`].
    pub name: &'static str,
    /// The figure.
    pub value: f64,
    /// The largest value that passes.
    pub bound: f64,
    /// Whether it does.
    pub pass: bool,
}

impl Outcome {
    /// Every figure against its bound. The trajectory's last bound is wide: once a master weight sits on a rounding edge,
    /// two correct programs part.
    pub fn checks(&self) -> [Check; 5] {
        [
            ("logits_rms_ratio", self.logits_rms_ratio, [1e-5, 1e-2, 4e-2]),
            ("loss_abs_diff", self.loss_abs_diff, [1e-5, 1e-2, 2e-2]),
            ("grad_rms_ratio_max", self.grad_rms_ratio_max, [1e-4, 5e-2, 1e-1]),
            ("traj_loss_rel_diff_first", self.traj_loss_rel_diff_first, [1e-4, 1e-2, 2e-2]),
            ("traj_loss_rel_diff_max", self.traj_loss_rel_diff_max, [1e-2, 5e-2, 5e-2]),
        ]
        .map(|(name, value, [f32, bf16, int8])| {
            let bound = match self.precision {
                Precision::Auto | Precision::F32 => f32,
                Precision::Bf16 => bf16,
                Precision::Int8 | Precision::Int8F32 => int8,
            };
            Check { name, value, bound, pass: value <= bound }
        })
    }

    /// Whether every figure is within its bound.
    pub fn passed(&self) -> bool {
        self.checks().iter().all(|check| check.pass)
    }
}
