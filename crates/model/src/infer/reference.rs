//! The packed runtime in plain loops and f64: what `formats.md` and the headers of the layers say, written down once more.
//! Activations are int8 here too, so what is left between the two is rounding, not quantisation.

use std::collections::BTreeMap;

use flashlm_kernels::ops::quantise;
use flashlm_kernels::{Exec, Isa, Token};

use super::testing::{Noise, shapes, stories};
use crate::ModelConfig;
use crate::config::{ActivationKind, DeltaForm, DeltaRule};
use crate::params::Group;

struct Reference {
    config: ModelConfig,
    /// Shape and values as the runtime has them.
    params: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

/// The rows of one story that a mixer has seen, in each of its parts.
#[derive(Default)]
struct Seen {
    rows: [Vec<Vec<f64>>; 3],
    /// `S` of each head, `[dk][dv]`.
    s: Vec<Vec<Vec<f64>>>,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    (1.0 + x.exp()).ln()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// The nearest of the 255 multiples of `max |x| / 127`.
fn int8(x: &[f64]) -> Vec<f64> {
    let step = x.iter().fold(0.0, |m: f64, x| m.max(x.abs())) / 127.0;
    x.iter().map(|x| if step == 0.0 { 0.0 } else { (x / step).round_ties_even() * step }).collect()
}

impl Reference {
    fn new(noise: &Noise) -> Self {
        let mut params = BTreeMap::new();
        for spec in noise.layout.specs() {
            let mut w = noise.params[spec.range.clone()].to_vec();
            match (spec.group, noise.config.quant.quant()) {
                (Group::Matrix, Some(quant)) => {
                    let (latent, size) = (w.clone(), (spec.shape[0], spec.shape[1]));
                    quantise(&Exec::new(Isa::SCALAR, 1), &mut w, &mut latent.clone(), &latent, size, quant);
                }
                (Group::Matrix | Group::Embedding, _) => {
                    for row in w.chunks_mut(spec.shape[1]) {
                        let m = row.iter().fold(0.0, |m: f32, w| m.max(w.abs()));
                        row.iter_mut().for_each(|w| *w = (*w * (127.0 / m)).round_ties_even() * (m / 127.0));
                    }
                }
                _ => {}
            }
            params.insert(spec.name.clone(), (spec.shape.clone(), w.iter().map(|&w| w.into()).collect()));
        }
        Reference { config: noise.config.clone(), params }
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.params[name].1
    }

    fn norm(&self, name: &str, x: &[f64], eps: f64) -> Vec<f64> {
        let r = 1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt();
        x.iter().zip(self.get(name)).map(|(x, scale)| x * r * scale).collect()
    }

    /// The norm where the model has one of that name.
    fn norm_if(&self, name: &str, x: &[f64]) -> Vec<f64> {
        if self.params.contains_key(name) { self.norm(name, x, self.config.norm_eps) } else { x.to_vec() }
    }

    fn float(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.get(&format!("{name}.weight")).chunks(x.len()).map(|w| dot(w, x)).collect()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.float(name, &int8(&self.norm_if(&format!("{name}.norm.scale"), x)))
    }

    /// The convolution of the last row in `seen`; tap `K-1` is the newest row's.
    fn conv(&self, name: &str, seen: &[Vec<f64>]) -> Vec<f64> {
        let (shape, taps) = &self.params[name];
        let k = shape[2];
        let newest = seen.len() - 1;
        let tap = |c: usize, back: usize| taps[c * k + k - 1 - back] * seen[newest - back][c];
        (0..shape[0]).map(|c| (0..k.min(seen.len())).map(|back| tap(c, back)).sum()).collect()
    }

    fn mix(&self, block: usize, x: &[f64], seen: &mut Seen) -> Vec<f64> {
        let name = |part: &str| format!("blocks.{block}.mixer.{part}");
        match self.config.mixer_of(block) {
            "conv" => {
                let u = self.linear(&name("up"), x);
                let (gate, value) = u.split_at(x.len());
                seen.rows[0].push(value.to_vec());
                let y = self.conv(&name("conv.weight"), &seen.rows[0]);
                let m: Vec<f64> = y.iter().zip(gate).map(|(y, g)| y * sigmoid(*g)).collect();
                self.linear(&name("down"), &m)
            }
            "attention" => self.attend(&name, x, seen),
            _ => self.delta(&name, x, seen),
        }
    }

    fn attend(&self, name: &dyn Fn(&str) -> String, x: &[f64], seen: &mut Seen) -> Vec<f64> {
        let c = &self.config.attention;
        let width = x.len() / c.heads;
        let position = seen.rows[0].len();
        let turned = |part: &str| -> Vec<f64> {
            let all = self.linear(&name(&format!("{part}_proj")), x);
            let heads = all.chunks(width).flat_map(|head| {
                let x = self.norm(&name(&format!("{part}_norm.scale")), head, 1e-6);
                let half = width / 2;
                let angle = |i: usize| position as f64 * c.rope_base.powf(-2.0 * (i % half) as f64 / width as f64);
                let at = |i: usize| match i < half {
                    true => x[i] * angle(i).cos() - x[i + half] * angle(i).sin(),
                    false => x[i] * angle(i).cos() + x[i - half] * angle(i).sin(),
                };
                (0..width).map(at).collect::<Vec<f64>>()
            });
            heads.collect()
        };
        let q = turned("q");
        seen.rows[0].push(turned("k"));
        seen.rows[1].push(self.linear(&name("v_proj"), x));
        let first = (position + 1).saturating_sub(c.window);
        let mut o = Vec::new();
        for head in 0..c.heads {
            let own = head * width..(head + 1) * width;
            let score = |k: &Vec<f64>| (dot(&q[own.clone()], &k[own.clone()]) / (width as f64).sqrt()).exp();
            let p: Vec<f64> = seen.rows[0][first..].iter().map(score).collect();
            let sum: f64 = p.iter().sum();
            let values = &seen.rows[1][first..];
            o.extend(own.clone().map(|i| p.iter().zip(values).map(|(p, v)| p * v[i]).sum::<f64>() / sum));
        }
        self.linear(&name("o_proj"), &o)
    }

    fn delta(&self, name: &dyn Fn(&str) -> String, x: &[f64], seen: &mut Seen) -> Vec<f64> {
        let c = &self.config.delta;
        let published = c.form == DeltaForm::Published;
        let (dk, dv) = c.widths(self.config.dim);
        let [q, k, v] = [(0, "q"), (1, "k"), (2, "v")].map(|(i, part)| -> Vec<f64> {
            seen.rows[i].push(self.linear(&name(&format!("{part}_proj")), x));
            let y = self.conv(&name(&format!("{part}_conv.weight")), &seen.rows[i]);
            y.iter().map(|y| y * sigmoid(*y)).collect()
        });
        let unit = |x: &[f64], scale: f64| -> Vec<f64> {
            let r = scale / (dot(x, x) + if published { 1e-6 } else { 1e-24 }).sqrt();
            x.iter().map(|x| x * r).collect()
        };
        let (g, beta): (Vec<f64>, Vec<f64>) = if published {
            let (rate, bias) = (self.get(&name("A_log")), self.get(&name("dt_bias")));
            let a = self.float(&name("a_proj"), x);
            let g = (0..c.heads).map(|h| -rate[h].exp() * softplus(a[h] + bias[h])).collect();
            (g, self.float(&name("b_proj"), x))
        } else {
            let a = self.linear(&name("gk_proj"), x);
            (a.iter().map(|a| sigmoid(*a).ln() / 16.0).collect(), self.linear(&name("beta_proj"), x))
        };
        let strength = if c.negative_eigenvalues { 2.0 } else { 1.0 };
        seen.s.resize(c.heads, vec![vec![0.0; dv]; dk]);
        let gate = self.linear(&name("g_proj"), x);
        let mut m = Vec::new();
        for head in 0..c.heads {
            let q = unit(&q[head * dk..][..dk], if published { (dk as f64).powf(-0.5) } else { 1.0 });
            let k = unit(&k[head * dk..][..dk], 1.0);
            let (s, alpha, beta) = (&mut seen.s[head], g[head].exp(), strength * sigmoid(beta[head]));
            let before = if c.rule == DeltaRule::Canonical { alpha } else { 1.0 };
            let held = |j: usize| (0..dk).map(|i| s[i][j] * k[i]).sum::<f64>() * before;
            let u: Vec<f64> = (0..dv).map(|j| beta * (v[head * dv + j] - held(j))).collect();
            (0..dk).for_each(|i| (0..dv).for_each(|j| s[i][j] = alpha * s[i][j] + k[i] * u[j]));
            let o: Vec<f64> = (0..dv).map(|j| (0..dk).map(|i| s[i][j] * q[i]).sum()).collect();
            let gate = &gate[head * dv..][..dv];
            if published {
                let o = self.norm(&name("o_norm.scale"), &o, 1e-5);
                m.extend(o.iter().zip(gate).map(|(o, g)| o * g * sigmoid(*g)));
            } else {
                m.extend(o.iter().zip(gate).map(|(o, g)| o * sigmoid(*g)));
            }
        }
        self.linear(&name("o_proj"), &m)
    }

    /// The logits after each token.
    fn logits(&self, tokens: &[Token]) -> Vec<Vec<f64>> {
        let c = &self.config;
        let start = || (0..c.blocks).map(|_| Seen::default()).collect::<Vec<Seen>>();
        let mut seen = start();
        let mut all = Vec::new();
        for &token in tokens {
            if c.reset && usize::from(token) == c.eos {
                seen = start();
            }
            let add = |h: &mut Vec<f64>, y: Vec<f64>| h.iter_mut().zip(y).for_each(|(h, y)| *h += y);
            let mut h = self.get("embedding.weight")[usize::from(token) * c.dim..][..c.dim].to_vec();
            for (i, seen) in seen.iter_mut().enumerate() {
                let x = self.norm_if(&format!("blocks.{i}.norm1.scale"), &h);
                add(&mut h, self.mix(i, &x, seen));
                let x = self.norm_if(&format!("blocks.{i}.norm2.scale"), &h);
                let [gate, up] = ["W_gate", "W_up"].map(|part| self.linear(&format!("blocks.{i}.ffn.{part}"), &x));
                let act = |g: f64| match c.activation {
                    ActivationKind::Silu => g * sigmoid(g),
                    ActivationKind::Relu2 => g.max(0.0).powi(2),
                };
                let a: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| act(*g) * u).collect();
                add(&mut h, self.linear(&format!("blocks.{i}.ffn.W_down"), &a));
            }
            let x = int8(&self.norm("final_norm.scale", &h, c.norm_eps));
            let cap = |z: f64| if c.logit_softcap > 0.0 { c.logit_softcap * (z / c.logit_softcap).tanh() } else { z };
            all.push(self.get("embedding.weight").chunks(c.dim).map(|w| cap(dot(w, &x))).collect());
        }
        all
    }
}

/// A row is off by rounding alone, unless an activation lies so near the middle of two int8 values that rounding chooses: then
/// by such a step, and with what the state makes of it. Nine rows in ten are not.
#[test]
fn the_runtime_is_what_the_formulas_say() {
    for (name, config) in shapes() {
        // Queries and keys so small that the epsilons of their norms count.
        let noise = Noise::with(config, &crate::tok::Tokenizer::bytes(), |name, w| {
            if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") {
                w.iter_mut().for_each(|w| *w *= 3e-3);
            }
        });
        let reference = Reference::new(&noise);
        let (mut exact, mut worst, mut rows) = (0, 0.0f64, 0);
        for seed in 0..4 {
            let tokens = stories(40, seed);
            let want = reference.logits(&tokens);
            let (got, _) = noise.in_turn(&tokens);
            for (got, want) in got.iter().zip(&want) {
                let off: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
                let ratio = (off / dot(want, want)).sqrt();
                exact += usize::from(ratio < 1e-5);
                worst = worst.max(ratio);
                rows += 1;
            }
        }
        assert!(exact * 10 >= rows * 9 && worst < 0.05, "{name}: {exact} of {rows} rows, the worst {worst:.1e} off");
    }
}
