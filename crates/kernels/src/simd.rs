//! The words that kernels are written in: an op is a body ([`Op`]) over vectors ([`Simd`]) of a number ([`Elem`]), and reads and
//! writes what that number is kept as ([`Store`]). A body is written once; each file of [`crate::isa`] implements `Simd`.
//!
//! A matmul takes both operands as one `Store` and sums in its `E`. bf16 operands go in pairs of depths.
//!
//! Partial loads fill the missing lanes with zero. `sum` and `hmax` reduce in an order fixed by the ISA.
//! `exp` in f32: `2^n * p(r)`, `x = n ln 2 + r`, `p` the polynomial of degree 6 with the least relative error on
//! `|r| <= ln2/2` (Remez exchange; relative error below 1e-7 with rounding), argument clamped to [-87.33, 88.37]; NaN stays NaN.
//! `tanh` in f32: `e / (e + 2)`, `e = exp(2x) - 1 = 2^n (p(r) - 1) + (2^n - 1)`, so that small arguments keep their relative
//! accuracy (error below 3e-7).

use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

use crate::bf16::Bf16;

/// A floating-point element.
pub trait Elem:
    Store<E = Self>
    + Debug
    + Display
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
{
    /// 1.
    const ONE: Self;
    /// Nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// Exact widening.
    fn to_f64(self) -> f64;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Total order for selection; NaN sorts last.
    fn total_cmp(&self, other: &Self) -> std::cmp::Ordering;
    /// The slice itself, where this is f32.
    fn as_f32(x: &mut [Self]) -> Option<&mut [f32]>;
    /// Runs `op` on `units`, which have lanes of this type.
    fn run_on<U: Units, O: Op<Self>>(units: U, op: O) -> O::Out;
}

/// A number in memory.
///
/// # Safety
/// Every bit pattern is a value, and zero bytes are [`Store::ZERO`]. Only [`Bf16`] has a `DEPTH` of 2.
#[allow(clippy::missing_safety_doc)]
pub unsafe trait Store: Copy + PartialEq + Debug + Send + Sync + 'static {
    /// What it is computed in.
    type E: Elem;
    /// 0.
    const ZERO: Self;
    /// Not a number, the poison of fresh buffers in debug builds.
    const NAN: Self;
    /// Depths that one multiply-add of a matmul takes.
    const DEPTH: usize;
    /// The name users give this precision.
    const NAME: &'static str;
    /// `LANES` groups of `DEPTH` values.
    type Group<S: Simd<E = Self::E>>: Copy;

    /// The nearest value.
    fn narrow(x: Self::E) -> Self;
    /// Exact widening.
    fn widen(self) -> Self::E;
    /// `n` lanes, widened; missing ones are zero.
    ///
    /// # Safety
    /// As `Simd`; this holds for all that follow.
    unsafe fn get<S: Simd<E = Self::E>>(p: *const Self, n: usize) -> S::V;
    /// `n` lanes, narrowed.
    unsafe fn put<S: Simd<E = Self::E>>(p: *mut Self, v: S::V, n: usize);
    /// `LANES` groups, narrowed: `a` first in each, `b` second where a group has two.
    unsafe fn put_groups<S: Simd<E = Self::E>>(p: *mut Self, a: S::V, b: S::V);
    /// The same group in every lane.
    unsafe fn splat<S: Simd<E = Self::E>>(p: *const Self) -> Self::Group<S>;
    /// A group in each lane.
    unsafe fn load<S: Simd<E = Self::E>>(p: *const Self) -> Self::Group<S>;
    /// `acc + a . b` in each lane.
    unsafe fn dot<S: Simd<E = Self::E>>(a: Self::Group<S>, b: Self::Group<S>, acc: S::V) -> S::V;
}

/// One kernel body, written over any [`Simd`].
pub trait Op<E: Elem> {
    /// What it returns.
    type Out;
    /// Whether its body looks at [`Simd::TILES`]: only such ops are compiled for tile registers once more.
    const TILES: bool = false;
    /// The body. Implementations are `#[inline(always)]`, so that they compile with the caller's target features.
    ///
    /// # Safety
    /// The machine supports `S`. Nothing else: an op that holds pointers is made in one place only, which has checked that
    /// they are valid for its sizes.
    unsafe fn run<S: Simd<E = E>>(self) -> Self::Out;
}

/// Vector units for both elements: what an op runs on.
pub trait Units: Copy {
    /// Runs an op in f32.
    fn f32<O: Op<f32>>(self, op: O) -> O::Out;
    /// Runs an op in f64.
    fn f64<O: Op<f64>>(self, op: O) -> O::Out;
}

/// A vector of `LANES` elements and the operations on it.
///
/// # Safety
/// Who implements it promises that its functions touch no memory but the lanes named. Who calls one promises that the
/// machine has been found to support the ISA, and that pointers are valid for these lanes.
#[allow(clippy::missing_safety_doc)]
pub unsafe trait Simd: Copy + 'static {
    type E: Elem;
    type V: Copy;
    /// `LANES` pairs of bf16.
    type P: Copy;
    const LANES: usize;
    /// Rows of the matmul tile.
    const MR: usize;
    /// Whether bf16 matmuls run on tile registers.
    const TILES: bool = false;

    unsafe fn splat(x: Self::E) -> Self::V;
    unsafe fn load(p: *const Self::E) -> Self::V;
    unsafe fn store(p: *mut Self::E, v: Self::V);
    unsafe fn load_n(p: *const Self::E, n: usize) -> Self::V;
    unsafe fn store_n(p: *mut Self::E, v: Self::V, n: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn abs(a: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// Nearest integer, halves to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^a` for integral `a` in [-126, 127].
    unsafe fn pow2(a: Self::V) -> Self::V;
    unsafe fn exp(a: Self::V) -> Self::V;
    unsafe fn tanh(a: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> Self::E;
    unsafe fn hmax(a: Self::V) -> Self::E;
    /// `n` bf16 values, widened.
    unsafe fn load_bf16(p: *const Bf16, n: usize) -> Self::V;
    /// `n` values, rounded to the nearest bf16, halves to even.
    unsafe fn store_bf16(p: *mut Bf16, v: Self::V, n: usize);
    /// `n` integral values of -128 to 127 as bytes.
    unsafe fn store_int8(p: *mut i8, v: Self::V, n: usize);
    /// `LANES` pairs `(a, b)`, rounded as [`Simd::store_bf16`] does.
    #[inline(always)]
    unsafe fn store_pairs(p: *mut Bf16, a: Self::V, b: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { pairs_from_halves::<Self>(p, a, b) }
    }
    /// The same pair in every lane.
    unsafe fn splat_pair(p: *const Bf16) -> Self::P;
    unsafe fn load_pairs(p: *const Bf16) -> Self::P;
    /// `acc + a.0 * b.0 + a.1 * b.1` in each lane.
    unsafe fn dot_pairs(a: Self::P, b: Self::P, acc: Self::V) -> Self::V;

    /// Turns the square of the first `LANES` vectors: lane `j` of vector `i` becomes lane `i` of vector `j`.
    #[inline(always)]
    unsafe fn turn(v: &mut [Self::V; 16]) {
        const { assert!(Self::LANES <= 16) };
        let (mut rows, mut turned) = ([[Self::E::ZERO; 16]; 16], [[Self::E::ZERO; 16]; 16]);
        // SAFETY: every row holds all lanes.
        unsafe {
            for (v, row) in v.iter().zip(&mut rows).take(Self::LANES) {
                Self::store(row.as_mut_ptr(), *v);
            }
            for (i, row) in rows.iter().enumerate().take(Self::LANES) {
                turned.iter_mut().zip(row).take(Self::LANES).for_each(|(turned, &x)| turned[i] = x);
            }
            for (v, row) in v.iter_mut().zip(&turned).take(Self::LANES) {
                *v = Self::load(row.as_ptr());
            }
        }
    }

    /// `n` lanes: a full load where `n` is `LANES`.
    #[inline(always)]
    unsafe fn get(p: *const Self::E, n: usize) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { if n == Self::LANES { Self::load(p) } else { Self::load_n(p, n) } }
    }

    /// `n` lanes: a full store where `n` is `LANES`.
    #[inline(always)]
    unsafe fn put(p: *mut Self::E, v: Self::V, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { if n == Self::LANES { Self::store(p, v) } else { Self::store_n(p, v, n) } }
    }

    /// `p * 2^n` for integral `n` in [-126, 127].
    #[inline(always)]
    unsafe fn scale(p: Self::V, n: Self::V) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { Self::mul(p, Self::pow2(n)) }
    }

    /// `1 / a` for `a >= 1`, to a relative error of 2e-7.
    #[inline(always)]
    unsafe fn reciprocal(a: Self::V) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { Self::div(Self::splat(Self::E::ONE), a) }
    }

    /// `1 / (1 + exp(-a))`.
    #[inline(always)]
    unsafe fn sigmoid(a: Self::V) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe {
            let e = Self::exp(Self::sub(Self::splat(Self::E::ZERO), a));
            Self::reciprocal(Self::add(Self::splat(Self::E::ONE), e))
        }
    }
}

/// [`Simd::store_pairs`] from the other operations.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn pairs_from_halves<S: Simd>(p: *mut Bf16, a: S::V, b: S::V) {
    const { assert!(S::LANES <= 16) };
    let mut halves = [[Bf16(0); 16]; 2];
    // SAFETY: the halves hold all lanes; the caller's promise.
    unsafe {
        S::store_bf16(halves[0].as_mut_ptr(), a, S::LANES);
        S::store_bf16(halves[1].as_mut_ptr(), b, S::LANES);
        for (i, (&a, &b)) in halves[0].iter().zip(&halves[1]).enumerate().take(S::LANES) {
            *p.add(2 * i) = a;
            *p.add(2 * i + 1) = b;
        }
    }
}

/// Runs the body for `(offset, lanes)` over `n` elements: full vectors first, then what is left. A macro and not a function
/// over a closure: closures are compiled without the features of the ISA around them, and stay calls.
macro_rules! each {
    ($S:ident, $n:expr, |$i:ident, $lanes:ident| $body:expr) => {{
        let len: usize = $n;
        let mut at = 0;
        while at + $S::LANES <= len {
            let ($i, $lanes) = (at, $S::LANES);
            $body;
            at += $S::LANES;
        }
        if at < len {
            let ($i, $lanes) = (at, len - at);
            $body;
        }
    }};
}

pub(crate) use each;

/// Functions of an `impl` of [`Simd`], [`Store`] or [`crate::dot::Dot`] that need what their caller has promised to the trait, and
/// no more.
macro_rules! promised {
    ($(fn $name:ident $(<$S:ident: $bound:path>)? ($($arguments:tt)*) $(-> $out:ty)? { $($body:tt)* })*) => {$(
        #[inline(always)]
        unsafe fn $name $(<$S: $bound>)? ($($arguments)*) $(-> $out)? {
            // SAFETY: the caller's promise: the machine has the instructions of the type, and pointers are valid for the
            // lanes that the trait names.
            unsafe { $($body)* }
        }
    )*};
}

pub(crate) use promised;

/// `(q, r, n)` of `x` clamped to `[low, high]`: `exp(x) = 2^n (1 + r q)`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn exp_parts<S: Simd<E = f32>>(x: S::V, low: f32, high: f32) -> (S::V, S::V, S::V) {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // SAFETY: the caller's promise.
    unsafe {
        let x = S::max(S::splat(low), S::min(S::splat(high), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-LN2_HI), x);
        let r = S::fma(n, S::splat(-LN2_LO), r);
        let mut q = S::splat(1.383_684_6e-3);
        for c in [8.374_816e-3, 4.166_822_5e-2, 0.166_664_2, 0.499_999_9, 1.0] {
            q = S::fma(q, r, S::splat(c));
        }
        (q, r, n)
    }
}

/// `exp` in f32 from the other operations.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn exp_f32<S: Simd<E = f32>>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let (q, r, n) = exp_parts::<S>(x, -87.33, 88.37);
        S::scale(S::fma(q, r, S::splat(1.0)), n)
    }
}

/// `tanh` in f32 from the other operations; beyond 10 it is 1 in f32.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn tanh_f32<S: Simd<E = f32>>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let (q, r, n) = exp_parts::<S>(S::add(x, x), -20.0, 20.0);
        let whole = S::pow2(n);
        let e = S::fma(whole, S::mul(q, r), S::sub(whole, S::splat(1.0)));
        S::div(e, S::add(e, S::splat(2.0)))
    }
}
