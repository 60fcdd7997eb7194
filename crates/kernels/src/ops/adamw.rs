//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) as PyTorch writes it, with the gradient scaled on the way in:
//! `g' = g * grad_scale; p *= 1 - lr wd; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2;`
//! `p -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + eps)`.

use crate::exec::{Exec, Shared};
use crate::ops::reduce::BLOCK;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, each};

/// One step's settings; `step` counts from 1.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub step: u64,
    /// The clip's factor.
    pub grad_scale: f64,
}

/// Updates `p`, `m` and `v` from `g`, all of one length.
pub fn adamw_step<E: Elem>(cx: &Exec, p: &mut [E], m: &mut [E], v: &mut [E], g: &[E], settings: AdamW) {
    assert!(p.len() == g.len() && m.len() == g.len() && v.len() == g.len());
    let _time = time(cx, "adamw", (0, 0), Work::Bytes((7 * size_of_val(g)) as f64));
    let (p, m, v) = (Shared::new(p), Shared::new(m), Shared::new(v));
    cx.pool().split(g.len(), BLOCK, |r| {
        // SAFETY: ranges of different threads are disjoint.
        let (p, m, v) = unsafe { (p.range(r.clone()), m.range(r.clone()), v.range(r.clone())) };
        cx.op(Step { p, m, v, g: &g[r], s: settings });
    });
}

struct Step<'a, E> {
    p: &'a mut [E],
    m: &'a mut [E],
    v: &'a mut [E],
    g: &'a [E],
    s: AdamW,
}

impl<E: Elem> Op<E> for Step<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let s = self.s;
        let steps = s.step as f64;
        // SAFETY: offsets are below the common length.
        unsafe {
            let splat = |x: f64| S::splat(E::from_f64(x));
            let (b1, one_b1, b2, one_b2) = (splat(s.beta1), splat(1.0 - s.beta1), splat(s.beta2), splat(1.0 - s.beta2));
            let (scale, keep, eps) = (splat(s.grad_scale), splat(1.0 - s.lr * s.weight_decay), splat(s.eps));
            let rate = splat(-s.lr / (1.0 - s.beta1.powf(steps)));
            let root = splat(1.0 / (1.0 - s.beta2.powf(steps)).sqrt());
            each!(S, self.g.len(), |i, n| {
                let (p, m, v) = (self.p.as_mut_ptr().add(i), self.m.as_mut_ptr().add(i), self.v.as_mut_ptr().add(i));
                let g = S::mul(S::get(self.g.as_ptr().add(i), n), scale);
                let m1 = S::fma(one_b1, g, S::mul(b1, S::get(m, n)));
                let v1 = S::fma(S::mul(one_b2, g), g, S::mul(b2, S::get(v, n)));
                S::put(m, m1, n);
                S::put(v, v1, n);
                let denominator = S::fma(S::sqrt(v1), root, eps);
                S::put(p, S::fma(rate, S::div(m1, denominator), S::mul(S::get(p, n), keep)), n);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_the_plain_loop_over_several_steps() {
        all_isas(|cx| {
            for n in (1..=130).chain([4099]) {
                let mut p: Vec<f32> = random(n, 1);
                let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
                let mut want: Vec<[f64; 3]> = p.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
                for step in 1..=5 {
                    let g: Vec<f32> = random(n, 10 + step);
                    let s = AdamW {
                        lr: 4e-3,
                        beta1: 0.9,
                        beta2: 0.95,
                        eps: 1e-8,
                        weight_decay: 0.01,
                        step,
                        grad_scale: 0.7,
                    };
                    adamw_step(cx, &mut p, &mut m, &mut v, &g, s);
                    for (x, &g) in want.iter_mut().zip(&g) {
                        let g = f64::from(g) * 0.7;
                        x[0] *= 1.0 - 4e-3 * 0.01;
                        x[1] = 0.9 * x[1] + 0.1 * g;
                        x[2] = 0.95 * x[2] + 0.05 * g * g;
                        let (c1, c2) = (1.0 - 0.9f64.powi(step as i32), 1.0 - 0.95f64.powi(step as i32));
                        x[0] -= 4e-3 / c1 * x[1] / (x[2].sqrt() / c2.sqrt() + 1e-8);
                    }
                }
                let column = |c: usize| want.iter().map(|x| x[c] as f32).collect::<Vec<_>>();
                assert_close(&p, &column(0), 1e-6, "p");
                assert_close(&m, &column(1), 1e-6, "m");
                assert_close(&v, &column(2), 1e-6, "v");
            }
        });
    }
}
