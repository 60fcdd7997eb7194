//! Rows rounded to int8 and back: `m = max |x|` of a row, `q = round(127 x / m)` with halves to even, `x <- q (m / 127)`;
//! zeros where `m <= 1e-30`.
//!
//! What the packed runtime multiplies ([`super::Int8Rows::quantise`]), for models that are trained for it: the same `q` in
//! f32. A row kept as bf16 is rounded once more when it is put back. The gradient passes straight through, so there is no
//! backward op.

use super::largest::largest;
use crate::exec::{Exec, Shared};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};

/// Rounds `x: [rows, width]` in place.
pub fn round_int8<A: Store>(cx: &Exec, x: &mut [A], width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width));
    let rows = x.len() / width;
    let _time = time(cx, "round_int8", (width, 0), Work::Bytes((2 * size_of_val(x)) as f64));
    let x = Shared::new(x);
    cx.rows(rows, |r| {
        // SAFETY: ranges of different threads are disjoint.
        cx.op(Round { x: unsafe { x.range(r.start * width..r.end * width) }, width });
    });
}

struct Round<'a, A> {
    x: &'a mut [A],
    width: usize,
}

impl<A: Store> Op<A::E> for Round<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let most = A::E::from_f64(127.0);
        for row in self.x.chunks_exact_mut(self.width) {
            let x = row.as_mut_ptr();
            // SAFETY: offsets are below the width; missing lanes load as zero.
            unsafe {
                let m = largest::<A, S>(x, self.width);
                let by = S::splat(if m > A::E::from_f64(1e-30) { most / m } else { A::E::ZERO });
                let step = S::splat(m / most);
                each!(S, self.width, |i, n| {
                    let q = S::round(S::mul(A::get::<S>(x.add(i), n), by));
                    A::put::<S>(x.add(i), S::mul(q, step), n);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::ops::{Columns, Int8Rows, PackedMatrix, packed_matmul};
    use crate::testing::{all_isas, random};

    /// The largest magnitude of a row, and its codes.
    fn codes(x: &[f32]) -> (f32, Vec<f32>) {
        let m = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let by = if m > 1e-30 { 127.0 / m } else { 0.0 };
        (m, x.iter().map(|x| (x * by).round_ties_even()).collect())
    }

    /// Rows of all kinds: random ones, ties (multiples of 0.5 under a largest of 127), zeros, and next to nothing.
    fn rows(width: usize) -> Vec<f32> {
        let mut x: Vec<f32> = random(6 * width, width as u64);
        x[width..2 * width].iter_mut().zip(0..).for_each(|(x, i)| *x = (i * 37 % 509) as f32 * 0.5 - 127.0);
        x[width] = 127.0;
        x[2 * width..3 * width].fill(0.0);
        x[3 * width..4 * width].fill(1e-38);
        x[4 * width..5 * width].iter_mut().for_each(|x| *x *= 1e-20);
        x
    }

    #[test]
    fn equals_the_plain_loop_in_every_precision() {
        all_isas(|cx| {
            for width in (1..70).chain([192, 511, 512]) {
                let x = rows(width);
                let (mut single, mut double): (_, Vec<f64>) = (x.clone(), x.iter().map(|&x| x.into()).collect());
                let mut half: Vec<Bf16> = x.iter().map(|&x| Bf16::from_f32(x)).collect();
                let kept: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
                round_int8(cx, &mut single, width);
                round_int8(cx, &mut double, width);
                round_int8(cx, &mut half, width);
                for (at, row) in x.chunks(width).enumerate() {
                    let cells = at * width..(at + 1) * width;
                    let (m, q) = codes(row);
                    let want: Vec<f32> = q.iter().map(|q| q * (m / 127.0)).collect();
                    assert_eq!(single[cells.clone()], want, "row {at} of {width} on {:?}", cx.isa());
                    let by = if m > 1e-30 { 127.0 / f64::from(m) } else { 0.0 };
                    for (got, &x) in double[cells.clone()].iter().zip(row) {
                        let want = (f64::from(x) * by).round_ties_even() * (f64::from(m) / 127.0);
                        assert_eq!(*got, want, "row {at} of {width}");
                    }
                    let (m, q) = codes(&kept[cells.clone()]);
                    let want = q.iter().map(|q| Bf16::from_f32(q * (m / 127.0)));
                    assert!(want.eq(half[cells].iter().copied()), "row {at} of {width} on {:?}", cx.isa());
                }
            }
        });
    }

    /// A matmul with the identity shows what the packed runtime takes a row for.
    #[test]
    fn equals_the_rows_of_the_packed_runtime() {
        all_isas(|cx| {
            for width in [1, 2, 15, 16, 33, 192] {
                let mut x = rows(width);
                let columns = Columns::whole(width);
                let identity = (0..width * width).map(|i| i8::from(i % (width + 1) == 0));
                let identity = PackedMatrix::ternary(identity, &vec![1.0; width], width, columns);
                let mut q = Int8Rows::new([columns].into_iter(), 6);
                q.quantise(cx, &x, columns);
                let mut want = vec![f32::NAN; x.len()];
                packed_matmul(cx, (&mut want, width, 0), &mut q, &identity, false);
                round_int8(cx, &mut x, width);
                assert_eq!(x, want, "{width} on {:?}", cx.isa());
            }
        });
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        all_isas(|cx| {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for width in [1, 5, 40] {
                    for at in [0, width / 2, width - 1] {
                        let mut x: Vec<f32> = random(width, 3);
                        x[at] = bad;
                        round_int8(cx, &mut x, width);
                        assert!(!x[at].is_finite(), "{bad} at {at} of {width} on {:?}", cx.isa());
                    }
                }
            }
        });
    }
}
