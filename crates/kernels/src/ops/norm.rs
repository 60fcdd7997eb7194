//! RMSNorm: `y = x * r * scale`, `r = 1 / sqrt(mean(x^2) + eps)`, one `r` a row (saved).
//!
//! Backward, with `s = sum_j dy_j scale_j x_j` of the row:
//! `dx (+)= r (dy * scale - x r^2 s / d)`, `dscale += sum over rows of dy * x * r`.

use crate::dispatch::Op;
use crate::elem::Elem;
use crate::exec::{Exec, Shared};
use crate::ops::reduce::{PARTIALS, add_partials, partial_rows};
use crate::simd::{Simd, each};

/// `y: [rows, d]`, saves `rstd: [rows]`; `x: [rows, d]`, `scale: [d]`.
pub fn rmsnorm_forward<E: Elem>(
    cx: &Exec,
    y: &mut [E],
    rstd: &mut [E],
    x: &[E],
    scale: &[E],
    eps: f64,
    (rows, d): (usize, usize),
) {
    assert!(y.len() >= rows * d && rstd.len() >= rows && x.len() >= rows * d && scale.len() == d);
    let (y, rstd) = (Shared::new(y), Shared::new(rstd));
    cx.rows(rows, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let (y, rstd) = unsafe { (y.range(r.start * d..r.end * d), rstd.range(r.clone())) };
        cx.op(Forward { y, rstd, x: &x[r.start * d..r.end * d], scale, eps });
    });
}

struct Forward<'a, E> {
    y: &'a mut [E],
    rstd: &'a mut [E],
    x: &'a [E],
    scale: &'a [E],
    eps: f64,
}

impl<E: Elem> Op<E> for Forward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let d = self.scale.len();
        let scale = self.scale.as_ptr();
        for (row, r) in self.rstd.iter_mut().enumerate() {
            // SAFETY: `row` and offsets are inside the slices.
            unsafe {
                let x = self.x.as_ptr().add(row * d);
                let y = self.y.as_mut_ptr().add(row * d);
                let mut acc = S::splat(E::ZERO);
                each!(S, d, |i, n| {
                    let x = S::get(x.add(i), n);
                    acc = S::fma(x, x, acc);
                });
                *r = E::from_f64(1.0 / (S::sum(acc).to_f64() / d as f64 + self.eps).sqrt());
                let r = S::splat(*r);
                each!(S, d, |i, n| S::put(
                    y.add(i),
                    S::mul(S::mul(S::get(x.add(i), n), r), S::get(scale.add(i), n)),
                    n
                ));
            }
        }
    }
}

/// `dx: [rows, d]` (added to where `accumulate`), `dscale: [d]` (always added to); `partials: [PARTIALS, d]` is scratch.
pub fn rmsnorm_backward<E: Elem>(
    cx: &Exec,
    dx: &mut [E],
    dscale: &mut [E],
    partials: &mut [E],
    dy: &[E],
    rstd: &[E],
    x: &[E],
    scale: &[E],
    (rows, d): (usize, usize),
    accumulate: bool,
) {
    assert!(dx.len() >= rows * d && dy.len() >= rows * d && x.len() >= rows * d && rstd.len() >= rows);
    assert!(scale.len() == d && dscale.len() == d && partials.len() >= PARTIALS * d);
    let (dx, sums) = (Shared::new(dx), Shared::new(partials));
    cx.rows(PARTIALS, |parts| {
        for part in parts {
            let r = partial_rows(part, rows);
            let cells = r.start * d..r.end * d;
            // SAFETY: each part owns its rows and its partial sum.
            let (dx, dscale) = unsafe { (dx.range(cells.clone()), sums.range(part * d..(part + 1) * d)) };
            dscale.fill(E::ZERO);
            cx.op(Backward { dx, dscale, dy: &dy[cells.clone()], rstd: &rstd[r], x: &x[cells], scale, accumulate });
        }
    });
    add_partials(dscale, &partials[..PARTIALS * d]);
}

struct Backward<'a, E> {
    dx: &'a mut [E],
    dscale: &'a mut [E],
    dy: &'a [E],
    rstd: &'a [E],
    x: &'a [E],
    scale: &'a [E],
    accumulate: bool,
}

impl<E: Elem> Op<E> for Backward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let d = self.scale.len();
        let (scale, dscale) = (self.scale.as_ptr(), self.dscale.as_mut_ptr());
        for (row, &r) in self.rstd.iter().enumerate() {
            // SAFETY: `row` and offsets are inside the slices.
            unsafe {
                let x = self.x.as_ptr().add(row * d);
                let dy = self.dy.as_ptr().add(row * d);
                let dx = self.dx.as_mut_ptr().add(row * d);
                let mut acc = S::splat(E::ZERO);
                each!(S, d, |i, n| {
                    acc = S::fma(S::mul(S::get(dy.add(i), n), S::get(scale.add(i), n)), S::get(x.add(i), n), acc);
                });
                let s = S::splat(E::from_f64(-S::sum(acc).to_f64() / d as f64 * r.to_f64() * r.to_f64()));
                let r = S::splat(r);
                each!(S, d, |i, n| {
                    let (x, dy) = (S::get(x.add(i), n), S::get(dy.add(i), n));
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
    use crate::ops::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_plain_loops() {
        all_isas(|cx| {
            for d in 1..=130 {
                let rows = 1 + d % 41;
                let (x, dy, scale): (Vec<f32>, Vec<f32>, Vec<f32>) =
                    (random(rows * d, 1), random(rows * d, 2), random(d, 3));
                let (mut y, mut rstd) = (vec![0.0; rows * d], vec![0.0; rows]);
                rmsnorm_forward(cx, &mut y, &mut rstd, &x, &scale, 1e-6, (rows, d));
                let (mut dx, mut dscale, mut partials) =
                    (vec![1.0; rows * d], vec![2.0; d], vec![f32::NAN; PARTIALS * d]);
                rmsnorm_backward(cx, &mut dx, &mut dscale, &mut partials, &dy, &rstd, &x, &scale, (rows, d), true);

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
