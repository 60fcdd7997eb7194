//! Learning rate over a run. Progress `p` in [0, 1] is the share of the updates, or of the time limit, that has passed.
//!
//! `lr = peak * warm-up` while warming up, then `min + (peak - min) * f(q)`, `q = (p - w) / (1 - w)`, with `w` the end of
//! warm-up where it is known beforehand: cosine `f = (1 + cos(pi q)) / 2`, linear `f = 1 - q`, and warmup-stable-decay
//! `f = 1` until the last `decay_share`, then falling linearly to 0.
//!
//! Activations have the model's bits where `p >= 1 - activation_share`.

use serde::{Deserialize, Serialize};

use crate::config::TrainSettings;

/// Warm-up never takes more than this share of a run.
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

/// The learning rate of update `step` (from 0) at progress `p`, of `total` updates if that is known.
pub fn learning_rate(t: &TrainSettings, step: u64, p: f64, total: Option<u64>) -> f64 {
    let by_steps = if t.warmup_steps == 0 { 1.0 } else { (step + 1) as f64 / t.warmup_steps as f64 };
    let by_share = match total {
        Some(total) => (step + 1) as f64 / (WARMUP_SHARE * total as f64),
        None => p / WARMUP_SHARE,
    };
    let warm = by_steps.max(by_share).min(1.0);
    let end = total.map_or(0.0, |total| (t.warmup_steps as f64 / total.max(1) as f64).min(WARMUP_SHARE));
    let q = ((p - end) / (1.0 - end)).clamp(0.0, 1.0);
    let f = match t.schedule {
        Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * q).cos()),
        Shape::Linear => 1.0 - q,
        Shape::Wsd => ((1.0 - p) / t.decay_share.max(1e-9)).clamp(0.0, 1.0),
    };
    let floor = t.min_lr.min(t.lr);
    warm * (floor + (t.lr - floor) * f)
}

/// Bits of activations in an update at progress `p`, of a model that has `bits`.
pub fn activation_bits(bits: u32, t: &TrainSettings, p: f64) -> u32 {
    if p >= 1.0 - t.activation_share { bits } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn settings(schedule: Shape) -> TrainSettings {
        TrainSettings {
            schedule,
            lr: 1.0,
            min_lr: 0.1,
            warmup_steps: 10,
            decay_share: 0.25,
            ..Settings::default().train
        }
    }

    #[test]
    fn by_steps() {
        let at = |shape, step: u64| learning_rate(&settings(shape), step, step as f64 / 1000.0, Some(1000));
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
        let on = |activation_share, p| {
            let t = TrainSettings { activation_share, ..settings(Shape::Cosine) };
            activation_bits(8, &t, p) == 8
        };
        assert!(on(1.0, 0.0) && !on(0.2, 0.0));
        let first = (0..1000).find(|&step| on(0.2, f64::from(step) / 1000.0));
        assert_eq!(first, Some(800));
        assert!((800..=1000).all(|step| on(0.2, f64::from(step) / 1000.0)) && on(0.2, 1.1));
        assert_eq!(activation_bits(0, &settings(Shape::Cosine), 0.9), 0, "a model without");
    }

    #[test]
    fn by_time() {
        let t = settings(Shape::Linear);
        let at = |step, p| learning_rate(&t, step, p, None);
        assert!((at(0, 0.0) - 0.1).abs() < 1e-12, "first step of the warm-up");
        assert!((at(0, 0.1) - 0.91).abs() < 1e-12, "slow steps: warm-up ends with the first tenth");
        assert!((at(5000, 1.0) - 0.1).abs() < 1e-12, "floor at the limit");
    }
}
