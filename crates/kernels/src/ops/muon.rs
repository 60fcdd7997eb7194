//! What Muon and NorMuon do beside matmuls (formulas and sources: `flashlm_train::optim`).
//! Momentum over elements: `g' = s g; m = mu m + (1-mu) g'; u = (1-blend) g' + blend m`.
//! One scale a row of `x: [rows, cols]`: `v_r = b v_r + (1-b) mean_c x_rc^2; x_rc /= sqrt(v_r) + eps`.

use crate::exec::{Exec, Shared};
use crate::ops::reduce::{BLOCK, SumSquares};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, each};

/// How momentum is taken.
#[derive(Clone, Copy, Debug)]
pub struct Momentum {
    /// `mu`: share of the old momentum.
    pub mu: f64,
    /// Share of the momentum in `u`: `mu` looks ahead as Nesterov does, 1 is the momentum itself.
    pub blend: f64,
    /// `s`: the clip's factor.
    pub grad_scale: f64,
}

/// Overwrites `u` and updates `m` from `g`, all of one length.
pub fn momentum_step<E: Elem>(cx: &Exec, u: &mut [E], m: &mut [E], g: &[E], settings: Momentum) {
    assert!(u.len() == g.len() && m.len() == g.len());
    let _time = time(cx, "momentum", (0, 0), Work::Bytes((4 * size_of_val(g)) as f64));
    let (u, m) = (Shared::new(u), Shared::new(m));
    cx.pool().split(g.len(), BLOCK, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let (u, m) = unsafe { (u.range(r.clone()), m.range(r.clone())) };
        cx.op(Step { u, m, g: &g[r], s: settings });
    });
}

struct Step<'a, E> {
    u: &'a mut [E],
    m: &'a mut [E],
    g: &'a [E],
    s: Momentum,
}

impl<E: Elem> Op<E> for Step<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let s = self.s;
        // SAFETY: offsets are below the common length.
        unsafe {
            let splat = |x: f64| S::splat(E::from_f64(x));
            let (mu, fresh, scale) = (splat(s.mu), splat(1.0 - s.mu), splat(s.grad_scale));
            let (blend, rest) = (splat(s.blend), splat(1.0 - s.blend));
            each!(S, self.g.len(), |i, n| {
                let (u, m) = (self.u.as_mut_ptr().add(i), self.m.as_mut_ptr().add(i));
                let g = S::mul(S::get(self.g.as_ptr().add(i), n), scale);
                let m1 = S::fma(fresh, g, S::mul(mu, S::get(m, n)));
                S::put(m, m1, n);
                S::put(u, S::fma(blend, m1, S::mul(rest, g)), n);
            });
        }
    }
}

/// Updates `v: [rows]` from `x: [rows, cols]` with `b = beta` and divides each row of `x` by its own `sqrt(v) + eps`.
pub fn rows_normalise<E: Elem>(cx: &Exec, x: &mut [E], v: &mut [E], beta: f64, eps: f64) {
    let (rows, cols) = (v.len(), x.len() / v.len().max(1));
    assert_eq!(x.len(), rows * cols);
    let _time = time(cx, "rows_normalise", (cols, 0), Work::Bytes((3 * size_of_val(x)) as f64));
    let (x, v) = (Shared::new(x), Shared::new(v));
    cx.rows(rows, |r| {
        for i in r {
            // SAFETY: a row and its scale belong to one thread.
            let (x, v) = unsafe { (x.range(i * cols..(i + 1) * cols), v.range(i..i + 1)) };
            let mean = cx.op(SumSquares { x }).to_f64() / cols as f64;
            v[0] = E::from_f64(beta * v[0].to_f64() + (1.0 - beta) * mean);
            let scale = E::from_f64(1.0 / (v[0].to_f64().sqrt() + eps));
            cx.op(Scale { x, scale });
        }
    });
}

/// `x *= a`.
pub fn scale<E: Elem>(cx: &Exec, x: &mut [E], a: f64) {
    let len = x.len();
    let _time = time(cx, "scale", (0, 0), Work::Bytes((2 * size_of_val(x)) as f64));
    let (x, scale) = (Shared::new(x), E::from_f64(a));
    // SAFETY: ranges of different threads are disjoint.
    cx.pool().split(len, BLOCK, |r| cx.op(Scale { x: unsafe { x.range(r) }, scale }));
}

struct Scale<'a, E> {
    x: &'a mut [E],
    scale: E,
}

impl<E: Elem> Op<E> for Scale<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let x = self.x.as_mut_ptr();
        // SAFETY: offsets are below the length.
        unsafe {
            let scale = S::splat(self.scale);
            each!(S, self.x.len(), |i, n| S::put(x.add(i), S::mul(S::get(x.add(i), n), scale), n));
        }
    }
}

/// `y = a y + b x`.
pub fn scale_add<E: Elem>(cx: &Exec, y: &mut [E], a: f64, x: &[E], b: f64) {
    assert_eq!(y.len(), x.len());
    let _time = time(cx, "scale_add", (0, 0), Work::Bytes((3 * size_of_val(x)) as f64));
    let (y, a, b) = (Shared::new(y), E::from_f64(a), E::from_f64(b));
    cx.pool().split(x.len(), BLOCK, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let y = unsafe { y.range(r.clone()) };
        cx.op(ScaleAdd { y, x: &x[r], a, b });
    });
}

struct ScaleAdd<'a, E> {
    y: &'a mut [E],
    x: &'a [E],
    a: E,
    b: E,
}

impl<E: Elem> Op<E> for ScaleAdd<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let (y, x) = (self.y.as_mut_ptr(), self.x.as_ptr());
        // SAFETY: offsets are below the common length.
        unsafe {
            let (a, b) = (S::splat(self.a), S::splat(self.b));
            each!(S, self.x.len(), |i, n| {
                let sum = S::fma(b, S::get(x.add(i), n), S::mul(a, S::get(y.add(i), n)));
                S::put(y.add(i), sum, n);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn momentum_and_sums_equal_plain_loops() {
        all_isas(|cx| {
            for n in (1..=70).chain([4099]) {
                for blend in [0.9, 1.0] {
                    let (g, mut m): (Vec<f32>, Vec<f32>) = (random(n, 1), random(n, 2));
                    let mut u = vec![f32::NAN; n];
                    let pairs: Vec<(f64, f64)> =
                        g.iter().zip(&m).map(|(&g, &m)| (f64::from(g) * 0.7, f64::from(m))).collect();
                    let new_m = |&(g, m): &(f64, f64)| 0.9 * m + 0.1 * g;
                    let new_u = |p: &(f64, f64)| (p.0 + blend * (new_m(p) - p.0)) as f32;
                    momentum_step(cx, &mut u, &mut m, &g, Momentum { mu: 0.9, blend, grad_scale: 0.7 });
                    let want: Vec<f32> = pairs.iter().map(|p| new_m(p) as f32).collect();
                    assert_close(&m, &want, 1e-6, "m");
                    assert_close(&u, &pairs.iter().map(new_u).collect::<Vec<_>>(), 1e-6, "u");
                    assert!(blend < 1.0 || u == m, "all of it is the momentum itself");
                }
                let (mut y, x): (Vec<f32>, Vec<f32>) = (random(n, 3), random(n, 4));
                let want: Vec<f32> = y.iter().zip(&x).map(|(y, x)| 0.3 * y - 1.7 * x).collect();
                scale_add(cx, &mut y, 0.3, &x, -1.7);
                assert_close(&y, &want, 1e-6, "scale_add");
                let want: Vec<f32> = y.iter().map(|y| y * 0.6).collect();
                scale(cx, &mut y, 0.6);
                assert_eq!(y, want);
            }
        });
    }

    #[test]
    fn each_row_gets_its_own_scale() {
        all_isas(|cx| {
            for (rows, cols) in [(1, 1), (1, 67), (5, 33), (130, 3)] {
                let mut x: Vec<f32> = random(rows * cols, 1);
                let mut v: Vec<f32> = random::<f32>(rows, 2).iter().map(|v| v.abs()).collect();
                let (mut want_x, mut want_v) = (x.clone(), v.clone());
                for (row, v) in want_x.chunks_exact_mut(cols).zip(&mut want_v) {
                    let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
                    let new = 0.75 * f64::from(*v) + 0.25 * mean;
                    *v = new as f32;
                    row.iter_mut().for_each(|x| *x = (f64::from(*x) / (new.sqrt() + 0.1)) as f32);
                }
                rows_normalise(cx, &mut x, &mut v, 0.75, 0.1);
                assert_close(&x, &want_x, 1e-6, "x");
                assert_close(&v, &want_v, 1e-6, "v");
            }
        });
    }
}
