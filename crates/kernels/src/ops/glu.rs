//! Gated linear unit: `y = silu(g) * u`, `silu(g) = g * s`, `s = sigmoid(g)`.
//!
//! Both run on the calling thread, for one tile of rows. Backward: `du = dy * g s`, `dg = dy * u * s (1 + g (1 - s))`.

use crate::dispatch::Op;
use crate::elem::Elem;
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Simd, each};
use crate::store::Store;

/// `y = silu(g) * u`, all of one length; keeps `g` and `u` in `saved_g` and `saved_u`.
pub fn glu_forward<A: Store>(cx: &Exec, y: &mut [A], saved_g: &mut [A], saved_u: &mut [A], g: &[A::E], u: &[A::E]) {
    let n = y.len();
    assert!(saved_g.len() == n && saved_u.len() == n && g.len() == n && u.len() == n);
    let _time = time(cx, "glu_forward", (0, 0), Work::Bytes((n * (3 * size_of::<A>() + 2 * size_of::<A::E>())) as f64));
    cx.op(Forward { y, saved_g, saved_u, g, u });
}

struct Forward<'a, A: Store> {
    y: &'a mut [A],
    saved_g: &'a mut [A],
    saved_u: &'a mut [A],
    g: &'a [A::E],
    u: &'a [A::E],
}

impl<A: Store> Op<A::E> for Forward<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.y.len(), |i, n| unsafe {
            let (g, u) = (S::get(self.g.as_ptr().add(i), n), S::get(self.u.as_ptr().add(i), n));
            A::put::<S>(self.saved_g.as_mut_ptr().add(i), g, n);
            A::put::<S>(self.saved_u.as_mut_ptr().add(i), u, n);
            A::put::<S>(self.y.as_mut_ptr().add(i), S::mul(S::mul(g, S::sigmoid(g)), u), n);
        });
    }
}

/// Overwrites `dg` and `du` from `dy`, `g`, `u`, and makes `y` again, all of one length.
pub fn glu_backward<A: Store>(cx: &Exec, dg: &mut [A], du: &mut [A], y: &mut [A], dy: &[A::E], g: &[A], u: &[A]) {
    let n = y.len();
    assert!(dg.len() == n && du.len() == n && dy.len() == n && g.len() == n && u.len() == n);
    let _time = time(cx, "glu_backward", (0, 0), Work::Bytes((n * (5 * size_of::<A>() + size_of::<A::E>())) as f64));
    cx.op(Backward { dg, du, y, dy, g, u });
}

struct Backward<'a, A: Store> {
    dg: &'a mut [A],
    du: &'a mut [A],
    y: &'a mut [A],
    dy: &'a [A::E],
    g: &'a [A],
    u: &'a [A],
}

impl<A: Store> Op<A::E> for Backward<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.y.len(), |i, n| unsafe {
            let one = S::splat(A::E::ONE);
            let dy = S::get(self.dy.as_ptr().add(i), n);
            let (g, u) = (A::get::<S>(self.g.as_ptr().add(i), n), A::get::<S>(self.u.as_ptr().add(i), n));
            let s = S::sigmoid(g);
            let silu = S::mul(g, s);
            A::put::<S>(self.y.as_mut_ptr().add(i), S::mul(silu, u), n);
            A::put::<S>(self.du.as_mut_ptr().add(i), S::mul(dy, silu), n);
            let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
            A::put::<S>(self.dg.as_mut_ptr().add(i), S::mul(S::mul(dy, u), slope), n);
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
                let nan = || vec![f32::NAN; n];
                let (mut y, mut saved_g, mut saved_u) = (nan(), nan(), nan());
                let (mut dg, mut du, mut again) = (nan(), nan(), nan());
                glu_forward(cx, &mut y, &mut saved_g, &mut saved_u, &g, &u);
                assert!(saved_g == g && saved_u == u);
                glu_backward(cx, &mut dg, &mut du, &mut again, &dy, &g, &u);
                assert_eq!(y, again);
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
