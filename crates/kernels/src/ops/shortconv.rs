//! The products around the convolution of the mixer `shortconv`, whose input is `u = [b, c, x]` of width `3D`: `v = b * x` goes into
//! the convolution, and of what comes out of it, `s`, the branch takes `y = c * s`. On the calling thread, for one tile of rows.
//!
//! Backward: `dc = dy * s`, `ds = dy * c`; `db = dv * x`, `dx = dv * b`.

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd, Store, each};
use crate::size::area;

/// `v: [rows, D]` from `z: [rows, 3D]`, which is kept in `u`.
pub fn shortconv_in_forward<A: Store>(cx: &Exec, v: &mut [A], u: &mut [A], z: &[A::E], d: usize) {
    let rows = rows(v.len(), d);
    assert!(u.len() == area([rows, 3, d]) && z.len() == u.len());
    let bytes = v.len() * (4 * size_of::<A>() + 3 * size_of::<A::E>());
    let _time = time(cx, "shortconv_in_forward", (d, 0), Work::Bytes(bytes as f64));
    cx.op(In { v, u, z, d });
}

struct In<'a, A: Store> {
    v: &'a mut [A],
    u: &'a mut [A],
    z: &'a [A::E],
    d: usize,
}

impl<A: Store> Op<A::E> for In<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let In { v, u, z, d } = self;
        for ((v, u), z) in v.chunks_exact_mut(d).zip(u.chunks_exact_mut(3 * d)).zip(z.chunks_exact(3 * d)) {
            // SAFETY: rows have D and 3D columns, and `i + n` is at most D.
            each!(S, d, |i, n| unsafe {
                let z = z.as_ptr().add(i);
                let (b, c, x) = (S::get(z, n), S::get(z.add(d), n), S::get(z.add(2 * d), n));
                A::put::<S>(u.as_mut_ptr().add(i), b, n);
                A::put::<S>(u.as_mut_ptr().add(d + i), c, n);
                A::put::<S>(u.as_mut_ptr().add(2 * d + i), x, n);
                A::put::<S>(v.as_mut_ptr().add(i), S::mul(b, x), n);
            });
        }
    }
}

/// `y: [rows, D]` from `s: [rows, D]`, the sums themselves or what is kept of them, and `u: [rows, 3D]`.
pub fn shortconv_out_forward<A: Store, B: Store<E = A::E>>(cx: &Exec, y: &mut [A], s: &[B], u: &[A], d: usize) {
    let rows = rows(y.len(), d);
    assert!(s.len() == y.len() && u.len() == area([rows, 3, d]));
    let bytes = 2 * size_of_val(y) + size_of_val(s);
    let _time = time(cx, "shortconv_out_forward", (d, 0), Work::Bytes(bytes as f64));
    cx.op(Out { y, s, u, d });
}

struct Out<'a, A, B> {
    y: &'a mut [A],
    s: &'a [B],
    u: &'a [A],
    d: usize,
}

impl<A: Store, B: Store<E = A::E>> Op<A::E> for Out<'_, A, B> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Out { y, s, u, d } = self;
        for ((y, s), u) in y.chunks_exact_mut(d).zip(s.chunks_exact(d)).zip(u.chunks_exact(3 * d)) {
            // SAFETY: rows have D and 3D columns, and `i + n` is at most D.
            each!(S, d, |i, n| unsafe {
                let (s, c) = (B::get::<S>(s.as_ptr().add(i), n), A::get::<S>(u.as_ptr().add(d + i), n));
                A::put::<S>(y.as_mut_ptr().add(i), S::mul(c, s), n);
            });
        }
    }
}

/// First half of the backward pass: overwrites `ds: [rows, D]` and the columns of `c` in `du: [rows, 3D]` from
/// `dy, s: [rows, D]` and `u: [rows, 3D]`.
pub fn shortconv_out_backward<A: Store>(
    cx: &Exec,
    du: &mut [A],
    ds: &mut [A],
    dy: &[A::E],
    s: &[A],
    u: &[A],
    d: usize,
) {
    let rows = rows(ds.len(), d);
    assert!(du.len() == area([rows, 3, d]) && dy.len() == ds.len() && s.len() == ds.len() && u.len() == du.len());
    let bytes = ds.len() * (4 * size_of::<A>() + size_of::<A::E>());
    let _time = time(cx, "shortconv_out_backward", (d, 0), Work::Bytes(bytes as f64));
    cx.op(OutBackward { du, ds, dy, s, u, d });
}

struct OutBackward<'a, A: Store> {
    du: &'a mut [A],
    ds: &'a mut [A],
    dy: &'a [A::E],
    s: &'a [A],
    u: &'a [A],
    d: usize,
}

impl<A: Store> Op<A::E> for OutBackward<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let OutBackward { du, ds, dy, s, u, d } = self;
        let rows = du.chunks_exact_mut(3 * d).zip(u.chunks_exact(3 * d));
        let narrow = ds.chunks_exact_mut(d).zip(dy.chunks_exact(d)).zip(s.chunks_exact(d));
        for ((du, u), ((ds, dy), s)) in rows.zip(narrow) {
            // SAFETY: rows have D and 3D columns, and `i + n` is at most D.
            each!(S, d, |i, n| unsafe {
                let (s, c) = (A::get::<S>(s.as_ptr().add(i), n), A::get::<S>(u.as_ptr().add(d + i), n));
                let dy = S::get(dy.as_ptr().add(i), n);
                A::put::<S>(du.as_mut_ptr().add(d + i), S::mul(dy, s), n);
                A::put::<S>(ds.as_mut_ptr().add(i), S::mul(dy, c), n);
            });
        }
    }
}

/// Second half: overwrites the columns of `b` and `x` in `du: [rows, 3D]` from `dv: [rows, D]` and `u: [rows, 3D]`.
pub fn shortconv_in_backward<A: Store>(cx: &Exec, du: &mut [A], dv: &[A], u: &[A], d: usize) {
    let rows = rows(dv.len(), d);
    assert!(du.len() == area([rows, 3, d]) && u.len() == du.len());
    let _time = time(cx, "shortconv_in_backward", (d, 0), Work::Bytes((5 * size_of_val(dv)) as f64));
    cx.op(InBackward { du, dv, u, d });
}

struct InBackward<'a, A> {
    du: &'a mut [A],
    dv: &'a [A],
    u: &'a [A],
    d: usize,
}

impl<A: Store> Op<A::E> for InBackward<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let InBackward { du, dv, u, d } = self;
        for ((du, dv), u) in du.chunks_exact_mut(3 * d).zip(dv.chunks_exact(d)).zip(u.chunks_exact(3 * d)) {
            // SAFETY: rows have D and 3D columns, and `i + n` is at most D.
            each!(S, d, |i, n| unsafe {
                let (b, x) = (A::get::<S>(u.as_ptr().add(i), n), A::get::<S>(u.as_ptr().add(2 * d + i), n));
                let dv = A::get::<S>(dv.as_ptr().add(i), n);
                A::put::<S>(du.as_mut_ptr().add(i), S::mul(dv, x), n);
                A::put::<S>(du.as_mut_ptr().add(2 * d + i), S::mul(dv, b), n);
            });
        }
    }
}

/// Rows of `d` columns in `len` elements.
fn rows(len: usize, d: usize) -> usize {
    assert!(d > 0 && len.is_multiple_of(d), "{len} elements are no rows of {d} columns");
    len / d
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, random};

    #[test]
    fn equals_plain_loops() {
        equals::<f32>();
        equals::<Bf16>();
    }

    /// One product each: rounded once, so equal to the bit.
    fn equals<A: Store<E = f32>>() {
        let wide = |x: &[A]| -> Vec<f32> { x.iter().map(|x| x.widen()).collect() };
        all_isas(|cx| {
            for d in 1..=130 {
                let rows = d % 4;
                let z: Vec<f32> = random(rows * 3 * d, 1);
                let (dy, sums, dv): (Vec<f32>, Vec<f32>, Vec<f32>) =
                    (random(rows * d, 2), random(rows * d, 3), random(rows * d, 4));
                let narrow = |x: &[f32]| -> Vec<A> { x.iter().map(|&x| A::narrow(x)).collect() };
                let (s, dv) = (narrow(&sums), narrow(&dv));
                let [mut v, mut y, mut again, mut ds] = [(); 4].map(|()| vec![A::NAN; rows * d]);
                let [mut u, mut du] = [(); 2].map(|()| vec![A::NAN; rows * 3 * d]);
                shortconv_in_forward(cx, &mut v, &mut u, &z, d);
                assert_eq!(wide(&u), wide(&narrow(&z)));
                shortconv_out_forward(cx, &mut y, &sums, &u, d);
                shortconv_out_forward(cx, &mut again, &s, &u, d);
                shortconv_out_backward(cx, &mut du, &mut ds, &dy, &s, &u, d);
                shortconv_in_backward(cx, &mut du, &dv, &u, d);
                for (at, i) in (0..rows * d).map(|at| (at, at / d * 3 * d + at % d)) {
                    let [b, c, x] = [i, i + d, i + 2 * d].map(|i| u[i].widen());
                    let (s, dv) = (s[at].widen(), dv[at].widen());
                    let got = [v[at], y[at], again[at], ds[at], du[i], du[i + d], du[i + 2 * d]];
                    let want = [z[i] * z[i + 2 * d], c * sums[at], c * s, dy[at] * c, dv * x, dy[at] * s, dv * b];
                    assert_eq!(wide(&got), wide(&narrow(&want)), "D {d}, row {}, column {}", at / d, at % d);
                }
            }
        });
    }
}
