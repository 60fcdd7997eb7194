//! Pointers of a block of queries into the text before them, on the calling thread: query `i` gives the token after each row `c` that it
//! sees the mass `exp(s_ic)`, `S = Q K^T`, where a softmax over the vocabulary gives each token `exp(z)` (Merity et al., arXiv 1609.07843;
//! Grave et al., arXiv 1612.04426). `n` queries `Q`, of which query `i` sees the last `window` of the `l` keys `c < before + i`:
//!
//! ```text
//! all_i = ln sum_c exp(S_ic)     own_i = ln sum over c with next_c = target_i of exp(S_ic)     -inf: there is none
//! ```
//!
//! The logits that follow from both are `ln(exp(z_v) + sum over c with next_c = v of exp(S_ic))`. With `whole_i` the logarithm of the sum of
//! their exponentials and `hit_i` the one of the target, the loss is `whole_i - hit_i`, and times `scale` its gradient
//!
//! ```text
//! dS_ic = scale (exp(S_ic - whole_i) - [next_c = target_i] exp(S_ic - hit_i))     dQ = dS K     dK += dS^T Q
//! ```

use super::attention::{Softmax, Visible};
use super::operand::{Right, cut, operand_room};
use super::small::{Strided, Triangle};
use crate::Token;
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};
use crate::size::area;

/// Keys that the backward pass takes at once.
const KEYS: usize = 64;

/// What a block of queries sees.
#[derive(Clone, Copy)]
pub struct Seen<'a, E> {
    /// `[n, d]`, scaled.
    pub queries: &'a [E],
    /// `[l, d]`.
    pub keys: &'a [E],
    /// The token after each key's row, `[l]`.
    pub next: &'a [Token],
    /// Keys before the first query; one more for each query after it.
    pub before: usize,
    /// Most keys that a query sees.
    pub window: usize,
    /// Width `d`.
    pub d: usize,
}

impl<E> Seen<'_, E> {
    fn check(&self, n: usize) {
        let l = self.next.len();
        assert!(self.queries.len() == area([n, self.d]) && self.keys.len() == area([l, self.d]) && self.window > 0);
    }

    /// As attention sees keys, where a query's own key comes after those that are seen here.
    fn visible(&self, first: usize, n: usize) -> Visible {
        Visible { first: first + 1, own: self.before, window: self.window, n }
    }
}

/// Elements of working memory for `n` queries and `l` keys, in either direction.
pub fn pointer_work(n: usize, l: usize) -> usize {
    n * (2 + l.max(KEYS))
}

/// Elements of the store in which they are multiplied.
pub fn pointer_room(n: usize, d: usize) -> usize {
    operand_room(d.max(n), KEYS).max(operand_room(KEYS, d.max(n)))
        + 2 * operand_room(d.max(n), d.max(n))
        + operand_room(KEYS, d)
}

/// `all, own: [n]` of the `targets: [n]`.
pub fn pointer_forward<E: Elem, A: Store<E = E>>(
    cx: &Exec,
    (all, own): (&mut [E], &mut [E]),
    seen: Seen<E>,
    targets: &[Token],
    work: &mut [E],
    room: &mut [A],
) {
    let (n, l, d) = (targets.len(), seen.next.len(), seen.d);
    seen.check(n);
    assert!(all.len() == n && own.len() == n);
    let _time = time(cx, "pointer_forward", (d, seen.window), Work::Flops((2 * n * l * d) as f64));
    let (max, rest) = work.split_at_mut(n);
    let (sum, rest) = rest.split_at_mut(n);
    let s = &mut rest[..area([l, n])];
    let mut room = &mut *room;
    let queries = Right::new(cx, &mut room, Strided::transposed(seen.queries, d), (d, n));
    for (s, k) in s.chunks_mut(KEYS * n).zip(seen.keys.chunks(KEYS * d)) {
        queries.product(cx, (s, n), Strided::rows(k, d), k.len() / d, Triangle::None, false, room);
    }
    cx.op(Softmax { s, max, sum, visible: seen.visible(0, n) });
    own.fill(E::ZERO);
    for (s, next) in s.chunks_exact(n).zip(seen.next) {
        for ((own, s), target) in own.iter_mut().zip(s).zip(targets) {
            *own = if next == target { *own + *s } else { *own };
        }
    }
    for (((all, own), max), sum) in all.iter_mut().zip(own).zip(max).zip(sum) {
        let log = |x: E| E::from_f64(max.to_f64() + x.to_f64().ln());
        (*all, *own) = (log(*sum), log(*own));
    }
}

/// Overwrites `dq: [n, d]` and adds to `dk: [l, d]`; `whole, hit: [n]`, both infinite where a query has no target.
pub fn pointer_backward<E: Elem, A: Store<E = E>>(
    cx: &Exec,
    (dq, dk): (&mut [E], &mut [E]),
    seen: Seen<E>,
    targets: &[Token],
    (whole, hit): (&[E], &[E]),
    scale: f64,
    work: &mut [E],
    room: &mut [A],
) {
    let (n, l, d) = (targets.len(), seen.next.len(), seen.d);
    seen.check(n);
    assert!(dq.len() == area([n, d]) && dk.len() == area([l, d]) && whole.len() == n && hit.len() == n);
    let _time = time(cx, "pointer_backward", (d, seen.window), Work::Flops((6 * n * l * d) as f64));
    // Exactly 0 where there is no target: an exponential is never.
    let (by, rest) = work.split_at_mut(n);
    for (by, whole) in by.iter_mut().zip(whole) {
        *by = if whole.to_f64().is_finite() { E::from_f64(scale) } else { E::ZERO };
    }
    let mut room = &mut *room;
    let turned = Right::new(cx, &mut room, Strided::transposed(seen.queries, d), (d, n));
    let queries = Right::new(cx, &mut room, Strided::rows(seen.queries, d), (n, d));
    let for_k = cut(&mut room, operand_room(KEYS, d));
    dq.fill(E::ZERO);
    for first in (0..l).step_by(KEYS) {
        let m = KEYS.min(l - first);
        let cells = first * d..(first + m) * d;
        let (keys, next) = (&seen.keys[cells.clone()], &seen.next[first..first + m]);
        let (hits, ds) = rest.split_at_mut(n);
        let ds = &mut ds[..area([m, n])];
        turned.product(cx, (ds, n), Strided::rows(keys, d), m, Triangle::None, false, room);
        cx.op(Gradient { ds, hits, by, whole, hit, next, targets, visible: seen.visible(first, n) });
        queries.product(cx, (&mut dk[cells], d), Strided::rows(ds, n), m, Triangle::None, true, room);
        let keys = Right::new(cx, &mut &mut *for_k, Strided::rows(keys, d), (m, d));
        keys.product(cx, (dq, d), Strided::transposed(ds, n), n, Triangle::None, true, room);
    }
}

/// Scores to their gradients; 0 where not seen.
struct Gradient<'a, E> {
    ds: &'a mut [E],
    /// What the targets of one key take off.
    hits: &'a mut [E],
    by: &'a [E],
    whole: &'a [E],
    hit: &'a [E],
    next: &'a [Token],
    targets: &'a [Token],
    visible: Visible,
}

impl<E: Elem> Op<E> for Gradient<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Gradient { ds, hits, by, whole, hit, next, targets, visible } = self;
        let n = whole.len();
        for ((key, ds), next) in (visible.first..).zip(ds.chunks_exact_mut(n)).zip(next) {
            for i in 0..n {
                let at = targets[i] == *next;
                hits[i] = if at { by[i] * E::from_f64((ds[i].to_f64() - hit[i].to_f64()).exp()) } else { E::ZERO };
            }
            // SAFETY: offsets are inside of rows of `n`.
            each!(S, n, |i, lanes| unsafe {
                let to = ds.as_mut_ptr().add(i);
                let p = S::exp(S::sub(S::get(to, lanes), S::get(whole.as_ptr().add(i), lanes)));
                let p = S::mul(p, S::get(by.as_ptr().add(i), lanes));
                S::put(to, S::sub(p, S::get(hits.as_ptr().add(i), lanes)), lanes);
            });
            visible.hide(key, ds, E::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, assert_close, random};

    /// `(n, before, d, window)`: nothing to see, one key, windows that end inside and outside of the block, several pieces of keys.
    const SIZES: [(usize, usize, usize, usize); 6] =
        [(1, 0, 5, 3), (2, 0, 1, 1), (48, 0, 17, 512), (33, 20, 8, 9), (48, 200, 24, 200), (7, 64, 33, 64)];
    const VOCAB: Token = 11;

    type Inputs = (Vec<f64>, Vec<f64>, [Vec<Token>; 2], [Vec<f64>; 2]);

    /// Queries and keys that bf16 holds, the tokens after the keys, targets, and what the columns give of the whole and of the target.
    fn inputs((n, before, d, _): (usize, usize, usize, usize)) -> Inputs {
        let l = before + n - 1;
        let of = |len, seed| random::<f32>(len, seed).iter().map(|x| Bf16::from_f32(*x).to_f32().into()).collect();
        let tokens = |len, seed| random::<f32>(len, seed).iter().map(|x| (x.abs() * 1e4) as Token % VOCAB).collect();
        let columns: Vec<f64> = random::<f32>(n, 5).iter().map(|&x| f64::from(x)).collect();
        let less = columns.iter().map(|x| x - 1.5).collect();
        (of(n * d, 1), of(l * d, 2), [tokens(l, 3), tokens(n, 4)], [columns, less])
    }

    /// `all`, `own`, and the sum of the losses.
    fn plain(
        q: &[f64],
        k: &[f64],
        [next, targets]: &[Vec<Token>; 2],
        [columns, own]: &[Vec<f64>; 2],
        (n, before, d, window): (usize, usize, usize, usize),
    ) -> (Vec<f64>, Vec<f64>, f64) {
        let (mut all, mut at, mut loss) = (Vec::new(), Vec::new(), 0.0);
        for i in 0..n {
            let (mut sum, mut hit) = (0.0, 0.0);
            for c in (before + i).saturating_sub(window)..before + i {
                let mass = (0..d).map(|j| q[i * d + j] * k[c * d + j]).sum::<f64>().exp();
                sum += mass;
                hit += if next[c] == targets[i] { mass } else { 0.0 };
            }
            loss += (sum + columns[i].exp()).ln() - (hit + own[i].exp()).ln();
            all.push(sum.ln());
            at.push(hit.ln());
        }
        (all, at, loss)
    }

    #[test]
    fn masses_and_gradients_equal_plain_loops_and_finite_differences() {
        near_plain_loops::<f32>(2e-6, 1e-5);
        near_plain_loops::<Bf16>(2e-6, 4e-3);
    }

    fn near_plain_loops<A: Store<E = f32>>(forward: f64, backward: f64) {
        let f32s = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        for sizes in SIZES {
            let (n, before, d, window) = sizes;
            let l = before + n - 1;
            let (q, k, tokens, columns) = inputs(sizes);
            let (all, own, _) = plain(&q, &k, &tokens, &columns, sizes);
            let add = |a: f64, b: f64| (a.exp() + b.exp()).ln();
            let both = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(&a, &b)| add(a, b) as f32).collect::<Vec<f32>>();
            let (whole, hit) = (both(&all, &columns[0]), both(&own, &columns[1]));
            let slopes = |of: &[f64], loss: &dyn Fn(&[f64]) -> f64| -> Vec<f32> {
                let (mut of, len) = (of.to_vec(), of.len());
                let h = 1e-4;
                let mut slope = |i: usize| {
                    let x = of[i];
                    let [more, less] = [x + h, x - h].map(|x| {
                        of[i] = x;
                        loss(&of)
                    });
                    of[i] = x;
                    (0.25 * (more - less) / (2.0 * h)) as f32
                };
                (0..len).map(&mut slope).collect()
            };
            let want_q = slopes(&q, &|q| plain(q, &k, &tokens, &columns, sizes).2);
            let want_k = slopes(&k, &|k| plain(&q, k, &tokens, &columns, sizes).2);
            all_isas(|cx| {
                let (q, k) = (f32s(&q), f32s(&k));
                let seen = Seen { queries: &q, keys: &k, next: &tokens[0], before, window, d };
                let (mut got, mut at) = (vec![f32::NAN; n], vec![f32::NAN; n]);
                let (mut work, mut room) = (vec![f32::NAN; pointer_work(n, l)], vec![A::NAN; pointer_room(n, d)]);
                pointer_forward(cx, (&mut got, &mut at), seen, &tokens[1], &mut work, &mut room);
                for (got, want) in got.iter().chain(&at).zip(all.iter().chain(&own)) {
                    assert!(f64::from(*got) == *want || (f64::from(*got) - want).abs() < forward * want.abs().max(1.0));
                }
                let (mut dq, mut dk) = (vec![f32::NAN; n * d], vec![0.0; l * d]);
                let sums = (&whole[..], &hit[..]);
                pointer_backward(cx, (&mut dq, &mut dk), seen, &tokens[1], sums, 0.25, &mut work, &mut room);
                assert_close(&dq, &want_q, backward, &format!("dq of {sizes:?}"));
                assert_close(&dk, &want_k, backward, &format!("dk of {sizes:?}"));
                // A query without a target has no gradient.
                let nothing = vec![f32::INFINITY; n];
                pointer_backward(
                    cx,
                    (&mut dq, &mut dk),
                    seen,
                    &tokens[1],
                    (&nothing, &nothing),
                    0.25,
                    &mut work,
                    &mut room,
                );
                assert!(dq.iter().all(|&dq| dq == 0.0));
            });
        }
    }
}
