//! Elementwise sums and copies, and the sum of squares (in blocks of 1024, added up in f64 in order).

use crate::exec::{Exec, Shared};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};

/// Elements of one block of a sum.
pub(crate) const BLOCK: usize = 1024;

/// Most blocks summed in one region.
const LANES: usize = 256;

/// Adds the sums that tiles kept, `[tiles, width]`, from element `at` on to `out`, in order.
pub fn add_parts<E: Elem>(out: &mut [E], parts: &[E], width: usize, at: usize) {
    for part in parts.chunks_exact(width.max(1)) {
        out.iter_mut().zip(&part[at..]).for_each(|(o, &p)| *o += p);
    }
}

/// `y += x`.
pub fn add<E: Elem>(cx: &Exec, y: &mut [E], x: &[E]) {
    assert_eq!(y.len(), x.len());
    let _time = time(cx, "add", (0, 0), Work::Bytes((3 * x.len() * size_of::<E>()) as f64));
    let y = Shared::new(y);
    cx.pool().split(x.len(), BLOCK, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let y = unsafe { y.range(r.clone()) };
        cx.op(Add { y, x: &x[r] });
    });
}

pub(crate) struct Add<'a, E> {
    pub y: &'a mut [E],
    pub x: &'a [E],
}

impl<E: Elem> Op<E> for Add<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let (y, x) = (self.y.as_mut_ptr(), self.x.as_ptr());
        // SAFETY: offsets are below the common length.
        each!(S, self.x.len(), |i, n| unsafe { S::put(y.add(i), S::add(S::get(y.add(i), n), S::get(x.add(i), n)), n) });
    }
}

/// `y = x` in the precision of `y`.
pub fn narrow<A: Store>(cx: &Exec, y: &mut [A], x: &[A::E]) {
    assert_eq!(y.len(), x.len());
    let _time = time(cx, "narrow", (0, 0), Work::Bytes((x.len() * (size_of::<A>() + size_of::<A::E>())) as f64));
    let y = Shared::new(y);
    cx.pool().split(x.len(), BLOCK, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let y = unsafe { y.range(r.clone()) };
        cx.op(Narrow { y, x: &x[r] });
    });
}

struct Narrow<'a, A: Store> {
    y: &'a mut [A],
    x: &'a [A::E],
}

impl<A: Store> Op<A::E> for Narrow<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let (y, x) = (self.y.as_mut_ptr(), self.x.as_ptr());
        // SAFETY: offsets are below the common length.
        each!(S, self.x.len(), |i, n| unsafe { A::put::<S>(y.add(i), S::get(x.add(i), n), n) });
    }
}

/// `y = 0`.
pub fn zero<E: Elem>(cx: &Exec, y: &mut [E]) {
    let len = y.len();
    let _time = time(cx, "zero", (0, 0), Work::Bytes(size_of_val(y) as f64));
    let y = Shared::new(y);
    // SAFETY: ranges of different threads are disjoint.
    cx.pool().split(len, BLOCK, |r| unsafe { y.range(r).fill(E::ZERO) });
}

/// `sum_i x_i^2` in f64.
pub fn sum_squares<E: Elem>(cx: &Exec, x: &[E]) -> f64 {
    let _time = time(cx, "sum_squares", (0, 0), Work::Bytes(size_of_val(x) as f64));
    sum_blocks(cx, x, |block| cx.op(SumSquares { x: block }).to_f64())
}

/// Adds up `f(block)` over blocks of [`BLOCK`] elements, in order.
pub(crate) fn sum_blocks<E: Elem>(cx: &Exec, x: &[E], f: impl Fn(&[E]) -> f64 + Sync) -> f64 {
    let mut total = 0.0;
    for group in x.chunks(BLOCK * LANES) {
        let mut sums = [0.0; LANES];
        let blocks = group.len().div_ceil(BLOCK);
        let shared = Shared::new(&mut sums);
        cx.rows(blocks, |r| {
            for i in r {
                // SAFETY: one block, one element.
                let sum = unsafe { shared.range(i..i + 1) };
                sum[0] = f(&group[i * BLOCK..group.len().min((i + 1) * BLOCK)]);
            }
        });
        total += sums[..blocks].iter().sum::<f64>();
    }
    total
}

pub(crate) struct SumSquares<'a, E> {
    pub x: &'a [E],
}

impl<E: Elem> Op<E> for SumSquares<'_, E> {
    type Out = E;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> E {
        // SAFETY: offsets are below the length; missing lanes load as zero.
        unsafe {
            let mut acc = S::splat(E::ZERO);
            each!(S, self.x.len(), |i, n| {
                let x = S::get(self.x.as_ptr().add(i), n);
                acc = S::fma(x, x, acc);
            });
            S::sum(acc)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, random};

    #[test]
    fn sums_equal_plain_loops() {
        all_isas(|cx| {
            for n in (0..130).chain([4095, 4097, BLOCK * LANES + 77]) {
                let x: Vec<f32> = random(n, 1);
                let want: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                assert!((sum_squares(cx, &x) - want).abs() <= 1e-6 * want, "{n}");
                let mut y: Vec<f32> = random(n, 2);
                let want: Vec<f32> = y.iter().zip(&x).map(|(y, x)| y + x).collect();
                add(cx, &mut y, &x);
                assert_eq!(y, want);
                narrow(cx, &mut y, &x);
                assert_eq!(y, x);
                let mut half = vec![Bf16::NAN; n];
                narrow(cx, &mut half, &x);
                assert!(half.iter().zip(&x).all(|(&h, &x)| h == Bf16::from_f32(x)), "{n}");
                y.fill(f32::NAN);
                zero(cx, &mut y);
                assert!(y.iter().all(|&y| y == 0.0));
            }
        });
    }
}
