//! NEON: 4 f32 lanes, 32 registers, matmul tile 8 x 8.

use std::arch::aarch64::*;

use crate::bf16::Bf16;
use crate::dot::{Dot, DotOp};
use crate::simd::{Op, Simd, exp_f32, promised, tanh_f32};

/// 4 lanes of f32.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

with_features! {
    ["neon"] available

    /// Runs an op compiled with NEON.
    pub(crate) fn run<O: Op<f32>>(op: O) -> O::Out {
        // SAFETY: the feature is enabled here.
        unsafe { op.run::<Neon>() }
    }
}

with_features! {
    ["neon" "dotprod"] has_dot

    /// Runs an integer matmul with `sdot`.
    pub(crate) fn run_dot(op: impl DotOp) {
        // SAFETY: the features are enabled here.
        unsafe { op.run::<NeonDot>() }
    }
}

// SAFETY: what is loaded and stored are the lanes named.
unsafe impl Simd for Neon {
    type E = f32;
    type V = float32x4_t;
    // Widened where they are loaded: a splat is then one lane of a register, which `fmla` takes as it is.
    type P = [float32x4_t; 2];
    const LANES: usize = 4;
    const MR: usize = 8;

    promised! {
        fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
        fn load(p: *const f32) -> float32x4_t { vld1q_f32(p) }
        fn store(p: *mut f32, v: float32x4_t) { vst1q_f32(p, v) }
        fn load_n(p: *const f32, n: usize) -> float32x4_t {
            debug_assert!(n < 4);
            let mut v = vdupq_n_f32(0.0);
            if n > 0 {
                v = vld1q_lane_f32::<0>(p, v);
            }
            if n > 1 {
                v = vld1q_lane_f32::<1>(p.add(1), v);
            }
            if n > 2 {
                v = vld1q_lane_f32::<2>(p.add(2), v);
            }
            v
        }
        fn store_n(p: *mut f32, v: float32x4_t, n: usize) {
            debug_assert!(n < 4);
            if n > 0 {
                vst1q_lane_f32::<0>(p, v);
            }
            if n > 1 {
                vst1q_lane_f32::<1>(p.add(1), v);
            }
            if n > 2 {
                vst1q_lane_f32::<2>(p.add(2), v);
            }
        }
        fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t { vsubq_f32(a, b) }
        fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
        fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
        fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
        // `fmax` and `fmin` keep NaN of either side.
        fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t { vbslq_f32(vcgtq_f32(a, b), a, b) }
        fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t { vbslq_f32(vcltq_f32(a, b), a, b) }
        fn abs(a: float32x4_t) -> float32x4_t { vabsq_f32(a) }
        fn sqrt(a: float32x4_t) -> float32x4_t { vsqrtq_f32(a) }
        fn round(a: float32x4_t) -> float32x4_t { vrndnq_f32(a) }
        fn pow2(a: float32x4_t) -> float32x4_t {
            let biased = vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }
        fn exp(a: float32x4_t) -> float32x4_t { exp_f32::<Self>(a) }
        fn tanh(a: float32x4_t) -> float32x4_t { tanh_f32::<Self>(a) }
        fn sum(a: float32x4_t) -> f32 {
            let a = vadd_f32(vget_low_f32(a), vget_high_f32(a));
            vget_lane_f32::<0>(a) + vget_lane_f32::<1>(a)
        }
        fn hmax(a: float32x4_t) -> f32 {
            let a = Self::max(a, vextq_f32::<2>(a, a));
            vgetq_lane_f32::<0>(Self::max(a, vextq_f32::<1>(a, a)))
        }
        fn load_bf16(p: *const Bf16, n: usize) -> float32x4_t {
            let p = p.cast::<u16>();
            let mut half = vdup_n_u16(0);
            if n == 4 {
                half = vld1_u16(p);
            } else {
                debug_assert!(n < 4);
                if n > 0 {
                    half = vld1_lane_u16::<0>(p, half);
                }
                if n > 1 {
                    half = vld1_lane_u16::<1>(p.add(1), half);
                }
                if n > 2 {
                    half = vld1_lane_u16::<2>(p.add(2), half);
                }
            }
            vreinterpretq_f32_u32(vshll_n_u16::<16>(half))
        }
        fn store_bf16(p: *mut Bf16, v: float32x4_t, n: usize) {
            let p = p.cast::<u16>();
            let bits = vreinterpretq_u32_f32(v);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            let half = vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(v, v), rounded, quiet));
            if n == 4 {
                vst1_u16(p, half);
            } else {
                debug_assert!(n < 4);
                if n > 0 {
                    vst1_lane_u16::<0>(p, half);
                }
                if n > 1 {
                    vst1_lane_u16::<1>(p.add(1), half);
                }
                if n > 2 {
                    vst1_lane_u16::<2>(p.add(2), half);
                }
            }
        }
        fn store_int8(p: *mut i8, v: float32x4_t, n: usize) {
            let half = vqmovn_s32(vcvtnq_s32_f32(v));
            let bytes = vget_lane_s64::<0>(vreinterpret_s64_s8(vqmovn_s16(vcombine_s16(half, half)))).to_ne_bytes();
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), p, n);
        }
        fn splat_pair(p: *const Bf16) -> [float32x4_t; 2] {
            let pair = vset_lane_u32::<0>(p.cast::<u32>().read_unaligned(), vdup_n_u32(0));
            let wide = vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u32(pair)));
            [vdupq_laneq_f32::<0>(wide), vdupq_laneq_f32::<1>(wide)]
        }
        fn load_pairs(p: *const Bf16) -> [float32x4_t; 2] {
            let pairs = vreinterpretq_u32_u16(vld1q_u16(p.cast()));
            let (low, high) = (vshlq_n_u32::<16>(pairs), vandq_u32(pairs, vdupq_n_u32(!0xffff)));
            [vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)]
        }
        fn dot_pairs(a: [float32x4_t; 2], b: [float32x4_t; 2], acc: float32x4_t) -> float32x4_t {
            vfmaq_f32(vfmaq_f32(acc, a[0], b[0]), a[1], b[1])
        }
    }
}

/// 4 lanes of integers by `sdot`, both sides signed. The intrinsic is not stable, the instruction is.
#[derive(Clone, Copy)]
pub(crate) struct NeonDot;

// SAFETY: what is loaded are 16 bytes of a cell, and 4 or 16 bytes of `x`.
unsafe impl Dot for NeonDot {
    type V = int32x4_t;
    type S = Neon;
    const LANES: usize = 4;
    const ROWS: usize = 4;
    const BYTE_BIAS: i32 = 0;
    const TALL: usize = 5;

    promised! {
        fn zero() -> int32x4_t { vdupq_n_s32(0) }
        fn ternary(cell: *const u8) -> [int32x4_t; 4] {
            let (v, low) = (vld1q_u8(cell), vdupq_n_u8(3));
            [
                vreinterpretq_s32_u8(vandq_u8(v, low)),
                vreinterpretq_s32_u8(vandq_u8(vshrq_n_u8::<2>(v), low)),
                vreinterpretq_s32_u8(vandq_u8(vshrq_n_u8::<4>(v), low)),
                vreinterpretq_s32_u8(vshrq_n_u8::<6>(v)),
            ]
        }
        fn bytes(cell: *const u8) -> int32x4_t { vreinterpretq_s32_u8(veorq_u8(vld1q_u8(cell), vdupq_n_u8(128))) }
        fn dot_ternary(mut acc: [int32x4_t; 2], w: &[int32x4_t; 4], x: *const i8) -> [int32x4_t; 2] {
            for j in 0..4 {
                acc[j % 2] = Self::dot_bytes(acc[j % 2], w[j], x.add(4 * j));
            }
            acc
        }
        fn dot_bytes(mut acc: int32x4_t, w: int32x4_t, x: *const i8) -> int32x4_t {
            let x = vdupq_n_s32(x.cast::<i32>().read_unaligned());
            std::arch::asm!(
                "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inlateout(vreg) acc, in(vreg) w, in(vreg) x, options(pure, nomem, nostack, preserves_flags)
            );
            acc
        }
        fn dot_codes(acc: int32x4_t, w: int32x4_t, x: *const i8) -> int32x4_t { Self::dot_bytes(acc, w, x) }
        fn add_codes(sum: int32x4_t, acc: int32x4_t) -> int32x4_t { vaddq_s32(sum, acc) }
        fn ternary_total(acc: [int32x4_t; 2]) -> int32x4_t { Self::total(acc) }
        fn total(acc: [int32x4_t; 2]) -> int32x4_t { vaddq_s32(acc[0], acc[1]) }
        fn load(p: *const i32) -> int32x4_t { vld1q_s32(p) }
        fn floats(v: int32x4_t, shift: i32) -> float32x4_t { vcvtq_f32_s32(vsubq_s32(v, vdupq_n_s32(shift))) }
    }
}
