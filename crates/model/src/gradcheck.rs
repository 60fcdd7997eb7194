//! Differences in f64 against the hand-written backward passes, and the other properties every mixer must have.

use flashlm_kernels::ops::Objective;
use flashlm_kernels::{Exec, Isa, Token};

use crate::config::{
    ActivationKind, AttentionConfig, DeltaConfig, DeltaForm, DeltaRule, ModelConfig, QuantConfig, ScaleKind, StatKind,
};
use crate::lm::{LanguageModel, Lm};
use crate::mixer;
use crate::precision::Precision;
use crate::rng::Rng;

/// A small model of odd sizes.
pub(crate) fn tiny(mixer: &str) -> ModelConfig {
    ModelConfig {
        vocab_size: 23,
        blocks: 2,
        ffn_hidden: 19,
        mixer: mixer.into(),
        kernel_size: 4,
        quant: QuantConfig { scale: ScaleKind::None, size: 16, stat: StatKind::Mean, norm: false },
        dim: 24,
        eos: 7,
        delta: DeltaConfig { heads: 3, expand_k: 0.625, expand_v: 0.875, ..DeltaConfig::default() },
        attention: AttentionConfig { heads: 3, window: 9, ..AttentionConfig::default() },
        ..ModelConfig::v4_small()
    }
}

/// The same with every switch of a recipe that changes what is computed.
pub(crate) fn recipe(mixer: &str) -> ModelConfig {
    ModelConfig { activation: ActivationKind::Relu2, sub_norm: true, logit_softcap: 1.5, ..tiny(mixer) }
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

/// `ln sum_j exp(z_j)` of a row.
pub(crate) fn log_sum(z: &[f64]) -> f64 {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln()
}

/// The mean loss, z-loss included, and its gradient, for one config and size.
fn loss(
    cx: &Exec,
    lm: &mut Lm<f64>,
    params: &[f64],
    data: &[Token],
    (b, t): (usize, usize),
    z_loss: f64,
) -> (f64, Vec<f64>) {
    let rows: Vec<&[Token]> = data.chunks(t + 1).collect();
    let x: Vec<Token> = rows.iter().flat_map(|r| r[..t].iter().copied()).collect();
    let y: Vec<Token> = rows.iter().flat_map(|r| r[1..].iter().copied()).collect();
    let mut grads = vec![0.0; params.len()];
    lm.prepare(cx, params);
    let scale = 1.0 / (b * t) as f64;
    let nats = lm.loss_backward(cx, &mut grads, params, &x, &y, (b, t), Objective { scale, z_loss });
    let v = lm.config().vocab_size;
    let mut logits = vec![0.0; b * t * v];
    lm.logits(cx, &mut logits, params, &x, None, (b, t));
    let squares: f64 = logits.chunks(v).map(|z| log_sum(z).powi(2)).sum();
    ((nats + z_loss * squares) * scale, grads)
}

/// The same objective by the forward pass alone.
fn value(cx: &Exec, lm: &mut Lm<f64>, params: &[f64], data: &[Token], (b, t): (usize, usize), z_loss: f64) -> f64 {
    let rows: Vec<&[Token]> = data.chunks(t + 1).collect();
    let x: Vec<Token> = rows.iter().flat_map(|r| r[..t].iter().copied()).collect();
    let y: Vec<Token> = rows.iter().flat_map(|r| r[1..].iter().copied()).collect();
    lm.prepare(cx, params);
    let mut scored = Vec::with_capacity(b * t);
    lm.log_probs(cx, &mut scored, params, &x, &y, None, (b, t));
    let mut sum = -scored.iter().sum::<f64>();
    if z_loss > 0.0 {
        let v = lm.config().vocab_size;
        let mut logits = vec![0.0; b * t * v];
        lm.logits(cx, &mut logits, params, &x, None, (b, t));
        sum += z_loss * logits.chunks(v).map(|z| log_sum(z).powi(2)).sum::<f64>();
    }
    sum / (b * t) as f64
}

fn check(config: &ModelConfig, size: (usize, usize), z_loss: f64) {
    // One thread: the bits are those of any number, and tests that run beside each other do not wait for theirs.
    let cx = &Exec::new(Isa::SCALAR, 1);
    let mut lm = Lm::<f64>::new(config, size.0 * size.1, true).unwrap();
    let layout = lm.layout().clone();
    let mut params = noisy(layout.len(), 7);
    let data = tokens(size.0 * (size.1 + 1), config.vocab_size, 8);
    let (_, grads) = loss(cx, &mut lm, &params, &data, size, z_loss);
    let mut rng = Rng::new(9);
    for spec in layout.specs() {
        // A few elements of every parameter, fewer where a pass takes long, always the first and the last.
        let mut picks = vec![spec.range.start, spec.range.end - 1];
        let more = if size.0 * size.1 > 35 { 0 } else { 4 };
        picks.extend((0..more).map(|_| spec.range.start + rng.below(spec.range.len() as u64) as usize));
        for i in picks {
            // The differences at h and 2h together leave an error of h^4.
            let (own, h) = (params[i], 2e-5);
            let mut at = |steps: f64| {
                params[i] = own + steps * h;
                let loss = value(cx, &mut lm, &params, &data, size, z_loss);
                params[i] = own;
                loss
            };
            let want = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
            let error = (grads[i] - want).abs();
            assert!(
                error <= 1e-8 + 1e-6 * want.abs(),
                "{} at {i}: {} for {want}, z-loss {z_loss}, {config:?}",
                spec.name,
                grads[i]
            );
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
            check(&config, (2, 7), 0.0);
        }
        for size in [(1, 1), (3, 2), (1, 33)] {
            check(&tiny(name), size, 0.0);
        }
        let delta = DeltaConfig { conv: 1, ..tiny(name).delta };
        let wide = ModelConfig { dim: 48, ffn_hidden: 7, kernel_size: 1, vocab_size: 300, delta, ..tiny(name) };
        check(&wide, (2, 5), 0.0);
        // Stories of all lengths follow each other, and some chunks are full.
        check(&ModelConfig { reset: true, vocab_size: 9, blocks: 1, ..tiny(name) }, (2, 40), 0.0);
        check(&ModelConfig { blocks: 1, ..tiny(name) }, (1, 100), 0.0);
    }
}

#[test]
fn gradients_of_every_form_of_the_delta_rule_equal_finite_differences() {
    for form in [DeltaForm::Published, DeltaForm::Original] {
        for (rule, inner_norm) in [(DeltaRule::Canonical, true), (DeltaRule::Undecayed, false)] {
            let mut config = tiny("delta");
            config.delta = DeltaConfig { form, rule, negative_eigenvalues: inner_norm, ..config.delta };
            config.quant.norm = inner_norm;
            config.blocks = 1;
            check(&config, (2, 17), 0.0);
        }
    }
}

#[test]
fn gradients_of_every_switch_equal_finite_differences() {
    for &name in mixer::NAMES {
        let (tiny, recipe) = (tiny(name), recipe(name));
        check(&ModelConfig { activation: ActivationKind::Relu2, ..tiny.clone() }, (2, 7), 0.0);
        check(&ModelConfig { sub_norm: true, ..tiny.clone() }, (2, 7), 0.0);
        check(&ModelConfig { logit_softcap: 1.0, ..tiny.clone() }, (2, 7), 0.0);
        check(&tiny, (2, 7), 0.05);
        check(&recipe, (2, 7), 0.05);
        check(&recipe, (1, 1), 0.05);
        check(&ModelConfig { block_norm: false, ..recipe.clone() }, (1, 13), 0.0);
        let quant = QuantConfig { norm: true, ..recipe.quant.clone() };
        check(&ModelConfig { quant, vocab_size: 700, ..recipe }, (1, 5), 0.05);
    }
}

/// The soft cap, written down once more, over the logits of the same model without it.
#[test]
fn capped_logits_are_what_is_scored_and_trained() {
    for &name in mixer::NAMES {
        let cx = &Exec::new(Isa::SCALAR, 2);
        let (cap, (b, t)) = (1.0, (2, 30));
        let capped = ModelConfig { logit_softcap: cap, vocab_size: 600, ..tiny(name) };
        let v = capped.vocab_size;
        let mut lm = Lm::<f64>::new(&capped, b * t, true).unwrap();
        let mut plain = Lm::<f64>::new(&ModelConfig { logit_softcap: 0.0, ..capped }, b * t, false).unwrap();
        let params = noisy(lm.layout().len(), 5);
        lm.prepare(cx, &params);
        plain.prepare(cx, &params);
        let (x, y) = (tokens(b * t, v, 6), tokens(b * t, v, 7));
        let (mut got, mut raw) = (vec![0.0; b * t * v], vec![0.0; b * t * v]);
        lm.logits(cx, &mut got, &params, &x, None, (b, t));
        plain.logits(cx, &mut raw, &params, &x, None, (b, t));
        assert!(raw.iter().any(|z| z.abs() > cap) && got.iter().all(|z| z.abs() < cap));
        for (got, raw) in got.iter().zip(&raw) {
            let want = cap * (raw / cap).tanh();
            assert!((got - want).abs() < 1e-12, "{got} for {want}");
        }
        let want: Vec<f64> = got.chunks(v).zip(&y).map(|(z, &target)| z[usize::from(target)] - log_sum(z)).collect();
        let mut scored = Vec::new();
        lm.log_probs(cx, &mut scored, &params, &x, &y, None, (b, t));
        assert!(scored.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-12));
        let mut grads = vec![0.0; params.len()];
        // The loss that is told leaves z-loss out.
        for z_loss in [0.0, 0.5] {
            let nats = lm.loss_backward(cx, &mut grads, &params, &x, &y, (b, t), Objective { scale: 1.0, z_loss });
            assert!((nats + want.iter().sum::<f64>()).abs() < 1e-9);
        }
        let (mut state, mut next) = (lm.state(1), vec![0.0; v]);
        lm.next_logits(cx, &mut next, &params, &x[..t], &mut state);
        let off = next.iter().zip(&got[(t - 1) * v..]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-12, "{name}: {off}");
    }
}

/// Branches that start as nothing: only their output projections have a gradient, and one step wakes the rest.
#[test]
fn output_projections_that_start_at_zero_are_moved() {
    for (&name, scale) in mixer::NAMES
        .iter()
        .flat_map(|name| [ScaleKind::Tensor, ScaleKind::Block, ScaleKind::Group].map(|scale| (name, scale)))
    {
        for sub_norm in [false, true] {
            let cx = &Exec::new(Isa::SCALAR, 1);
            let mut config = ModelConfig { zero_init: true, sub_norm, ..tiny(name) };
            config.quant.scale = scale;
            let mut lm = Lm::<f64>::new(&config, 14, true).unwrap();
            let layout = lm.layout().clone();
            let mut params = layout.init::<f64>(1).to_vec();
            let data = tokens(2 * 8, config.vocab_size, 4);
            let is_output = |name: &str| {
                ["mixer.down", "mixer.o_proj", "W_down"].iter().any(|part| name.ends_with(&format!("{part}.weight")))
            };
            let zero = |all: &[f64]| all.iter().all(|&x| x == 0.0);
            let matrices = || layout.specs().iter().filter(|s| s.group == crate::params::Group::Matrix);
            assert!(matrices().any(|s| is_output(&s.name)));
            for moved in [false, true] {
                let (_, grads) = loss(cx, &mut lm, &params, &data, (2, 7), 0.0);
                for spec in matrices() {
                    let (w, dw) = (&params[spec.range.clone()], &grads[spec.range.clone()]);
                    assert_eq!(zero(w), is_output(&spec.name) && !moved, "{} {moved}", spec.name);
                    assert_eq!(zero(dw), !is_output(&spec.name) && !moved, "{} {moved}", spec.name);
                }
                params.iter_mut().zip(&grads).for_each(|(p, g)| *p -= 1e-2 * g);
            }
        }
    }
}

/// The straight-through estimator: the gradient at latent weights is that of a float model at the quantised ones.
#[test]
fn ternary_gradients_pass_straight_through() {
    let cx = &Exec::new(Isa::SCALAR, 1);
    for &name in mixer::NAMES {
        for scale in [ScaleKind::Tensor, ScaleKind::Block, ScaleKind::Group] {
            let mut config = if scale == ScaleKind::Group { recipe(name) } else { tiny(name) };
            config.quant.scale = scale;
            let mut lm = Lm::<f64>::new(&config, 14, true).unwrap();
            let layout = lm.layout().clone();
            let params = noisy(layout.len(), 3);
            let data = tokens(2 * 8, config.vocab_size, 4);
            let (ternary, dw) = loss(cx, &mut lm, &params, &data, (2, 7), 0.1);

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
            assert_eq!((ternary, dw), loss(cx, &mut float, &quantised, &data, (2, 7), 0.1));
        }
    }
}

/// RMS of the difference over the RMS of what is wanted.
pub(crate) fn ratio(got: &[f32], want: &[f32]) -> f64 {
    let off: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
    (off / want.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>()).sqrt()
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
    for (name, mut config) in mixer::NAMES.iter().flat_map(|name| [(name, tiny(name)), (name, recipe(name))]) {
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
    for (name, mut config) in mixer::NAMES.iter().flat_map(|name| [(name, tiny(name)), (name, recipe(name))]) {
        config.quant.scale = ScaleKind::Group;
        let v = config.vocab_size;
        for (t, (bound, (cx, mut lm, params))) in [1, 63, 100, 500]
            .into_iter()
            .flat_map(|t| [1e-5, 1e-2].into_iter().zip(models(&config, 2 * t)).map(move |m| (t, m)))
        {
            let data = tokens(2 * t, v, 6);
            let (mut fresh, mut whole) = (vec![0.0; 2 * t * v], vec![0.0; 2 * t * v]);
            lm.logits(&cx, &mut fresh, &params, &data, None, (2, t));
            let mut state = lm.state(2);
            lm.logits(&cx, &mut whole, &params, &data, Some(&mut state), (2, t));
            // Without a state a mixer may go another way, by chunks.
            let off = ratio(&fresh, &whole);
            assert!(off < bound, "{name}: {t} tokens at once are {off:.1e} from {t} in turn");
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

/// With the reset, a story after others gives what it gives alone, in every mixer.
#[test]
fn stories_do_not_see_each_other() {
    for &name in mixer::NAMES {
        let mut config = ModelConfig { reset: true, ..tiny(name) };
        config.quant.scale = ScaleKind::Tensor;
        let (v, eos) = (config.vocab_size, config.eos as Token);
        for (bound, (cx, mut lm, params)) in [1e-5, 1e-2].into_iter().zip(models(&config, 400)) {
            let lengths = [1usize, 2, 5, 31, 33, 64, 100, 3, 1, 70];
            let stories: Vec<Vec<Token>> = (lengths.iter().zip(0..))
                .map(|(&n, seed)| std::iter::once(eos).chain(tokens(n - 1, eos.into(), seed)).collect())
                .collect();
            let packed = stories.concat();
            let (mut whole, mut in_turn) = (vec![0.0; packed.len() * v], vec![0.0; packed.len() * v]);
            lm.logits(&cx, &mut whole, &params, &packed, None, (1, packed.len()));
            let mut state = lm.state(1);
            lm.logits(&cx, &mut in_turn, &params, &packed, Some(&mut state), (1, packed.len()));
            let mut at = 0;
            for story in &stories {
                let (mut alone, n) = (vec![0.0; story.len() * v], story.len() * v);
                lm.logits(&cx, &mut alone, &params, story, None, (1, story.len()));
                assert_eq!(alone, whole[at..at + n], "{name}: a story of {} tokens", story.len());
                let off = ratio(&in_turn[at..at + n], &alone);
                assert!(off < bound, "{name}: a story of {} tokens in turn is {off:.1e} off", story.len());
                at += n;
            }
        }
    }
}

#[test]
fn gradients_do_not_depend_on_threads() {
    let isa = Isa::detect().unwrap();
    for &name in mixer::NAMES {
        for (inner, base) in [(false, tiny(name)), (true, tiny(name)), (false, recipe(name))] {
            let mut config = ModelConfig { vocab_size: 700, dim: 48, ffn_hidden: 72, ..base };
            config.quant = QuantConfig { scale: ScaleKind::Tensor, norm: inner, ..config.quant };
            let run = |precision: Precision, threads| {
                let cx = Exec::new(isa, threads);
                let mut lm = precision.build(&config, 3 * 110, true).unwrap();
                let params = lm.layout().init::<f32>(1);
                let data = tokens(3 * 110, 700, 2);
                let mut grads = vec![0.0; params.len()];
                lm.prepare(&cx, &params);
                let objective = Objective { scale: 0.1, z_loss: 0.01 };
                let nats = lm.loss_backward(&cx, &mut grads, &params, &data, &data, (3, 110), objective);
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
        for (block_norm, inner, base) in
            [(true, false, tiny(name)), (false, true, tiny(name)), (true, false, recipe(name))]
        {
            let quant = QuantConfig { scale: ScaleKind::Tensor, norm: inner, ..base.quant.clone() };
            // A norm gives tokens whose output nearly cancels, and is mostly rounding, as much weight as the others.
            let mixer_norm = name == "delta" && (inner || base.sub_norm);
            let delta = DeltaConfig { form: DeltaForm::Original, ..base.delta.clone() };
            let config = ModelConfig { vocab_size: 500, dim: 72, ffn_hidden: 96, block_norm, quant, delta, ..base };
            let run = |precision: Precision| {
                let cx = Exec::new(Isa::detect().unwrap(), 2);
                let mut lm = precision.build(&config, 128, true).unwrap();
                let params = lm.layout().init::<f32>(1);
                let data = tokens(128, 500, 2);
                let (mut logits, mut grads) = (vec![0.0; 128 * 500], vec![0.0; params.len()]);
                lm.prepare(&cx, &params);
                lm.logits(&cx, &mut logits, &params, &data, None, (2, 64));
                let objective = Objective { scale: 1.0, z_loss: 0.01 };
                lm.loss_backward(&cx, &mut grads, &params, &data, &data, (2, 64), objective);
                (logits, grads)
            };
            let (want, got) = (run(Precision::F32), run(Precision::Bf16));
            let bound = |plain: f64| if mixer_norm { 2.0 * plain } else { plain };
            let (logits, gradients) = (ratio(&got.0, &want.0), ratio(&got.1, &want.1));
            assert!(logits < bound(1e-2), "{name}: logits off by {logits:.1e}");
            assert!(gradients < bound(3e-2), "{name}: gradients off by {gradients:.1e}");
        }
    }
}
