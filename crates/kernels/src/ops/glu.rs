//! Gated linear unit: `y = silu(g) * u`, `silu(g) = g * s`, `s = sigmoid(g)`.
//!
//! Backward: `du = dy * g s`, `dg = dy * u * s (1 + g (1 - s))`.

use crate::dispatch::Op;
use crate::elem::Elem;
use crate::exec::{Exec, Shared};
use crate::simd::{Simd, each};

/// Elements of one thread's share are cut at multiples of this.
const ALIGN: usize = 1024;

/// `y = silu(g) * u`, all of one length.
pub fn glu_forward<E: Elem>(cx: &Exec, y: &mut [E], g: &[E], u: &[E]) {
    assert!(y.len() == g.len() && g.len() == u.len());
    let y = Shared::new(y);
    cx.pool().split(g.len(), ALIGN, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let y = unsafe { y.range(r.clone()) };
        cx.op(Forward { y, g: &g[r.clone()], u: &u[r] });
    });
}

struct Forward<'a, E> {
    y: &'a mut [E],
    g: &'a [E],
    u: &'a [E],
}

impl<E: Elem> Op<E> for Forward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.y.len(), |i, n| unsafe {
            let (g, u) = (S::get(self.g.as_ptr().add(i), n), S::get(self.u.as_ptr().add(i), n));
            S::put(self.y.as_mut_ptr().add(i), S::mul(S::mul(g, S::sigmoid(g)), u), n);
        });
    }
}

/// Overwrites `dg` and `du` from `dy`, `g`, `u`, all of one length.
pub fn glu_backward<E: Elem>(cx: &Exec, dg: &mut [E], du: &mut [E], dy: &[E], g: &[E], u: &[E]) {
    assert!(dg.len() == g.len() && du.len() == g.len() && dy.len() == g.len() && u.len() == g.len());
    let (dg, du) = (Shared::new(dg), Shared::new(du));
    cx.pool().split(g.len(), ALIGN, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let (dg, du) = unsafe { (dg.range(r.clone()), du.range(r.clone())) };
        cx.op(Backward { dg, du, dy: &dy[r.clone()], g: &g[r.clone()], u: &u[r] });
    });
}

struct Backward<'a, E> {
    dg: &'a mut [E],
    du: &'a mut [E],
    dy: &'a [E],
    g: &'a [E],
    u: &'a [E],
}

impl<E: Elem> Op<E> for Backward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.dy.len(), |i, n| unsafe {
            let one = S::splat(E::ONE);
            let dy = S::get(self.dy.as_ptr().add(i), n);
            let (g, u) = (S::get(self.g.as_ptr().add(i), n), S::get(self.u.as_ptr().add(i), n));
            let s = S::sigmoid(g);
            S::put(self.du.as_mut_ptr().add(i), S::mul(dy, S::mul(g, s)), n);
            let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
            S::put(self.dg.as_mut_ptr().add(i), S::mul(S::mul(dy, u), slope), n);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_plain_loops() {
        all_isas(|cx| {
            for n in (0..130).chain([1023, 1025, 4100]) {
                let g: Vec<f32> = random(n, 1).iter().map(|g: &f32| g * 20.0).collect();
                let (u, dy): (Vec<f32>, Vec<f32>) = (random(n, 2), random(n, 3));
                let (mut y, mut dg, mut du) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
                glu_forward(cx, &mut y, &g, &u);
                glu_backward(cx, &mut dg, &mut du, &dy, &g, &u);
                let per = |f: &dyn Fn(f64, f64, f64, f64) -> f64| -> Vec<f32> {
                    (0..n)
                        .map(|i| {
                            let g = f64::from(g[i]);
                            f(g, 1.0 / (1.0 + (-g).exp()), f64::from(u[i]), f64::from(dy[i])) as f32
                        })
                        .collect()
                };
                assert_close(&y, &per(&|g, s, u, _| g * s * u), 1e-6, "y");
                assert_close(&dg, &per(&|g, s, u, dy| dy * u * s * (1.0 + g * (1.0 - s))), 1e-6, "dg");
                assert_close(&du, &per(&|g, s, _, dy| dy * g * s), 1e-6, "du");
            }
        });
    }
}
