//! Causal attention of one head over a sliding window, a block of queries at a time, on the calling thread. `n` queries `Q`, and
//! `l` keys `K` with values `V` in the order of time, the last `n` of them the queries' own. Query `i` has key `own = l - n + i`
//! and sees the keys `c` with `own - window < c <= own`:
//!
//! ```text
//! S = Q K^T     L_i = ln sum_c exp(S_ic)     P = exp(S - L)     O = P V
//! ```
//!
//! The backward pass makes `P` again from `L`, [`KEYS`] keys at a time (FlashAttention, arXiv 2205.14135):
//!
//! ```text
//! dV += P^T dO     dS = P (dO V^T - rowsum(dO O))     dQ = dS K     dK += dS^T Q
//! ```
//!
//! Scores are kept turned, `S^T: [l, n]`. A row's numbers depend on the list of its own visible keys alone: the largest score is
//! exact, and what is summed over keys is summed one by one in their order, where a key that is not seen adds an exact zero.

use crate::exec::Exec;
use crate::ops::operand::{Right, cut, operand_room};
use crate::ops::rows::{RowDots, Scale};
use crate::ops::small::{Strided, Triangle, product};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};
use crate::size::area;

/// Keys that are taken at once: backward, and of the values forward.
const KEYS: usize = 64;

/// Elements of working memory for `n` queries of width `d` and `l` keys, in either direction.
pub fn attention_work(n: usize, l: usize) -> usize {
    n * (2 + l.max(2 * KEYS))
}

/// Elements of the store in which they are multiplied.
pub fn attention_room((n, d): (usize, usize), l: usize) -> usize {
    let keys = l.max(KEYS);
    let left = operand_room(d.max(n), keys).max(operand_room(keys, n));
    left + 2 * (operand_room(d, n) + operand_room(n, d)) + operand_room(KEYS, d)
}

/// `o: [n, d]` and `log_sum: [n]` from scaled queries `q: [n, d]`, and keys and values in pieces `(k, v): [_, d]`, of which those
/// before the first query's window may be left out. Scores multiply in `A`, of which `room` is.
pub fn attention_forward<E: Elem, A: Store<E = E>>(
    cx: &Exec,
    o: &mut [E],
    log_sum: &mut [E],
    q: &[E],
    pieces: &[(&[E], &[E])],
    work: &mut [E],
    room: &mut [A],
    (n, d, window): (usize, usize, usize),
) {
    let l = pieces.iter().map(|(k, _)| k.len()).sum::<usize>() / d;
    assert!(o.len() == area([n, d]) && log_sum.len() == n && q.len() == o.len() && l >= n && window > 0);
    assert!(pieces.iter().all(|(k, v)| k.len() == v.len() && k.len().is_multiple_of(d)));
    let _time = time(cx, "attention_forward", (d, window), Work::Flops((4 * n * l * d) as f64));
    let (max, rest) = work.split_at_mut(n);
    let (sum, rest) = rest.split_at_mut(n);
    let s = &mut rest[..area([l, n])];
    let mut room = &mut *room;
    let queries = Right::new(cx, &mut room, Strided::transposed(q, d), (d, n));
    let mut at = 0;
    for (k, _) in pieces {
        let m = k.len() / d;
        queries.product(cx, (&mut s[at * n..], n), Strided::rows(k, d), m, Triangle::None, false, room);
        at += m;
    }
    cx.op(Softmax { s, max, sum, visible: Visible { first: 0, own: l - n, window, n } });
    let mut at = 0;
    for v in pieces.iter().flat_map(|(_, v)| v.chunks(KEYS * d)) {
        let m = v.len() / d;
        product(cx, (o, d), Strided::transposed(&s[at * n..], n), (v, d), (n, d, m), Triangle::None, at > 0);
        at += m;
    }
    for (i, o) in o.chunks_exact_mut(d).enumerate() {
        cx.op(Scale { y: o, by: E::ONE / sum[i] });
        log_sum[i] = E::from_f64(max[i].to_f64() + sum[i].to_f64().ln());
    }
}

/// Overwrites `dq: [n, d]` and adds to `dk, dv: [l, d]`, from what [`attention_forward`] was given, in one piece, and has given.
/// Multiplies in `A`, of which `room` is.
pub fn attention_backward<E: Elem, A: Store<E = E>>(
    cx: &Exec,
    (dq, dk, dv): (&mut [E], &mut [E], &mut [E]),
    d_o: &[E],
    (o, log_sum): (&[E], &[E]),
    (q, k, v): (&[E], &[E], &[E]),
    work: &mut [E],
    room: &mut [A],
    (n, d, window): (usize, usize, usize),
) {
    let l = k.len() / d;
    let (own, all) = (area([n, d]), area([l, d]));
    assert!(dq.len() == own && q.len() == own && o.len() == own && d_o.len() == own && log_sum.len() == n);
    assert!(dk.len() == all && dv.len() == all && k.len() == all && v.len() == all && l >= n && window > 0);
    let _time = time(cx, "attention_backward", (d, window), Work::Flops((10 * n * l * d) as f64));
    let (dots, rest) = work.split_at_mut(n);
    let (p, ds) = rest.split_at_mut(area([KEYS, n]));
    cx.op(RowDots { out: dots, x: d_o, y: o, d });
    let mut room = &mut *room;
    let right = |room: &mut _, b, sizes| Right::new(cx, room, b, sizes);
    let q_turned = right(&mut room, Strided::transposed(q, d), (d, n));
    let do_turned = right(&mut room, Strided::transposed(d_o, d), (d, n));
    let (q, d_o) = (right(&mut room, Strided::rows(q, d), (n, d)), right(&mut room, Strided::rows(d_o, d), (n, d)));
    let for_k = cut(&mut room, operand_room(KEYS, d));
    for first in (0..l).step_by(KEYS) {
        let m = KEYS.min(l - first);
        let cells = first * d..(first + m) * d;
        let (k, v) = (&k[cells.clone()], &v[cells.clone()]);
        let (p, ds) = (&mut p[..m * n], &mut ds[..m * n]);
        q_turned.product(cx, (p, n), Strided::rows(k, d), m, Triangle::None, false, room);
        do_turned.product(cx, (ds, n), Strided::rows(v, d), m, Triangle::None, false, room);
        let visible = Visible { first, own: l - n, window, n };
        cx.op(Gradient { p, ds, log_sum, dots, visible });
        d_o.product(cx, (&mut dv[cells.clone()], d), Strided::rows(p, n), m, Triangle::None, true, room);
        q.product(cx, (&mut dk[cells], d), Strided::rows(ds, n), m, Triangle::None, true, room);
        let k = Right::new(cx, &mut &mut *for_k, Strided::rows(k, d), (m, d));
        k.product(cx, (dq, d), Strided::transposed(ds, n), n, Triangle::None, first > 0, room);
    }
}

/// Which queries see a key: those in front of its window's end and not before itself.
#[derive(Clone, Copy)]
pub(super) struct Visible {
    /// The key of row 0.
    pub first: usize,
    /// The key of query 0.
    pub own: usize,
    pub window: usize,
    pub n: usize,
}

impl Visible {
    /// Sets the scores of a key, `row: [n]`, with the queries that do not see it.
    #[inline(always)]
    pub fn hide<E: Elem>(self, key: usize, row: &mut [E], value: E) {
        let end = (key + self.window).saturating_sub(self.own).min(self.n);
        row[..key.saturating_sub(self.own).min(self.n)].fill(value);
        row[end..].fill(value);
    }
}

/// `s <- exp(s - max)` where seen, else 0; the largest of each column, and the sums in order of rows.
pub(super) struct Softmax<'a, E> {
    pub s: &'a mut [E],
    pub max: &'a mut [E],
    pub sum: &'a mut [E],
    pub visible: Visible,
}

impl<E: Elem> Op<E> for Softmax<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Softmax { s, max, sum, visible } = self;
        let n = max.len();
        max.fill(E::from_f64(f64::NEG_INFINITY));
        sum.fill(E::ZERO);
        for (key, row) in (visible.first..).zip(s.chunks_exact_mut(n)) {
            visible.hide(key, row, E::from_f64(f64::NEG_INFINITY));
            // SAFETY: `row` and `max` have `n` elements.
            each!(S, n, |i, lanes| unsafe {
                let max = max.as_mut_ptr().add(i);
                S::put(max, S::max(S::get(max, lanes), S::get(row.as_ptr().add(i), lanes)), lanes);
            });
        }
        for (key, row) in (visible.first..).zip(s.chunks_exact_mut(n)) {
            // SAFETY: as above.
            each!(S, n, |i, lanes| unsafe {
                let p = row.as_mut_ptr().add(i);
                S::put(p, S::exp(S::sub(S::get(p, lanes), S::get(max.as_ptr().add(i), lanes))), lanes);
            });
            visible.hide(key, row, E::ZERO);
            // SAFETY: as above, and `sum` has as many.
            each!(S, n, |i, lanes| unsafe {
                let sum = sum.as_mut_ptr().add(i);
                S::put(sum, S::add(S::get(sum, lanes), S::get(row.as_ptr().add(i), lanes)), lanes);
            });
        }
    }
}

/// `p <- exp(p - log_sum)` where seen, else 0; `ds <- p (ds - dots)`.
struct Gradient<'a, E> {
    p: &'a mut [E],
    ds: &'a mut [E],
    log_sum: &'a [E],
    dots: &'a [E],
    visible: Visible,
}

impl<E: Elem> Op<E> for Gradient<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Gradient { p, ds, log_sum, dots, visible } = self;
        let n = log_sum.len();
        for (key, (p, ds)) in (visible.first..).zip(p.chunks_exact_mut(n).zip(ds.chunks_exact_mut(n))) {
            // SAFETY: offsets are inside the rows of `n`.
            each!(S, n, |i, lanes| unsafe {
                let p = p.as_mut_ptr().add(i);
                S::put(p, S::exp(S::sub(S::get(p, lanes), S::get(log_sum.as_ptr().add(i), lanes))), lanes);
            });
            visible.hide(key, p, E::ZERO);
            // SAFETY: offsets are inside the rows of `n`, and `dots` has as many.
            each!(S, n, |i, lanes| unsafe {
                let to = ds.as_mut_ptr().add(i);
                let d = S::sub(S::get(to, lanes), S::get(dots.as_ptr().add(i), lanes));
                S::put(to, S::mul(S::get(p.as_ptr().add(i), lanes), d), lanes);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, assert_close, random};

    /// `(n, l, d, window)`: one key, all seen, windows that end inside and outside of the block, several pieces of keys.
    const SIZES: [(usize, usize, usize, usize); 9] = [
        (1, 1, 1, 1),
        (1, 9, 6, 9),
        (5, 5, 3, 64),
        (7, 12, 8, 1),
        (32, 40, 17, 9),
        (33, 130, 56, 98),
        (48, 303, 64, 256),
        (17, 64, 33, 40),
        (50, 65, 4, 16),
    ];

    /// Output and the logarithms of the sums as the header has them, in f64, from all queries and keys of a sequence.
    fn plain(q: &[f64], k: &[f64], v: &[f64], (n, d, window): (usize, usize, usize)) -> (Vec<f64>, Vec<f64>) {
        let (l, mut o, mut log_sums) = (k.len() / d, vec![0.0; n * d], Vec::new());
        for i in 0..n {
            let own = l - n + i;
            let visible = (own + 1).saturating_sub(window)..=own;
            let score = |c: usize| (0..d).map(|j| q[i * d + j] * k[c * d + j]).sum::<f64>();
            let p: Vec<f64> = visible.clone().map(|c| score(c).exp()).collect();
            let sum: f64 = p.iter().sum();
            for (c, p) in visible.zip(p) {
                (0..d).for_each(|j| o[i * d + j] += p / sum * v[c * d + j]);
            }
            log_sums.push(sum.ln());
        }
        (o, log_sums)
    }

    fn inputs((n, l, d): (usize, usize, usize)) -> [Vec<f64>; 4] {
        // Values that bf16 holds, scores of several units.
        let of = |len, seed| random::<f32>(len, seed).iter().map(|x| Bf16::from_f32(1.5 * x).to_f32().into()).collect();
        [of(n * d, 1), of(l * d, 2), of(l * d, 3), of(n * d, 4)]
    }

    fn f32s(x: &[f64]) -> Vec<f32> {
        x.iter().map(|&x| x as f32).collect()
    }

    #[test]
    fn equals_plain_loops_forward() {
        forward_equals_plain_loops::<f32>();
        forward_equals_plain_loops::<Bf16>();
    }

    fn forward_equals_plain_loops<A: Store<E = f32>>() {
        all_isas(|cx| {
            for (n, l, d, window) in SIZES {
                let [q, k, v, _] = inputs((n, l, d));
                let (want, want_sums) = plain(&q, &k, &v, (n, d, window));
                let [q, k, v] = [q, k, v].map(|x| f32s(&x));
                for cut in [0, l / 3, l] {
                    let pieces = [(&k[..cut * d], &v[..cut * d]), (&k[cut * d..], &v[cut * d..])];
                    let (mut o, mut sums) = (vec![f32::NAN; n * d], vec![f32::NAN; n]);
                    let mut work = vec![f32::NAN; attention_work(n, l)];
                    let mut room = vec![A::NAN; attention_room((n, d), l)];
                    attention_forward(cx, &mut o, &mut sums, &q, &pieces, &mut work, &mut room, (n, d, window));
                    assert_close(&o, &f32s(&want), 2e-6, &format!("{n} of {l}, {d} wide, window {window}"));
                    assert_close(&sums, &f32s(&want_sums), 2e-6, "log of sums");
                }
            }
        });
    }

    /// To the bit: queries one by one or in blocks, keys from any point before the window and in any pieces.
    #[test]
    fn a_row_depends_on_the_keys_it_sees_alone() {
        a_row_depends_on_its_keys::<f32>();
        a_row_depends_on_its_keys::<Bf16>();
    }

    fn a_row_depends_on_its_keys<A: Store<E = f32>>() {
        all_isas(|cx| {
            for (d, window, t) in [(8, 9, 40), (56, 32, 100), (17, 64, 50)] {
                let [q, k, v, _] = inputs((t, t, d)).map(|x| f32s(&x));
                let run = |first: usize, n: usize, from: usize, cut: usize| {
                    let (mut o, mut sums) = (vec![f32::NAN; n * d], vec![f32::NAN; n]);
                    let (q, keys) = (&q[first * d..(first + n) * d], from * d..(first + n) * d);
                    let (k, v) = (&k[keys.clone()], &v[keys]);
                    let cut = cut.min(k.len() / d) * d;
                    let pieces = [(&k[..cut], &v[..cut]), (&k[cut..], &v[cut..])];
                    let mut work = vec![f32::NAN; attention_work(n, first + n - from)];
                    let mut room = vec![A::NAN; attention_room((n, d), first + n - from)];
                    attention_forward(cx, &mut o, &mut sums, q, &pieces, &mut work, &mut room, (n, d, window));
                    o.extend(sums);
                    o
                };
                let whole = run(0, t, 0, 0);
                for n in [1, 3, 33] {
                    for first in (0..t).step_by(n) {
                        let n = n.min(t - first);
                        let least = (first + 1).saturating_sub(window);
                        for (from, cut) in [(least, 0), (least, 5), (least / 2, 7), (0, t)] {
                            let got = run(first, n, from, cut);
                            assert_eq!(got[..n * d], whole[first * d..(first + n) * d]);
                            assert_eq!(got[n * d..], whole[t * d + first..t * d + first + n]);
                        }
                    }
                }
            }
        });
    }

    /// bf16 rounds `P` and `dS`, by 0.2 % each element.
    #[test]
    fn gradients_equal_finite_differences() {
        gradients_are_near::<f32>(1e-5);
        gradients_are_near::<Bf16>(4e-3);
    }

    fn gradients_are_near<A: Store<E = f32>>(bound: f64) {
        all_isas(|cx| {
            for (n, l, d, window) in SIZES {
                let [q, k, v, d_o] = inputs((n, l, d));
                let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
                    plain(q, k, v, (n, d, window)).0.iter().zip(&d_o).map(|(o, g)| o * g).sum()
                };
                let (o, log_sum) = plain(&q, &k, &v, (n, d, window));
                let (o, log_sum) = (f32s(&o), f32s(&log_sum));
                let [fq, fk, fv, fd] = [&q, &k, &v, &d_o].map(|x| f32s(x));
                let (mut dq, mut dk, mut dv) = (vec![f32::NAN; n * d], vec![1.0; l * d], vec![-2.0; l * d]);
                let mut work = vec![f32::NAN; attention_work(n, l)];
                let out = (&mut dq[..], &mut dk[..], &mut dv[..]);
                let sizes = (n, d, window);
                let mut room = vec![A::NAN; attention_room((n, d), l)];
                attention_backward(cx, out, &fd, (&o, &log_sum), (&fq, &fk, &fv), &mut work, &mut room, sizes);
                // Some twenty elements of each, and a 1: who sees one key alone has no gradient but rounding.
                for (which, (got, base)) in [(dq, 0.0), (dk, 1.0), (dv, -2.0)].into_iter().enumerate() {
                    let (mut some, mut want) = (vec![1.0], vec![1.0]);
                    for at in (0..got.len()).step_by(got.len().div_ceil(20)) {
                        let at_step = |by: f64| {
                            let mut moved = [q.clone(), k.clone(), v.clone()];
                            moved[which][at] += by;
                            loss(&moved[0], &moved[1], &moved[2])
                        };
                        some.push(got[at]);
                        want.push((base + (at_step(1e-5) - at_step(-1e-5)) / 2e-5) as f32);
                    }
                    assert_close(&some, &want, bound, &format!("gradient {which} of {n}, {l}, {d}, {window}"));
                }
            }
        });
    }
}
