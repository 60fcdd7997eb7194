//! The largest magnitude of a row, which its codes are relative to.

use crate::simd::{Simd, Store, each};

/// `max |x|` of `n` elements.
///
/// # Safety
/// As [`Simd`]; there are so many elements.
#[inline(always)]
pub(super) unsafe fn largest<A: Store, S: Simd<E = A::E>>(x: *const A, n: usize) -> A::E {
    // SAFETY: offsets are below the length; missing lanes load as zero.
    unsafe {
        let mut largest = S::splat(A::E::ZERO);
        each!(S, n, |i, lanes| largest = S::max(largest, S::abs(A::get::<S>(x.add(i), lanes))));
        S::hmax(largest)
    }
}
