//! AVX2 with FMA: 8 f32 lanes, 16 registers, matmul tile 6 x 16; sums of bytes by `vpmaddubsw`, or by `vpdpbusd` where the
//! machine has AVX-VNNI.

use std::arch::x86_64::*;

use crate::bf16::Bf16;
use crate::dot::{Dot, DotOp};
use crate::simd::{Op, Simd, exp_f32, promised, tanh_f32};

/// 8 lanes of f32.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

with_features! {
    ["avx2" "fma"] available

    /// Runs an op compiled with AVX2 and FMA.
    pub(crate) fn run<O: Op<f32>>(op: O) -> O::Out {
        // SAFETY: the features are enabled here.
        unsafe { op.run::<Avx2>() }
    }

    /// Runs an integer matmul with AVX2.
    pub(crate) fn run_dot(op: impl DotOp) {
        // SAFETY: the features are enabled here.
        unsafe { op.run::<Avx2Dot>() }
    }
}

with_features! {
    ["avx2" "fma" "avxvnni"] has_vnni

    /// Runs an integer matmul with AVX-VNNI.
    pub(crate) fn run_vnni(op: impl DotOp) {
        // SAFETY: the features are enabled here.
        unsafe { op.run::<AvxVnniDot<false>>() }
    }
}

with_features! {
    ["avx2" "fma" "avx512f" "avx512vl" "avx512vnni"] has_vnni_of_avx512

    /// Runs an integer matmul with 256 bits of AVX-512 VNNI.
    pub(crate) fn run_vnni_of_avx512(op: impl DotOp) {
        // SAFETY: the features are enabled here.
        unsafe { op.run::<AvxVnniDot<true>>() }
    }
}

/// All ones in the first `n` of 8 lanes.
///
/// # Safety
/// `n` is at most 8, and the machine has AVX2.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    static ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(n <= 8);
    // SAFETY: `8 - n + 8 <= 16`, and the caller's promise.
    unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - n).cast()) }
}

// SAFETY: what is loaded and stored are the lanes named, others are masked.
unsafe impl Simd for Avx2 {
    type E = f32;
    type V = __m256;
    type P = __m256i;
    const LANES: usize = 8;
    const MR: usize = 6;

    promised! {
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn load(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
        fn store(p: *mut f32, v: __m256) { _mm256_storeu_ps(p, v) }
        fn load_n(p: *const f32, n: usize) -> __m256 { _mm256_maskload_ps(p, mask(n)) }
        fn store_n(p: *mut f32, v: __m256, n: usize) { _mm256_maskstore_ps(p, mask(n), v) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn abs(a: __m256) -> __m256 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        fn sqrt(a: __m256) -> __m256 { _mm256_sqrt_ps(a) }
        fn round(a: __m256) -> __m256 { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        fn pow2(a: __m256) -> __m256 {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
        fn reciprocal(a: __m256) -> __m256 {
            // 12 bits from the table, doubled by one step of Newton's method.
            let r = _mm256_rcp_ps(a);
            _mm256_fmadd_ps(r, _mm256_fnmadd_ps(a, r, _mm256_set1_ps(1.0)), r)
        }
        fn exp(a: __m256) -> __m256 { exp_f32::<Self>(a) }
        fn tanh(a: __m256) -> __m256 { tanh_f32::<Self>(a) }
        fn sum(a: __m256) -> f32 {
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
        fn hmax(a: __m256) -> f32 {
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
        fn load_bf16(p: *const Bf16, n: usize) -> __m256 {
            let mut part = [Bf16::default(); 8];
            let from = if n == 8 {
                p
            } else {
                std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), n);
                part.as_ptr()
            };
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
        }
        fn store_bf16(p: *mut Bf16, v: __m256, n: usize) {
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
        fn store_int8(p: *mut i8, v: __m256, n: usize) {
            let v = _mm256_cvtps_epi32(v);
            let half = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let bytes = _mm_cvtsi128_si64(_mm_packs_epi16(half, half)).to_ne_bytes();
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), p, n);
        }
        fn splat_pair(p: *const Bf16) -> __m256i { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
        fn load_pairs(p: *const Bf16) -> __m256i { _mm256_loadu_si256(p.cast()) }
        fn dot_pairs(a: __m256i, b: __m256i, acc: __m256) -> __m256 {
            let (low, high) = (_mm256_slli_epi32::<16>(a), _mm256_and_si256(a, _mm256_set1_epi32(!0xffff)));
            let (low_b, high_b) = (_mm256_slli_epi32::<16>(b), _mm256_and_si256(b, _mm256_set1_epi32(!0xffff)));
            let acc = _mm256_fmadd_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(low_b), acc);
            _mm256_fmadd_ps(_mm256_castsi256_ps(high), _mm256_castsi256_ps(high_b), acc)
        }
    }
}

/// 8 lanes of integers by `vpmaddubsw`, whose 16-bit sums saturate: ternary codes stay at their 0 to 2, of which eight
/// products fit, and byte weights are signed as the activations, whose magnitude is then the unsigned side.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Dot;

// SAFETY: what is loaded are 32 bytes of a cell, and 4 or 16 bytes of `x`.
unsafe impl Dot for Avx2Dot {
    type V = __m256i;
    type S = Avx2;
    const LANES: usize = 8;
    const ROWS: usize = 2;
    const BYTE_BIAS: i32 = 0;
    const TALL: usize = 4;
    // At most 64 * 2 * 2 * 127 in 16 bits.
    const QUADS: usize = 64;

    promised! {
        fn zero() -> __m256i { _mm256_setzero_si256() }
        fn ternary(cell: *const u8) -> [__m256i; 4] {
            let (v, low) = (_mm256_loadu_si256(cell.cast()), _mm256_set1_epi8(3));
            [
                _mm256_and_si256(v, low),
                _mm256_and_si256(_mm256_srli_epi16::<2>(v), low),
                _mm256_and_si256(_mm256_srli_epi16::<4>(v), low),
                _mm256_and_si256(_mm256_srli_epi16::<6>(v), low),
            ]
        }
        fn bytes(cell: *const u8) -> __m256i {
            _mm256_xor_si256(_mm256_loadu_si256(cell.cast()), _mm256_set1_epi8(-128))
        }
        fn dot_ternary(acc: [__m256i; 2], w: &[__m256i; 4], x: *const i8) -> [__m256i; 2] {
            let x = x.cast::<i32>();
            let part = |j: usize| _mm256_maddubs_epi16(w[j], _mm256_set1_epi32(x.add(j).read_unaligned()));
            // At most 8 * 2 * 127.
            let sum = _mm256_add_epi16(_mm256_add_epi16(part(0), part(1)), _mm256_add_epi16(part(2), part(3)));
            let sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
            [_mm256_add_epi32(acc[0], sum), acc[1]]
        }
        fn dot_bytes(acc: __m256i, w: __m256i, x: *const i8) -> __m256i {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            // At most 2 * 127 * 127.
            let sum = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
            _mm256_add_epi32(acc, _mm256_madd_epi16(sum, _mm256_set1_epi16(1)))
        }
        fn dot_codes(acc: __m256i, w: __m256i, x: *const i8) -> __m256i {
            _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, _mm256_set1_epi32(x.cast::<i32>().read_unaligned())))
        }
        fn add_codes(sum: __m256i, acc: __m256i) -> __m256i {
            _mm256_add_epi32(sum, _mm256_madd_epi16(acc, _mm256_set1_epi16(1)))
        }
        fn total(acc: [__m256i; 2]) -> __m256i { _mm256_add_epi32(acc[0], acc[1]) }
        fn load(p: *const i32) -> __m256i { _mm256_loadu_si256(p.cast()) }
        fn floats(v: __m256i, shift: i32) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_sub_epi32(v, _mm256_set1_epi32(shift)))
        }
    }

    #[inline(always)]
    unsafe fn ternary_total(acc: [__m256i; 2]) -> __m256i {
        acc[0]
    }
}

/// 8 lanes of integers by `vpdpbusd`, of AVX-VNNI or (`VL`) of AVX-512 VNNI, which has the same instruction. Half of the ternary
/// codes stay where their bits are, at four times their value: their sum is shifted back once, exactly.
#[derive(Clone, Copy)]
pub(crate) struct AvxVnniDot<const VL: bool>;

// SAFETY: as for `Avx2Dot`.
unsafe impl<const VL: bool> Dot for AvxVnniDot<VL> {
    type V = __m256i;
    type S = Avx2;
    const LANES: usize = 8;
    const ROWS: usize = 2;
    const BYTE_BIAS: i32 = 128;
    const TALL: usize = 6;

    promised! {
        fn zero() -> __m256i { _mm256_setzero_si256() }
        fn ternary(cell: *const u8) -> [__m256i; 4] {
            let v = _mm256_loadu_si256(cell.cast());
            let high = _mm256_srli_epi16::<4>(v);
            let (low, next) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
            [_mm256_and_si256(v, low), _mm256_and_si256(v, next), _mm256_and_si256(high, low), _mm256_and_si256(high, next)]
        }
        fn bytes(cell: *const u8) -> __m256i { _mm256_loadu_si256(cell.cast()) }
        fn dot_ternary(mut acc: [__m256i; 2], w: &[__m256i; 4], x: *const i8) -> [__m256i; 2] {
            for j in 0..4 {
                acc[j % 2] = Self::dot_bytes(acc[j % 2], w[j], x.add(4 * j));
            }
            acc
        }
        fn dot_bytes(acc: __m256i, w: __m256i, x: *const i8) -> __m256i {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            if VL { _mm256_dpbusd_epi32(acc, w, x) } else { _mm256_dpbusd_avx_epi32(acc, w, x) }
        }
        fn dot_codes(acc: __m256i, w: __m256i, x: *const i8) -> __m256i { Self::dot_bytes(acc, w, x) }
        fn add_codes(sum: __m256i, acc: __m256i) -> __m256i { _mm256_add_epi32(sum, acc) }
        fn ternary_total(acc: [__m256i; 2]) -> __m256i { Self::total([acc[0], _mm256_srai_epi32::<2>(acc[1])]) }
        fn total(acc: [__m256i; 2]) -> __m256i { _mm256_add_epi32(acc[0], acc[1]) }
        fn load(p: *const i32) -> __m256i { _mm256_loadu_si256(p.cast()) }
        fn floats(v: __m256i, shift: i32) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_sub_epi32(v, _mm256_set1_epi32(shift)))
        }
    }
}
