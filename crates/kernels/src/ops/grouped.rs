//! Causal convolution over time in groups of channels, with a dilation `s`: group `g` makes its `O` outputs of its own `I` inputs,
//!
//! ```text
//! y[t, g O + b] = sum_j sum_a w[g, j, a, b] x[t - (K-1-j) s, g I + a]        w: [G, K, I, O]
//! ```
//!
//! (tap `K-1` multiplies the current row). Rows before the start of a document are zero; those of a document that began before
//! this micro-batch come from `history: [B, (K-1) s, G I]`. Backward the same sum runs ahead in time, over `w` as `[G, K, O, I]`:
//! `dx[t, g I + a] = sum_j sum_b w[g, j, a, b] dy[t + (K-1-j) s, g O + b]`, and `dw[g, j, a, b] += sum_t x[..] dy[t, g O + b]`.
//!
//! [`exact_grouped`] is one row in plain sums and products, tap by tap and input by input: the same bits on every ISA.

use std::ops::Range;

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, each};
use crate::size::area;
use crate::span::Span;

/// Most taps.
pub const GROUPED_TAPS: usize = 64;
/// Rows, and inputs of a weight gradient, that share what is read.
const TOGETHER: usize = 4;
/// Rows whose places are looked up at once for a weight gradient.
const STRETCH: usize = 64;

/// Sizes of a grouped convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// `G`.
    pub groups: usize,
    /// `I`: channels that a group reads.
    pub inputs: usize,
    /// `O`: channels that it makes.
    pub outputs: usize,
    /// `K`.
    pub taps: usize,
    /// `s`.
    pub dilation: usize,
}

impl Grouped {
    /// `(K-1) s`: rows before the current one that are read.
    pub fn reach(self) -> usize {
        area([self.taps.saturating_sub(1), self.dilation])
    }

    /// Weights of one group.
    pub fn weights(self) -> usize {
        area([self.taps, self.inputs, self.outputs])
    }

    fn check(self, span: &Span, rows: &Range<usize>) {
        assert!((1..=GROUPED_TAPS).contains(&self.taps) && self.reach() < 1 << 32);
        assert!(rows.start <= rows.end && rows.end <= span.rows() && span.past.len() >= rows.end);
    }

    fn back(self, tap: usize) -> usize {
        (self.taps - 1 - tap) * self.dilation
    }
}

/// `y: [rows, G O]` of the rows `rows`, from `x: [B*T, G I]`, on the calling thread.
pub fn grouped_forward<E: Elem>(
    cx: &Exec,
    y: &mut [E],
    x: &[E],
    history: Option<&[E]>,
    w: &[E],
    of: Grouped,
    (rows, span): (Range<usize>, &Span),
) {
    of.check(span, &rows);
    let (from, to) = (area([of.groups, of.inputs]), area([of.groups, of.outputs]));
    assert!(y.len() == area([rows.len(), to]) && x.len() >= area([rows.end, from]));
    assert!(w.len() == area([of.groups, of.weights()]));
    assert!(history.is_none_or(|h| h.len() >= area([rows.end.div_ceil(span.len.max(1)), of.reach(), from])));
    let bytes = (y.len() + area([rows.len(), from, of.taps])) * size_of::<E>();
    let _time = time(cx, "grouped_forward", (from, of.taps), Work::Bytes(bytes as f64));
    let place = |row: usize, back: usize| -> Option<&[E]> {
        let now = row % span.len;
        if (span.past[row] as usize) < back {
            return None;
        }
        if now >= back {
            return Some(&x[(row - back) * from..][..from]);
        }
        let at = (row / span.len * of.reach() + of.reach() + now - back) * from;
        history.map(|history| &history[at..][..from])
    };
    sums(cx, y, w, of, rows, &place, false);
}

/// `dx: [rows, G I]` of the rows `rows`, added to where `accumulate`, from `dy: [B*T, G O]` and the weights as `[G, K, O, I]`, on the calling
/// thread.
pub fn grouped_backward_input<E: Elem>(
    cx: &Exec,
    dx: &mut [E],
    dy: &[E],
    turned: &[E],
    of: Grouped,
    (rows, span): (Range<usize>, &Span),
    accumulate: bool,
) {
    of.check(span, &rows);
    let (from, to) = (area([of.groups, of.outputs]), area([of.groups, of.inputs]));
    assert!(dx.len() == area([rows.len(), to]) && dy.len() >= area([span.rows(), from]));
    assert!(turned.len() == area([of.groups, of.weights()]) && span.past.len() >= span.rows());
    let bytes = (dx.len() + area([rows.len(), from, of.taps])) * size_of::<E>();
    let _time = time(cx, "grouped_backward_input", (to, of.taps), Work::Bytes(bytes as f64));
    let place = |row: usize, ahead: usize| -> Option<&[E]> {
        let inside = row % span.len + ahead < span.len && span.past[row + ahead] as usize >= ahead;
        inside.then(|| &dy[(row + ahead) * from..][..from])
    };
    let of = Grouped { inputs: of.outputs, outputs: of.inputs, ..of };
    sums(cx, dx, turned, of, rows, &place, accumulate);
}

/// Looks up the rows of a few sums at a time, then adds them up.
fn sums<'a, E: Elem>(
    cx: &Exec,
    y: &mut [E],
    w: &[E],
    of: Grouped,
    rows: Range<usize>,
    place: &dyn Fn(usize, usize) -> Option<&'a [E]>,
    accumulate: bool,
) {
    let width = of.groups * of.outputs;
    if width == 0 || of.inputs == 0 {
        return;
    }
    let zero = E::ZERO;
    for first in rows.clone().step_by(TOGETHER) {
        let n = TOGETHER.min(rows.end - first);
        let mut from = [[(&raw const zero, 0); TOGETHER]; GROUPED_TAPS];
        for (tap, from) in from.iter_mut().enumerate().take(of.taps) {
            for (row, from) in from.iter_mut().enumerate().take(n) {
                if let Some(x) = place(first + row, of.back(tap)) {
                    *from = (x.as_ptr(), 1);
                }
            }
        }
        let y = &mut y[(first - rows.start) * width..][..n * width];
        cx.op(Sums { y, w, of, from: &from[..of.taps], n, accumulate });
    }
}

/// Of rows `from`, a pointer and 1, or one zero and 0.
struct Sums<'a, E> {
    y: &'a mut [E],
    w: &'a [E],
    of: Grouped,
    from: &'a [[(*const E, usize); TOGETHER]],
    n: usize,
    accumulate: bool,
}

impl<E: Elem> Op<E> for Sums<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Sums { y, w, of: Grouped { groups, inputs, outputs, taps, .. }, from, n: rows, accumulate } = self;
        let width = groups * outputs;
        for group in 0..groups {
            // SAFETY: whoever made this has checked the sizes: each place has `groups * inputs` elements or is one zero that is not left.
            each!(S, outputs, |b, n| unsafe {
                let mut acc = [S::splat(E::ZERO); TOGETHER];
                for (tap, from) in from.iter().enumerate() {
                    let w = w.as_ptr().add((group * taps + tap) * inputs * outputs + b);
                    for a in 0..inputs {
                        let w = S::get(w.add(a * outputs), n);
                        for (acc, (x, step)) in acc.iter_mut().zip(from) {
                            *acc = S::fma(S::splat(*x.add((group * inputs + a) * step)), w, *acc);
                        }
                    }
                }
                for (row, acc) in acc.into_iter().enumerate().take(rows) {
                    let y = y.as_mut_ptr().add(row * width + group * outputs + b);
                    S::put(y, if accumulate { S::add(S::get(y, n), acc) } else { acc }, n);
                }
            });
        }
    }
}

/// Adds the gradient of the weights of one group, `dw: [K, I, O]`, of fresh sequences `x: [B*T, G I]`, `dy: [B*T, G O]`, on the calling
/// thread.
pub fn grouped_backward_weights<E: Elem>(
    cx: &Exec,
    dw: &mut [E],
    x: &[E],
    dy: &[E],
    group: usize,
    of: Grouped,
    span: &Span,
) {
    let rows = span.rows();
    of.check(span, &(0..rows));
    let (from, to) = (area([of.groups, of.inputs]), area([of.groups, of.outputs]));
    assert!(group < of.groups && dw.len() == of.weights());
    assert!(x.len() >= area([rows, from]) && dy.len() >= area([rows, to]));
    if of.inputs == 0 || of.outputs == 0 {
        return;
    }
    let _time = time(cx, "grouped_backward_weights", (from, of.taps), Work::Bytes((rows * size_of::<E>()) as f64));
    let zero = E::ZERO;
    for tap in 0..of.taps {
        let back = of.back(tap);
        let dw = &mut dw[tap * of.inputs * of.outputs..][..of.inputs * of.outputs];
        for first in (0..rows).step_by(STRETCH) {
            let n = STRETCH.min(rows - first);
            let mut places = [(&raw const zero, 0); STRETCH];
            for (row, place) in (first..first + n).zip(&mut places) {
                if row % span.len >= back && span.past[row] as usize >= back {
                    *place = (x[(row - back) * from..][..from].as_ptr(), 1);
                }
            }
            let dy = &dy[first * to..][..n * to];
            cx.op(Weights { dw: &mut *dw, x: &places[..n], dy, group, of });
        }
    }
}

struct Weights<'a, E> {
    /// `[I, O]`.
    dw: &'a mut [E],
    x: &'a [(*const E, usize)],
    dy: &'a [E],
    group: usize,
    of: Grouped,
}

impl<E: Elem> Op<E> for Weights<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Weights { dw, x, dy, group, of: Grouped { groups, inputs, outputs, .. } } = self;
        let width = groups * outputs;
        for first in (0..inputs).step_by(TOGETHER) {
            let some = TOGETHER.min(inputs - first);
            // SAFETY: as in [`Sums`]; inputs beyond the last repeat it and are not written.
            each!(S, outputs, |b, n| unsafe {
                let mut acc = [S::splat(E::ZERO); TOGETHER];
                let dy = dy.as_ptr().add(group * outputs + b);
                for (row, (x, step)) in x.iter().enumerate() {
                    let dy = S::get(dy.add(row * width), n);
                    for (a, acc) in acc.iter_mut().enumerate() {
                        let a = group * inputs + first + if a < some { a } else { 0 };
                        *acc = S::fma(S::splat(*x.add(a * step)), dy, *acc);
                    }
                }
                for (a, acc) in acc.into_iter().enumerate().take(some) {
                    let dw = dw.as_mut_ptr().add((first + a) * outputs + b);
                    S::put(dw, S::add(S::get(dw, n), acc), n);
                }
            });
        }
    }
}

/// One row `y: [G O]` from the rows that its taps read, `[G I]` each, none before the start of the document.
pub fn exact_grouped(cx: &Exec, y: &mut [f32], taps: &[Option<&[f32]>], w: &[f32], of: Grouped) {
    assert!(taps.len() == of.taps && y.len() == area([of.groups, of.outputs]));
    assert!(w.len() == area([of.groups, of.weights()]));
    let _time = time(cx, "exact_grouped", (y.len(), of.taps), Work::Bytes((4 * w.len()) as f64));
    cx.op(Exact { y, taps, w, of });
}

struct Exact<'a> {
    y: &'a mut [f32],
    taps: &'a [Option<&'a [f32]>],
    w: &'a [f32],
    of: Grouped,
}

impl Op<f32> for Exact<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Exact { y, taps, w, of: Grouped { inputs, outputs, .. } } = self;
        if inputs == 0 || outputs == 0 {
            return;
        }
        let all = y.chunks_exact_mut(outputs).zip(w.chunks_exact(taps.len() * inputs * outputs));
        for (group, (y, w)) in all.enumerate() {
            y.fill(0.0);
            for (x, w) in taps.iter().zip(w.chunks_exact(inputs * outputs)) {
                let Some(x) = x else { continue };
                let x = &x[group * inputs..][..inputs];
                for (&x, w) in x.iter().zip(w.chunks_exact(outputs)) {
                    for (y, &w) in y.iter_mut().zip(w) {
                        *y += w * x;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Isa;
    use crate::testing::{Random, all_isas, assert_close, random};

    /// Sequences in which documents begin, some of them before the first row.
    fn documents(batch: usize, len: usize, fresh: bool) -> Vec<u32> {
        let mut random = Random::new(7);
        let sequence = |_| {
            let mut past = if fresh { 0 } else { random.next() % 9 };
            (0..len)
                .map(|_| {
                    let own = if random.next().is_multiple_of(11) { 0 } else { past };
                    past = own + 1;
                    own
                })
                .collect::<Vec<u32>>()
        };
        (0..batch).flat_map(sequence).collect()
    }

    /// The row `back` rows before `row`, or nothing.
    fn before<'a>(
        x: &'a [f32],
        history: &'a [f32],
        row: usize,
        back: usize,
        span: &Span,
        reach: usize,
        width: usize,
    ) -> Option<&'a [f32]> {
        if (span.past[row] as usize) < back {
            return None;
        }
        let (sequence, now) = (row / span.len, row % span.len);
        match now.checked_sub(back) {
            Some(at) => Some(&x[(sequence * span.len + at) * width..][..width]),
            None => history.get((sequence * reach + reach + now - back) * width..).map(|rest| &rest[..width]),
        }
    }

    fn sizes() -> Vec<Grouped> {
        let of = |groups, inputs, outputs, taps, dilation| Grouped { groups, inputs, outputs, taps, dilation };
        vec![
            of(1, 1, 1, 1, 1),
            of(2, 3, 5, 4, 1),
            of(3, 16, 16, 4, 5),
            of(5, 7, 9, 2, 30),
            of(16, 2, 2, 4, 4),
            of(1, 33, 17, 3, 2),
        ]
    }

    #[test]
    fn equals_plain_loops_forward_and_backward() {
        all_isas(|cx| {
            for (of, len) in sizes().into_iter().flat_map(|of| [1, 6, 70].map(|len| (of, len))) {
                let (batch, from, to) = (2, of.groups * of.inputs, of.groups * of.outputs);
                let rows = batch * len;
                let (x, dy): (Vec<f32>, Vec<f32>) = (random(rows * from, 1), random(rows * to, 2));
                let w: Vec<f32> = random(of.groups * of.weights(), 3);
                let history: Vec<f32> = random(batch * of.reach() * from, 4);
                let at = |g: usize, j: usize, a: usize, b: usize| ((g * of.taps + j) * of.inputs + a) * of.outputs + b;
                let turned_at =
                    |g: usize, j: usize, a: usize, b: usize| ((g * of.taps + j) * of.outputs + b) * of.inputs + a;
                let mut turned = vec![0.0; w.len()];
                for fresh in [true, false] {
                    let past = documents(batch, len, fresh);
                    let span = &Span { batch, len, past: &past };
                    let held: &[f32] = if fresh { &[] } else { &history };
                    let (mut y, mut dx) = (vec![0f64; rows * to], vec![0.25f64; rows * from]);
                    let mut dw = vec![0.5f64; w.len()];
                    let mut exact = vec![f32::NAN; rows * to];
                    for row in 0..rows {
                        let mut taps = Vec::new();
                        for j in 0..of.taps {
                            let back = (of.taps - 1 - j) * of.dilation;
                            let place = before(&x, held, row, back, span, of.reach(), from);
                            taps.push(place);
                            let Some(place) = place else { continue };
                            for g in 0..of.groups {
                                for (a, b) in (0..of.inputs).flat_map(|a| (0..of.outputs).map(move |b| (a, b))) {
                                    let (at, out) = (at(g, j, a, b), row * to + g * of.outputs + b);
                                    turned[turned_at(g, j, a, b)] = w[at];
                                    let (x, w, dy) =
                                        (f64::from(place[g * of.inputs + a]), f64::from(w[at]), f64::from(dy[out]));
                                    y[out] += x * w;
                                    if row % len >= back {
                                        dx[(row - back) * from + g * of.inputs + a] += w * dy;
                                        dw[at] += x * dy;
                                    }
                                }
                            }
                        }
                        exact_grouped(cx, &mut exact[row * to..][..to], &taps, &w, of);
                        let mut scalar = vec![f32::NAN; to];
                        exact_grouped(&Exec::new(Isa::SCALAR, 1), &mut scalar, &taps, &w, of);
                        assert!(exact[row * to..][..to] == scalar, "{of:?}");
                    }
                    let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
                    assert_close(&exact, &narrow(&y), 1e-6, "exact");
                    // In two pieces, as tiles are.
                    let mut got = vec![f32::NAN; rows * to];
                    for r in [0..rows / 3, rows / 3..rows] {
                        let (y, held) = (&mut got[r.start * to..r.end * to], (!fresh).then_some(held));
                        grouped_forward(cx, y, &x, held, &w, of, (r, span));
                    }
                    assert_close(&got, &narrow(&y), 1e-6, "y");
                    if !fresh {
                        continue;
                    }
                    for accumulate in [true, false] {
                        let mut got = vec![0.25; rows * from];
                        for r in [0..rows / 3, rows / 3..rows] {
                            let dx = &mut got[r.start * from..r.end * from];
                            grouped_backward_input(cx, dx, &dy, &turned, of, (r, span), accumulate);
                        }
                        let start = if accumulate { 0.0 } else { 0.25 };
                        let want: Vec<f64> = dx.iter().map(|dx| dx - start).collect();
                        assert_close(&got, &narrow(&want), 1e-5, "dx");
                    }
                    let mut got = vec![0.5; w.len()];
                    for (group, dw) in got.chunks_exact_mut(of.weights()).enumerate() {
                        grouped_backward_weights(cx, dw, &x, &dy, group, of, span);
                    }
                    assert_close(&got, &narrow(&dw), 1e-5, "dw");
                }
            }
        });
    }
}
