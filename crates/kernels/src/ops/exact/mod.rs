//! Float arithmetic whose bits are the same on every ISA, for the packed runtime: plain Rust that each ISA compiles for
//! itself inside an [`crate::Op`].
//!
//! Products and sums are rounded one by one (Rust never contracts them to a fused multiply-add). A sum over a row goes in
//! 16 lanes, lane `i` taking the elements `i, i + 16, ..` in order, and then in halves: lane `i` plus lane `i + 8`, and so on.
//! Nothing calls the platform's mathematics.

use crate::simd::Simd;

pub mod attention;
pub mod choose;
pub mod conv;
pub mod delta;
pub mod pointer;
pub mod rows;

/// 16 lanes: one register of AVX-512, two of AVX2, four of NEON or SSE2.
pub(crate) type Lanes = [f32; 16];

/// `1.5 * 2^23`: adding it rounds a small number to an integer, halves to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// The nearest integer of `|x| < 2^22`, halves to even.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// `exp(x)`: `2^n p(r)`, `x = n ln 2 + r`, with the polynomial of [`crate::simd::exp_f32`] (relative error below 2e-7); the
/// argument is clamped to [-87.33, 88.37], NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x > 88.37 { 88.37 } else { x };
    let x = if x < -87.33 { -87.33 } else { x };
    let t = x * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.383_684_6e-3;
    p = p * r + 8.374_816e-3;
    p = p * r + 4.166_822_5e-2;
    p = p * r + 0.166_664_2;
    p = p * r + 0.499_999_9;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let bits = (t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).wrapping_add(127) << 23;
    p * f32::from_bits(bits as u32)
}

/// `ln x` of a normal `x > 0`, to some 1e-7: `x = 2^n (1 + f)` with `1 + f` between the roots of 1/2 and 2, and a polynomial in `f` (Moshier,
/// Cephes, `logf`).
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    let bits = x.to_bits() as i32;
    // The bits of the root of 1/2.
    let n = (bits - 0x3f35_04f3) >> 23;
    let f = f32::from_bits((bits - (n << 23)) as u32) - 1.0;
    let n = n as f32;
    let mut p = 7.037_683_6e-2;
    p = p * f - 0.115_146_1;
    p = p * f + 0.116_769_99;
    p = p * f - 0.124_201_41;
    p = p * f + 0.142_493_23;
    p = p * f - 0.166_680_58;
    p = p * f + 0.200_007_15;
    p = p * f - 0.249_999_94;
    p = p * f + 0.333_333_3;
    let square = f * f;
    n * 0.693_359_4 + (f + (n * -2.121_944_4e-4 - 0.5 * square + square * f * p))
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The sum of the lanes, in halves.
#[inline(always)]
pub(crate) fn sum(mut lanes: Lanes) -> f32 {
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `sum_i x_i y_i` of two slices of one length.
///
/// # Safety
/// The machine supports `S`.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd<E = f32>>(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    let mut lanes: Lanes = [0.0; 16];
    // SAFETY: the caller's promise; `at + i` is a place in both slices, as many as `n` of which are left there.
    unsafe {
        // As many of these as 16 lanes are vectors.
        let mut acc = [S::splat(0.0); 16];
        for at in (0..x.len()).step_by(16) {
            for i in (0..16.min(x.len() - at)).step_by(S::LANES) {
                let (n, acc) = (S::LANES.min(x.len() - at - i), &mut acc[i / S::LANES]);
                // What is missing adds 0 to a sum that is never -0.
                *acc = S::add(*acc, S::mul(S::get(x.as_ptr().add(at + i), n), S::get(y.as_ptr().add(at + i), n)));
            }
        }
        for i in (0..16).step_by(S::LANES) {
            S::store(lanes.as_mut_ptr().add(i), acc[i / S::LANES]);
        }
    }
    sum(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Isa;
    use crate::simd::{Op, Simd, Units};
    use crate::testing::random;

    struct All<'a>(&'a [f32]);

    impl Op<f32> for All<'_> {
        type Out = Vec<u32>;
        #[inline(always)]
        unsafe fn run<S: Simd<E = f32>>(self) -> Vec<u32> {
            let mut out: Vec<f32> = self.0.iter().map(|&x| exp(x)).collect();
            out.extend(self.0.iter().map(|&x| sigmoid(x)));
            for n in 0..self.0.len() {
                // SAFETY: the caller's promise.
                out.push(unsafe { dot::<S>(&self.0[..n], &self.0[self.0.len() - n..]) });
            }
            out.into_iter().map(f32::to_bits).collect()
        }
    }

    #[test]
    fn every_isa_has_the_same_bits() {
        let mut x: Vec<f32> = random(4000, 7);
        x.iter_mut().enumerate().for_each(|(i, x)| *x *= (i % 97) as f32);
        x.extend([f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-40, 88.4, -87.4, 1e30]);
        let want = Isa::SCALAR.f32(All(&x));
        for isa in Isa::available() {
            assert!(isa.f32(All(&x)) == want, "{isa:?}");
        }
    }

    #[test]
    fn exp_is_near_that_of_f64() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 2e-7, "{worst}");
        assert!(exp(f32::NAN).is_nan() && exp(f32::NEG_INFINITY) < 1.3e-38 && exp(100.0).is_finite());
    }

    #[test]
    fn ln_is_near_that_of_f64() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = (f64::from(i) * 1e-3).exp() as f32;
            let want = f64::from(x).ln();
            worst = worst.max((f64::from(ln(x)) - want).abs() / want.abs().max(1.0));
        }
        assert!(worst < 2e-7, "{worst}");
    }

    #[test]
    fn nearest_takes_halves_to_even() {
        for i in -10_000..10_000 {
            let x = i as f32 * 0.25;
            assert_eq!(nearest(x), x.round_ties_even() as i32, "{x}");
        }
    }
}
