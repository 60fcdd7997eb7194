//! A weighted sum of two streams: `y = a x + b z`; backward `dx = a dy`, `dz += b dy`, `da = dy . x`, `db = dy . z`.

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, each};

/// `y = a x + b z`, all of one length, on the calling thread.
pub fn blend_forward<E: Elem>(cx: &Exec, y: &mut [E], x: &[E], z: &[E], [a, b]: [E; 2]) {
    assert!(x.len() == y.len() && z.len() == y.len());
    let _time = time(cx, "blend_forward", (0, 0), Work::Bytes((3 * size_of_val(y)) as f64));
    cx.op(Forward { y, x, z, a, b });
}

struct Forward<'a, E> {
    y: &'a mut [E],
    x: &'a [E],
    z: &'a [E],
    a: E,
    b: E,
}

impl<E: Elem> Op<E> for Forward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let (y, x, z) = (self.y.as_mut_ptr(), self.x.as_ptr(), self.z.as_ptr());
        // SAFETY: offsets are below the common length.
        unsafe {
            let (a, b) = (S::splat(self.a), S::splat(self.b));
            each!(S, self.x.len(), |i, n| {
                S::put(y.add(i), S::fma(a, S::get(x.add(i), n), S::mul(b, S::get(z.add(i), n))), n);
            });
        }
    }
}

/// Turns `d` from `dy` into `dx`, writes `dz` or, where `accumulate`, adds to it, and adds `da` and `db` to `part`; on the calling
/// thread.
pub fn blend_backward<E: Elem>(
    cx: &Exec,
    d: &mut [E],
    dz: &mut [E],
    part: &mut [E],
    x: &[E],
    z: &[E],
    [a, b]: [E; 2],
    accumulate: bool,
) {
    assert!(dz.len() == d.len() && x.len() == d.len() && z.len() == d.len() && part.len() == 2);
    let _time = time(cx, "blend_backward", (0, 0), Work::Bytes((6 * size_of_val(d)) as f64));
    let [da, db] = cx.op(Backward { d, dz, x, z, a, b, accumulate });
    part[0] += da;
    part[1] += db;
}

struct Backward<'a, E> {
    d: &'a mut [E],
    dz: &'a mut [E],
    x: &'a [E],
    z: &'a [E],
    a: E,
    b: E,
    accumulate: bool,
}

impl<E: Elem> Op<E> for Backward<'_, E> {
    /// `da`, `db`.
    type Out = [E; 2];
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> [E; 2] {
        let (d, dz, x, z) = (self.d.as_mut_ptr(), self.dz.as_mut_ptr(), self.x.as_ptr(), self.z.as_ptr());
        // SAFETY: offsets are below the common length; missing lanes load as zero.
        unsafe {
            let (a, b, zero) = (S::splat(self.a), S::splat(self.b), S::splat(E::ZERO));
            let (mut da, mut db) = (zero, zero);
            each!(S, self.x.len(), |i, n| {
                let dy = S::get(d.add(i), n);
                da = S::fma(dy, S::get(x.add(i), n), da);
                db = S::fma(dy, S::get(z.add(i), n), db);
                let before = if self.accumulate { S::get(dz.add(i), n) } else { zero };
                S::put(dz.add(i), S::fma(b, dy, before), n);
                S::put(d.add(i), S::mul(a, dy), n);
            });
            [S::sum(da), S::sum(db)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, random};

    /// Numbers that are below 4, with two roundings.
    fn close(got: &[f32], want: impl Iterator<Item = f64>) {
        let want: Vec<f64> = want.collect();
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).for_each(|(&got, want)| assert!((f64::from(got) - want).abs() < 5e-7, "{got} for {want}"));
    }

    #[test]
    fn equals_the_formulas() {
        all_isas(|cx| {
            for n in (1..70).chain([500]) {
                let [x, z, dy, start]: [Vec<f32>; 4] = [1, 2, 3, 4].map(|seed| random(n, seed));
                let (a, b) = (0.75, -1.5);
                let mut y = vec![f32::NAN; n];
                blend_forward(cx, &mut y, &x, &z, [a, b]);
                let wide = |x: f32| f64::from(x);
                close(&y, x.iter().zip(&z).map(|(&x, &z)| wide(a) * wide(x) + wide(b) * wide(z)));
                for accumulate in [false, true] {
                    let (mut d, mut dz, mut part) = (dy.clone(), start.clone(), [10.0, 20.0]);
                    blend_backward(cx, &mut d, &mut dz, &mut part, &x, &z, [a, b], accumulate);
                    assert_eq!(d, dy.iter().map(|dy| a * dy).collect::<Vec<f32>>());
                    let before = |start: f32| if accumulate { wide(start) } else { 0.0 };
                    close(&dz, dy.iter().zip(&start).map(|(&dy, &start)| wide(b) * wide(dy) + before(start)));
                    let dot = |x: &[f32]| dy.iter().zip(x).map(|(&dy, &x)| wide(dy) * wide(x)).sum::<f64>();
                    for (got, want) in part.into_iter().zip([10.0 + dot(&x), 20.0 + dot(&z)]) {
                        assert!((wide(got) - want).abs() < 1e-4, "{got} for {want}");
                    }
                }
            }
        });
    }
}
