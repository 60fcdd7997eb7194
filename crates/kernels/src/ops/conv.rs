//! Gated causal depthwise convolution over time. With `u = [g, v]` of width `2D` and taps `w: [K, D]`:
//! `c[t] = sum_j w[j] * v[t - K + 1 + j]` (tap `K-1` multiplies the current row), `y = c * sigmoid(g)`.
//!
//! Rows before the start of a sequence come from `history: [B, K-1, D]`, or are zero. Backward, `s = sigmoid(g)`:
//! `dc = dy * s`, `dg = dy * c * s (1 - s)`, `dv[t] = sum_j w[j] * dc[t + K - 1 - j]`, `dw[j] += sum_t dc[t] * v[t-K+1+j]`.

use crate::dispatch::Op;
use crate::elem::Elem;
use crate::exec::{Exec, Shared};
use crate::ops::reduce::{PARTIALS, add_partials, partial_rows};
use crate::simd::{Simd, each};

/// `y: [B*T, D]` from `u: [B*T, 2D]`, `w: [K, D]`; sizes are `(B, T, D, K)`.
pub fn conv_gate_forward<E: Elem>(
    cx: &Exec,
    y: &mut [E],
    u: &[E],
    history: Option<&[E]>,
    w: &[E],
    (b, t, d, k): (usize, usize, usize, usize),
) {
    assert!(y.len() >= b * t * d && u.len() >= b * t * 2 * d && w.len() == k * d);
    assert!(history.is_none_or(|h| h.len() >= b * (k - 1) * d));
    let y = Shared::new(y);
    cx.rows(b * t, |rows| {
        for row in rows {
            // SAFETY: one row, one thread.
            let y = unsafe { y.range(row * d..(row + 1) * d) };
            cx.op(Forward { y, u, history, w, row, t, d, k });
        }
    });
}

struct Forward<'a, E> {
    y: &'a mut [E],
    u: &'a [E],
    history: Option<&'a [E]>,
    w: &'a [E],
    row: usize,
    t: usize,
    d: usize,
    k: usize,
}

/// The convolution at one row for `n` lanes from channel `i`.
///
/// # Safety
/// As [`Simd`]; row and lanes are inside the slices.
#[inline(always)]
unsafe fn taps<S: Simd>(
    u: &[S::E],
    history: Option<&[S::E]>,
    w: &[S::E],
    (row, t, d, k): (usize, usize, usize, usize),
    (i, n): (usize, usize),
) -> S::V {
    let now = row % t;
    let mut acc;
    // SAFETY: the caller's promise.
    unsafe {
        acc = S::splat(S::E::ZERO);
        for j in 0..k {
            let back = k - 1 - j;
            let v = if back <= now {
                u.as_ptr().add((row - back) * 2 * d + d + i)
            } else if let Some(history) = history {
                // Row `k - 1 + now - back` of this sequence's last `k - 1` rows.
                history.as_ptr().add((row / t * (k - 1) + k - 1 + now - back) * d + i)
            } else {
                continue;
            };
            acc = S::fma(S::get(w.as_ptr().add(j * d + i), n), S::get(v, n), acc);
        }
    }
    acc
}

impl<E: Elem> Op<E> for Forward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Forward { y, u, history, w, row, t, d, k } = self;
        // SAFETY: sizes were checked by the caller.
        each!(S, d, |i, n| unsafe {
            let c = taps::<S>(u, history, w, (row, t, d, k), (i, n));
            let g = S::get(u.as_ptr().add(row * 2 * d + i), n);
            S::put(y.as_mut_ptr().add(i), S::mul(c, S::sigmoid(g)), n);
        });
    }
}

/// Overwrites `du: [B*T, 2D]`, adds to `dw: [K, D]`; `dc: [B*T, D]` and `partials: [PARTIALS, K*D]` are scratch.
pub fn conv_gate_backward<E: Elem>(
    cx: &Exec,
    du: &mut [E],
    dw: &mut [E],
    dc: &mut [E],
    partials: &mut [E],
    dy: &[E],
    u: &[E],
    w: &[E],
    (b, t, d, k): (usize, usize, usize, usize),
) {
    let rows = b * t;
    assert!(du.len() >= rows * 2 * d && dc.len() >= rows * d && dy.len() >= rows * d && u.len() >= rows * 2 * d);
    assert!(w.len() == k * d && dw.len() == k * d && partials.len() >= PARTIALS * k * d);
    let (du, dc_out, sums) = (Shared::new(du), Shared::new(dc), Shared::new(partials));
    cx.rows(rows, |r| {
        for row in r {
            // SAFETY: one row, one thread; the value half of `du` is written in the next region only.
            let (du, dc) = unsafe { (du.range(row * 2 * d..row * 2 * d + d), dc_out.range(row * d..(row + 1) * d)) };
            cx.op(Gate { dg: du, dc, dy: &dy[row * d..(row + 1) * d], u, w, row, t, d, k });
        }
    });
    let dc = &dc[..rows * d];
    cx.rows(PARTIALS, |parts| {
        for part in parts {
            // SAFETY: each part owns its rows and its partial sum.
            let dw = unsafe { sums.range(part * k * d..(part + 1) * k * d) };
            dw.fill(E::ZERO);
            for row in partial_rows(part, rows) {
                // SAFETY: as above.
                let dv = unsafe { du.range(row * 2 * d + d..(row + 1) * 2 * d) };
                cx.op(Taps { dv, dw, dc, u, w, row, t, d, k });
            }
        }
    });
    add_partials(dw, &partials[..PARTIALS * k * d]);
}

struct Gate<'a, E> {
    dg: &'a mut [E],
    dc: &'a mut [E],
    dy: &'a [E],
    u: &'a [E],
    w: &'a [E],
    row: usize,
    t: usize,
    d: usize,
    k: usize,
}

impl<E: Elem> Op<E> for Gate<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Gate { dg, dc, dy, u, w, row, t, d, k } = self;
        // SAFETY: sizes were checked by the caller.
        each!(S, d, |i, n| unsafe {
            let c = taps::<S>(u, None, w, (row, t, d, k), (i, n));
            let s = S::sigmoid(S::get(u.as_ptr().add(row * 2 * d + i), n));
            let dy = S::get(dy.as_ptr().add(i), n);
            let dc_now = S::mul(dy, s);
            S::put(dc.as_mut_ptr().add(i), dc_now, n);
            S::put(dg.as_mut_ptr().add(i), S::mul(S::mul(dc_now, c), S::sub(S::splat(E::ONE), s)), n);
        });
    }
}

struct Taps<'a, E> {
    dv: &'a mut [E],
    dw: &'a mut [E],
    dc: &'a [E],
    u: &'a [E],
    w: &'a [E],
    row: usize,
    t: usize,
    d: usize,
    k: usize,
}

impl<E: Elem> Op<E> for Taps<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Taps { dv, dw, dc, u, w, row, t, d, k } = self;
        let now = row % t;
        // SAFETY: sizes were checked by the caller; rows named are of this sequence.
        each!(S, d, |i, n| unsafe {
            let mut acc = S::splat(E::ZERO);
            let dc_now = S::get(dc.as_ptr().add(row * d + i), n);
            for j in 0..k {
                let back = k - 1 - j;
                if now + back < t {
                    let later = S::get(dc.as_ptr().add((row + back) * d + i), n);
                    acc = S::fma(S::get(w.as_ptr().add(j * d + i), n), later, acc);
                }
                if back <= now {
                    let v = S::get(u.as_ptr().add((row - back) * 2 * d + d + i), n);
                    let out = dw.as_mut_ptr().add(j * d + i);
                    S::put(out, S::fma(dc_now, v, S::get(out, n)), n);
                }
            }
            S::put(dv.as_mut_ptr().add(i), acc, n);
        });
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
            for d in 1..=66 {
                let (b, t, k) = (1 + d % 3, 1 + d % 29, 1 + d % 9);
                let size = (b, t, d, k);
                let (u, w, dy): (Vec<f32>, Vec<f32>, Vec<f32>) =
                    (random(b * t * 2 * d, 1), random(k * d, 2), random(b * t * d, 3));
                let (mut y, mut du, mut dw) = (vec![0.0; b * t * d], vec![f32::NAN; b * t * 2 * d], vec![1.0; k * d]);
                let (mut dc, mut partials) = (vec![f32::NAN; b * t * d], vec![f32::NAN; PARTIALS * k * d]);
                conv_gate_forward(cx, &mut y, &u, None, &w, size);
                conv_gate_backward(cx, &mut du, &mut dw, &mut dc, &mut partials, &dy, &u, &w, size);
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
            conv_gate_forward(cx, &mut whole, &u, None, &w, (1, t, d, k));
            for piece in [1, 2, 5, 9, 22] {
                let mut history = vec![0.0; (k - 1) * d];
                let mut out = Vec::new();
                for part in u.chunks(piece * 2 * d) {
                    let rows = part.len() / (2 * d);
                    let mut y = vec![0.0; rows * d];
                    conv_gate_forward(cx, &mut y, part, Some(&history), &w, (1, rows, d, k));
                    out.extend(y);
                    part.chunks(2 * d).for_each(|row| history.extend(&row[d..]));
                    history.drain(..history.len() - (k - 1) * d);
                }
                assert_eq!(out, whole, "pieces of {piece}");
            }
        });
    }
}
