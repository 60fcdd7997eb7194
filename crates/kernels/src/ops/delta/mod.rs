//! The gated delta rule (Yang, Kautz, Hatamizadeh, arXiv 2412.06464) of one head, on the calling thread. `S: [dk, dv]`:
//!
//! * canonical: `S <- exp(g) S;  S <- S + k u^T, u = beta (v - S^T k);  o = S^T q`
//! * undecayed: `u = beta (v - S^T k);  S <- exp(g) S + k u^T;  o = S^T q`
//!
//! [`delta_steps`] goes token by token. [`delta_forward`] and [`delta_backward`] take a chunk of `n` tokens at once, rows i, j:
//! `c` is the inclusive sum of `g` in the chunk, `e = c` (canonical) or `c - g` (undecayed), and
//!
//! ```text
//! D = tril(exp(c_i - c_j))   E = strict_tril(exp(e_i - c_j))   w = exp(c_n - c)
//! M = beta_i (K K^T) E       U = (I + M)^-1 beta (V - exp(e) K S0)
//! P = (Q K^T) D              O = exp(c) Q S0 + P U             S1 = exp(c_n) S0 + (w K)^T U
//! ```
//!
//! The backward pass differentiates these lines in reverse and recomputes what it needs of them. Keys and queries come
//! stacked, `kq: [2n, dk]`, the keys first; `q` is already scaled. Sums of `g` are taken in f64: differences of two of them
//! count, and these may be small where the sums are not.

mod backward;
mod chunk;
mod pairs;
mod rule;
mod steps;

pub use backward::delta_backward;
pub use chunk::{delta_forward, delta_room, delta_work};
pub use rule::Rule;
pub use steps::delta_steps;

#[cfg(test)]
mod tests {
    use super::rule::Sizes;
    use super::*;
    use crate::bf16::Bf16;
    use crate::exec::Exec;
    use crate::simd::{Elem, Store};
    use crate::testing::{all_isas, assert_close, random};

    /// Keys and queries of norm 1 (`kq` of `n` tokens stacked), values, `g`, `beta` in f64.
    fn inputs((n, dk, dv): Sizes, seed: u64) -> [Vec<f64>; 4] {
        let mut kq: Vec<f64> = random(2 * n * dk, seed);
        for row in kq.chunks_mut(dk) {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
        let g = random::<f64>(n, seed + 2).iter().map(|x| -0.001 - 0.75 * (x + 1.0)).collect();
        let beta = random::<f64>(n, seed + 3).iter().map(|x| 0.5 + 0.45 * x).collect();
        [kq, random(n * dv, seed + 1), g, beta]
    }

    /// The recurrence as it stands in the header: outputs and last state.
    fn recurrence(s: &[f64], [kq, v, g, beta]: &[Vec<f64>; 4], rule: Rule, (n, dk, dv): Sizes) -> (Vec<f64>, Vec<f64>) {
        let (mut s, mut o) = (s.to_vec(), vec![0.0; n * dv]);
        for t in 0..n {
            let (k, q) = (&kq[t * dk..][..dk], &kq[(n + t) * dk..][..dk]);
            let alpha = g[t].exp();
            let seen = if rule == Rule::Canonical { alpha } else { 1.0 };
            for j in 0..dv {
                let held: f64 = (0..dk).map(|i| seen * s[i * dv + j] * k[i]).sum();
                let u = beta[t] * (v[t * dv + j] - held);
                for i in 0..dk {
                    s[i * dv + j] = alpha * s[i * dv + j] + k[i] * u;
                    o[t * dv + j] += s[i * dv + j] * q[i];
                }
            }
        }
        (o, s)
    }

    const SIZES: [Sizes; 7] = [(1, 1, 1), (2, 3, 5), (7, 42, 84), (37, 6, 9), (32, 36, 72), (64, 48, 96), (63, 17, 33)];

    fn narrow(x: &[f64]) -> Vec<f32> {
        x.iter().map(|&x| x as f32).collect()
    }

    #[test]
    fn a_chunk_and_single_steps_equal_the_recurrence() {
        all_isas(|cx| {
            for sizes in SIZES {
                for rule in [Rule::Canonical, Rule::Undecayed] {
                    let (n, dk, dv) = sizes;
                    let (inputs, s0) = (inputs(sizes, 1), random::<f64>(dk * dv, 9));
                    let (want_o, want_s) = recurrence(&s0, &inputs, rule, sizes);
                    let [kq, v, g, beta] = inputs.map(|x| narrow(&x));
                    let (mut o, mut s) = (vec![f32::NAN; n * dv], narrow(&s0));
                    let mut work = vec![f32::NAN; delta_work(sizes)];
                    delta_forward(cx, &mut o, &mut s, &kq, &v, (&g, &beta), rule, &mut work, sizes);
                    assert_close(&o, &narrow(&want_o), 1e-6, "o of a chunk");
                    assert_close(&s, &narrow(&want_s), 1e-6, "s of a chunk");
                    let (mut o, mut s) = (vec![f32::NAN; n * dv], narrow(&s0));
                    delta_steps(cx, &mut o, &mut s, &kq, &v, (&g, &beta), rule, sizes);
                    assert_close(&o, &narrow(&want_o), 1e-6, "o of steps");
                    assert_close(&s, &narrow(&want_s), 1e-6, "s of steps");
                }
            }
        });
    }

    /// Every gradient against central differences of the recurrence, in f64; then f32 on every ISA against f64.
    #[test]
    fn gradients_of_a_chunk_equal_finite_differences() {
        for sizes in [(1, 1, 1), (2, 3, 5), (13, 6, 9)] {
            for rule in [Rule::Canonical, Rule::Undecayed] {
                let (n, dk, dv) = sizes;
                let (mut inputs, mut s0) = (inputs(sizes, 1), random::<f64>(dk * dv, 9));
                let (d_o, ds) = (random::<f64>(n * dv, 10), random::<f64>(dk * dv, 11));
                let cx = &Exec::new(crate::Isa::SCALAR, 1);
                let got = gradients::<f64, f64>(cx, &inputs, &s0, &d_o, &ds, rule, sizes);
                let loss = |inputs: &[Vec<f64>; 4], s0: &[f64]| {
                    let (o, s) = recurrence(s0, inputs, rule, sizes);
                    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                    dot(&o, &d_o) + dot(&s, &ds)
                };
                let h = 1e-6;
                for (which, got) in got.iter().enumerate() {
                    for (i, &got) in got.iter().enumerate() {
                        let mut at = |by: f64| {
                            let x = if which < 4 { &mut inputs[which] } else { &mut s0 };
                            let own = x[i];
                            x[i] = own + by;
                            let loss = loss(&inputs, &s0);
                            let x = if which < 4 { &mut inputs[which] } else { &mut s0 };
                            x[i] = own;
                            loss
                        };
                        let want = (at(h) - at(-h)) / (2.0 * h);
                        assert!((got - want).abs() < 1e-8 + 1e-7 * want.abs(), "{which}[{i}]: {got} for {want}");
                    }
                }
            }
        }
    }

    /// bf16 rounds both operands of every product, by 0.2 % each element.
    #[test]
    fn gradients_in_f32_and_bf16_equal_those_in_f64() {
        equal_those_in_f64::<f32>(1e-5);
        equal_those_in_f64::<Bf16>(1.5e-2);
    }

    fn equal_those_in_f64<A: Store<E = f32>>(bound: f64) {
        all_isas(|cx| {
            for sizes in SIZES {
                for rule in [Rule::Canonical, Rule::Undecayed] {
                    let (n, dk, dv) = sizes;
                    let (inputs, s0) = (inputs(sizes, 1), random::<f64>(dk * dv, 9));
                    let (d_o, ds) = (random::<f64>(n * dv, 10), random::<f64>(dk * dv, 11));
                    let plain = &Exec::new(crate::Isa::SCALAR, 1);
                    let want = gradients::<f64, f64>(plain, &inputs, &s0, &d_o, &ds, rule, sizes);
                    let (s0, d_o, ds) = (narrow(&s0), narrow(&d_o), narrow(&ds));
                    let inputs = inputs.map(|x| narrow(&x));
                    let got = gradients::<f32, A>(cx, &inputs, &s0, &d_o, &ds, rule, sizes);
                    for (name, (got, want)) in ["kq", "v", "g", "beta", "s0"].iter().zip(got.iter().zip(&want)) {
                        assert_close(got, &narrow(want), bound, name);
                    }
                }
            }
        });
    }

    fn gradients<E: Elem, A: Store<E = E>>(
        cx: &Exec,
        [kq, v, g, beta]: &[Vec<E>; 4],
        s0: &[E],
        d_o: &[E],
        ds: &[E],
        rule: Rule,
        sizes: Sizes,
    ) -> [Vec<E>; 5] {
        let nan = |n: usize| vec![E::NAN; n];
        let [mut dkq, mut dv, mut dg, mut dbeta] = [kq, v, g, beta].map(|x| nan(x.len()));
        let (mut ds, mut work) = (ds.to_vec(), nan(delta_work(sizes)));
        let mut room = vec![A::NAN; delta_room(sizes)];
        let out = (&mut dkq[..], &mut dv[..], &mut dg[..], &mut dbeta[..]);
        delta_backward(cx, out, &mut ds, d_o, s0, kq, v, (g, beta), rule, &mut work, &mut room, sizes);
        [dkq, dv, dg, dbeta, ds]
    }
}
