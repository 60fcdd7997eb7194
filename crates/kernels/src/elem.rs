//! The two number types kernels compute in: `f32` for work, `f64` for gradient checks. What they keep in memory between
//! products may be smaller: see [`Store`].

use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

use crate::dispatch::Isa;
use crate::simd::Op;
use crate::store::Store;

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
    /// Runs `op` with the lanes of `isa`.
    fn dispatch<O: Op<Self>>(isa: Isa, op: O) -> O::Out;
}

macro_rules! elem {
    ($t:ty, |$isa:ident, $op:ident| $dispatch:expr) => {
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
            #[inline]
            fn dispatch<O: Op<Self>>($isa: Isa, $op: O) -> O::Out {
                $dispatch
            }
        }
    };
}

elem!(f32, |isa, op| isa.run(op));
elem!(f64, |_isa, op| crate::isa::scalar::run(op));
