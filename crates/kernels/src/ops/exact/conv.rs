//! Causal depthwise convolution of one sequence that goes on: `y_t = sum_j taps_j v_{t-K+1+j}`, over the rows of its story alone.

use crate::dispatch::Op;
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::Simd;

/// `y: [n, d]` of rows `v`, columns `at .. at + d` of `u: [n, ld]`; `taps: [K, d]`, `past: [n]` the rows of its story before each
/// row. `history: [K-1, d]` is a ring of the rows before them, the row after `p` others of its story in slot `p mod (K-1)`; it
/// takes the new ones.
pub fn exact_conv(
    cx: &Exec,
    y: &mut [f32],
    history: &mut [f32],
    (u, ld, at): (&[f32], usize, usize),
    taps: &[f32],
    past: &[u32],
) {
    let n = past.len();
    let d = y.len() / n.max(1);
    assert!(n > 0 && y.len() == n * d && u.len() >= (n - 1) * ld + at + d && taps.len().is_multiple_of(d));
    assert!(taps.len() == history.len() + d);
    let _time = time(cx, "exact_conv", (d, taps.len() / d), Work::Flops((2 * n * taps.len()) as f64));
    cx.op(Conv { y, history: &*history, u, ld, at, taps, past, d });
    let held = history.len() / d;
    // Where a whole ring is of the last story, nothing is left of rows before.
    let first = if past[n - 1] as usize + 1 >= held { n.saturating_sub(held) } else { 0 };
    for (row, past) in past.iter().enumerate().skip(if held > 0 { first } else { n }) {
        let (slot, from) = (*past as usize % held * d, row * ld + at);
        history[slot..slot + d].copy_from_slice(&u[from..from + d]);
    }
}

struct Conv<'a> {
    y: &'a mut [f32],
    history: &'a [f32],
    u: &'a [f32],
    ld: usize,
    at: usize,
    taps: &'a [f32],
    past: &'a [u32],
    d: usize,
}

impl Op<f32> for Conv<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Conv { y, history, u, ld, at, taps, past, d } = self;
        let held = history.len() / d;
        for (t, y) in y.chunks_exact_mut(d).enumerate() {
            let back = held.min(past[t] as usize);
            // Rows of the ring, up to its end and from its start, and rows of `u`.
            let old = back.saturating_sub(t);
            let slot = if old > 0 { (past[t] as usize - back) % held } else { 0 };
            let high = old.min(held - slot);
            let taps = &taps[(held - back) * d..];
            let new = &u[(t + old - back) * ld + at..];
            let runs = [(&history[slot * d..], d, high), (history, d, old - high), (new, ld, back + 1 - old)];
            let (mut i, wide) = (0, 4 * S::LANES);
            // SAFETY: the rows of a run lie in its slice, `taps` has one for each, and columns are below `d`.
            unsafe {
                while i + wide <= d {
                    columns::<S, 4>(y, taps, runs, i, S::LANES);
                    i += wide;
                }
                while i < d {
                    let n = S::LANES.min(d - i);
                    columns::<S, 1>(y, taps, runs, i, n);
                    i += n;
                }
            }
        }
    }
}

/// Columns from `i` on of one row: `N` vectors of `n` lanes, summed in registers. A run is rows, their stride and their number.
///
/// # Safety
/// The machine supports `S`; the slices have these rows and columns.
#[inline(always)]
unsafe fn columns<S: Simd<E = f32>, const N: usize>(
    y: &mut [f32],
    taps: &[f32],
    runs: [(&[f32], usize, usize); 3],
    i: usize,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        let mut w = taps.as_ptr().add(i);
        for (rows, apart, count) in runs {
            let mut v = rows.as_ptr().wrapping_add(i);
            for _ in 0..count {
                for (j, sum) in sums.iter_mut().enumerate() {
                    let at = j * S::LANES;
                    *sum = S::add(*sum, S::mul(S::get(w.add(at), n), S::get(v.add(at), n)));
                }
                (w, v) = (w.wrapping_add(y.len()), v.wrapping_add(apart));
            }
        }
        for (j, sum) in sums.iter().enumerate() {
            S::put(y.as_mut_ptr().add(i + j * S::LANES), *sum, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{all_isas, assert_close, random};

    #[test]
    fn pieces_of_any_size_equal_the_definition() {
        for (k, d) in [(1, 3), (4, 16), (8, 37)] {
            let (n, ld, at) = (23, d + 5, 2);
            let (u, taps): (Vec<f32>, Vec<f32>) = (random(n * ld, 1), random(k * d, 2));
            // A story starts at row 10.
            let past: Vec<u32> = (0..10).chain(0..13).collect();
            let mut want = vec![0.0; n * d];
            for t in 0..n {
                for j in 0..k {
                    let back = k - 1 - j;
                    if back <= past[t] as usize {
                        (0..d).for_each(|c| want[t * d + c] += taps[j * d + c] * u[(t - back) * ld + at + c]);
                    }
                }
            }
            all_isas(|cx| {
                let run = |piece: usize| {
                    let (mut y, mut history) = (vec![f32::NAN; n * d], vec![0.0; (k - 1) * d]);
                    for from in (0..n).step_by(piece) {
                        let to = n.min(from + piece);
                        let rows = (&u[from * ld..], ld, at);
                        exact_conv(cx, &mut y[from * d..to * d], &mut history, rows, &taps, &past[from..to]);
                    }
                    (y, history)
                };
                let whole = run(n);
                assert_close(&whole.0, &want, 1e-6, "conv");
                for piece in [1, 2, 3, 5, 7, 22] {
                    assert!(run(piece) == whole, "{piece} rows at a time");
                }
            });
        }
    }
}
