//! What choosing a token takes of its logits: `max_i z_i`, and weights `w_i = exp((z_i - max) / temperature)` with their sum.

use super::{Lanes, exp, sum};
use crate::exec::Exec;
use crate::simd::{Op, Simd};

/// The largest of `z`, -inf of none, NaN where one is.
pub fn exact_max(cx: &Exec, z: &[f32]) -> f32 {
    cx.op(Max { z })
}

struct Max<'a> {
    z: &'a [f32],
}

impl Op<f32> for Max<'_> {
    type Out = f32;
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) -> f32 {
        max(self.z)
    }
}

/// See [`exact_max`]. On the bits as integers, whose largest does not hang on an order: that of numbers below zero is turned.
#[inline(always)]
pub(super) fn max(z: &[f32]) -> f32 {
    let (mut top, mut most) = (turned(f32::NEG_INFINITY.to_bits() as i32), 0);
    for z in z {
        top = top.max(turned(z.to_bits() as i32));
        most = most.max(z.abs().to_bits());
    }
    let nan = f32::from_bits(most).is_nan();
    if nan { f32::NAN } else { f32::from_bits(turned(top) as u32) }
}

/// Bits of a number to an integer in the order of the numbers, and back.
#[inline(always)]
fn turned(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & i32::MAX)
}

/// `w_i = exp((z_i - max) by)`, never below `exp(-87.33)`; returns their sum. `w, z: [n]`.
pub fn exact_weights(cx: &Exec, w: &mut [f32], z: &[f32], max: f32, by: f32) -> f32 {
    assert_eq!(w.len(), z.len());
    cx.op(Weights { w, z, max, by })
}

struct Weights<'a> {
    w: &'a mut [f32],
    z: &'a [f32],
    max: f32,
    by: f32,
}

impl Op<f32> for Weights<'_> {
    type Out = f32;
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) -> f32 {
        let Weights { w, z, max, by } = self;
        let mut acc: Lanes = [0.0; 16];
        let (mut ws, zs) = (w.chunks_exact_mut(16), z.chunks_exact(16));
        let rest = zs.remainder();
        for (w, z) in ws.by_ref().zip(zs) {
            for i in 0..16 {
                w[i] = exp((z[i] - max) * by);
                acc[i] += w[i];
            }
        }
        for (acc, (w, z)) in acc.iter_mut().zip(ws.into_remainder().iter_mut().zip(rest)) {
            *w = exp((z - max) * by);
            *acc += *w;
        }
        sum(acc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, random};

    #[test]
    fn equal_plain_loops_and_have_the_same_bits_on_every_isa() {
        for n in [1, 2, 15, 16, 17, 100, 1000, 10_000] {
            let z: Vec<f32> = random::<f32>(n, n as u64).into_iter().map(|z| z * 9.0).collect();
            let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let want: Vec<f64> = z.iter().map(|z| (f64::from(z - top) / 0.7).exp()).collect();
            let first = std::cell::OnceCell::new();
            all_isas(|cx| {
                assert_eq!(exact_max(cx, &z), top, "{n}");
                let mut w = vec![0.0; n];
                let total = exact_weights(cx, &mut w, &z, top, 1.0 / 0.7);
                assert!(w.iter().zip(&want).all(|(w, want)| (f64::from(*w) - want).abs() < 1e-5 * want + 1e-30));
                let sum: f64 = want.iter().sum();
                assert!((f64::from(total) - sum).abs() < 1e-5 * sum, "{total} for {sum}");
                let bits: Vec<u32> = w.iter().chain([&total]).map(|w| w.to_bits()).collect();
                assert!(*first.get_or_init(|| bits.clone()) == bits, "{n} {:?}", cx.isa());
            });
        }
    }

    #[test]
    fn a_nan_is_found_wherever_it_is() {
        all_isas(|cx| {
            for at in 0..40 {
                let mut z = vec![1.0; 40];
                z[at] = f32::NAN;
                assert!(exact_max(cx, &z).is_nan(), "{at}");
            }
            assert_eq!(exact_max(cx, &[]), f32::NEG_INFINITY);
        });
    }
}
