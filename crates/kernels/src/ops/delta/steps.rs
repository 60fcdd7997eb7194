//! The delta rule token by token, as the recurrence in [`super`] stands.

use super::rule::{Rule, Sizes};
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, each};
use crate::size::area;

/// `n` tokens one by one: `o: [n, dv]` and the state after them in `s: [dk, dv]`. Every token costs the same, and gives the same
/// bits wherever a text is cut.
pub fn delta_steps<E: Elem>(
    cx: &Exec,
    o: &mut [E],
    s: &mut [E],
    kq: &[E],
    v: &[E],
    (g, beta): (&[E], &[E]),
    rule: Rule,
    (n, dk, dv): Sizes,
) {
    assert!(
        o.len() == area([n, dv]) && s.len() == area([dk, dv]) && kq.len() == area([2, n, dk]) && v.len() == o.len()
    );
    assert!(g.len() == n && beta.len() == n);
    let _time = time(cx, "delta_steps", (dk, dv), Work::Flops((6 * n * dk * dv) as f64));
    cx.op(Steps { o, s, kq, v, g, beta, canonical: rule == Rule::Canonical, dk, dv });
}

struct Steps<'a, E> {
    o: &'a mut [E],
    s: &'a mut [E],
    kq: &'a [E],
    v: &'a [E],
    g: &'a [E],
    beta: &'a [E],
    canonical: bool,
    dk: usize,
    dv: usize,
}

impl<E: Elem> Op<E> for Steps<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Steps { o, s, kq, v, g, beta, canonical, dk, dv } = self;
        let n = g.len();
        for t in 0..n {
            let (k, q) = (kq[t * dk..].as_ptr(), kq[(n + t) * dk..].as_ptr());
            // SAFETY: sizes were checked by the caller.
            each!(S, dv, |j, lanes| unsafe {
                let alpha = S::exp(S::splat(g[t]));
                let seen = if canonical { alpha } else { S::splat(E::ONE) };
                let column = s.as_mut_ptr().add(j);
                let mut held = S::splat(E::ZERO);
                for i in 0..dk {
                    held = S::fma(S::get(column.add(i * dv), lanes), S::splat(*k.add(i)), held);
                }
                let v = S::get(v.as_ptr().add(t * dv + j), lanes);
                let u = S::mul(S::splat(beta[t]), S::sub(v, S::mul(seen, held)));
                let mut out = S::splat(E::ZERO);
                for i in 0..dk {
                    let new = S::fma(S::splat(*k.add(i)), u, S::mul(alpha, S::get(column.add(i * dv), lanes)));
                    S::put(column.add(i * dv), new, lanes);
                    out = S::fma(new, S::splat(*q.add(i)), out);
                }
                S::put(o.as_mut_ptr().add(t * dv + j), out, lanes);
            });
        }
    }
}
