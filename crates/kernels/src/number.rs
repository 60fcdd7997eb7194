//! The numbers of kernels: f32 for work, f64 for gradient checks, and bf16, which is kept and not computed in.

use crate::bf16::Bf16;
use crate::simd::{Elem, Op, Simd, Store, Units, promised};

macro_rules! elem {
    ($t:ident, |$x:ident| $f32:expr) => {
        impl Elem for $t {
            const ONE: Self = 1.0;
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            fn total_cmp(&self, other: &Self) -> std::cmp::Ordering {
                <$t>::total_cmp(self, other)
            }
            fn as_f32(x: &mut [Self]) -> Option<&mut [f32]> {
                let $x = x;
                $f32
            }
            #[inline]
            fn run_on<U: Units, O: Op<Self>>(units: U, op: O) -> O::Out {
                units.$t(op)
            }
        }
    };
}

elem!(f32, |x| Some(x));
elem!(f64, |_x| None);

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
                fn put_groups<S: Simd<E = $t>>(p: *mut $t, a: S::V, _b: S::V) { S::store(p, a) }
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
        fn put_groups<S: Simd<E = f32>>(p: *mut Bf16, a: S::V, b: S::V) { S::store_pairs(p, a, b) }
        fn splat<S: Simd<E = f32>>(p: *const Bf16) -> S::P { S::splat_pair(p) }
        fn load<S: Simd<E = f32>>(p: *const Bf16) -> S::P { S::load_pairs(p) }
        fn dot<S: Simd<E = f32>>(a: S::P, b: S::P, acc: S::V) -> S::V { S::dot_pairs(a, b, acc) }
    }
}
