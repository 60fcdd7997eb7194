//! Gated causal depthwise convolution over time. With `u = [g, v]` of width `2D` and taps `w: [K, D]`:
//! `c[t] = sum_j w[j] * v[t - K + 1 + j]` (tap `K-1` multiplies the current row), `y = c * sigmoid(g)`.
//!
//! Rows before the start of a sequence come from `history: [B, K-1, D]`, or are zero. Backward, `s = sigmoid(g)`:
//! `dc = dy * s`, `dg = dy * y (1 - s)`, `dv[t] = sum_j w[j] * dc[t + K - 1 - j]`, `dw[j] += sum_t dc[t] * v[t-K+1+j]`.

use std::ops::Range;

use crate::dispatch::Op;
use crate::elem::Elem;
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Simd, each};
use crate::store::Store;

/// Which rows of which sequences: rows `rows` of `[B*T]`, and `(T, D, K)`.
pub type Place = (Range<usize>, (usize, usize, usize));

/// `y: [rows, D]` from `u: [B*T, 2D]`, `w: [K, D]`, on the calling thread; `history: [B, K-1, D]`.
pub fn conv_gate_forward<A: Store>(
    cx: &Exec,
    y: &mut [A],
    u: &[A],
    history: Option<&[A::E]>,
    w: &[A::E],
    (rows, (t, d, k)): Place,
) {
    assert!(y.len() == rows.len() * d && u.len() >= rows.end * 2 * d && w.len() == k * d);
    assert!(history.is_none_or(|h| h.len() >= rows.end.div_ceil(t.max(1)) * (k - 1) * d));
    if !rows.is_empty() && d > 0 {
        let _time = time(cx, "conv_gate_forward", (d, k), Work::Bytes((3 * y.len() * size_of::<A>()) as f64));
        cx.op(Forward { y, u, history, w, first: rows.start, t, d, k });
    }
}

struct Forward<'a, A: Store> {
    y: &'a mut [A],
    u: &'a [A],
    history: Option<&'a [A::E]>,
    w: &'a [A::E],
    first: usize,
    t: usize,
    d: usize,
    k: usize,
}

/// Taps that are kept in registers at once.
const TAPS: usize = 8;
/// Rows whose sums are kept while their taps pass by.
const ROWS: usize = 32;

impl<A: Store> Op<A::E> for Forward<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Forward { y, u, history, w, first, t, d, k } = self;
        let rows = y.len() / d;
        let mut done = 0;
        while done < rows {
            // A stretch of rows of one sequence.
            let row = first + done;
            let now = row % t;
            let n_rows = ROWS.min(rows - done).min(t - now);
            let sequence = Sequence { v: u[row / t * t * 2 * d..].as_ptr(), history, index: row / t, d, k };
            // SAFETY: sizes were checked by the caller.
            each!(S, d, |i, n| unsafe {
                let mut sums = [S::splat(A::E::ZERO); ROWS];
                for group in 0..k.div_ceil(TAPS) {
                    // Taps for values `newest ..= newest + TAPS - 1` rows back, oldest first; those beyond `k` are zero.
                    let newest = group * TAPS;
                    let mut taps = [S::splat(A::E::ZERO); TAPS];
                    for (j, tap) in taps.iter_mut().enumerate() {
                        let back = newest + TAPS - 1 - j;
                        if back < k {
                            *tap = S::get(w.as_ptr().add((k - 1 - back) * d + i), n);
                        }
                    }
                    let mut window = [S::splat(A::E::ZERO); TAPS];
                    for (j, v) in window.iter_mut().enumerate().skip(1) {
                        *v = sequence.value::<S>(now as isize - 1 - (newest + TAPS - 1 - j) as isize, i, n);
                    }
                    for (r, sum) in sums.iter_mut().enumerate().take(n_rows) {
                        for j in 0..TAPS - 1 {
                            window[j] = window[j + 1];
                        }
                        window[TAPS - 1] = sequence.value::<S>((now + r) as isize - newest as isize, i, n);
                        for j in 0..TAPS {
                            *sum = S::fma(taps[j], window[j], *sum);
                        }
                    }
                }
                for (r, &c) in sums.iter().enumerate().take(n_rows) {
                    let g = A::get::<S>(u.as_ptr().add((row + r) * 2 * d + i), n);
                    A::put::<S>(y.as_mut_ptr().add((done + r) * d + i), S::mul(c, S::sigmoid(g)), n);
                }
            });
            done += n_rows;
        }
    }
}

/// The values of one sequence and what came before it.
struct Sequence<'a, A: Store> {
    v: *const A,
    history: Option<&'a [A::E]>,
    index: usize,
    d: usize,
    k: usize,
}

impl<A: Store> Sequence<'_, A> {
    /// `n` lanes from channel `i` at row `at` of the sequence, which may lie before its start.
    #[inline(always)]
    unsafe fn value<S: Simd<E = A::E>>(&self, at: isize, i: usize, n: usize) -> S::V {
        let Sequence { v, history, index, d, k } = *self;
        // SAFETY: the caller's promise: rows from 0 on are in `u`.
        unsafe {
            if at >= 0 {
                return A::get::<S>(v.add(at as usize * 2 * d + d + i), n);
            }
            match history {
                Some(history) if -at < k as isize => {
                    // Row `k - 1 + at` of this sequence's last `k - 1` rows.
                    S::get(history.as_ptr().add((index * (k - 1) + (k as isize - 1 + at) as usize) * d + i), n)
                }
                _ => S::splat(A::E::ZERO),
            }
        }
    }
}

/// First half of the backward pass, for rows that later ones depend on: overwrites `dc: [rows, D]` and the gate's half of
/// `du: [rows, 2D]` from `dy, y: [rows, D]`, on the calling thread.
pub fn conv_gate_backward<A: Store>(
    cx: &Exec,
    du: &mut [A],
    dc: &mut [A],
    dy: &[A::E],
    y: &[A],
    u: &[A],
    (rows, d): (Range<usize>, usize),
) {
    let n = rows.len() * d;
    assert!(du.len() == 2 * n && dc.len() == n && dy.len() == n && y.len() == n && u.len() >= rows.end * 2 * d);
    if n > 0 {
        let bytes = n * (5 * size_of::<A>() + size_of::<A::E>());
        let _time = time(cx, "conv_gate_backward", (d, 0), Work::Bytes(bytes as f64));
        cx.op(Gate { du, dc, dy, y, u: &u[rows.start * 2 * d..], d });
    }
}

struct Gate<'a, A: Store> {
    du: &'a mut [A],
    dc: &'a mut [A],
    dy: &'a [A::E],
    y: &'a [A],
    u: &'a [A],
    d: usize,
}

impl<A: Store> Op<A::E> for Gate<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Gate { du, dc, dy, y, u, d } = self;
        for (r, dg) in du.chunks_exact_mut(2 * d).enumerate() {
            // SAFETY: sizes were checked by the caller.
            each!(S, d, |i, n| unsafe {
                let s = S::sigmoid(A::get::<S>(u.as_ptr().add(r * 2 * d + i), n));
                let dy = S::get(dy.as_ptr().add(r * d + i), n);
                let y = A::get::<S>(y.as_ptr().add(r * d + i), n);
                A::put::<S>(dc.as_mut_ptr().add(r * d + i), S::mul(dy, s), n);
                A::put::<S>(dg.as_mut_ptr().add(i), S::mul(S::mul(dy, y), S::sub(S::splat(A::E::ONE), s)), n);
            });
        }
    }
}

/// Second half: overwrites the value's half of `du: [rows, 2D]` and adds to `dw: [K, D]`, from `dc: [B*T, D]` of all rows.
pub fn conv_taps_backward<A: Store>(
    cx: &Exec,
    du: &mut [A],
    dw: &mut [A::E],
    dc: &[A],
    u: &[A],
    w: &[A::E],
    (rows, (t, d, k)): Place,
) {
    assert!(du.len() == rows.len() * 2 * d && w.len() == k * d && dw.len() == k * d);
    assert!(u.len() >= rows.end * 2 * d && dc.len() >= rows.end.next_multiple_of(t.max(1)) * d);
    if !du.is_empty() {
        let bytes = 3 * rows.len() * d * size_of::<A>();
        let _time = time(cx, "conv_taps_backward", (d, k), Work::Bytes(bytes as f64));
        cx.op(Taps { du, dw, dc, u, w, first: rows.start, t, d, k });
    }
}

struct Taps<'a, A: Store> {
    du: &'a mut [A],
    dw: &'a mut [A::E],
    dc: &'a [A],
    u: &'a [A],
    w: &'a [A::E],
    first: usize,
    t: usize,
    d: usize,
    k: usize,
}

impl<A: Store> Op<A::E> for Taps<'_, A> {
    type Out = ();
    /// Row `s` needs `dc` of the rows after it for both: `dv[s] = sum_j w[j] dc[s + K - 1 - j]`,
    /// `dw[j] += v[s] dc[s + K - 1 - j]`.
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Taps { du, dw, dc, u, w, first, t, d, k } = self;
        let rows = du.len() / (2 * d);
        let mut done = 0;
        while done < rows {
            let row = first + done;
            let now = row % t;
            let n_rows = ROWS.min(rows - done).min(t - now);
            let dc = dc[row / t * t * d..].as_ptr();
            // SAFETY: sizes were checked by the caller.
            each!(S, d, |i, n| unsafe {
                let mut sums = [S::splat(A::E::ZERO); ROWS];
                for group in 0..k.div_ceil(TAPS) {
                    // Taps for gradients `nearest ..= nearest + TAPS - 1` rows ahead; those beyond `k` are zero.
                    let nearest = group * TAPS;
                    let (mut taps, mut dtaps) = ([S::splat(A::E::ZERO); TAPS], [S::splat(A::E::ZERO); TAPS]);
                    for (j, tap) in taps.iter_mut().enumerate().take(k - nearest) {
                        *tap = S::get(w.as_ptr().add((k - 1 - nearest - j) * d + i), n);
                    }
                    let mut window = [S::splat(A::E::ZERO); TAPS];
                    for (j, later) in window.iter_mut().enumerate().skip(1) {
                        // Moved down by one before the first row.
                        if now + nearest + j - 1 < t {
                            *later = A::get::<S>(dc.add((now + nearest + j - 1) * d + i), n);
                        }
                    }
                    for (r, sum) in sums.iter_mut().enumerate().take(n_rows) {
                        for j in 0..TAPS - 1 {
                            window[j] = window[j + 1];
                        }
                        let last = now + r + nearest + TAPS - 1;
                        window[TAPS - 1] =
                            if last < t { A::get::<S>(dc.add(last * d + i), n) } else { S::splat(A::E::ZERO) };
                        let v = A::get::<S>(u.as_ptr().add((row + r) * 2 * d + d + i), n);
                        for j in 0..TAPS {
                            *sum = S::fma(taps[j], window[j], *sum);
                            dtaps[j] = S::fma(v, window[j], dtaps[j]);
                        }
                    }
                    for (j, &dtap) in dtaps.iter().enumerate().take(k - nearest) {
                        let out = dw.as_mut_ptr().add((k - 1 - nearest - j) * d + i);
                        S::put(out, S::add(S::get(out, n), dtap), n);
                    }
                }
                for (r, &sum) in sums.iter().enumerate().take(n_rows) {
                    A::put::<S>(du.as_mut_ptr().add((done + r) * 2 * d + d + i), sum, n);
                }
            });
            done += n_rows;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{all_isas, assert_close, random};

    /// The formulas of the header over plain indices, in f64.
    #[allow(clippy::type_complexity)]
    fn naive(
        u: &[f32],
        w: &[f32],
        dy: &[f32],
        (b, t, d, k): (usize, usize, usize, usize),
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (mut y, mut du, mut dw) = (vec![0.0; b * t * d], vec![0.0f64; b * t * 2 * d], vec![0.0f64; k * d]);
        for (bi, i) in (0..b).flat_map(|bi| (0..d).map(move |i| (bi, i))) {
            let g = |t_: usize| f64::from(u[(bi * t + t_) * 2 * d + i]);
            let v = |t_: usize| f64::from(u[(bi * t + t_) * 2 * d + d + i]);
            for now in 0..t {
                let reach = (0..k).filter(|j| now + 1 + j >= k).map(|j| (j, now + 1 + j - k));
                let c: f64 = reach.clone().map(|(j, from)| f64::from(w[j * d + i]) * v(from)).sum();
                let s = 1.0 / (1.0 + (-g(now)).exp());
                let out = f64::from(dy[(bi * t + now) * d + i]);
                y[(bi * t + now) * d + i] = (c * s) as f32;
                du[(bi * t + now) * 2 * d + i] = out * c * s * (1.0 - s);
                for (j, from) in reach {
                    du[(bi * t + from) * 2 * d + d + i] += f64::from(w[j * d + i]) * out * s;
                    dw[j * d + i] += out * s * v(from);
                }
            }
        }
        let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect();
        (y, narrow(du), narrow(dw))
    }

    #[test]
    fn equals_plain_loops() {
        all_isas(|cx| {
            for d in 1..=130 {
                let (b, t, k) = (1 + d % 3, 1 + d * 7 % 80, 1 + d % 19);
                let size = (b, t, d, k);
                let (u, w, dy): (Vec<f32>, Vec<f32>, Vec<f32>) =
                    (random(b * t * 2 * d, 1), random(k * d, 2), random(b * t * d, 3));
                let (mut y, mut du, mut dw) = (vec![0.0; b * t * d], vec![f32::NAN; b * t * 2 * d], vec![1.0; k * d]);
                let mut dc = vec![f32::NAN; b * t * d];
                // In two parts, cut anywhere.
                let cut = b * t / 3;
                for rows in [0..cut, cut..b * t] {
                    let (one, two) = (rows.start * d..rows.end * d, rows.start * 2 * d..rows.end * 2 * d);
                    let place = (rows.clone(), (t, d, k));
                    conv_gate_forward(cx, &mut y[one.clone()], &u, None, &w, place);
                    let (dc, dy, y) = (&mut dc[one.clone()], &dy[one.clone()], &y[one]);
                    conv_gate_backward(cx, &mut du[two], dc, dy, y, &u, (rows, d));
                }
                for rows in [0..cut, cut..b * t] {
                    let two = rows.start * 2 * d..rows.end * 2 * d;
                    conv_taps_backward(cx, &mut du[two], &mut dw, &dc, &u, &w, (rows, (t, d, k)));
                }
                dw.iter_mut().for_each(|x| *x -= 1.0);
                let (want_y, want_du, want_dw) = naive(&u, &w, &dy, size);
                assert_close(&y, &want_y, 1e-6, &format!("y {size:?}"));
                assert_close(&du, &want_du, 1e-6, &format!("du {size:?}"));
                assert_close(&dw, &want_dw, 5e-6, &format!("dw {size:?}"));
            }
        });
    }

    #[test]
    fn a_sequence_in_pieces_equals_the_whole() {
        all_isas(|cx| {
            let (t, d, k) = (23, 19, 8);
            let (u, w): (Vec<f32>, Vec<f32>) = (random(t * 2 * d, 1), random(k * d, 2));
            let mut whole = vec![0.0; t * d];
            conv_gate_forward(cx, &mut whole, &u, None, &w, (0..t, (t, d, k)));
            for piece in [1, 2, 5, 9, 22] {
                let mut history = vec![0.0; (k - 1) * d];
                let mut out = Vec::new();
                for part in u.chunks(piece * 2 * d) {
                    let rows = part.len() / (2 * d);
                    let mut y = vec![0.0; rows * d];
                    conv_gate_forward(cx, &mut y, part, Some(&history), &w, (0..rows, (rows, d, k)));
                    out.extend(y);
                    part.chunks(2 * d).for_each(|row| history.extend(&row[d..]));
                    history.drain(..history.len() - (k - 1) * d);
                }
                assert_eq!(out, whole, "pieces of {piece}");
            }
        });
    }
}
