//! Gated linear unit: `y = act(g) * u`, with `silu(g) = g s`, `s = sigmoid(g)` (arXiv 2002.05202), or
//! `relu2(g) = max(g, 0)^2` (arXiv 2109.08668).
//!
//! All run on the calling thread, for one tile of rows. Backward: `du = dy * act(g)`, `dg = dy * u * act'(g)`, with
//! `silu'(g) = s (1 + g (1 - s))` and `relu2'(g) = 2 max(g, 0)`.

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};

/// What the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `g sigmoid(g)`.
    Silu,
    /// `max(g, 0)^2`.
    Relu2,
}

/// `act(g)` and its derivative; bodies are compiled for each activation, and what one does not use is left out.
#[inline(always)]
unsafe fn gate<S: Simd, const RELU2: bool>(g: S::V) -> (S::V, S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        if RELU2 {
            // NaN stays NaN in this order.
            let r = S::max(S::splat(S::E::ZERO), g);
            return (S::mul(r, r), S::add(r, r));
        }
        let (one, s) = (S::splat(S::E::ONE), S::sigmoid(g));
        (S::mul(g, s), S::mul(s, S::fma(g, S::sub(one, s), one)))
    }
}

/// `y = act(g) * u`, all of one length; keeps `g` and `u` in `saved_g` and `saved_u`.
pub fn glu_forward<A: Store>(
    cx: &Exec,
    y: &mut [A],
    saved_g: &mut [A],
    saved_u: &mut [A],
    g: &[A::E],
    u: &[A::E],
    activation: Activation,
) {
    let n = y.len();
    assert!(saved_g.len() == n && saved_u.len() == n && g.len() == n && u.len() == n);
    let _time = time(cx, "glu_forward", (0, 0), Work::Bytes((n * (3 * size_of::<A>() + 2 * size_of::<A::E>())) as f64));
    match activation {
        Activation::Silu => cx.op(Forward::<A, false> { y, saved_g, saved_u, g, u }),
        Activation::Relu2 => cx.op(Forward::<A, true> { y, saved_g, saved_u, g, u }),
    }
}

struct Forward<'a, A: Store, const RELU2: bool> {
    y: &'a mut [A],
    saved_g: &'a mut [A],
    saved_u: &'a mut [A],
    g: &'a [A::E],
    u: &'a [A::E],
}

impl<A: Store, const RELU2: bool> Op<A::E> for Forward<'_, A, RELU2> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.y.len(), |i, n| unsafe {
            let (g, u) = (S::get(self.g.as_ptr().add(i), n), S::get(self.u.as_ptr().add(i), n));
            A::put::<S>(self.saved_g.as_mut_ptr().add(i), g, n);
            A::put::<S>(self.saved_u.as_mut_ptr().add(i), u, n);
            A::put::<S>(self.y.as_mut_ptr().add(i), S::mul(gate::<S, RELU2>(g).0, u), n);
        });
    }
}

/// `y = act(g) * u` again from what was kept, the same that [`glu_backward`] makes.
pub fn glu_again<A: Store>(cx: &Exec, y: &mut [A], g: &[A], u: &[A], activation: Activation) {
    let n = y.len();
    assert!(g.len() == n && u.len() == n);
    let _time = time(cx, "glu_again", (0, 0), Work::Bytes((3 * n * size_of::<A>()) as f64));
    match activation {
        Activation::Silu => cx.op(Again::<A, false> { y, g, u }),
        Activation::Relu2 => cx.op(Again::<A, true> { y, g, u }),
    }
}

struct Again<'a, A: Store, const RELU2: bool> {
    y: &'a mut [A],
    g: &'a [A],
    u: &'a [A],
}

impl<A: Store, const RELU2: bool> Op<A::E> for Again<'_, A, RELU2> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.y.len(), |i, n| unsafe {
            let (g, u) = (A::get::<S>(self.g.as_ptr().add(i), n), A::get::<S>(self.u.as_ptr().add(i), n));
            A::put::<S>(self.y.as_mut_ptr().add(i), S::mul(gate::<S, RELU2>(g).0, u), n);
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
    activation: Activation,
) {
    let n = y.len();
    assert!(dg.len() == n && du.len() == n && dy.len() == n && g.len() == n && u.len() == n);
    let _time = time(cx, "glu_backward", (0, 0), Work::Bytes((n * (5 * size_of::<A>() + size_of::<A::E>())) as f64));
    match activation {
        Activation::Silu => cx.op(Backward::<A, false> { dg, du, y, dy, g, u }),
        Activation::Relu2 => cx.op(Backward::<A, true> { dg, du, y, dy, g, u }),
    }
}

struct Backward<'a, A: Store, const RELU2: bool> {
    dg: &'a mut [A],
    du: &'a mut [A],
    y: &'a mut [A],
    dy: &'a [A::E],
    g: &'a [A],
    u: &'a [A],
}

impl<A: Store, const RELU2: bool> Op<A::E> for Backward<'_, A, RELU2> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        // SAFETY: offsets are below the common length.
        each!(S, self.y.len(), |i, n| unsafe {
            let dy = S::get(self.dy.as_ptr().add(i), n);
            let (g, u) = (A::get::<S>(self.g.as_ptr().add(i), n), A::get::<S>(self.u.as_ptr().add(i), n));
            let (value, slope) = gate::<S, RELU2>(g);
            A::put::<S>(self.y.as_mut_ptr().add(i), S::mul(value, u), n);
            A::put::<S>(self.du.as_mut_ptr().add(i), S::mul(dy, value), n);
            A::put::<S>(self.dg.as_mut_ptr().add(i), S::mul(S::mul(dy, u), slope), n);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, assert_close, random};

    /// `act(g)` and its derivative, written down once more.
    fn plain(activation: Activation, g: f64) -> (f64, f64) {
        match activation {
            Activation::Silu => {
                let s = 1.0 / (1.0 + (-g).exp());
                (g * s, s * (1.0 + g * (1.0 - s)))
            }
            Activation::Relu2 if g > 0.0 => (g * g, 2.0 * g),
            Activation::Relu2 => (0.0, 0.0),
        }
    }

    #[test]
    fn equals_plain_loops() {
        all_isas(|cx| {
            for (activation, n) in [Activation::Silu, Activation::Relu2]
                .into_iter()
                .flat_map(|activation| (0..130).chain([1023, 1025, 4100]).map(move |n| (activation, n)))
            {
                let g: Vec<f32> = random(n, 1).iter().map(|g: &f32| g * 20.0).collect();
                let (u, dy): (Vec<f32>, Vec<f32>) = (random(n, 2), random(n, 3));
                let nan = || vec![f32::NAN; n];
                let (mut y, mut saved_g, mut saved_u) = (nan(), nan(), nan());
                let (mut dg, mut du, mut again) = (nan(), nan(), nan());
                glu_forward(cx, &mut y, &mut saved_g, &mut saved_u, &g, &u, activation);
                assert!(saved_g == g && saved_u == u);
                glu_again(cx, &mut again, &g, &u, activation);
                assert_eq!(y, again);
                again.fill(f32::NAN);
                glu_backward(cx, &mut dg, &mut du, &mut again, &dy, &g, &u, activation);
                assert_eq!(y, again);
                let per = |f: &dyn Fn((f64, f64), f64, f64) -> f64| -> Vec<f32> {
                    (0..n)
                        .map(|i| f(plain(activation, f64::from(g[i])), f64::from(u[i]), f64::from(dy[i])) as f32)
                        .collect()
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
            for activation in [Activation::Silu, Activation::Relu2] {
                let (g, u) = ([f32::NAN; 19], [1.0; 19]);
                let (mut y, mut saved_g, mut saved_u) = ([0.0f32; 19], [0.0; 19], [0.0; 19]);
                glu_forward(cx, &mut y, &mut saved_g, &mut saved_u, &g, &u, activation);
                assert!(y.iter().all(|y| y.is_nan()), "{activation:?}");
            }
        });
    }
}
