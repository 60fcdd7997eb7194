//! RMSNorm: `y = x * r * scale`, `r = 1 / sqrt(mean(x^2) + eps)`, one `r` per row (recomputed in the backward pass).
//!
//! Backward, with `s = sum_j dy_j scale_j x_j` of the row:
//! `dx (+)= r (dy * scale - x r^2 s / d)`, `dscale += sum over rows of dy * x * r`.

use crate::exec::{Exec, Shared};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};
use crate::size::area;

/// `y: [rows, d]` from `x: [rows, d]`, `scale: [d]`.
pub fn rmsnorm_forward<E: Elem, A: Store<E = E>, X: Store<E = E>>(
    cx: &Exec,
    y: &mut [A],
    x: &[X],
    scale: &[E],
    eps: f64,
    (rows, d): (usize, usize),
) {
    let n = area([rows, d]);
    assert!(y.len() >= n && x.len() >= n && scale.len() == d);
    let _time = time(cx, "rmsnorm_forward", (d, 0), Work::Bytes((n * (size_of::<A>() + size_of::<X>())) as f64));
    let y = Shared::new(y);
    cx.rows(rows, |r| {
        let cells = r.start * d..r.end * d;
        // SAFETY: ranges of different threads are disjoint.
        let y = unsafe { y.range(cells.clone()) };
        cx.op(Forward { y, x: &x[cells], scale, eps });
    });
}

struct Forward<'a, E, A, X> {
    y: &'a mut [A],
    x: &'a [X],
    scale: &'a [E],
    eps: f64,
}

impl<E: Elem, A: Store<E = E>, X: Store<E = E>> Op<E> for Forward<'_, E, A, X> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let d = self.scale.len();
        let scale = self.scale.as_ptr();
        for (y, x) in self.y.chunks_exact_mut(d).zip(self.x.chunks_exact(d)) {
            // SAFETY: offsets are inside the rows.
            unsafe {
                let (y, x) = (y.as_mut_ptr(), x.as_ptr());
                // Four sums at once: one would wait for each addition.
                let mut acc = [S::splat(E::ZERO); 4];
                let wide = d - d % (4 * S::LANES);
                let mut at = 0;
                while at < wide {
                    for (j, acc) in acc.iter_mut().enumerate() {
                        let x = X::get::<S>(x.add(at + j * S::LANES), S::LANES);
                        *acc = S::fma(x, x, *acc);
                    }
                    at += 4 * S::LANES;
                }
                each!(S, d - wide, |i, n| {
                    let x = X::get::<S>(x.add(wide + i), n);
                    acc[0] = S::fma(x, x, acc[0]);
                });
                let sum = S::sum(S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3])));
                let r = S::splat(rstd(sum, d, self.eps));
                each!(S, d, |i, n| {
                    let x = X::get::<S>(x.add(i), n);
                    A::put::<S>(y.add(i), S::mul(S::mul(x, r), S::get(scale.add(i), n)), n);
                });
            }
        }
    }
}

/// `1 / sqrt(sum / d + eps)`.
#[inline(always)]
fn rstd<E: Elem>(sum: E, d: usize, eps: f64) -> E {
    E::from_f64(1.0 / (sum.to_f64() / d as f64 + eps).sqrt())
}

/// `dx: [rows, d]` (added to where `accumulate`), `dscale: [d]` (always added to), on the calling thread alone.
pub fn rmsnorm_backward<E: Elem, X: Store<E = E>>(
    cx: &Exec,
    dx: &mut [E],
    dscale: &mut [E],
    dy: &[E],
    x: &[X],
    scale: &[E],
    eps: f64,
    (rows, d): (usize, usize),
    accumulate: bool,
) {
    let n = area([rows, d]);
    assert!(scale.len() == d && dscale.len() == d);
    let _time = time(cx, "rmsnorm_backward", (d, 0), Work::Bytes((n * (3 * size_of::<E>() + size_of::<X>())) as f64));
    cx.op(Backward { dx: &mut dx[..n], dscale, dy: &dy[..n], x: &x[..n], scale, eps, accumulate });
}

struct Backward<'a, E, X> {
    dx: &'a mut [E],
    dscale: &'a mut [E],
    dy: &'a [E],
    x: &'a [X],
    scale: &'a [E],
    eps: f64,
    accumulate: bool,
}

impl<E: Elem, X: Store<E = E>> Op<E> for Backward<'_, E, X> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let d = self.scale.len();
        let (scale, dscale) = (self.scale.as_ptr(), self.dscale.as_mut_ptr());
        for ((dx, dy), x) in self.dx.chunks_exact_mut(d).zip(self.dy.chunks_exact(d)).zip(self.x.chunks_exact(d)) {
            // SAFETY: offsets are inside the rows.
            unsafe {
                let (dx, dy, x) = (dx.as_mut_ptr(), dy.as_ptr(), x.as_ptr());
                let (mut squares, mut dot) = (S::splat(E::ZERO), S::splat(E::ZERO));
                each!(S, d, |i, n| {
                    let x = X::get::<S>(x.add(i), n);
                    squares = S::fma(x, x, squares);
                    dot = S::fma(S::mul(S::get(dy.add(i), n), S::get(scale.add(i), n)), x, dot);
                });
                let r = rstd(S::sum(squares), d, self.eps);
                let s = S::splat(E::from_f64(-S::sum(dot).to_f64() / d as f64 * r.to_f64() * r.to_f64()));
                let r = S::splat(r);
                each!(S, d, |i, n| {
                    let (x, dy) = (X::get::<S>(x.add(i), n), S::get(dy.add(i), n));
                    let g = S::mul(r, S::fma(x, s, S::mul(dy, S::get(scale.add(i), n))));
                    let g = if self.accumulate { S::add(S::get(dx.add(i), n), g) } else { g };
                    S::put(dx.add(i), g, n);
                    let ds = S::fma(dy, S::mul(x, r), S::get(dscale.add(i), n));
                    S::put(dscale.add(i), ds, n);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_plain_loops() {
        all_isas(|cx| {
            for d in 1..=130 {
                let rows = 1 + d % 41;
                let (x, dy, scale): (Vec<f32>, Vec<f32>, Vec<f32>) =
                    (random(rows * d, 1), random(rows * d, 2), random(d, 3));
                let mut y = vec![0.0f32; rows * d];
                rmsnorm_forward(cx, &mut y, &x, &scale, 1e-6, (rows, d));
                let mut narrow = vec![Bf16::NAN; rows * d];
                rmsnorm_forward(cx, &mut narrow, &x, &scale, 1e-6, (rows, d));
                assert!(narrow.iter().zip(&y).all(|(&n, &y)| (n.widen() - y).abs() <= y.abs() / 256.0));
                let (mut dx, mut dscale) = (vec![1.0; rows * d], vec![2.0; d]);
                rmsnorm_backward(cx, &mut dx, &mut dscale, &dy, &x, &scale, 1e-6, (rows, d), true);

                let (mut want_y, mut want_dx, mut want_dscale) = (y.clone(), dx.clone(), vec![2.0f64; d]);
                for i in 0..rows {
                    let at = |j: usize| i * d + j;
                    let f = |v: &[f32], j: usize| f64::from(v[j]);
                    let r = 1.0 / ((0..d).map(|j| f(&x, at(j)).powi(2)).sum::<f64>() / d as f64 + 1e-6).sqrt();
                    let s: f64 = (0..d).map(|j| f(&dy, at(j)) * f(&scale, j) * f(&x, at(j))).sum();
                    for j in 0..d {
                        want_y[at(j)] = (f(&x, at(j)) * r * f(&scale, j)) as f32;
                        let g = r * (f(&dy, at(j)) * f(&scale, j) - f(&x, at(j)) * r * r * s / d as f64);
                        want_dx[at(j)] = (1.0 + g) as f32;
                        want_dscale[j] += f(&dy, at(j)) * f(&x, at(j)) * r;
                    }
                }
                let want_dscale: Vec<f32> = want_dscale.iter().map(|&x| x as f32).collect();
                assert_close(&y, &want_y, 1e-6, "y");
                assert_close(&dx, &want_dx, 1e-6, "dx");
                assert_close(&dscale, &want_dscale, 1e-6, "dscale");
            }
        });
    }
}
