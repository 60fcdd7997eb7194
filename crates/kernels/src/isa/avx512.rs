//! AVX-512 F/BW/DQ/VL: 16 f32 lanes, 32 registers, matmul tile 14 x 32; bf16 pairs by `vdpbf16ps` where the machine has
//! it, and by two multiply-adds where not. Sums of bytes by `vpdpbusd`.

use std::arch::x86_64::*;

use crate::bf16::Bf16;
use crate::dot::{Dot, DotOp};
use crate::simd::{Op, Simd, exp_f32, pairs_from_halves, promised, tanh_f32};

/// 16 lanes of f32, with or without the instructions for `BF16`, with or without tile registers (`AMX`).
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool, const AMX: bool>;

with_features! {
    ["avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma" "f16c"] available

    /// Runs an op compiled with AVX-512.
    pub(crate) fn run<O: Op<f32>>(op: O) -> O::Out {
        // SAFETY: the features are enabled here.
        unsafe { op.run::<Avx512<false, false>>() }
    }
}

with_features! {
    ["avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma" "f16c" "avx512bf16"] has_bf16

    /// Runs an op compiled with AVX-512 and its bf16 instructions.
    pub(crate) fn run_bf16<O: Op<f32>>(op: O) -> O::Out {
        // SAFETY: the features are enabled here.
        unsafe { op.run::<Avx512<true, false>>() }
    }

    /// As [`run_bf16`], with bf16 matmuls on tile registers.
    ///
    /// # Safety
    /// [`super::amx::available`] said yes.
    pub(crate) unsafe fn run_amx<O: Op<f32>>(op: O) -> O::Out {
        // SAFETY: the features are enabled here, and the machine has tiles.
        unsafe { op.run::<Avx512<true, true>>() }
    }
}

with_features! {
    ["avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma" "f16c" "avx512vnni"] has_vnni

    /// Runs an integer matmul with AVX-512 VNNI.
    pub(crate) fn run_dot(op: impl DotOp) {
        // SAFETY: the features are enabled here.
        unsafe { op.run::<Avx512Dot<false>>() }
    }

    /// The same, many rows on tiles.
    ///
    /// # Safety
    /// [`super::amx::has_int8`] said yes.
    pub(crate) unsafe fn run_dot_amx(op: impl DotOp) {
        // SAFETY: the features are enabled here, and the machine has tiles of bytes.
        unsafe { op.run::<Avx512Dot<true>>() }
    }
}

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    debug_assert!(n < 16);
    (1u16 << n) - 1
}

// SAFETY: what is loaded and stored are the lanes named, others are masked.
unsafe impl<const BF16: bool, const AMX: bool> Simd for Avx512<BF16, AMX> {
    type E = f32;
    type V = __m512;
    type P = __m512i;
    const LANES: usize = 16;
    const MR: usize = 14;
    const TILES: bool = AMX;

    promised! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
        fn store(p: *mut f32, v: __m512) { _mm512_storeu_ps(p, v) }
        fn load_n(p: *const f32, n: usize) -> __m512 { _mm512_maskz_loadu_ps(mask(n), p) }
        fn store_n(p: *mut f32, v: __m512, n: usize) { _mm512_mask_storeu_ps(p, mask(n), v) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
        fn sqrt(a: __m512) -> __m512 { _mm512_sqrt_ps(a) }
        fn round(a: __m512) -> __m512 { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        fn pow2(a: __m512) -> __m512 {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
        fn scale(p: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(p, n) }
        fn reciprocal(a: __m512) -> __m512 {
            // 14 bits from the table, doubled by one step of Newton's method.
            let r = _mm512_rcp14_ps(a);
            _mm512_fmadd_ps(r, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(1.0)), r)
        }
        fn exp(a: __m512) -> __m512 { exp_f32::<Self>(a) }
        fn tanh(a: __m512) -> __m512 { tanh_f32::<Self>(a) }
        fn sum(a: __m512) -> f32 { _mm512_reduce_add_ps(a) }
        fn hmax(a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
        fn load_bf16(p: *const Bf16, n: usize) -> __m512 {
            let half = if n == 16 { _mm256_loadu_si256(p.cast()) } else { _mm256_maskz_loadu_epi16(mask(n), p.cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
        fn store_bf16(p: *mut Bf16, v: __m512, n: usize) {
            let half = if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
            } else {
                let bits = _mm512_castps_si512(v);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                let rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
            };
            if n == 16 {
                _mm256_storeu_si256(p.cast(), half)
            } else {
                _mm256_mask_storeu_epi16(p.cast(), mask(n), half)
            }
        }
        fn store_int8(p: *mut i8, v: __m512, n: usize) {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
            if n == 16 { _mm_storeu_si128(p.cast(), bytes) } else { _mm_mask_storeu_epi8(p, mask(n), bytes) }
        }
        fn store_pairs(p: *mut Bf16, a: __m512, b: __m512) {
            if BF16 {
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
                let half = _mm512_cvtepu8_epi32(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
                // Words `i` and `16 + i`.
                let order = _mm512_or_si512(half, _mm512_slli_epi32::<16>(_mm512_add_epi32(half, _mm512_set1_epi32(16))));
                _mm512_storeu_si512(p.cast(), _mm512_permutexvar_epi16(order, both));
                return;
            }
            pairs_from_halves::<Self>(p, a, b)
        }
        fn turn(v: &mut [__m512; 16]) {
            // Squares of two in pairs of rows, then of four in quarters, then the quarters.
            let (mut two, mut four) = (*v, *v);
            for i in (0..16).step_by(2) {
                two[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
                two[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
            }
            for (i, j) in [0, 1, 4, 5, 8, 9, 12, 13].into_iter().zip([0, 2, 4, 6, 8, 10, 12, 14]) {
                let (a, b) = (_mm512_castps_pd(two[i]), _mm512_castps_pd(two[i + 2]));
                four[j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                four[j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            }
            for i in 0..4 {
                let (a, b, c, d) = (four[i], four[4 + i], four[8 + i], four[12 + i]);
                let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (even2, odd2) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                v[i] = _mm512_shuffle_f32x4::<0x88>(even, even2);
                v[4 + i] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
                v[8 + i] = _mm512_shuffle_f32x4::<0xdd>(even, even2);
                v[12 + i] = _mm512_shuffle_f32x4::<0xdd>(odd, odd2);
            }
        }
        fn splat_pair(p: *const Bf16) -> __m512i { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
        fn load_pairs(p: *const Bf16) -> __m512i { _mm512_loadu_si512(p.cast()) }
        fn dot_pairs(a: __m512i, b: __m512i, acc: __m512) -> __m512 {
            if BF16 {
                let (a, b) = (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b));
                return _mm512_dpbf16_ps(acc, a, b);
            }
            let high = _mm512_set1_epi32(!0xffff);
            let (a0, b0) = (_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b));
            let (a1, b1) = (_mm512_and_si512(a, high), _mm512_and_si512(b, high));
            let acc = _mm512_fmadd_ps(_mm512_castsi512_ps(a0), _mm512_castsi512_ps(b0), acc);
            _mm512_fmadd_ps(_mm512_castsi512_ps(a1), _mm512_castsi512_ps(b1), acc)
        }
    }
}

/// 16 lanes of integers by `vpdpbusd`; ternary codes as in [`super::avx2::AvxVnniDot`]. With tile registers
/// where they are there (`AMX`).
#[derive(Clone, Copy)]
pub(crate) struct Avx512Dot<const AMX: bool>;

// SAFETY: what is loaded are 64 bytes of a cell, and 4 or 16 bytes of `x`.
unsafe impl<const AMX: bool> Dot for Avx512Dot<AMX> {
    type V = __m512i;
    type S = Avx512<false, false>;
    const LANES: usize = 16;
    const ROWS: usize = 8;
    const BYTE_BIAS: i32 = 128;
    const TALL: usize = 14;
    const TILES: bool = AMX;

    promised! {
        fn zero() -> __m512i { _mm512_setzero_si512() }
        fn ternary(cell: *const u8) -> [__m512i; 4] {
            let v = _mm512_loadu_si512(cell.cast());
            let high = _mm512_srli_epi16::<4>(v);
            let (low, next) = (_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c));
            [_mm512_and_si512(v, low), _mm512_and_si512(v, next), _mm512_and_si512(high, low), _mm512_and_si512(high, next)]
        }
        fn bytes(cell: *const u8) -> __m512i { _mm512_loadu_si512(cell.cast()) }
        fn dot_ternary(mut acc: [__m512i; 2], w: &[__m512i; 4], x: *const i8) -> [__m512i; 2] {
            for j in 0..4 {
                acc[j % 2] = Self::dot_bytes(acc[j % 2], w[j], x.add(4 * j));
            }
            acc
        }
        fn dot_bytes(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
            _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned()))
        }
        fn dot_codes(acc: __m512i, w: __m512i, x: *const i8) -> __m512i { Self::dot_bytes(acc, w, x) }
        fn add_codes(sum: __m512i, acc: __m512i) -> __m512i { _mm512_add_epi32(sum, acc) }
        fn ternary_total(acc: [__m512i; 2]) -> __m512i { Self::total([acc[0], _mm512_srai_epi32::<2>(acc[1])]) }
        fn total(acc: [__m512i; 2]) -> __m512i { _mm512_add_epi32(acc[0], acc[1]) }
        fn load(p: *const i32) -> __m512i { _mm512_loadu_si512(p.cast()) }
        fn floats(v: __m512i, shift: i32) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_sub_epi32(v, _mm512_set1_epi32(shift)))
        }
        fn block(c: *mut i32, a: *const u8, lda: usize, b: *const u8, apart: usize, steps: usize, both: bool) {
            super::amx::int8::block(c, a, lda, b, apart, steps, both)
        }
    }
}
