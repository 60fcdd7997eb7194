//! What all measurements share: the timer, its statistics, and the peak that matmuls are compared with.

use std::time::Instant;

use flashlm_kernels::measure::product;
use flashlm_kernels::profile::Work;
use flashlm_kernels::{Bf16, Exec, Store};
use flashlm_model::Precision;

/// Reads `--seconds`.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds between 0.001 and 3600".into()),
    }
}

/// The middle one, or the mean of the two in the middle; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Calls `f` for about `seconds` in `count` windows or more: seconds a call in each. Every window has at least one call.
pub(crate) fn windows(seconds: f64, count: usize, mut f: impl FnMut()) -> Vec<f64> {
    let length = seconds / count as f64;
    let window = |_| {
        let start = Instant::now();
        let mut calls = 0u32;
        loop {
            f();
            calls += 1;
            let elapsed = start.elapsed().as_secs_f64();
            if elapsed >= length {
                return elapsed / f64::from(calls);
            }
        }
    };
    (0..count).map(window).collect()
}

/// The rate of work done in so many seconds, and its unit.
pub(super) fn rate(work: Work, seconds: f64) -> (f64, &'static str) {
    match work {
        Work::Flops(n) => (n / seconds / 1e9, "GFLOP/s"),
        Work::Bytes(n) => (n / seconds / 1e9, "GB/s"),
    }
}

/// How [`peak`] is measured, for the reader of the figure.
pub(super) const PEAK: &str =
    "fastest matmul with operands in cache, same precision, instruction set and threads, before and after";

/// GFLOP/s of the fastest matmul in a precision: all threads, operands that stay in L2, the best of many windows.
///
/// The matmul's inner loop is multiply-adds on registers, so this is nearly what the units can do.
pub(super) fn peak(cx: &Exec, precision: Precision) -> f64 {
    if matches!(precision, Precision::Bf16 | Precision::Int8) { peak_of::<Bf16>(cx) } else { peak_of::<f32>(cx) }
}

fn peak_of<A: Store>(cx: &Exec) -> f64 {
    let speed = |n| {
        let sizes = (448 * cx.pool().threads(), n, 256);
        product::<A>(cx, sizes, |call| windows(0.05, 25, call).into_iter().fold(f64::INFINITY, f64::min))
    };
    [64, 128, 256, 512].map(speed).into_iter().fold(0.0, f64::max) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_any_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn windows_time_the_calls() {
        let mut calls = 0;
        let times = windows(0.06, 3, || {
            calls += 1;
            std::thread::sleep(std::time::Duration::from_millis(5));
        });
        assert_eq!(times.len(), 3);
        assert!((3..=12).contains(&calls), "{calls} calls of 5 ms in 60 ms");
        assert!(times.iter().all(|t| *t >= 0.005), "{times:?}");
        // A call longer than the window is still measured, once in each.
        calls = 0;
        assert_eq!(windows(1e-9, 4, || calls += 1).len(), 4);
        assert_eq!(calls, 4);
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for text in ["", "0", "-1", "nan", "inf", "1e9", "five"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
