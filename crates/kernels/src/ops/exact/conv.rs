//! Causal depthwise convolution of one sequence in pieces: `y_t = sum_j taps_j v_{t-K+1+j}`, over the rows of its document alone.

use std::ops::Range;

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};
use crate::size::{area, end, strided};

/// Rows of a sequence that is convolved: some of the columns of `u`.
#[derive(Clone, Copy)]
pub struct ConvRows<'a> {
    /// `[n, ld]`.
    pub u: &'a [f32],
    /// Elements of a row.
    pub ld: usize,
    /// The first of the columns convolved.
    pub at: usize,
    /// `[n]`: rows of its document before each.
    pub past: &'a [u32],
}

/// `y: [rows.len(), d]` of the rows `rows` of the sequence; `taps: [K, d]`. `history: [K-1, d]` is a ring of the rows before it,
/// the row after `p` others of its document in slot `p mod (K-1)`.
pub fn exact_conv(cx: &Exec, y: &mut [f32], history: &[f32], from: ConvRows, rows: Range<usize>, taps: &[f32]) {
    let d = y.len() / rows.len().max(1);
    let ConvRows { u, ld, at, past } = from;
    assert!(d > 0 && y.len() == area([rows.len(), d]) && rows.end <= past.len());
    assert!(u.len() >= strided(rows.end, ld, end(at, d)));
    assert!(taps.len() == history.len() + d && taps.len().is_multiple_of(d));
    let _time = time(cx, "exact_conv", (d, taps.len() / d), Work::Flops((2 * rows.len() * taps.len()) as f64));
    cx.op(Conv { y, history, from, rows, taps, d });
}

/// Puts the rows of the sequence into `history`.
pub fn exact_conv_keep(history: &mut [f32], from: ConvRows, d: usize) {
    let ConvRows { u, ld, at, past } = from;
    let (n, held) = (past.len(), history.len() / d);
    if held == 0 {
        return;
    }
    // Where a whole ring is of the last document, nothing is left of rows before.
    let first = if past[n - 1] as usize + 1 >= held { n.saturating_sub(held) } else { 0 };
    for (row, past) in past.iter().enumerate().skip(first) {
        let (slot, from) = (*past as usize % held * d, row * ld + at);
        history[slot..slot + d].copy_from_slice(&u[from..from + d]);
    }
}

struct Conv<'a> {
    y: &'a mut [f32],
    history: &'a [f32],
    from: ConvRows<'a>,
    rows: Range<usize>,
    taps: &'a [f32],
    d: usize,
}

impl Op<f32> for Conv<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Conv { y, history, from: ConvRows { u, ld, at, past }, rows, taps, d } = self;
        let held = history.len() / d;
        for (t, y) in rows.zip(y.chunks_exact_mut(d)) {
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
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn pieces_of_any_size_equal_the_definition() {
        for (k, d) in [(1, 3), (4, 16), (8, 37)] {
            let (n, ld, at) = (23, d + 5, 2);
            let (u, taps): (Vec<f32>, Vec<f32>) = (random(n * ld, 1), random(k * d, 2));
            // A document starts at row 10.
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
                        let rows = ConvRows { u: &u[from * ld..], ld, at, past: &past[from..to] };
                        let (y, half) = (&mut y[from * d..to * d], (to - from) / 2);
                        let (low, high) = y.split_at_mut(half * d);
                        exact_conv(cx, high, &history, rows, half..to - from, &taps);
                        if half > 0 {
                            exact_conv(cx, low, &history, rows, 0..half, &taps);
                        }
                        exact_conv_keep(&mut history, rows, d);
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
