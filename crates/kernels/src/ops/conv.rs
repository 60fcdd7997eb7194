//! Causal depthwise convolution over time, with taps `w: [K, D]`: `c[t] = sum_j w[j] * v[t - K + 1 + j]` (tap `K-1` multiplies
//! the current row). Gated, with `u = [g, v]` of width `2D`: `y = c * sigmoid(g)`.
//!
//! Rows before the start of a document are zero; those of a document that began before this micro-batch come from `history: [B, K-1, D]`.
//! Backward, `s = sigmoid(g)`:
//! `dc = dy * s`, `dg = dy * y (1 - s)`, `dv[t] = sum_j w[j] * dc[t + K - 1 - j]`, `dw[j] += sum_t dc[t] * v[t-K+1+j]`.

use std::marker::PhantomData;
use std::ops::Range;

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};
use crate::size::{area, end, strided};
use crate::span::Span;

/// Rows `.0` of the sequences `.1`, and `(D, K)`.
pub type Place<'a> = (Range<usize>, &'a Span<'a>, (usize, usize));

/// Columns from `.2` on of rows that lie `.1` apart.
pub type Columns<'a, T> = (&'a [T], usize, usize);

/// `y: [rows, D]` from `u: [B*T, 2D]`, `w: [K, D]`, on the calling thread; `history: [B, K-1, D]`.
pub fn conv_gate_forward<A: Store>(
    cx: &Exec,
    y: &mut [A],
    u: &[A],
    history: Option<&[A::E]>,
    w: &[A::E],
    (rows, span, (d, k)): Place,
) {
    let (v, w) = ((u, 2 * d, d), (w, d, 0));
    forward(cx, "conv_gate_forward", y, Some(u), v, history, w, (rows, span, (d, k)));
}

/// The sums alone: `c: [rows, D]` from columns of `v` and of the taps, on the calling thread; `history: [B, K-1, D]`.
pub fn conv_forward<A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    v: Columns<A>,
    history: Option<&[A::E]>,
    w: Columns<A::E>,
    place: Place,
) {
    forward(cx, "conv_forward", c, None, v, history, w, place);
}

fn forward<A: Store, Y: Store<E = A::E>>(
    cx: &Exec,
    name: &'static str,
    y: &mut [Y],
    gate: Option<&[A]>,
    v: Columns<A>,
    history: Option<&[A::E]>,
    w: Columns<A::E>,
    (rows, span, (d, k)): Place,
) {
    assert!(y.len() == area([rows.len(), d]) && rows.end <= span.rows() && span.past.len() >= rows.end);
    assert!(rows.is_empty() || (v.0.len() >= strided(rows.end, v.1, end(v.2, d)) && v.1 >= end(v.2, d)));
    assert!(k > 0 && w.0.len() >= strided(k, w.1, end(w.2, d)));
    assert!(gate.is_none_or(|gate| gate.len() >= area([rows.end, 2, d])));
    assert!(history.is_none_or(|h| h.len() >= area([rows.end.div_ceil(span.len.max(1)), k - 1, d])));
    if rows.is_empty() || d == 0 {
        return;
    }
    let _time = time(cx, name, (d, k), Work::Bytes((3 * y.len() * size_of::<A>()) as f64));
    let multiplied = PhantomData::<A::E>;
    match k {
        ..=EXACT => cx.op(Forward { y, gate, v, history, w, rows, span, d, k, multiplied }),
        _ => cx.op(Forward { y, gate, v, history, w, rows, span, d, k, multiplied: PhantomData::<A> }),
    }
}

struct Forward<'a, A: Store, Y, B> {
    y: &'a mut [Y],
    gate: Option<&'a [A]>,
    v: Columns<'a, A>,
    history: Option<&'a [A::E]>,
    w: Columns<'a, A::E>,
    rows: Range<usize>,
    span: &'a Span<'a>,
    d: usize,
    k: usize,
    multiplied: PhantomData<B>,
}

/// Taps of the convolutions that are kept in registers.
const FEW: usize = 4;
/// Most taps that are multiplied as elements; more of them are multiplied in the store of their rows.
const EXACT: usize = 16;
/// Rows, and taps, whose values are laid out next to each other.
const MOST: usize = 64;
/// Sums that are kept in registers.
const SUMS: usize = 8;

impl<A: Store, Y: Store<E = A::E>, B: Store<E = A::E>> Op<A::E> for Forward<'_, A, Y, B> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Forward { y, gate, v, history, w, rows, span, d, k, .. } = self;
        let t = span.len;
        let mut at = rows.start;
        while at < rows.end {
            // Rows of one document.
            let run = span.run(at..rows.end.min((at / t + 1) * t), MOST);
            let (now, n_rows, done) = (at % t, run.len(), at - rows.start);
            let start = now as isize - span.past[at] as isize;
            let first = v.0[at / t * t * v.1 + v.2..].as_ptr();
            let sequence = Sequence { v: first, ld: v.1, history, index: at / t, start, d, k };
            // Few taps, and all that they reach is here.
            let inside = k == FEW && gate.is_none() && now as isize - start >= k as isize - 1 && now >= k - 1;
            at = run.end;
            if inside {
                // SAFETY: sizes were checked by the caller.
                each!(S, d, |i, n| unsafe {
                    let mut taps = [S::splat(A::E::ZERO); FEW];
                    for (j, tap) in taps.iter_mut().enumerate() {
                        *tap = S::get(w.0.as_ptr().add(j * w.1 + w.2 + i), n);
                    }
                    for r in 0..n_rows {
                        let oldest = first.add((now + r + 1 - k) * v.1 + i);
                        let mut sum = S::splat(A::E::ZERO);
                        for (j, &tap) in taps.iter().enumerate() {
                            sum = S::fma(tap, A::get::<S>(oldest.add(j * v.1), n), sum);
                        }
                        Y::put::<S>(y.as_mut_ptr().add((done + r) * d + i), sum, n);
                    }
                });
                continue;
            }
            let (mut taps, mut window) = (Lines([B::ZERO; MOST * LANES]), Lines([B::ZERO; 2 * MOST * LANES]));
            // SAFETY: sizes were checked by the caller.
            each!(S, d, |i, n| unsafe {
                let mut sums = [S::splat(A::E::ZERO); MOST];
                for oldest in (0..k).step_by(MOST) {
                    let n_taps = MOST.min(k - oldest);
                    let (w, ld) = (w.0.as_ptr().add(oldest * w.1 + w.2 + i), w.1);
                    lay!(S, B, taps, n_taps, B::DEPTH, |j| S::get(w.add(j * ld), n));
                    let from = (now + oldest + 1) as isize - k as isize;
                    lay!(S, B, window, n_rows + n_taps - 1, 1, |r| sequence.value::<S>(from + r as isize, i, n));
                    let live = (start - from).max(0) as usize..2 * MOST;
                    correlate::<S, B>(&mut sums[whole_blocks(n_rows)], (&taps.0, n_taps), &window.0, live);
                }
                for (r, &c) in sums.iter().enumerate().take(n_rows) {
                    let y = y.as_mut_ptr().add((done + r) * d + i);
                    match gate {
                        None => Y::put::<S>(y, c, n),
                        Some(gate) => {
                            let g = A::get::<S>(gate.as_ptr().add((run.start + r) * 2 * d + i), n);
                            Y::put::<S>(y, S::mul(c, S::sigmoid(g)), n);
                        }
                    }
                }
            });
        }
    }
}

/// Lanes of the widest vector of groups, in elements.
const LANES: usize = 32;

/// A few rows of vectors, aligned to their lines.
#[repr(align(64))]
struct Lines<T>(T);

/// Groups of `$A` from vectors `$value` of `$i` and, where a group has two, of `$i + 1`, for every `$step`-th `$i` below `$n`.
/// A macro for the reason that [`each`] is one.
macro_rules! lay {
    ($S:ident, $A:ident, $to:ident, $n:expr, $step:expr, |$i:ident| $value:expr) => {{
        let n = $n;
        assert!(n.div_ceil($step) * $S::LANES * $A::DEPTH <= $to.0.len());
        for at in (0..n).step_by($step) {
            let ($i, mut next) = (at, $S::splat($A::E::ZERO));
            let own = $value;
            if $A::DEPTH > 1 && at + 1 < n {
                let $i = at + 1;
                next = $value;
            }
            $A::put_groups::<$S>($to.0.as_mut_ptr().add(at / $step * $S::LANES * $A::DEPTH), own, next);
        }
    }};
}

use lay;

/// Sums for `n`, with those that fill the last registers.
fn whole_blocks(n: usize) -> Range<usize> {
    0..n.next_multiple_of(SUMS)
}

/// `sums[m] += sum_j x[j] window[m + j]`, in order of `j`, for a multiple of [`SUMS`]. `x: [n/DEPTH][lanes][DEPTH]`, and the
/// window has a group for every `m + j`, with its successor; those outside of `live` count as zeros, and may be left out.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn correlate<S: Simd<E = A::E>, A: Store>(
    sums: &mut [S::V],
    (x, n): (&[A], usize),
    window: &[A],
    live: Range<usize>,
) {
    let wide = S::LANES * A::DEPTH;
    assert!((sums.len() + n) * wide <= window.len() && n.next_multiple_of(A::DEPTH) * S::LANES <= x.len());
    assert!(sums.len().is_multiple_of(SUMS));
    for (first, sums) in (0..).step_by(SUMS).zip(sums.chunks_exact_mut(SUMS)) {
        let mut j = live.start.saturating_sub(first + SUMS - 1) / A::DEPTH * A::DEPTH;
        let end = n.min(live.end.saturating_sub(first));
        // SAFETY: below the lengths, as checked above.
        unsafe {
            let mut acc = [S::splat(A::E::ZERO); SUMS];
            acc.copy_from_slice(sums);
            // Two groups of terms at once, which share what they read.
            while j + A::DEPTH < end {
                let x = x.as_ptr().add(j * S::LANES);
                let (x0, x1) = (A::load::<S>(x), A::load::<S>(x.add(wide)));
                let from = window.as_ptr().add((first + j) * wide);
                for (m, acc) in acc.iter_mut().enumerate() {
                    *acc = A::dot::<S>(x0, A::load::<S>(from.add(m * wide)), *acc);
                    *acc = A::dot::<S>(x1, A::load::<S>(from.add((m + A::DEPTH) * wide)), *acc);
                }
                j += 2 * A::DEPTH;
            }
            if j < end {
                let x0 = A::load::<S>(x.as_ptr().add(j * S::LANES));
                for (m, acc) in acc.iter_mut().enumerate() {
                    *acc = A::dot::<S>(x0, A::load::<S>(window.as_ptr().add((first + j + m) * wide)), *acc);
                }
            }
            sums.copy_from_slice(&acc);
        }
    }
}

/// The values of one sequence and what came before it.
struct Sequence<'a, A: Store> {
    v: *const A,
    ld: usize,
    history: Option<&'a [A::E]>,
    index: usize,
    /// The row at which the document starts; negative: before this micro-batch.
    start: isize,
    d: usize,
    k: usize,
}

impl<A: Store> Sequence<'_, A> {
    /// `n` lanes from channel `i` at row `at` of the sequence, which may lie before the start of its document.
    #[inline(always)]
    unsafe fn value<S: Simd<E = A::E>>(&self, at: isize, i: usize, n: usize) -> S::V {
        let Sequence { v, ld, history, index, start, d, k } = *self;
        // SAFETY: the caller's promise: rows from 0 on are in `v`.
        unsafe {
            if at < start {
                return S::splat(A::E::ZERO);
            }
            if at >= 0 {
                return A::get::<S>(v.add(at as usize * ld + i), n);
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
    let n = area([rows.len(), d]);
    assert!(du.len() == area([2, n]) && dc.len() == n && dy.len() == n && y.len() == n);
    assert!(u.len() >= area([rows.end, 2, d]));
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

/// Second half: overwrites the columns `.2..` of `du`, its rows `.1` apart, and adds to `dw: [K, D]`, from `dc: [B*T, D]` of all
/// rows and columns of `v`.
pub fn conv_taps_backward<A: Store>(
    cx: &Exec,
    du: (&mut [A], usize, usize),
    dw: &mut [A::E],
    dc: &[A],
    v: Columns<A>,
    w: &[A::E],
    (rows, span, (d, k)): Place,
) {
    assert!(du.0.len() == area([rows.len(), du.1]) && du.1 >= end(du.2, d));
    assert!(w.len() == area([k, d]) && dw.len() == w.len());
    assert!(v.0.len() >= area([rows.end, v.1]) && v.1 >= end(v.2, d) && rows.end <= span.rows());
    assert!(dc.len() >= area([span.rows(), d]) && span.past.len() >= span.rows());
    if rows.is_empty() {
        return;
    }
    let bytes = 3 * rows.len() * d * size_of::<A>();
    let _time = time(cx, "conv_taps_backward", (d, k), Work::Bytes(bytes as f64));
    let multiplied = PhantomData::<A::E>;
    match k {
        ..=EXACT => cx.op(Taps { du, dw, dc, v, w, rows, span, d, k, multiplied }),
        _ => cx.op(Taps { du, dw, dc, v, w, rows, span, d, k, multiplied: PhantomData::<A> }),
    }
}

struct Taps<'a, A: Store, B> {
    du: (&'a mut [A], usize, usize),
    dw: &'a mut [A::E],
    dc: &'a [A],
    v: Columns<'a, A>,
    w: &'a [A::E],
    rows: Range<usize>,
    span: &'a Span<'a>,
    d: usize,
    k: usize,
    multiplied: PhantomData<B>,
}

impl<A: Store, B: Store<E = A::E>> Op<A::E> for Taps<'_, A, B> {
    type Out = ();
    /// Row `s` needs `dc` of the rows after it in its document for both: `dv[s] = sum_j w[K-1-j] dc[s + j]`,
    /// `dw[K-1-j] += sum_s v[s] dc[s + j]`.
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Taps { du, dw, dc, v, w, rows, span, d, k, .. } = self;
        let t = span.len;
        let mut at = rows.start;
        while at < rows.end {
            let sequence = at / t * t;
            let run = span.run(at..rows.end.min(sequence + t), MOST);
            let (n_rows, done) = (run.len(), at - rows.start);
            // The document ends here, as far as its last row here can see.
            let end = span.run(run.end - 1..sequence + t, k).end;
            let (mut taps, mut values) = (Lines([B::ZERO; MOST * LANES]), Lines([B::ZERO; MOST * LANES]));
            let mut window = Lines([B::ZERO; 2 * MOST * LANES]);
            // SAFETY: sizes were checked by the caller.
            each!(S, d, |i, n| unsafe {
                let v = (v.0.as_ptr().add(at * v.1 + v.2 + i), v.1);
                lay!(S, B, values, n_rows, B::DEPTH, |r| A::get::<S>(v.0.add(r * v.1), n));
                let mut sums = [S::splat(A::E::ZERO); MOST];
                for nearest in (0..k).step_by(MOST) {
                    let n_taps = MOST.min(k - nearest);
                    lay!(S, B, taps, n_taps, B::DEPTH, |j| S::get(w.as_ptr().add((k - 1 - nearest - j) * d + i), n));
                    let live = 0..end.saturating_sub(at + nearest);
                    let dc = dc.as_ptr().add((at + nearest) * d + i);
                    lay!(S, B, window, n_rows + n_taps - 1, 1, |r| {
                        if r < live.end { A::get::<S>(dc.add(r * d), n) } else { S::splat(A::E::ZERO) }
                    });
                    let ahead = live.clone();
                    correlate::<S, B>(&mut sums[whole_blocks(n_rows)], (&taps.0, n_taps), &window.0, ahead);
                    let mut dtaps = [S::splat(A::E::ZERO); MOST];
                    correlate::<S, B>(&mut dtaps[whole_blocks(n_taps)], (&values.0, n_rows), &window.0, live);
                    for (j, &dtap) in dtaps.iter().enumerate().take(n_taps) {
                        let out = dw.as_mut_ptr().add((k - 1 - nearest - j) * d + i);
                        S::put(out, S::add(S::get(out, n), dtap), n);
                    }
                }
                for (r, &sum) in sums.iter().enumerate().take(n_rows) {
                    A::put::<S>(du.0.as_mut_ptr().add((done + r) * du.1 + du.2 + i), sum, n);
                }
            });
            at = run.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::span::whole;
    use crate::testing::{all_isas, assert_close, random};

    /// The formulas of the header over plain indices, in f64.
    #[allow(clippy::type_complexity)]
    fn naive(
        u: &[f32],
        w: &[f32],
        dy: &[f32],
        past: &[u32],
        (b, t, d, k): (usize, usize, usize, usize),
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (mut y, mut du, mut dw) = (vec![0.0; b * t * d], vec![0.0f64; b * t * 2 * d], vec![0.0f64; k * d]);
        for (bi, i) in (0..b).flat_map(|bi| (0..d).map(move |i| (bi, i))) {
            let g = |t_: usize| f64::from(u[(bi * t + t_) * 2 * d + i]);
            let v = |t_: usize| f64::from(u[(bi * t + t_) * 2 * d + d + i]);
            for now in 0..t {
                let seen = past[bi * t + now] as usize;
                let reach = (0..k).filter(|j| k - 1 - j <= seen).map(|j| (j, now + 1 + j - k));
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
        near_plain_loops::<f32>(1e-6, 1e-6, 5e-6);
        // Each element of `y`, `dc` and `du` is rounded.
        near_plain_loops::<Bf16>(3e-3, 3e-3, 3e-3);
    }

    fn near_plain_loops<A: Store<E = f32>>(bound_y: f64, bound_du: f64, bound_dw: f64) {
        all_isas(|cx| {
            for d in 1..=130 {
                let (b, t, k) = (1 + d % 3, 1 + d * 7 % 80, [1 + d % 19, 64, 20 + d][(d % 8).max(5) - 5]);
                let size = (b, t, d, k);
                let (u, w, dy): (Vec<f32>, Vec<f32>, Vec<f32>) =
                    (random(b * t * 2 * d, 1), random(k * d, 2), random(b * t * d, 3));
                let u: Vec<A> = u.into_iter().map(A::narrow).collect();
                let w: Vec<f32> = w.into_iter().map(|w| A::narrow(w).widen()).collect();
                let (mut y, mut du, mut dw) = (vec![A::ZERO; b * t * d], vec![A::NAN; b * t * 2 * d], vec![1.0; k * d]);
                let mut dc = vec![A::NAN; b * t * d];
                let mut past = whole(b, t);
                // A document that starts on the way.
                if d % 2 == 0 && t > 4 {
                    past.chunks_mut(t).for_each(|past| (t / 3..t).for_each(|at| past[at] = (at - t / 3) as u32));
                }
                let span = &Span { batch: b, len: t, past: &past };
                // In two parts, cut anywhere.
                let cut = b * t / 3;
                for rows in [0..cut, cut..b * t] {
                    let (one, two) = (rows.start * d..rows.end * d, rows.start * 2 * d..rows.end * 2 * d);
                    let place = (rows.clone(), span, (d, k));
                    conv_gate_forward(cx, &mut y[one.clone()], &u, None, &w, place);
                    let (dc, dy, y) = (&mut dc[one.clone()], &dy[one.clone()], &y[one]);
                    conv_gate_backward(cx, &mut du[two], dc, dy, y, &u, (rows, d));
                }
                for rows in [0..cut, cut..b * t] {
                    let two = rows.start * 2 * d..rows.end * 2 * d;
                    let v = (&u[..], 2 * d, d);
                    conv_taps_backward(cx, (&mut du[two], 2 * d, d), &mut dw, &dc, v, &w, (rows, span, (d, k)));
                }
                dw.iter_mut().for_each(|x| *x -= 1.0);
                let wide = |x: &[A]| -> Vec<f32> { x.iter().map(|x| x.widen()).collect() };
                let (want_y, want_du, want_dw) = naive(&wide(&u), &w, &dy, &past, size);
                assert_close(&wide(&y), &want_y, bound_y, &format!("y {size:?}"));
                assert_close(&wide(&du), &want_du, bound_du, &format!("du {size:?}"));
                assert_close(&dw, &want_dw, bound_dw, &format!("dw {size:?}"));
            }
        });
    }

    #[test]
    fn a_sequence_in_pieces_equals_the_whole() {
        pieces_equal_the_whole::<f32>(8, 1e-6);
        [4, 8, 17, 64].into_iter().for_each(|k| pieces_equal_the_whole::<Bf16>(k, 3e-3));
    }

    fn pieces_equal_the_whole<A: Store<E = f32>>(k: usize, bound: f64) {
        all_isas(|cx| {
            let (t, d) = (23, 19);
            let (u, w): (Vec<f32>, Vec<f32>) = (random(t * 2 * d, 1), random(k * d, 2));
            let u: Vec<A> = u.into_iter().map(A::narrow).collect();
            let mut whole = vec![A::ZERO; t * d];
            let past: Vec<u32> = (0..t as u32).collect();
            let span = &Span { batch: 1, len: t, past: &past };
            conv_gate_forward(cx, &mut whole, &u, None, &w, (0..t, span, (d, k)));
            let mut sums = vec![0.0; t * d];
            conv_forward(cx, &mut sums, (&u, 2 * d, d), None, (&w, d, 0), (0..t, span, (d, k)));
            for ((sum, y), u) in sums.chunks(d).zip(whole.chunks(d)).zip(u.chunks(2 * d)) {
                let gated: Vec<f32> = sum.iter().zip(u).map(|(c, g)| c / (1.0 + (-g.widen()).exp())).collect();
                let y: Vec<f32> = y.iter().map(|y| y.widen()).collect();
                assert_close(&y, &gated, bound, "gated sums");
            }
            for piece in [1, 2, 5, 9, 22] {
                let mut history = vec![0.0; (k - 1) * d];
                let mut out = Vec::new();
                for (i, part) in u.chunks(piece * 2 * d).enumerate() {
                    let rows = part.len() / (2 * d);
                    let mut y = vec![A::ZERO; rows * d];
                    let span = &Span { batch: 1, len: rows, past: &past[i * piece..][..rows] };
                    conv_gate_forward(cx, &mut y, part, Some(&history), &w, (0..rows, span, (d, k)));
                    out.extend(y);
                    part.chunks(2 * d).for_each(|row| history.extend(row[d..].iter().map(|v| v.widen())));
                    history.drain(..history.len() - (k - 1) * d);
                }
                assert_eq!(out, whole, "pieces of {piece}");
            }
        });
    }
}
