//! How fast this machine is: the fastest of many calls, as other programs only ever make one slower.

use std::time::Instant;

use crate::buf::Buf;
use crate::exec::Exec;
use crate::ops::{Packed, matmul};
use crate::simd::Store;

/// Seconds of the fastest call in about `seconds`.
pub fn fastest(seconds: f64, mut f: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut best = f64::INFINITY;
    // At least twice: the first call meets cold caches and new pages.
    let mut calls = 0;
    while calls < 2 || started.elapsed().as_secs_f64() < seconds {
        let call = Instant::now();
        f();
        best = best.min(call.elapsed().as_secs_f64());
        calls += 1;
    }
    best
}

/// Seconds of a region in which no thread has anything to do: the median of many.
pub fn fork_join(cx: &Exec) -> f64 {
    let mut times: Vec<f64> = (0..2001)
        .map(|_| {
            let started = Instant::now();
            cx.pool().run(|id| {
                std::hint::black_box(id);
            });
            started.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Operations per second of a matmul `[m, k] [k, n]`, `seconds` being what times one call of it.
pub fn product<A: Store>(
    cx: &Exec,
    (m, n, k): (usize, usize, usize),
    seconds: impl FnOnce(&mut dyn FnMut()) -> f64,
) -> f64 {
    let (a, b, mut c) = (Buf::<A>::zeros(m * k), Buf::<A>::zeros(k * n), Buf::<A::E>::zeros(m * n));
    let mut packed = Packed::new(k, n);
    packed.pack(cx, &b, n, k, n);
    2.0 * (m * n * k) as f64 / seconds(&mut || matmul(cx, &mut c, &a, k, &packed, m, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use std::time::Duration;

    #[test]
    fn the_fastest_is_neither_less_than_any_call_nor_more_than_their_mean() {
        for seconds in [0.0, 0.02] {
            let mut calls = Vec::new();
            let started = Instant::now();
            let best = fastest(seconds, || {
                let call = Instant::now();
                std::thread::sleep(Duration::from_millis(if calls.len() == 1 { 1 } else { 5 }));
                calls.push(call.elapsed().as_secs_f64());
            });
            let mean = started.elapsed().as_secs_f64() / calls.len() as f64;
            let least = calls.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(least <= best && best <= mean && calls.len() >= 2, "{best} of {calls:?}");
        }
    }

    #[test]
    fn a_product_is_two_operations_for_each_cell_and_depth() {
        let speed = product::<f32>(&Exec::new(Isa::SCALAR, 1), (3, 5, 7), |call| {
            call();
            0.5
        });
        assert_eq!(speed, 2.0 * 3.0 * 5.0 * 7.0 / 0.5);
    }
}
