//! SiLU, and the same scaled to a norm of `scale`, row by row: `x = silu(c)`, `y = x r scale`, `r = 1 / sqrt(sum x^2 + eps)`.
//!
//! Backward, from `y` and the gain `scale r silu'(c)` (without a norm `silu'(c)`):
//! `dc = gain (dy - y sum_j(dy_j y_j) / scale^2)`. On the calling thread.

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};

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
        let Forward { y, c, norm, gains, d } = self;
        for (y, c) in y.chunks_mut(ROWS * d).zip(c.chunks_mut(ROWS * d)) {
            let (to, from) = (y.as_mut_ptr(), c.as_mut_ptr());
            // SAFETY: offsets are below the common length.
            each!(S, y.len(), |i, n| unsafe {
                let (own, one) = (S::get(from.add(i), n), S::splat(E::ONE));
                let s = S::sigmoid(own);
                S::put(to.add(i), S::mul(own, s), n);
                if gains {
                    S::put(from.add(i), S::mul(s, S::fma(own, S::sub(one, s), one)), n);
                }
            });
            let Some((eps, scale)) = norm else { continue };
            let mut by = [E::ZERO; ROWS];
            for (by, x) in by.iter_mut().zip(y.chunks_exact(d)) {
                // SAFETY: the machine has what this was called for.
                let sum = unsafe { dot::<S>(x, x) };
                *by = E::from_f64(scale / (sum.to_f64() + eps).sqrt());
            }
            for ((y, c), by) in y.chunks_exact_mut(d).zip(c.chunks_exact_mut(d)).zip(by) {
                let (y, c) = (y.as_mut_ptr(), c.as_mut_ptr());
                // SAFETY: offsets are inside the rows.
                each!(S, d, |j, n| unsafe {
                    let r = S::splat(by);
                    S::put(y.add(j), S::mul(S::get(y.add(j), n), r), n);
                    if gains {
                        S::put(c.add(j), S::mul(S::get(c.add(j), n), r), n);
                    }
                });
            }
        }
    }
}

/// Rows that each step goes over before the next: what a row is scaled by comes from all of its elements, and is waited for once.
const ROWS: usize = 16;

/// `x . y` for two rows of one length.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn dot<S: Simd>(x: &[S::E], y: &[S::E]) -> S::E {
    assert!(x.len() == y.len());
    // SAFETY: the caller's promise; offsets are below the common length, and missing lanes load as zero.
    unsafe {
        let mut sum = S::splat(S::E::ZERO);
        each!(S, x.len(), |j, n| sum = S::fma(S::get(x.as_ptr().add(j), n), S::get(y.as_ptr().add(j), n), sum));
        S::sum(sum)
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
        let Backward { dy, gain, y, norm, d } = self;
        let blocks = dy.chunks_mut(ROWS * d).zip(gain.chunks(ROWS * d)).zip(y.chunks(ROWS * d));
        for ((dy, gain), y) in blocks {
            let mut along = [E::ZERO; ROWS];
            if let Some((_, scale)) = norm {
                for ((along, dy), y) in along.iter_mut().zip(dy.chunks_exact(d)).zip(y.chunks_exact(d)) {
                    // SAFETY: the machine has what this was called for.
                    let dot = unsafe { dot::<S>(dy, y) };
                    *along = E::from_f64(-dot.to_f64() / (scale * scale));
                }
            }
            let rows = dy.chunks_exact_mut(d).zip(gain.chunks_exact(d)).zip(y.chunks_exact(d));
            for (((dy, gain), y), along) in rows.zip(along) {
                let (dy, gain, y) = (dy.as_mut_ptr(), gain.as_ptr(), y.as_ptr());
                // SAFETY: offsets are inside the rows.
                each!(S, d, |j, n| unsafe {
                    let dx = S::fma(S::splat(along), S::get(y.add(j), n), S::get(dy.add(j), n));
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
