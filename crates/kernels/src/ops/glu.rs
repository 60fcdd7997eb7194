//! Gated linear unit: `y = act(g) * u`, `act` as in [`super::act`]; [`super::gate_forward`] makes `y` again from what was kept.
//!
//! All run on the calling thread, for one tile of rows. Backward: `du = dy * act(g)`, `dg = dy * u * act'(g)`.

use crate::exec::Exec;
use crate::ops::act::{Act, Known, for_act};
use crate::profile::{Work, time};
use crate::simd::{Op, Simd, Store, each};

/// `y = act(g) * u`, all of one length; keeps `g` and `u` in `saved_g` and `saved_u`.
pub fn glu_forward<A: Store>(
    cx: &Exec,
    y: &mut [A],
    saved_g: &mut [A],
    saved_u: &mut [A],
    g: &[A::E],
    u: &[A::E],
    act: Act,
) {
    let n = y.len();
    assert!(saved_g.len() == n && saved_u.len() == n && g.len() == n && u.len() == n);
    let _time = time(cx, "glu_forward", (0, 0), Work::Bytes((n * (3 * size_of::<A>() + 2 * size_of::<A::E>())) as f64));
    for_act!(act, cx.op(Forward { y, saved_g, saved_u, g, u, act }));
}

struct Forward<'a, A: Store, F> {
    y: &'a mut [A],
    saved_g: &'a mut [A],
    saved_u: &'a mut [A],
    g: &'a [A::E],
    u: &'a [A::E],
    act: F,
}

impl<A: Store, F: Known> Op<A::E> for Forward<'_, A, F> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.y.len(), |i, n| unsafe {
            let (g, u) = (S::get(self.g.as_ptr().add(i), n), S::get(self.u.as_ptr().add(i), n));
            A::put::<S>(self.saved_g.as_mut_ptr().add(i), g, n);
            A::put::<S>(self.saved_u.as_mut_ptr().add(i), u, n);
            A::put::<S>(self.y.as_mut_ptr().add(i), S::mul(self.act.of::<S>(g).0, u), n);
        });
    }
}

/// Overwrites `dg` and `du` from `dy`, `g`, `u`, and makes `y` again, all of one length.
pub fn glu_backward<A: Store>(
    cx: &Exec,
    dg: &mut [A],
    du: &mut [A],
    y: &mut [A],
    dy: &[A::E],
    g: &[A],
    u: &[A],
    act: Act,
) {
    let n = y.len();
    assert!(dg.len() == n && du.len() == n && dy.len() == n && g.len() == n && u.len() == n);
    let _time = time(cx, "glu_backward", (0, 0), Work::Bytes((n * (5 * size_of::<A>() + size_of::<A::E>())) as f64));
    for_act!(act, cx.op(Backward { dg, du, y, dy, g, u, act }));
}

struct Backward<'a, A: Store, F> {
    dg: &'a mut [A],
    du: &'a mut [A],
    y: &'a mut [A],
    dy: &'a [A::E],
    g: &'a [A],
    u: &'a [A],
    act: F,
}

impl<A: Store, F: Known> Op<A::E> for Backward<'_, A, F> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.y.len(), |i, n| unsafe {
            let dy = S::get(self.dy.as_ptr().add(i), n);
            let (g, u) = (A::get::<S>(self.g.as_ptr().add(i), n), A::get::<S>(self.u.as_ptr().add(i), n));
            let (value, slope) = self.act.of::<S>(g);
            A::put::<S>(self.y.as_mut_ptr().add(i), S::mul(value, u), n);
            A::put::<S>(self.du.as_mut_ptr().add(i), S::mul(dy, value), n);
            A::put::<S>(self.dg.as_mut_ptr().add(i), S::mul(S::mul(dy, u), slope), n);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::act::testing::plain;
    use crate::ops::gate_forward;
    use crate::testing::{all_isas, assert_close, random};

    /// Those of models. Far from 0, where the slope of the sigmoid is nothing but rounding, it has no test here.
    const ACTS: [Act; 2] = [Act::Silu, Act::Relu2];

    #[test]
    fn equals_plain_loops() {
        all_isas(|cx| {
            for (act, n) in ACTS.into_iter().flat_map(|act| (0..130).chain([1023, 1025, 4100]).map(move |n| (act, n))) {
                let g: Vec<f32> = random(n, 1).iter().map(|g: &f32| g * 20.0).collect();
                let (u, dy): (Vec<f32>, Vec<f32>) = (random(n, 2), random(n, 3));
                let nan = || vec![f32::NAN; n];
                let (mut y, mut saved_g, mut saved_u) = (nan(), nan(), nan());
                let (mut dg, mut du, mut again) = (nan(), nan(), nan());
                glu_forward(cx, &mut y, &mut saved_g, &mut saved_u, &g, &u, act);
                assert!(saved_g == g && saved_u == u);
                gate_forward(cx, &mut again, &g, &u, act);
                assert_eq!(y, again);
                again.fill(f32::NAN);
                glu_backward(cx, &mut dg, &mut du, &mut again, &dy, &g, &u, act);
                assert_eq!(y, again);
                let per = |f: &dyn Fn((f64, f64), f64, f64) -> f64| -> Vec<f32> {
                    (0..n).map(|i| f(plain(act, f64::from(g[i])), f64::from(u[i]), f64::from(dy[i])) as f32).collect()
                };
                assert_close(&y, &per(&|(act, _), u, _| act * u), 1e-6, "y");
                assert_close(&dg, &per(&|(_, slope), u, dy| dy * u * slope), 1e-6, "dg");
                assert_close(&du, &per(&|(act, _), _, dy| dy * act), 1e-6, "du");
            }
        });
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        all_isas(|cx| {
            for act in ACTS {
                let (g, u) = ([f32::NAN; 19], [1.0; 19]);
                let (mut y, mut saved_g, mut saved_u) = ([0.0f32; 19], [0.0; 19], [0.0; 19]);
                glu_forward(cx, &mut y, &mut saved_g, &mut saved_u, &g, &u, act);
                assert!(y.iter().all(|y| y.is_nan()), "{act:?}");
            }
        });
    }
}
