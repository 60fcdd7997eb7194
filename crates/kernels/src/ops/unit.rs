//! SiLU, and the same scaled to a norm of `scale`, row by row: `x = silu(c)`, `y = x r scale`, `r = 1 / sqrt(sum x^2 + eps)`.
//!
//! Backward, from `y` and the gain `scale r silu'(c)` (without a norm `silu'(c)`):
//! `dc = gain (dy - y sum_j(dy_j y_j) / scale^2)`. On the calling thread.

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, each};

/// `y, c: [rows, d]`; a `norm` is `(eps, scale)`. Turns `c` into the gain where the backward pass needs it.
pub fn silu_unit_forward<E: Elem>(
    cx: &Exec,
    y: &mut [E],
    c: &mut [E],
    norm: Option<(f64, f64)>,
    gains: bool,
    d: usize,
) {
    assert!(y.len() == c.len() && c.len().is_multiple_of(d));
    let _time = time(cx, "silu_unit_forward", (d, 0), Work::Bytes((2 * size_of_val(c)) as f64));
    cx.op(Forward { y, c, norm, gains, d });
}

struct Forward<'a, E> {
    y: &'a mut [E],
    c: &'a mut [E],
    norm: Option<(f64, f64)>,
    gains: bool,
    d: usize,
}

impl<E: Elem> Op<E> for Forward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        for (y, c) in self.y.chunks_exact_mut(self.d).zip(self.c.chunks_exact_mut(self.d)) {
            // SAFETY: offsets are inside the rows; missing lanes load as zero.
            unsafe {
                let (y, c, one) = (y.as_mut_ptr(), c.as_mut_ptr(), S::splat(E::ONE));
                let mut sum = S::splat(E::ZERO);
                each!(S, self.d, |j, n| {
                    let own = S::get(c.add(j), n);
                    let s = S::sigmoid(own);
                    let x = S::mul(own, s);
                    sum = S::fma(x, x, sum);
                    S::put(y.add(j), x, n);
                    if self.gains {
                        S::put(c.add(j), S::mul(s, S::fma(own, S::sub(one, s), one)), n);
                    }
                });
                if let Some((eps, scale)) = self.norm {
                    let r = S::splat(E::from_f64(scale / (S::sum(sum).to_f64() + eps).sqrt()));
                    each!(S, self.d, |j, n| S::put(y.add(j), S::mul(S::get(y.add(j), n), r), n));
                    if self.gains {
                        each!(S, self.d, |j, n| S::put(c.add(j), S::mul(S::get(c.add(j), n), r), n));
                    }
                }
            }
        }
    }
}

/// Turns `dy: [rows, d]` into `dc`, in place, from the gain and `y`.
pub fn silu_unit_backward<E: Elem>(cx: &Exec, dy: &mut [E], gain: &[E], y: &[E], norm: Option<(f64, f64)>, d: usize) {
    assert!(dy.len() == gain.len() && y.len() == gain.len() && gain.len().is_multiple_of(d));
    let _time = time(cx, "silu_unit_backward", (d, 0), Work::Bytes((3 * size_of_val(y)) as f64));
    cx.op(Backward { dy, gain, y, norm, d });
}

struct Backward<'a, E> {
    dy: &'a mut [E],
    gain: &'a [E],
    y: &'a [E],
    norm: Option<(f64, f64)>,
    d: usize,
}

impl<E: Elem> Op<E> for Backward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let rows =
            self.dy.chunks_exact_mut(self.d).zip(self.gain.chunks_exact(self.d)).zip(self.y.chunks_exact(self.d));
        for ((dy, gain), y) in rows {
            // SAFETY: offsets are inside the rows; missing lanes load as zero.
            unsafe {
                let (dy, gain, y) = (dy.as_mut_ptr(), gain.as_ptr(), y.as_ptr());
                let mut along = S::splat(E::ZERO);
                if let Some((_, scale)) = self.norm {
                    let mut dot = along;
                    each!(S, self.d, |j, n| dot = S::fma(S::get(dy.add(j), n), S::get(y.add(j), n), dot));
                    along = S::splat(E::from_f64(-S::sum(dot).to_f64() / (scale * scale)));
                }
                each!(S, self.d, |j, n| {
                    let dx = S::fma(along, S::get(y.add(j), n), S::get(dy.add(j), n));
                    S::put(dy.add(j), S::mul(S::get(gain.add(j), n), dx), n);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, assert_close, random};

    fn plain(c: &[f64], norm: Option<(f64, f64)>) -> Vec<f64> {
        let x: Vec<f64> = c.iter().map(|c| c / (1.0 + (-c).exp())).collect();
        let r = norm.map_or(1.0, |(eps, scale)| scale / (x.iter().map(|x| x * x).sum::<f64>() + eps).sqrt());
        x.iter().map(|x| x * r).collect()
    }

    #[test]
    fn equals_plain_loops_and_finite_differences() {
        all_isas(|cx| {
            for d in (1..40).chain([64, 72, 96, 130]) {
                for norm in [None, Some((1e-6, 1.0)), Some((1e-24, 0.3))] {
                    let (c, dy): (Vec<f32>, Vec<f32>) = (random(3 * d, 1), random(3 * d, 2));
                    let c: Vec<f32> = c.iter().map(|c| 4.0 * c).collect();
                    let (mut y, mut dc) = (vec![f32::NAN; 3 * d], dy.clone());
                    let mut gain = c.clone();
                    silu_unit_forward(cx, &mut y, &mut gain, norm, false, d);
                    assert_eq!(gain, c);
                    silu_unit_forward(cx, &mut y, &mut gain, norm, true, d);
                    silu_unit_backward(cx, &mut dc, &gain, &y, norm, d);
                    for row in 0..3 {
                        let own = row * d..(row + 1) * d;
                        let wide: Vec<f64> = c[own.clone()].iter().map(|&c| f64::from(c)).collect();
                        let want: Vec<f32> = plain(&wide, norm).iter().map(|&y| y as f32).collect();
                        assert_close(&y[own.clone()], &want, 1e-6, "y");
                        let loss = |c: &[f64]| -> f64 {
                            plain(c, norm).iter().zip(&dy[own.clone()]).map(|(y, &dy)| y * f64::from(dy)).sum()
                        };
                        let want: Vec<f32> = (0..d)
                            .map(|j| {
                                let at = |by: f64| {
                                    let mut c = wide.clone();
                                    c[j] += by;
                                    loss(&c)
                                };
                                ((at(1e-5) - at(-1e-5)) / 2e-5) as f32
                            })
                            .collect();
                        // One element has no direction to turn to: what is left is rounding.
                        if norm.is_none() || d > 1 {
                            assert_close(&dc[own], &want, 1e-5, &format!("dc {d} {norm:?}"));
                        }
                    }
                }
            }
        });
    }
}
