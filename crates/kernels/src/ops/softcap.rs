//! Soft cap of logits (Gemma 2, arXiv 2408.00118): `y = c tanh(z / c)`, in place, so `|y| <= c`.
//!
//! The derivative is `1 - (y / c)^2`: the capped logit alone is enough for it, and [`super::softmax`] multiplies it in.

use crate::exec::{Exec, Shared};
use crate::ops::reduce::BLOCK;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, each};

/// `z = cap * tanh(z / cap)`.
pub fn softcap<E: Elem>(cx: &Exec, z: &mut [E], cap: E) {
    let _time = time(cx, "softcap", (0, 0), Work::Bytes((2 * size_of_val(z)) as f64));
    let (len, z) = (z.len(), Shared::new(z));
    cx.pool().split(len, BLOCK, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let z = unsafe { z.range(r) };
        cx.op(Softcap { z, cap });
    });
}

struct Softcap<'a, E> {
    z: &'a mut [E],
    cap: E,
}

impl<E: Elem> Op<E> for Softcap<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let z = self.z.as_mut_ptr();
        // SAFETY: offsets are below the length.
        unsafe {
            let (cap, inverse) = (S::splat(self.cap), S::splat(E::ONE / self.cap));
            each!(S, self.z.len(), |i, n| {
                let y = S::mul(cap, S::tanh(S::mul(S::get(z.add(i), n), inverse)));
                S::put(z.add(i), y, n);
            });
        }
    }
}

/// `1 - (y / c)^2` of capped logits `y`, `inverse = 1 / c`.
#[inline(always)]
pub(crate) unsafe fn slope<S: Simd>(y: S::V, inverse: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let t = S::mul(y, inverse);
        S::sub(S::splat(S::E::ONE), S::mul(t, t))
    }
}

/// [`slope`] of one logit; 1 without a cap.
pub(crate) fn slope_at<E: Elem>(y: E, cap: Option<E>) -> E {
    let Some(cap) = cap else { return E::ONE };
    let t = y * (E::ONE / cap);
    E::ONE - t * t
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, random};

    #[test]
    fn equals_tanh_at_every_size_of_argument() {
        all_isas(|cx| {
            for n in (0..70).chain([4100]) {
                for (cap, spread) in [(15.0f32, 60.0), (30.0, 1e-3), (1.0, 1.0), (2.0, 1e30), (50.0, 200.0)] {
                    let z: Vec<f32> = random(n, 1).iter().map(|z: &f32| z * spread).collect();
                    let mut y = z.clone();
                    softcap(cx, &mut y, cap);
                    for (&z, &y) in z.iter().zip(&y) {
                        let want = f64::from(cap) * (f64::from(z) / f64::from(cap)).tanh();
                        let error = (f64::from(y) - want).abs();
                        assert!(error <= 5e-7 * want.abs(), "{y} for {want} at {z}, cap {cap}");
                    }
                }
            }
            let mut y = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
            softcap(cx, &mut y, 3.0);
            assert!(y[0].is_nan() && y[1..] == [3.0, -3.0, 0.0], "{y:?}");
        });
    }

    #[test]
    fn the_slope_is_the_derivative() {
        let cx = &Exec::new(crate::Isa::SCALAR, 1);
        let (cap, h) = (3.0f64, 1e-6);
        for z in [-9.0, -2.0, -0.1, 0.0, 0.7, 4.0] {
            let mut y = [z - h, z, z + h];
            softcap(cx, &mut y, cap);
            let want = (y[2] - y[0]) / (2.0 * h);
            // SAFETY: one lane runs anywhere.
            let got = unsafe { slope::<crate::isa::scalar::Scalar<f64>>(y[1], 1.0 / cap) };
            assert!((got - want).abs() < 1e-9, "{got} for {want} at {z}");
            assert_eq!(got, slope_at(y[1], Some(cap)));
        }
        assert_eq!(slope_at(5.0, None), 1.0);
    }
}
