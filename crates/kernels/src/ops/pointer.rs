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
    operand_room(d.max(n), KEYS).max(operand_room(KEYS, d.max(n))) + 2 * operand_room(d.max(n), d.max(n)) + operand_room(KEYS, d)
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
    let scale = E::from_f64(scale);
    let mut room = &mut *room;
    let turned = Right::new(cx, &mut room, Strided::transposed(seen.queries, d), (d, n));
    let queries = Right::new(cx, &mut room, Strided::rows(seen.queries, d), (n, d));
    let for_k = cut(&mut room, operand_room(KEYS, d));
    dq.fill(E::ZERO);
    for first in (0..l).step_by(KEYS) {
        let m = KEYS.min(l - first);
        let cells = first * d..(first + m) * d;
        let (keys, next) = (&seen.keys[cells.clone()], &seen.next[first..first + m]);
        let (hits, ds) = work.split_at_mut(n);
        let ds = &mut ds[..area([m, n])];
        turned.product(cx, (ds, n), Strided::rows(keys, d), m, Triangle::None, false, room);
        cx.op(Gradient { ds, hits, whole, hit, next, targets, scale, visible: seen.visible(first, n) });
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
    whole: &'a [E],
    hit: &'a [E],
    next: &'a [Token],
    targets: &'a [Token],
    scale: E,
    visible: Visible,
}

impl<E: Elem> Op<E> for Gradient<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Gradient { ds, hits, whole, hit, next, targets, scale, visible } = self;
        let n = whole.len();
        for ((key, ds), next) in (visible.first..).zip(ds.chunks_exact_mut(n)).zip(next) {
            for i in 0..n {
                let at = targets[i] == *next;
                hits[i] = if at { scale * E::from_f64((ds[i].to_f64() - hit[i].to_f64()).exp()) } else { E::ZERO };
            }
            // SAFETY: offsets are inside of rows of `n`.
            each!(S, n, |i, lanes| unsafe {
                let to = ds.as_mut_ptr().add(i);
                let p = S::exp(S::sub(S::get(to, lanes), S::get(whole.as_ptr().add(i), lanes)));
                let p = S::mul(p, S::splat(scale));
                S::put(to, S::sub(p, S::get(hits.as_ptr().add(i), lanes)), lanes);
            });
            visible.hide(key, ds, E::ZERO);
        }
    }
}
