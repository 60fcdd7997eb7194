//! Learning rate and momentum over a run. Progress `p` in [0, 1] is the fraction of the steps, or of the time limit, that has
//! passed.
//!
//! `lr = peak * warm-up` while warming up, then `min + (peak - min) * f(q)`, `q = (p - w) / (1 - w)`, with `w` the end of
//! warm-up where it is known beforehand: cosine `f = (1 + cos(pi q)) / 2`, linear `f = 1 - q`, and warmup-stable-decay
//! `f = 1` until the last `decay_share`, then falling linearly to 0. All learning rates follow it: that of the matrices under
//! Muon is `matrix_lr / peak` times `lr`, so that `min / peak` is the share that is left at the end of both.
//!
//! The momentum moves as the learning rate falls, without warm-up: `final_momentum + (momentum - final_momentum) * f`, or
//! `momentum` throughout where `final_momentum` is 0.
//!
//! Activations have the model's bits where `p >= 1 - activation_share`.

use serde::{Deserialize, Serialize};

/// Warm-up never takes more than this fraction of a run.
const WARMUP_SHARE: f64 = 0.1;

/// The shape after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Half a cosine.
    Cosine,
    /// A straight line.
    Linear,
    /// Warmup-stable-decay.
    Wsd,
}

/// The settings of a schedule, named as in `[train]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// After warm-up.
    pub shape: Shape,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end.
    pub min_lr: f64,
    /// Linear warm-up, never longer than a tenth of the run.
    pub warmup_steps: u64,
    /// Last fraction of the run, in which `wsd` decays.
    pub decay_share: f64,
    /// Momentum at the peak.
    pub momentum: f64,
    /// Momentum at the end; 0: as at the peak.
    pub final_momentum: f64,
}

impl Schedule {
    /// The learning rate of step `step` (from 0) at progress `p`, of `total` steps if that is known.
    pub fn learning_rate(&self, step: u64, p: f64, total: Option<u64>) -> f64 {
        let by_steps = if self.warmup_steps == 0 { 1.0 } else { (step + 1) as f64 / self.warmup_steps as f64 };
        let by_share = match total {
            Some(total) => (step + 1) as f64 / (WARMUP_SHARE * total as f64),
            None => p / WARMUP_SHARE,
        };
        let warm = by_steps.max(by_share).min(1.0);
        let floor = self.min_lr.min(self.lr);
        warm * (floor + (self.lr - floor) * self.falling(p, total))
    }

    /// The momentum of the matrices at progress `p`, of `total` steps if that is known.
    pub fn momentum(&self, p: f64, total: Option<u64>) -> f64 {
        if self.final_momentum == 0.0 {
            return self.momentum;
        }
        self.final_momentum + (self.momentum - self.final_momentum) * self.falling(p, total)
    }

    /// `f`: 1 at the peak, 0 at the end.
    fn falling(&self, p: f64, total: Option<u64>) -> f64 {
        let end = total.map_or(0.0, |total| (self.warmup_steps as f64 / total.max(1) as f64).min(WARMUP_SHARE));
        let q = ((p - end) / (1.0 - end)).clamp(0.0, 1.0);
        match self.shape {
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * q).cos()),
            Shape::Linear => 1.0 - q,
            Shape::Wsd => ((1.0 - p) / self.decay_share.max(1e-9)).clamp(0.0, 1.0),
        }
    }
}

/// Bits of activations in a step at progress `p`, of a model that has `bits` in the last fraction `share` of the run.
pub fn activation_bits(bits: u32, share: f64, p: f64) -> u32 {
    if p >= 1.0 - share { bits } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape) -> Schedule {
        Schedule {
            shape,
            lr: 1.0,
            min_lr: 0.1,
            warmup_steps: 10,
            decay_share: 0.25,
            momentum: 0.97,
            final_momentum: 0.0,
        }
    }

    #[test]
    fn by_steps() {
        let at = |shape, step: u64| schedule(shape).learning_rate(step, step as f64 / 1000.0, Some(1000));
        for shape in [Shape::Cosine, Shape::Linear, Shape::Wsd] {
            assert!((at(shape, 0) - 0.1).abs() < 1e-12 && (at(shape, 4) - 0.5).abs() < 1e-12);
            assert!((at(shape, 10) - 1.0).abs() < 1e-12, "peak after warm-up");
            assert!((at(shape, 1000) - 0.1).abs() < 1e-12, "floor at the end");
        }
        assert!((at(Shape::Cosine, 505) - 0.55).abs() < 1e-12, "half way down");
        assert!((at(Shape::Linear, 505) - 0.55).abs() < 1e-12);
        assert_eq!(at(Shape::Wsd, 749), 1.0);
        assert!((at(Shape::Wsd, 875) - 0.55).abs() < 1e-12);
    }

    #[test]
    fn activations_are_rounded_in_the_last_share() {
        let on = |share, p| activation_bits(8, share, p) == 8;
        assert!(on(1.0, 0.0) && !on(0.2, 0.0));
        let first = (0..1000).find(|&step| on(0.2, f64::from(step) / 1000.0));
        assert_eq!(first, Some(800));
        assert!((800..=1000).all(|step| on(0.2, f64::from(step) / 1000.0)) && on(0.2, 1.1));
        assert_eq!(activation_bits(0, 1.0, 0.9), 0, "a model without");
    }

    #[test]
    fn momentum_moves_as_the_learning_rate_falls() {
        for shape in [Shape::Cosine, Shape::Linear, Shape::Wsd] {
            let off = schedule(shape);
            let on = Schedule { final_momentum: 0.9, ..off };
            for step in 0..=1000u64 {
                let p = step as f64 / 1000.0;
                assert_eq!(off.momentum(p, Some(1000)), 0.97);
                // Past the warm-up both are the same share of the way down.
                if step >= 10 {
                    let fallen = (1.0 - on.learning_rate(step, p, Some(1000))) / 0.9;
                    assert!((0.97 - 0.07 * fallen - on.momentum(p, Some(1000))).abs() < 1e-12, "{shape:?} {step}");
                }
            }
            assert!(
                (on.momentum(0.0, Some(1000)) - 0.97).abs() < 1e-12 && (on.momentum(1.0, None) - 0.9).abs() < 1e-12
            );
        }
        let wsd = Schedule { final_momentum: 0.9, ..schedule(Shape::Wsd) };
        assert!((wsd.momentum(0.875, None) - 0.935).abs() < 1e-12, "half way down");
        assert_eq!(wsd.momentum(0.75, None), 0.97);
    }

    #[test]
    fn by_time() {
        let at = |step, p| schedule(Shape::Linear).learning_rate(step, p, None);
        assert!((at(0, 0.0) - 0.1).abs() < 1e-12, "first step of the warm-up");
        assert!((at(0, 0.1) - 0.91).abs() < 1e-12, "slow steps: warm-up ends with the first tenth");
        assert!((at(5000, 1.0) - 0.1).abs() < 1e-12, "floor at the limit");
    }
}
