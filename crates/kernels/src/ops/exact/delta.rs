//! The gated delta rule of one head, token by token ([`crate::ops::delta_forward`] has the formulas), and its gates:
//! `softplus(x) = max(x, 0) + ln(1 + exp(-|x|))`.
//!
//! The state is `[dk, dv']` with `dv' =` [`exact_delta_width`]`(dv)`: whole lanes, what fills them up stays zero.

use super::{Lanes, exp};
use crate::exec::Exec;
use crate::ops::delta::Rule;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};

/// Elements of a row of the state.
pub fn exact_delta_width(dv: usize) -> usize {
    dv.next_multiple_of(16)
}

/// `o: [dv]` and the state after one token in `s`, from `q, k: [dk]`, `v: [dv]`.
pub fn exact_delta_step(
    cx: &Exec,
    o: &mut [f32],
    s: &mut [f32],
    (q, k, v): (&[f32], &[f32], &[f32]),
    (g, beta): (f32, f32),
    rule: Rule,
) {
    assert!(q.len() == k.len() && v.len() == o.len() && s.len() == k.len() * exact_delta_width(v.len()));
    let _time = time(cx, "exact_delta_step", (k.len(), v.len()), Work::Flops((7 * s.len()) as f64));
    cx.op(Step { o, s, q, k, v, g, beta, canonical: rule == Rule::Canonical });
}

struct Step<'a> {
    o: &'a mut [f32],
    s: &'a mut [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    g: f32,
    beta: f32,
    canonical: bool,
}

impl Op<f32> for Step<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Step { o, s, q, k, v, g, beta, canonical } = self;
        let width = exact_delta_width(v.len());
        let alpha = exp(g);
        let seen = if canonical { alpha } else { 1.0 };
        for (at, (o, v)) in o.chunks_mut(16).zip(v.chunks(16)).enumerate() {
            let mut held: Lanes = [0.0; 16];
            for (s, &k) in s.chunks_exact(width).zip(k) {
                let s = lanes(s, at);
                for i in 0..16 {
                    held[i] += s[i] * k;
                }
            }
            let mut u: Lanes = [0.0; 16];
            for ((u, held), v) in u.iter_mut().zip(held).zip(v) {
                *u = beta * (v - seen * held);
            }
            let mut out: Lanes = [0.0; 16];
            for ((s, &k), &q) in s.chunks_exact_mut(width).zip(k).zip(q) {
                let s: &mut Lanes = (&mut s[at * 16..at * 16 + 16]).try_into().expect("16 lanes");
                for i in 0..16 {
                    let new = alpha * s[i] + k * u[i];
                    s[i] = new;
                    out[i] += new * q;
                }
            }
            o.copy_from_slice(&out[..o.len()]);
        }
    }
}

#[inline(always)]
fn lanes(s: &[f32], at: usize) -> &Lanes {
    s[at * 16..at * 16 + 16].try_into().expect("16 lanes")
}

/// `softplus(x)`, to a relative error of some 3e-7: `ln(1 + e) = 2 atanh(e / (2 + e))` by its series.
pub fn exact_softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    let z = e / (2.0 + e);
    let z2 = z * z;
    let mut series = 1.0 / 17.0;
    for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * z2 + 1.0 / odd;
    }
    (if x < 0.0 { 0.0 } else { x }) + 2.0 * z * series
}

/// `1 / (1 + exp(-x))`.
pub fn exact_sigmoid(x: f32) -> f32 {
    super::sigmoid(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::delta_steps;
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_the_rule_in_f64_and_has_the_same_bits_everywhere() {
        for (dk, dv) in [(1, 1), (7, 16), (36, 72), (24, 50)] {
            let (n, width) = (19, exact_delta_width(dv));
            let narrow = |seed, len, by: f32| -> Vec<f32> { random::<f32>(len, seed).iter().map(|x| x * by).collect() };
            let by = 1.0 / (dk as f32).sqrt();
            let (q, k, v) = (narrow(1, n * dk, by), narrow(2, n * dk, by), narrow(3, n * dv, 1.0));
            let (g, beta) = (narrow(4, n, 1.0), narrow(5, n, 1.0));
            let (g, beta): (Vec<f32>, Vec<f32>) =
                (g.iter().map(|g| -g.abs()).collect(), beta.iter().map(|b| b.abs()).collect());
            for rule in [Rule::Canonical, Rule::Undecayed] {
                let run = |cx: &Exec| {
                    let (mut o, mut s) = (vec![f32::NAN; n * dv], vec![0.0; dk * width]);
                    for t in 0..n {
                        let row = |x: &[f32], d: usize| x[t * d..(t + 1) * d].to_vec();
                        let inputs = (row(&q, dk), row(&k, dk), row(&v, dv));
                        let inputs = (&inputs.0[..], &inputs.1[..], &inputs.2[..]);
                        exact_delta_step(cx, &mut o[t * dv..(t + 1) * dv], &mut s, inputs, (g[t], beta[t]), rule);
                    }
                    (o, s)
                };
                let scalar = Exec::new(crate::Isa::SCALAR, 1);
                let first = run(&scalar);
                let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
                let kq = wide(&[&k[..], &q[..]].concat());
                let (mut o, mut s) = (vec![0.0; n * dv], vec![0.0; dk * dv]);
                let gates = (&wide(&g)[..], &wide(&beta)[..]);
                delta_steps(&scalar, &mut o, &mut s, &kq, &wide(&v), gates, rule, (n, dk, dv));
                let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
                assert_close(&first.0, &narrow(&o), 1e-6, "o");
                for (row, want) in first.1.chunks(width).zip(s.chunks(dv)) {
                    assert_close(&row[..dv], &narrow(want), 1e-5, "s");
                    assert!(row[dv..].iter().all(|&x| x == 0.0));
                }
                all_isas(|cx| assert!(run(cx) == first, "{:?}", cx.isa()));
            }
        }
    }

    #[test]
    fn softplus_is_near_that_of_f64() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let wide = f64::from(x);
            let want = wide.max(0.0) + (-wide.abs()).exp().ln_1p();
            assert!((f64::from(exact_softplus(x)) - want).abs() <= 4e-7 * want, "{x}");
        }
        assert!(exact_softplus(f32::NAN).is_nan());
    }
}
