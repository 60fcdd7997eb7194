//! Central differences in f64 against the hand-written backward passes, and the other properties every mixer must have.

use flashlm_kernels::{Exec, Isa, Token};

use crate::config::{ModelConfig, QuantConfig, ScaleKind, StatKind};
use crate::lm::{LanguageModel, Lm};
use crate::mixer;
use crate::precision::Precision;
use crate::rng::Rng;

/// A small model of odd sizes.
pub(crate) fn tiny(mixer: &str) -> ModelConfig {
    ModelConfig {
        vocab_size: 23,
        dim: 13,
        blocks: 2,
        ffn_hidden: 19,
        mixer: mixer.into(),
        kernel_size: 4,
        block_norm: true,
        norm_eps: 1e-6,
        quant: QuantConfig { scale: ScaleKind::None, size: 16, stat: StatKind::Mean, norm: false },
    }
}

/// Parameters with a spread that makes every path count; `n` tokens below `v`.
pub(crate) fn noisy(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.normal() * 0.4 + 0.1).collect()
}

pub(crate) fn tokens(n: usize, v: usize, seed: u64) -> Vec<Token> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.below(v as u64) as Token).collect()
}

/// The mean loss and its gradient, for one config and size.
fn loss(cx: &Exec, lm: &mut Lm<f64>, params: &[f64], data: &[Token], (b, t): (usize, usize)) -> (f64, Vec<f64>) {
    let rows: Vec<&[Token]> = data.chunks(t + 1).collect();
    let x: Vec<Token> = rows.iter().flat_map(|r| r[..t].iter().copied()).collect();
    let y: Vec<Token> = rows.iter().flat_map(|r| r[1..].iter().copied()).collect();
    let mut grads = vec![0.0; params.len()];
    lm.prepare(cx, params);
    let scale = 1.0 / (b * t) as f64;
    let nats = lm.loss_backward(cx, &mut grads, params, &x, &y, (b, t), scale);
    (nats * scale, grads)
}

fn check(config: &ModelConfig, size: (usize, usize)) {
    let cx = &Exec::new(Isa::Scalar, 2);
    let mut lm = Lm::<f64>::new(config, size.0 * size.1, true).unwrap();
    let layout = lm.layout().clone();
    let mut params = noisy(layout.len(), 7);
    let data = tokens(size.0 * (size.1 + 1), config.vocab_size, 8);
    let (_, grads) = loss(cx, &mut lm, &params, &data, size);
    let mut rng = Rng::new(9);
    for spec in layout.specs() {
        // A few elements of every parameter, always the first and the last.
        let mut picks = vec![spec.range.start, spec.range.end - 1];
        picks.extend((0..6).map(|_| spec.range.start + rng.below(spec.range.len() as u64) as usize));
        for i in picks {
            let (own, h) = (params[i], 1e-5);
            params[i] = own + h;
            let up = loss(cx, &mut lm, &params, &data, size).0;
            params[i] = own - h;
            let down = loss(cx, &mut lm, &params, &data, size).0;
            params[i] = own;
            let want = (up - down) / (2.0 * h);
            let error = (grads[i] - want).abs();
            assert!(error <= 1e-8 + 1e-6 * want.abs(), "{} at {i}: {} for {want} in {config:?}", spec.name, grads[i]);
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for &name in mixer::NAMES {
        for (block_norm, inner_norm) in [(true, false), (false, true), (true, true), (false, false)] {
            let mut config = tiny(name);
            config.block_norm = block_norm;
            config.quant.norm = inner_norm;
            check(&config, (2, 7));
        }
        for size in [(1, 1), (3, 2), (1, 33)] {
            check(&tiny(name), size);
        }
        let wide = ModelConfig { dim: 33, ffn_hidden: 7, kernel_size: 1, vocab_size: 300, ..tiny(name) };
        check(&wide, (2, 5));
    }
}

/// The straight-through estimator: the gradient at latent weights is that of a float model at the quantised ones.
#[test]
fn ternary_gradients_pass_straight_through() {
    let cx = &Exec::new(Isa::Scalar, 1);
    for &name in mixer::NAMES {
        for scale in [ScaleKind::Tensor, ScaleKind::Block, ScaleKind::Group] {
            let mut config = tiny(name);
            config.quant.scale = scale;
            let mut lm = Lm::<f64>::new(&config, 14, true).unwrap();
            let layout = lm.layout().clone();
            let params = noisy(layout.len(), 3);
            let data = tokens(2 * 8, config.vocab_size, 4);
            let (ternary, dw) = loss(cx, &mut lm, &params, &data, (2, 7));

            let mut quantised = params.clone();
            for spec in layout.specs().iter().filter(|s| s.group == crate::params::Group::Matrix) {
                let w = &params[spec.range.clone()];
                let (mut wq, mut scratch) = (vec![0.0; w.len()], vec![0.0; w.len()]);
                let size = (spec.shape[0], spec.shape[1]);
                flashlm_kernels::ops::quantise(cx, &mut wq, &mut scratch, w, size, config.quant.quant().unwrap());
                quantised[spec.range.clone()].copy_from_slice(&wq);
            }
            config.quant.scale = ScaleKind::None;
            let mut float = Lm::<f64>::new(&config, 14, true).unwrap();
            assert_eq!((ternary, dw), loss(cx, &mut float, &quantised, &data, (2, 7)));
        }
    }
}

type Prepared = (Exec, Box<dyn LanguageModel<f32>>, Vec<f32>);

/// A model in each precision that works on f32.
fn models(config: &ModelConfig, rows: usize) -> [Prepared; 2] {
    [Precision::F32, Precision::Bf16].map(|precision| f32_model(config, rows, precision))
}

fn f32_model(config: &ModelConfig, rows: usize, precision: Precision) -> Prepared {
    let cx = Exec::new(Isa::detect().unwrap(), 2);
    let mut lm = precision.build(config, rows, false).unwrap();
    let params: Vec<f32> = noisy(lm.layout().len(), 5).iter().map(|&p| p as f32).collect();
    lm.prepare(&cx, &params);
    (cx, lm, params)
}

#[test]
fn outputs_before_a_changed_token_stay_bit_equal() {
    for &name in mixer::NAMES {
        let mut config = tiny(name);
        config.quant.scale = ScaleKind::Tensor;
        for (t, (cx, mut lm, params)) in
            [1, 2, 37, 63, 100].into_iter().flat_map(|t| models(&config, t).map(|m| (t, m)))
        {
            let v = config.vocab_size;
            let mut data = tokens(t, v, 6);
            let (mut before, mut after) = (vec![0.0; t * v], vec![0.0; t * v]);
            lm.logits(&cx, &mut before, &params, &data, None, (1, t));
            for at in [0, t / 2, t - 1] {
                let own = data[at];
                data[at] = (own + 1) % v as Token;
                lm.logits(&cx, &mut after, &params, &data, None, (1, t));
                data[at] = own;
                assert_eq!(before[..at * v], after[..at * v], "{name}: token {at} of {t} changed the past");
                assert_ne!(before[at * v..(at + 1) * v], after[at * v..(at + 1) * v], "{name}: token {at} is not seen");
            }
        }
    }
}

#[test]
fn pieces_with_a_state_equal_the_whole_and_the_state_survives_saving() {
    for &name in mixer::NAMES {
        let mut config = tiny(name);
        config.quant.scale = ScaleKind::Group;
        let v = config.vocab_size;
        for (t, (cx, mut lm, params)) in
            [1, 63, 100, 500].into_iter().flat_map(|t| models(&config, 2 * t).map(|m| (t, m)))
        {
            let data = tokens(2 * t, v, 6);
            let mut whole = vec![0.0; 2 * t * v];
            lm.logits(&cx, &mut whole, &params, &data, None, (2, t));
            for piece in [1, 7, 64] {
                let mut state = lm.state(2);
                for first in (0..t).step_by(piece) {
                    let n = piece.min(t - first);
                    let part: Vec<Token> = data.chunks(t).flat_map(|s| s[first..first + n].iter().copied()).collect();
                    let mut out = vec![0.0; 2 * n * v];
                    let saved: Vec<f32> = state.values().collect();
                    state.reset();
                    assert!(state.restore(&saved) && !state.restore(&[saved.as_slice(), &[0.0]].concat()));
                    lm.logits(&cx, &mut out, &params, &part, Some(&mut state), (2, n));
                    for (b, out) in out.chunks(n * v).enumerate() {
                        let at = (b * t + first) * v;
                        assert_eq!(out, &whole[at..at + n * v], "{name}: {n} tokens from {first} of {t}");
                    }
                }
            }
            let mut empty = lm.state(1);
            lm.logits(&cx, &mut [], &params, &[], Some(&mut empty), (1, 0));
        }
    }
}

#[test]
fn gradients_do_not_depend_on_threads() {
    let isa = Isa::detect().unwrap();
    for &name in mixer::NAMES {
        for inner in [false, true] {
            let mut config = ModelConfig { vocab_size: 700, dim: 40, ffn_hidden: 72, ..tiny(name) };
            config.quant = QuantConfig { scale: ScaleKind::Tensor, norm: inner, ..config.quant };
            let run = |precision: Precision, threads| {
                let cx = Exec::new(isa, threads);
                let mut lm = precision.build(&config, 3 * 110, true).unwrap();
                let params = lm.layout().init::<f32>(1);
                let data = tokens(3 * 110, 700, 2);
                let mut grads = vec![0.0; params.len()];
                lm.prepare(&cx, &params);
                let nats = lm.loss_backward(&cx, &mut grads, &params, &data, &data, (3, 110), 0.1);
                (nats, grads)
            };
            for precision in [Precision::F32, Precision::Bf16] {
                let one = run(precision, 1);
                for threads in [2, 3, 4] {
                    assert_eq!(one, run(precision, threads), "{name} in {} on {threads} threads", precision.name());
                }
            }
        }
    }
}

/// bf16 rounds operands to 8 bits: logits and gradients stay near those of f32.
#[test]
fn bf16_stays_near_f32() {
    for &name in mixer::NAMES {
        for (block_norm, inner) in [(true, false), (false, true)] {
            let quant = QuantConfig { scale: ScaleKind::Tensor, norm: inner, ..tiny(name).quant };
            let config = ModelConfig { vocab_size: 500, dim: 64, ffn_hidden: 96, block_norm, quant, ..tiny(name) };
            let run = |precision: Precision| {
                let cx = Exec::new(Isa::detect().unwrap(), 2);
                let mut lm = precision.build(&config, 128, true).unwrap();
                let params = lm.layout().init::<f32>(1);
                let data = tokens(128, 500, 2);
                let (mut logits, mut grads) = (vec![0.0; 128 * 500], vec![0.0; params.len()]);
                lm.prepare(&cx, &params);
                lm.logits(&cx, &mut logits, &params, &data, None, (2, 64));
                lm.loss_backward(&cx, &mut grads, &params, &data, &data, (2, 64), 1.0);
                (logits, grads)
            };
            let (want, got) = (run(Precision::F32), run(Precision::Bf16));
            let ratio = |got: &[f32], want: &[f32]| {
                let off: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
                (off / want.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>()).sqrt()
            };
            assert!(ratio(&got.0, &want.0) < 1e-2, "{name}: logits off by {:.1e}", ratio(&got.0, &want.0));
            assert!(ratio(&got.1, &want.1) < 3e-2, "{name}: gradients off by {:.1e}", ratio(&got.1, &want.1));
        }
    }
}
