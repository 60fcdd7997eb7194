//! One lane of plain arithmetic: the reference of every other ISA, the fallback on unknown machines, and the f64 path of
//! gradient checks. Products and sums are rounded separately, since a fused multiply-add is a library call without FMA.

use crate::bf16::Bf16;
use crate::dot::{Dot, DotOp};
use crate::simd::{Elem, Op, Simd, exp_f32, tanh_f32};

/// One lane of `E`.
#[derive(Clone, Copy)]
pub(crate) struct Scalar<E>(std::marker::PhantomData<E>);

/// Runs an op on one lane.
pub(crate) fn run<E: Elem, O: Op<E>>(op: O) -> O::Out
where
    Scalar<E>: Simd<E = E>,
{
    // SAFETY: plain arithmetic runs anywhere; the op's pointers are its maker's promise.
    unsafe { op.run::<Scalar<E>>() }
}

/// Runs an integer matmul on one lane.
pub(crate) fn run_dot(op: impl DotOp) {
    // SAFETY: plain arithmetic runs anywhere.
    unsafe { op.run::<ScalarDot>() }
}

macro_rules! scalar {
    ($t:ty, |$n:ident| $pow2:expr, |$x:ident| $exp:expr, |$y:ident| $tanh:expr) => {
        // SAFETY: no ISA feature is used.
        unsafe impl Simd for Scalar<$t> {
            type E = $t;
            type V = $t;
            type P = [$t; 2];
            const LANES: usize = 1;
            const MR: usize = 4;

            #[inline(always)]
            unsafe fn splat(x: $t) -> $t {
                x
            }
            #[inline(always)]
            unsafe fn load(p: *const $t) -> $t {
                // SAFETY: the caller's promise.
                unsafe { *p }
            }
            #[inline(always)]
            unsafe fn store(p: *mut $t, v: $t) {
                // SAFETY: the caller's promise.
                unsafe { *p = v }
            }
            #[inline(always)]
            unsafe fn load_n(p: *const $t, n: usize) -> $t {
                // SAFETY: the caller's promise.
                if n == 0 { 0.0 } else { unsafe { *p } }
            }
            #[inline(always)]
            unsafe fn store_n(p: *mut $t, v: $t, n: usize) {
                if n > 0 {
                    // SAFETY: the caller's promise.
                    unsafe { *p = v }
                }
            }
            #[inline(always)]
            unsafe fn add(a: $t, b: $t) -> $t {
                a + b
            }
            #[inline(always)]
            unsafe fn sub(a: $t, b: $t) -> $t {
                a - b
            }
            #[inline(always)]
            unsafe fn mul(a: $t, b: $t) -> $t {
                a * b
            }
            #[inline(always)]
            unsafe fn div(a: $t, b: $t) -> $t {
                a / b
            }
            #[inline(always)]
            unsafe fn fma(a: $t, b: $t, c: $t) -> $t {
                a * b + c
            }
            #[inline(always)]
            unsafe fn max(a: $t, b: $t) -> $t {
                if a > b { a } else { b }
            }
            #[inline(always)]
            unsafe fn min(a: $t, b: $t) -> $t {
                if a < b { a } else { b }
            }
            #[inline(always)]
            unsafe fn abs(a: $t) -> $t {
                a.abs()
            }
            #[inline(always)]
            unsafe fn sqrt(a: $t) -> $t {
                a.sqrt()
            }
            #[inline(always)]
            unsafe fn round(a: $t) -> $t {
                a.round_ties_even()
            }
            #[inline(always)]
            unsafe fn pow2($n: $t) -> $t {
                $pow2
            }
            #[inline(always)]
            unsafe fn exp($x: $t) -> $t {
                $exp
            }
            #[inline(always)]
            unsafe fn tanh($y: $t) -> $t {
                $tanh
            }
            #[inline(always)]
            unsafe fn sum(a: $t) -> $t {
                a
            }
            #[inline(always)]
            unsafe fn hmax(a: $t) -> $t {
                a
            }
            #[inline(always)]
            unsafe fn load_bf16(p: *const Bf16, n: usize) -> $t {
                // SAFETY: the caller's promise.
                if n == 0 { 0.0 } else { <$t>::from(unsafe { *p }.to_f32()) }
            }
            #[inline(always)]
            unsafe fn store_bf16(p: *mut Bf16, v: $t, n: usize) {
                if n > 0 {
                    // SAFETY: the caller's promise.
                    unsafe { *p = Bf16::from_f32(v as f32) }
                }
            }
            #[inline(always)]
            unsafe fn store_int8(p: *mut i8, v: $t, n: usize) {
                if n > 0 {
                    // SAFETY: the caller's promise.
                    unsafe { *p = v as i8 };
                }
            }
            #[inline(always)]
            unsafe fn splat_pair(p: *const Bf16) -> [$t; 2] {
                // SAFETY: the caller's promise.
                unsafe { [<$t>::from((*p).to_f32()), <$t>::from((*p.add(1)).to_f32())] }
            }
            #[inline(always)]
            unsafe fn load_pairs(p: *const Bf16) -> [$t; 2] {
                // SAFETY: the caller's promise.
                unsafe { Self::splat_pair(p) }
            }
            #[inline(always)]
            unsafe fn dot_pairs(a: [$t; 2], b: [$t; 2], acc: $t) -> $t {
                acc + a[0] * b[0] + a[1] * b[1]
            }
        }
    };
}

scalar!(
    f32,
    |n| f32::from_bits(((n as i32 + 127) as u32) << 23),
    |x| {
        // SAFETY: plain arithmetic runs anywhere.
        unsafe { exp_f32::<Self>(x) }
    },
    |x| {
        // SAFETY: as above.
        unsafe { tanh_f32::<Self>(x) }
    }
);
scalar!(f64, |n| n.exp2(), |x| x.exp(), |x| x.tanh());

/// One lane of integers. A ternary matmul is additions alone: `w x = code x - x`, where the code 1 adds `x` and 2 adds it
/// twice.
#[derive(Clone, Copy)]
pub(crate) struct ScalarDot;

// SAFETY: no ISA feature is used.
unsafe impl Dot for ScalarDot {
    type V = i32;
    type S = Scalar<f32>;
    const LANES: usize = 1;
    const ROWS: usize = 1;
    const BYTE_BIAS: i32 = 0;
    const TALL: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn ternary(cell: *const u8) -> [i32; 4] {
        // SAFETY: the caller's promise.
        [unsafe { Self::bytes(cell) }; 4]
    }
    #[inline(always)]
    unsafe fn bytes(cell: *const u8) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { cell.cast::<i32>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot_ternary(mut acc: [i32; 2], w: &[i32; 4], x: *const i8) -> [i32; 2] {
        for (b, code) in w[0].to_ne_bytes().into_iter().enumerate() {
            let code = i32::from(code);
            for j in 0..4 {
                // SAFETY: the caller's promise: 16 bytes.
                let x = i32::from(unsafe { *x.add(4 * j + b) });
                // All ones where the bit is set.
                let once = -(code >> (2 * j) & 1);
                let twice = -(code >> (2 * j + 1) & 1);
                acc[j % 2] += (x & once) + ((x + x) & twice);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: i32, w: i32, x: *const i8) -> i32 {
        let mut sum = acc;
        for (b, code) in w.to_ne_bytes().into_iter().enumerate() {
            // SAFETY: the caller's promise: 4 bytes.
            sum += (i32::from(code) - 128) * i32::from(unsafe { *x.add(b) });
        }
        sum
    }
    #[inline(always)]
    unsafe fn dot_codes(acc: i32, w: i32, x: *const i8) -> i32 {
        let codes = w.to_ne_bytes().into_iter().enumerate();
        // SAFETY: the caller's promise: 4 bytes.
        acc + codes.map(|(b, code)| i32::from(code) * i32::from(unsafe { *x.add(b) })).sum::<i32>()
    }
    #[inline(always)]
    unsafe fn add_codes(sum: i32, acc: i32) -> i32 {
        sum + acc
    }
    unsafe fn ternary_total(acc: [i32; 2]) -> i32 {
        acc[0] + acc[1]
    }
    #[inline(always)]
    unsafe fn total(acc: [i32; 2]) -> i32 {
        acc[0] + acc[1]
    }
    #[inline(always)]
    unsafe fn load(p: *const i32) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { *p }
    }
    #[inline(always)]
    unsafe fn floats(v: i32, shift: i32) -> f32 {
        (v - shift) as f32
    }
}
