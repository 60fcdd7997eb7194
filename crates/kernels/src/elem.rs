//! The two number types kernels run in: `f32` for work, `f64` for gradient checks.

use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

use crate::dispatch::{Isa, Op};
use crate::isa;

/// A floating-point element.
pub trait Elem:
    Copy
    + Debug
    + Display
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Not a number, the poison of fresh buffers in debug builds.
    const NAN: Self;
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
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NAN: Self = <$t>::NAN;
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

elem!(f32, |isa, op| match isa {
    Isa::Scalar => isa::scalar::run(op),
    // SAFETY: `Isa` values of a vector ISA are only made after its features were detected.
    #[cfg(target_arch = "x86_64")]
    Isa::Avx2 => unsafe { isa::avx2::run(op) },
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    Isa::Avx512 => unsafe { isa::avx512::run(op) },
});
elem!(f64, |_isa, op| isa::scalar::run(op));
