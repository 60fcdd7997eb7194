//! AVX2 with FMA: 8 f32 lanes, 16 registers, product tile 6 x 16.

use std::arch::x86_64::*;

use crate::bf16::Bf16;
use crate::dispatch::Op;
use crate::simd::{Simd, exp_f32, tanh_f32};

/// 8 lanes of f32.
#[derive(Clone, Copy)]
pub struct Avx2;

/// Runs an op compiled with AVX2 and FMA.
///
/// # Safety
/// The machine has both.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn run<O: Op<f32>>(op: O) -> O::Out {
    // SAFETY: the features are enabled here.
    unsafe { op.run::<Avx2>() }
}

/// All ones in the first `n` of 8 lanes.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    static ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(n <= 8);
    // SAFETY: `8 - n + 8 <= 16`.
    unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - n).cast()) }
}

// SAFETY: called only inside `run`.
unsafe impl Simd for Avx2 {
    type E = f32;
    type V = __m256;
    type P = __m256i;
    const LANES: usize = 8;
    const MR: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(p, mask(n)) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: __m256, n: usize) {
        unsafe { _mm256_maskstore_ps(p, mask(n), v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn pow2(a: __m256) -> __m256 {
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn reciprocal(a: __m256) -> __m256 {
        // 12 bits from the table, doubled by one step of Newton's method.
        unsafe {
            let r = _mm256_rcp_ps(a);
            _mm256_fmadd_ps(r, _mm256_fnmadd_ps(a, r, _mm256_set1_ps(1.0)), r)
        }
    }
    #[inline(always)]
    unsafe fn exp(a: __m256) -> __m256 {
        unsafe { exp_f32::<Self>(a) }
    }
    #[inline(always)]
    unsafe fn tanh(a: __m256) -> __m256 {
        unsafe { tanh_f32::<Self>(a) }
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        unsafe {
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }
    #[inline(always)]
    unsafe fn hmax(a: __m256) -> f32 {
        unsafe {
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const Bf16, n: usize) -> __m256 {
        unsafe {
            let mut part = [Bf16::default(); 8];
            let from = if n == 8 {
                p
            } else {
                std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), n);
                part.as_ptr()
            };
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut Bf16, v: __m256, n: usize) {
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high));
            if n == 8 {
                _mm_storeu_si128(p.cast(), packed);
            } else {
                let mut part = [Bf16::default(); 8];
                _mm_storeu_si128(part.as_mut_ptr().cast(), packed);
                std::ptr::copy_nonoverlapping(part.as_ptr(), p, n);
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const Bf16) -> __m256i {
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const Bf16) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(a: __m256i, b: __m256i, acc: __m256) -> __m256 {
        unsafe {
            let (low, high) = (_mm256_slli_epi32::<16>(a), _mm256_and_si256(a, _mm256_set1_epi32(!0xffff)));
            let (low_b, high_b) = (_mm256_slli_epi32::<16>(b), _mm256_and_si256(b, _mm256_set1_epi32(!0xffff)));
            let acc = _mm256_fmadd_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(low_b), acc);
            _mm256_fmadd_ps(_mm256_castsi256_ps(high), _mm256_castsi256_ps(high_b), acc)
        }
    }
}
