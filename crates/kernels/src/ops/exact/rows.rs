//! Row by row: RMSNorm `y = x r scale`, `r = 1 / sqrt(mean(x^2) + eps)`; SiLU with a unit norm, `y = silu(x) r`,
//! `r = scale / sqrt(sum silu(x)^2 + eps)`; gates `y = act(g) u`; soft cap `c tanh(z / c)`.

use super::choose::max;
use super::{Lanes, dot, exp, sigmoid, sum};
use crate::exec::Exec;
use crate::ops::act::Act;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};

/// `y, x: [rows, d]`, `scale: [d]`.
pub fn exact_rmsnorm(cx: &Exec, y: &mut [f32], x: &[f32], scale: &[f32], eps: f64) {
    let d = scale.len();
    assert!(y.len() == x.len() && x.len().is_multiple_of(d));
    let _time = time(cx, "exact_rmsnorm", (d, 0), Work::Bytes((8 * x.len()) as f64));
    cx.op(Norm { y, x, scale, eps: eps as f32 });
}

struct Norm<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    scale: &'a [f32],
    eps: f32,
}

impl Op<f32> for Norm<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let d = self.scale.len();
        for (y, x) in self.y.chunks_exact_mut(d).zip(self.x.chunks_exact(d)) {
            // SAFETY: the caller's promise.
            let r = 1.0 / (unsafe { dot::<S>(x, x) } / d as f32 + self.eps).sqrt();
            for ((y, x), scale) in y.iter_mut().zip(x).zip(self.scale) {
                *y = x * r * scale;
            }
        }
    }
}

/// SiLU of `x: [rows, d]` in place; with `norm = (eps, scale)` each row then has length `scale`.
pub fn exact_silu_unit(cx: &Exec, x: &mut [f32], norm: Option<(f64, f64)>, d: usize) {
    assert!(x.len().is_multiple_of(d));
    let _time = time(cx, "exact_silu_unit", (d, 0), Work::Bytes((8 * x.len()) as f64));
    cx.op(Unit { x, norm, d });
}

struct Unit<'a> {
    x: &'a mut [f32],
    norm: Option<(f64, f64)>,
    d: usize,
}

impl Op<f32> for Unit<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        for x in self.x.iter_mut() {
            *x *= sigmoid(*x);
        }
        if let Some((eps, scale)) = self.norm {
            for x in self.x.chunks_exact_mut(self.d) {
                // SAFETY: the caller's promise.
                let r = scale as f32 / (unsafe { dot::<S>(x, x) } + eps as f32).sqrt();
                for x in x {
                    *x *= r;
                }
            }
        }
    }
}

/// `y = act(g) u`, all of one length.
pub fn exact_gate(cx: &Exec, y: &mut [f32], g: &[f32], u: &[f32], act: Act) {
    assert!(g.len() == y.len() && u.len() == y.len());
    let _time = time(cx, "exact_gate", (0, 0), Work::Bytes((12 * y.len()) as f64));
    cx.op(Gated { y, g, u, act });
}

struct Gated<'a> {
    y: &'a mut [f32],
    g: &'a [f32],
    u: &'a [f32],
    act: Act,
}

impl Op<f32> for Gated<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let all = self.y.iter_mut().zip(self.g).zip(self.u);
        match self.act {
            Act::Sigmoid => {
                for ((y, &g), u) in all {
                    *y = sigmoid(g) * u;
                }
            }
            Act::Silu => {
                for ((y, &g), u) in all {
                    *y = g * sigmoid(g) * u;
                }
            }
            Act::Relu2 => {
                for ((y, &g), u) in all {
                    // The form that keeps NaN.
                    let g = if g < 0.0 { 0.0 } else { g };
                    *y = g * g * u;
                }
            }
        }
    }
}

/// `y_o = sum_i w_oi x_i`, `w: [y.len(), x.len()]`.
pub fn exact_matvec(cx: &Exec, y: &mut [f32], w: &[f32], x: &[f32]) {
    assert!(w.len() == y.len() * x.len());
    cx.op(Matvec { y, w, x });
}

struct Matvec<'a> {
    y: &'a mut [f32],
    w: &'a [f32],
    x: &'a [f32],
}

impl Op<f32> for Matvec<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        for (y, w) in self.y.iter_mut().zip(self.w.chunks_exact(self.x.len())) {
            // SAFETY: the caller's promise.
            *y = unsafe { dot::<S>(w, self.x) };
        }
    }
}

/// `ln sum_i exp(z_i)`; the logarithm is the platform's, in f64.
pub fn exact_log_sum_exp(cx: &Exec, z: &[f32]) -> f64 {
    let (max, sum) = cx.op(SumExp { z });
    f64::from(max) + f64::from(sum).ln()
}

struct SumExp<'a> {
    z: &'a [f32],
}

impl Op<f32> for SumExp<'_> {
    /// The largest, and the sum of `exp(z - max)`.
    type Out = (f32, f32);
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) -> (f32, f32) {
        let max = max(self.z);
        let chunks = self.z.chunks_exact(16);
        let rest = chunks.remainder();
        let mut acc: Lanes = [0.0; 16];
        for z in chunks {
            for i in 0..16 {
                acc[i] += exp(z[i] - max);
            }
        }
        for (acc, z) in acc.iter_mut().zip(rest) {
            *acc += exp(z - max);
        }
        (max, sum(acc))
    }
}

/// `z = c tanh(z / c)`, to an absolute error of some `1e-7 c`.
pub fn exact_softcap(cx: &Exec, z: &mut [f32], cap: f64) {
    cx.op(Cap { z, cap: cap as f32 });
}

struct Cap<'a> {
    z: &'a mut [f32],
    cap: f32,
}

impl Op<f32> for Cap<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        for z in self.z.iter_mut() {
            // 1 - 2 / (exp(2 x) + 1); beyond the clamp of `exp` both ends are 1 already.
            *z = self.cap * (1.0 - 2.0 / (exp(2.0 * (*z / self.cap)) + 1.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::act::testing::{ALL, plain};
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equal_the_formulas_in_f64_and_have_the_same_bits_everywhere() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for d in [1, 7, 16, 36, 192, 511] {
            let x: Vec<f32> = random::<f32>(5 * d, d as u64).iter().map(|x| 6.0 * x).collect();
            let (g, scale): (Vec<f32>, Vec<f32>) = (random(5 * d, 2), random(d, 3));
            let wide: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            let rows =
                |f: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<f32> { wide.chunks(d).flat_map(f).map(|y| y as f32).collect() };
            let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
            let norm = rows(&|x| {
                let r = 1.0 / (length(x) / d as f64 + 1e-6).sqrt();
                x.iter().zip(&scale).map(|(x, &s)| x * r * f64::from(s)).collect()
            });
            let unit = rows(&|x| {
                let y: Vec<f64> = x.iter().map(|x| x * sigmoid(*x)).collect();
                let r = 0.25 / (length(&y) + 1e-6).sqrt();
                y.iter().map(|y| y * r).collect()
            });
            let cap = rows(&|x| x.iter().map(|x| 3.0 * (x / 3.0).tanh()).collect());
            let act = |act: Act| -> Vec<f32> {
                wide.iter().zip(&g).map(|(&x, &g)| (plain(act, x).0 * f64::from(g)) as f32).collect()
            };
            let run = |cx: &Exec| {
                let mut all = vec![vec![f32::NAN; 5 * d], x.clone(), x.clone()];
                exact_rmsnorm(cx, &mut all[0], &x, &scale, 1e-6);
                exact_silu_unit(cx, &mut all[1], Some((1e-6, 0.25)), d);
                exact_softcap(cx, &mut all[2], 3.0);
                for act in ALL {
                    let mut y = vec![f32::NAN; 5 * d];
                    exact_gate(cx, &mut y, &x, &g, act);
                    all.push(y);
                }
                all
            };
            let first = run(&Exec::new(crate::Isa::SCALAR, 1));
            let want = [norm, unit, cap, act(Act::Sigmoid), act(Act::Silu), act(Act::Relu2)];
            for (got, want) in first.iter().zip(&want) {
                assert_close(got, want, 1e-6, "exact rows");
            }
            all_isas(|cx| assert!(run(cx) == first, "{:?}", cx.isa()));
        }
    }

    #[test]
    fn numbers_that_are_none_stay_so() {
        all_isas(|cx| {
            for act in ALL {
                let mut y = [0.0; 2];
                exact_gate(cx, &mut y, &[f32::NAN, 1.0], &[1.0, f32::NAN], act);
                assert!(y[0].is_nan() && y[1].is_nan());
            }
            let mut y = [0.0; 3];
            exact_rmsnorm(cx, &mut y, &[1.0, f32::NAN, 2.0], &[1.0; 3], 1e-6);
            assert!(y.iter().all(|y| y.is_nan()));
        });
    }
}
