//! What activations and packed weights are kept as: the element they are computed in, or bf16 under f32.
//!
//! A matrix product takes both operands as one `Store` and sums in its `E`. bf16 operands go in pairs of depths.

use crate::bf16::Bf16;
use crate::elem::Elem;
use crate::simd::{Simd, promised};

/// A number in memory.
///
/// # Safety
/// Every bit pattern is a value, and zero bytes are [`Store::ZERO`]. Only [`Bf16`] has a `DEPTH` of 2.
#[allow(clippy::missing_safety_doc)]
pub unsafe trait Store: Copy + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// What it is computed in.
    type E: Elem;
    /// 0.
    const ZERO: Self;
    /// Not a number, the poison of fresh buffers in debug builds.
    const NAN: Self;
    /// Depths that one multiply-add of a product takes.
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
    /// The same group in every lane.
    unsafe fn splat<S: Simd<E = Self::E>>(p: *const Self) -> Self::Group<S>;
    /// A group in each lane.
    unsafe fn load<S: Simd<E = Self::E>>(p: *const Self) -> Self::Group<S>;
    /// `acc + a . b` in each lane.
    unsafe fn dot<S: Simd<E = Self::E>>(a: Self::Group<S>, b: Self::Group<S>, acc: S::V) -> S::V;
}

macro_rules! plain {
    ($t:ty, $name:literal) => {
        // SAFETY: a float, and not bf16.
        unsafe impl Store for $t {
            type E = $t;
            const ZERO: Self = 0.0;
            const NAN: Self = <$t>::NAN;
            const DEPTH: usize = 1;
            const NAME: &'static str = $name;
            type Group<S: Simd<E = $t>> = S::V;

            fn narrow(x: $t) -> $t {
                x
            }
            fn widen(self) -> $t {
                self
            }
            promised! {
                fn get<S: Simd<E = $t>>(p: *const $t, n: usize) -> S::V { S::get(p, n) }
                fn put<S: Simd<E = $t>>(p: *mut $t, v: S::V, n: usize) { S::put(p, v, n) }
                fn splat<S: Simd<E = $t>>(p: *const $t) -> S::V { S::splat(*p) }
                fn load<S: Simd<E = $t>>(p: *const $t) -> S::V { S::load(p) }
                fn dot<S: Simd<E = $t>>(a: S::V, b: S::V, acc: S::V) -> S::V { S::fma(a, b, acc) }
            }
        }
    };
}

plain!(f32, "f32");
plain!(f64, "f64");

// SAFETY: sixteen bits of a float.
unsafe impl Store for Bf16 {
    type E = f32;
    const ZERO: Self = Bf16(0);
    const NAN: Self = Bf16(0x7fc0);
    const DEPTH: usize = 2;
    const NAME: &'static str = "bf16";
    type Group<S: Simd<E = f32>> = S::P;

    fn narrow(x: f32) -> Self {
        Bf16::from_f32(x)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
    promised! {
        fn get<S: Simd<E = f32>>(p: *const Bf16, n: usize) -> S::V { S::load_bf16(p, n) }
        fn put<S: Simd<E = f32>>(p: *mut Bf16, v: S::V, n: usize) { S::store_bf16(p, v, n) }
        fn splat<S: Simd<E = f32>>(p: *const Bf16) -> S::P { S::splat_pair(p) }
        fn load<S: Simd<E = f32>>(p: *const Bf16) -> S::P { S::load_pairs(p) }
        fn dot<S: Simd<E = f32>>(a: S::P, b: S::P, acc: S::V) -> S::V { S::dot_pairs(a, b, acc) }
    }
}
