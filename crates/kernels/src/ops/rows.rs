//! What the delta rule and attention do to small matrices row by row, on the calling thread: scales, inner products, `exp`.
//! Tested with the ops that they are parts of.

use crate::exec::Exec;
use crate::simd::{Elem, Op, Simd, each};

/// `y_i (+)= by_i x_i` for rows of `d`.
pub(super) fn scale_rows<E: Elem>(cx: &Exec, y: &mut [E], x: &[E], by: &[E], d: usize, add: bool) {
    cx.op(ScaleRows { y, x, by, d, add });
}

struct ScaleRows<'a, E> {
    y: &'a mut [E],
    x: &'a [E],
    by: &'a [E],
    d: usize,
    add: bool,
}

impl<E: Elem> Op<E> for ScaleRows<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let rows = self.y.chunks_exact_mut(self.d).zip(self.x.chunks_exact(self.d)).zip(self.by);
        for ((y, x), &by) in rows {
            // SAFETY: offsets are inside the rows.
            unsafe {
                let (y, x, by) = (y.as_mut_ptr(), x.as_ptr(), S::splat(by));
                if self.add {
                    each!(S, self.d, |j, n| S::put(y.add(j), S::fma(by, S::get(x.add(j), n), S::get(y.add(j), n)), n));
                } else {
                    each!(S, self.d, |j, n| S::put(y.add(j), S::mul(by, S::get(x.add(j), n)), n));
                }
            }
        }
    }
}

/// `y *= by`.
pub(super) struct Scale<'a, E> {
    pub(super) y: &'a mut [E],
    pub(super) by: E,
}

impl<E: Elem> Op<E> for Scale<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let y = self.y.as_mut_ptr();
        // SAFETY: offsets are below the length.
        each!(S, self.y.len(), |i, n| unsafe { S::put(y.add(i), S::mul(S::splat(self.by), S::get(y.add(i), n)), n) });
    }
}

/// `out_i = x_i . y_i` for rows of `d`.
pub(super) struct RowDots<'a, E> {
    pub(super) out: &'a mut [E],
    pub(super) x: &'a [E],
    pub(super) y: &'a [E],
    pub(super) d: usize,
}

impl<E: Elem> Op<E> for RowDots<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let rows = self.out.iter_mut().zip(self.x.chunks_exact(self.d)).zip(self.y.chunks_exact(self.d));
        for ((out, x), y) in rows {
            // SAFETY: offsets are inside the rows; missing lanes load as zero.
            unsafe {
                let mut sum = S::splat(E::ZERO);
                each!(S, self.d, |j, n| {
                    sum = S::fma(S::get(x.as_ptr().add(j), n), S::get(y.as_ptr().add(j), n), sum);
                });
                *out = S::sum(sum);
            }
        }
    }
}

/// `y = exp(x)`.
pub(super) struct Exp<'a, E> {
    pub(super) y: &'a mut [E],
    pub(super) x: &'a [E],
}

impl<E: Elem> Op<E> for Exp<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let (y, x) = (self.y.as_mut_ptr(), self.x.as_ptr());
        // SAFETY: both have as many elements.
        each!(S, self.x.len(), |i, n| unsafe { S::put(y.add(i), S::exp(S::get(x.add(i), n)), n) });
    }
}
