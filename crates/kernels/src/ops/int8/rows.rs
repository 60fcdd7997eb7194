//! Rows of int8 for one tile: `q = round(127 x / m)`, halves to even, `m = max |x|` of the row; zeros where `m <= 1e-30`. The scale of a
//! row with an element that is not finite is not a number, and its codes are zeros.

use super::codes::STEP;
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};
use crate::size::{area, whole};
use crate::tile::Local;

/// Rows are held in multiples of this, of which matmuls may read all.
pub(super) const HELD: usize = 32;

/// Rounded rows `[rows, width]` in the memory of a tile.
pub struct CodeRows<'a> {
    /// `[held rows, whole steps of columns]`, zeros beyond the width.
    pub(super) q: &'a [i8],
    /// `m / 127` of each row.
    pub(super) scales: &'a [f32],
    /// Sums of `q` of each segment: `[rows, segments]`.
    pub(super) sums: &'a [i32],
    pub(super) width: usize,
    pub(super) segment: usize,
}

impl<'a> CodeRows<'a> {
    /// Most columns: a sum of codes is exact in f32.
    pub const WIDEST: usize = 1 << 17;

    /// Rounds `x: [rows, width]`, `width` at most [`CodeRows::WIDEST`], for weights with a scale for `segment` columns of a row.
    pub fn round<A: Store>(cx: &Exec, local: &'a Local, x: &[A], width: usize, segment: usize) -> Self {
        assert!(width > 0 && width <= Self::WIDEST && segment > 0 && x.len().is_multiple_of(width));
        let rows = x.len() / width;
        let bytes = x.len() * (size_of::<A>() + 1);
        let _time = time(cx, "round_rows", (width, 0), Work::Bytes(bytes as f64));
        let (q, scales, sums) = (
            local.take::<i8>(area([whole(rows, HELD), whole(width, STEP)])),
            local.take::<f32>(rows),
            local.take::<i32>(area([rows, width.div_ceil(segment)])),
        );
        cx.op(Round { q, scales, sums, x, width, segment });
        CodeRows { q, scales, sums, width, segment }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }
}

struct Round<'a, A> {
    q: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    x: &'a [A],
    width: usize,
    segment: usize,
}

impl<A: Store> Op<A::E> for Round<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Round { q, scales, sums, x, width, segment } = self;
        let zero = A::E::ZERO;
        let most = A::E::from_f64(127.0);
        let rows = x.chunks_exact(width).zip(q.chunks_exact_mut(whole(width, STEP)));
        let sums = sums.chunks_exact_mut(width.div_ceil(segment));
        for ((x, q), (scale, sums)) in rows.zip(scales.iter_mut().zip(sums)) {
            let x = x.as_ptr();
            q[width..].fill(0);
            let q = q.as_mut_ptr();
            // SAFETY: offsets are below the width; missing lanes load as zero.
            unsafe {
                let (mut largest, mut poison) = (S::splat(zero), S::splat(zero));
                each!(S, width, |i, n| {
                    let x = A::get::<S>(x.add(i), n);
                    largest = S::max(largest, S::abs(x));
                    // Zero times what is not finite is not a number, and stays so.
                    poison = S::fma(x, S::splat(zero), poison);
                });
                let m = S::hmax(largest);
                let finite = S::sum(poison) == zero;
                let by = S::splat(if finite && m > A::E::from_f64(1e-30) { most / m } else { zero });
                for (first, sum) in (0..width).step_by(segment).zip(sums) {
                    let own = segment.min(width - first);
                    let mut total = S::splat(zero);
                    each!(S, own, |i, n| {
                        // What is not finite makes all codes zero, and the scale no number.
                        let code = S::round(S::mul(A::get::<S>(x.add(first + i), n), by));
                        let code = if finite { code } else { S::splat(zero) };
                        total = S::add(total, code);
                        S::store_int8(q.add(first + i), code, n);
                    });
                    *sum = S::sum(total).to_f64() as i32;
                }
                *scale = if finite { (m / most).to_f64() as f32 } else { f32::NAN };
            }
        }
    }
}
