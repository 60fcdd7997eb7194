//! From values to pixels: ranges, units, and ticks at 1, 2 or 5 times a power of ten.

use super::curve::Axis;

/// A range of values over a length in pixels.
pub(super) struct Scale {
    /// The least value.
    pub lo: f64,
    /// The greatest; above `lo`.
    pub hi: f64,
    /// Pixels between the two.
    pub length: f64,
}

impl Scale {
    /// The range of the values and a little room.
    pub fn around(values: &[f64], length: f64) -> Self {
        let hi = values.iter().copied().reduce(f64::max).unwrap_or(1.0);
        let lo = values.iter().copied().reduce(f64::min).unwrap_or(0.0);
        let room = if hi - lo > 1e-9 * hi.abs() { (hi - lo) * 0.08 } else { hi.abs().max(1.0) * 0.1 };
        Scale { lo: lo - room, hi: hi + room, length }
    }

    /// Pixels from the left end.
    pub fn right(&self, value: f64) -> f64 {
        (value - self.lo) / (self.hi - self.lo) * self.length
    }

    /// Pixels from the top. What is far outside is cut off anyway, and huge coordinates are where renderers differ.
    pub fn down(&self, value: f64) -> f64 {
        (self.length - self.right(value)).clamp(-1e4, 1e4)
    }

    /// The labelled multiples of 1, 2 or 5 times a power of ten in the range counted in `unit`: at most `most` and one.
    pub fn ticks(&self, unit: f64, most: u32) -> Vec<(f64, String)> {
        let (lo, hi) = (self.lo / unit, self.hi / unit);
        let rough = (hi - lo) / f64::from(most);
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0].map(|m| m * power);
        // What rounding made a little too large is the step all the same.
        let fits = steps.into_iter().find(|&s| s >= rough * 0.999_999);
        let step = fits.unwrap_or(10.0 * power);
        let first = (lo / step - 1e-9).ceil();
        (0..=most)
            .map(|i| first + f64::from(i))
            .take_while(|n| n * step <= hi + 1e-9 * step)
            // Adding zero makes a negative zero positive.
            .map(|n| (n * step * unit, label(n * step + 0.0, step)))
            .collect()
    }
}

/// A tick with the decimals its step needs.
fn label(tick: f64, step: f64) -> String {
    if !(1e-6..1e6).contains(&step) {
        return format!("{tick:.1e}");
    }
    let decimals = (-(step * 1.000_001).log10().floor()).max(0.0) as usize;
    format!("{tick:.decimals$}")
}

/// The unit of the horizontal axis: the largest of which the run has two.
pub(super) fn unit(axis: Axis, hi: f64) -> (f64, &'static str) {
    let units: &[(f64, &str)] = match axis {
        Axis::Tokens => &[(1e9, "Tokens seen (B)"), (1e6, "Tokens seen (M)"), (1e3, "Tokens seen (K)")],
        Axis::Elapsed => &[(3600.0, "Training time (hours)"), (60.0, "Training time (minutes)")],
    };
    let rest = match axis {
        Axis::Tokens => (1.0, "Tokens seen"),
        Axis::Elapsed => (1.0, "Training time (seconds)"),
    };
    let large = units.iter().find(|unit| hi >= 2.0 * unit.0);
    large.copied().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let cases: [(f64, f64, f64, u32, &[&str]); 9] = [
            (0.0, 10.0, 1.0, 5, &["0", "2", "4", "6", "8", "10"]),
            (0.0, 13.1e6, 1e6, 10, &["0", "2", "4", "6", "8", "10", "12"]),
            (1.66, 3.54, 1.0, 4, &["2.0", "2.5", "3.0", "3.5"]),
            (0.29, 0.41, 1.0, 6, &["0.30", "0.32", "0.34", "0.36", "0.38", "0.40"]),
            (0.0, 0.3, 1.0, 3, &["0.0", "0.1", "0.2", "0.3"]),
            (-0.1, 0.1, 1.0, 2, &["-0.1", "0.0", "0.1"]),
            (7.03, 7.06, 1.0, 3, &["7.03", "7.04", "7.05", "7.06"]),
            (0.0, 60.0, 60.0, 2, &["0.0", "0.5", "1.0"]),
            (0.0, 3e20, 1.0, 3, &["0.0e0", "1.0e20", "2.0e20", "3.0e20"]),
        ];
        for (lo, hi, unit, most, labels) in cases {
            let length = 100.0;
            let ticks = Scale { lo, hi, length }.ticks(unit, most);
            let found: Vec<_> = ticks.iter().map(|t| t.1.as_str()).collect();
            assert_eq!(found, labels, "{lo} to {hi}");
            for (value, label) in &ticks {
                let labelled = label.parse::<f64>().unwrap() * unit;
                assert!((value - labelled).abs() <= 1e-9 * hi.abs(), "{value} {label}");
            }
        }
    }

    #[test]
    fn pixels() {
        let scale = Scale { lo: 2.0, hi: 4.0, length: 100.0 };
        assert_eq!([scale.right(2.0), scale.right(3.5), scale.right(4.0)], [0.0, 75.0, 100.0]);
        assert_eq!([scale.down(2.0), scale.down(3.5), scale.down(1e29)], [100.0, 25.0, -1e4]);
    }

    #[test]
    fn a_range_has_room_on_both_sides() {
        for values in [&[][..], &[5.0], &[0.0], &[-3.0, -3.0], &[1e29, -1e29], &[1e-20, 0.0]] {
            let scale = Scale::around(values, 10.0);
            assert!(values.iter().all(|&v| scale.lo < v && v < scale.hi), "{values:?}");
            assert!(scale.lo < scale.hi && !scale.ticks(1.0, 5).is_empty(), "{values:?}");
        }
    }

    #[test]
    fn units() {
        assert_eq!(unit(Axis::Tokens, 2e6), (1e6, "Tokens seen (M)"));
        assert_eq!(unit(Axis::Tokens, 1.9e6), (1e3, "Tokens seen (K)"));
        assert_eq!(unit(Axis::Tokens, 3.0), (1.0, "Tokens seen"));
        assert_eq!(unit(Axis::Elapsed, 7200.0), (3600.0, "Training time (hours)"));
        assert_eq!(unit(Axis::Elapsed, 119.0), (1.0, "Training time (seconds)"));
    }
}
