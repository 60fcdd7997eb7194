//! The packed runtime against plain loops.

use flashlm_kernels::Token;

use crate::config::{ActivationKind, ModelConfig};
use crate::infer::testing::{Noise, shapes, stories};
use crate::mixer;
use crate::reference::{History, Weights, dot, sigmoid};
use crate::tok::Tokenizer;

/// The logits after each token.
pub(crate) fn logits(c: &ModelConfig, model: &Weights, tokens: &[Token]) -> Vec<Vec<f64>> {
    let start = || (0..c.blocks).map(|_| History::default()).collect::<Vec<History>>();
    let mut history = start();
    // The keys of the document, and the token after each but the last.
    let (mut keys, mut next) = (Vec::<Vec<f64>>::new(), Vec::<usize>::new());
    // Of each of these rows, whether its token opens.
    let mut opening = Vec::<bool>::new();
    let (mut all, mut before) = (Vec::new(), c.eos as u64);
    for &token in tokens {
        if c.reset && usize::from(token) == c.eos {
            history = start();
            before = c.eos as u64;
            (keys, next, opening) = (Vec::new(), Vec::new(), Vec::new());
        }
        if !keys.is_empty() {
            next.push(token.into());
        }
        let add = |h: &mut Vec<f64>, y: Vec<f64>| h.iter_mut().zip(y).for_each(|(h, y)| *h += y);
        let mut h = model.get("embedding.weight")[usize::from(token) * c.dim..][..c.dim].to_vec();
        if c.bigram > 0 {
            // `lowbias32` of the two tokens.
            let mut x = before << 16 | u64::from(token);
            for (shift, by) in [(16, 0x7feb_352d), (15, 0x846c_a68b), (16, 1)] {
                x = (x ^ (x >> shift)) * by % (1 << 32);
            }
            let row = ((x * c.bigram as u64) >> 32) as usize;
            add(&mut h, model.get("bigram.weight")[row * c.dim..][..c.dim].to_vec());
        }
        before = token.into();
        let x0 = h.clone();
        for (i, history) in history.iter_mut().enumerate() {
            let block = model.of(&format!("blocks.{i}"));
            if c.x0 {
                let [r, s] = ["resid_lambda", "x0_lambda"].map(|name| block.get(name)[0]);
                h.iter_mut().zip(&x0).for_each(|(h, x0)| *h = r * *h + s * x0);
            }
            if c.layer_embeddings {
                add(&mut h, block.get("embedding.weight")[usize::from(token) * c.dim..][..c.dim].to_vec());
            }
            let x = block.norm_if("norm1.scale", &h);
            add(&mut h, mixer::reference(c.mixer_of(i), &block.of("mixer"), &c.mixers, &x, history));
            let x = block.norm_if("norm2.scale", &h);
            let [gate, up] = ["ffn.W_gate", "ffn.W_up"].map(|name| block.linear(name, &x));
            let act = |g: f64| match c.activation {
                ActivationKind::Silu => g * sigmoid(g),
                ActivationKind::Relu2 => g.max(0.0).powi(2),
            };
            let a: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| act(*g) * u).collect();
            add(&mut h, block.linear("ffn.W_down", &a));
        }
        let input = model.norm("final_norm.scale", &h, c.norm_eps);
        let x = model.rounded(&input);
        let cap = |z: f64| if c.logit_softcap > 0.0 { c.logit_softcap * (z / c.logit_softcap).tanh() } else { z };
        let mut z: Vec<f64> = model.get("embedding.weight").chunks(c.dim).map(|w| cap(dot(w, &x))).collect();
        if c.pointer > 0 {
            let pointer = model.of("pointer");
            let mut mass: Vec<f64> = z.iter().map(|z| z.exp()).collect();
            let opens = c.pointer_words && pointer.get("opens")[usize::from(token)] == 1.0;
            for ((k, next), before) in keys.iter().zip(&next).zip(&opening).rev().take(c.pointer) {
                let s = pointer.get("scale")[0] / (c.dim as f64).sqrt() * dot(&input, k) + pointer.get("bias")[0];
                let read = if opens == *before { *next } else { pointer.get("twin")[*next] as usize };
                mass[read] += s.exp();
            }
            opening.push(opens);
            z = mass.iter().map(|mass| mass.ln()).collect();
            keys.push(pointer.float("key", &input).iter().zip(&input).map(|(k, x)| k + x).collect());
        }
        all.push(z);
    }
    all
}

/// A row is off by rounding alone, unless an activation lies so near the middle of two int8 values that rounding chooses: then
/// by such a step, and with what the state makes of it. Nine rows in ten are not.
#[test]
fn the_runtime_is_what_the_formulas_say() {
    for (name, config) in shapes() {
        // Queries and keys so small that the epsilons of their norms count.
        let noise = Noise::with(config, &Tokenizer::bytes(), |name, w| {
            if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") {
                w.iter_mut().for_each(|w| *w *= 3e-3);
            }
        });
        let reference = Weights::new(&noise.config, &noise.params);
        let (mut exact, mut worst, mut rows) = (0, 0.0f64, 0);
        for seed in 0..4 {
            let tokens = stories(40, seed);
            let want = logits(&noise.config, &reference, &tokens);
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
