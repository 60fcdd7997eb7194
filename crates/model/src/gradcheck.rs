//! Differences in f64 against the hand-written backward passes, and the other properties every mixer must have.

use flashlm_kernels::ops::Objective;
use flashlm_kernels::{Exec, Isa, Token};

use crate::config::{
    ActivationKind, DeltaConfig, DeltaForm, DeltaRule, ModelConfig, QuantConfig, ScaleKind, ShortConvConfig,
};
use crate::family::build;
use crate::family::forms::{LanguageModel, Prepared, Shape};
use crate::layer::dropout::Dropout;
use crate::mixer::{self, Settings};
use crate::params::{Group, Init, Layout};
use crate::precision::Precision;
use crate::rng::Rng;
use crate::testing::{log_sum, noisy_model, ratio, recipe, tiny, tokens};

/// The mean loss, z-loss included, and its gradient, for one config and size.
fn loss(
    cx: &Exec,
    lm: &mut dyn LanguageModel<f64>,
    params: &[f64],
    data: &[Token],
    (b, t): (usize, usize),
    z_loss: f64,
) -> (f64, Vec<f64>) {
    let rows: Vec<&[Token]> = data.chunks(t + 1).collect();
    let x: Vec<Token> = rows.iter().flat_map(|r| r[..t].iter().copied()).collect();
    let y: Vec<Token> = rows.iter().flat_map(|r| r[1..].iter().copied()).collect();
    let mut grads = vec![0.0; params.len()];
    let (v, shape) = (lm.config().vocab_size, Shape { batch: b, seq_len: t });
    let mut passes = Prepared::new(cx, lm, params);
    let scale = 1.0 / (b * t) as f64;
    let nats = passes.loss_backward(&mut grads, &x, &y, shape, Objective { scale, z_loss, smoothing: 0.0 });
    let mut logits = vec![0.0; b * t * v];
    passes.logits(&mut logits, &x, None, shape);
    let squares: f64 = logits.chunks(v).map(|z| log_sum(z).powi(2)).sum();
    ((nats + z_loss * squares) * scale, grads)
}

/// The same objective by the forward pass alone.
fn value(
    cx: &Exec,
    lm: &mut dyn LanguageModel<f64>,
    params: &[f64],
    data: &[Token],
    (b, t): (usize, usize),
    z_loss: f64,
) -> f64 {
    let rows: Vec<&[Token]> = data.chunks(t + 1).collect();
    let x: Vec<Token> = rows.iter().flat_map(|r| r[..t].iter().copied()).collect();
    let y: Vec<Token> = rows.iter().flat_map(|r| r[1..].iter().copied()).collect();
    let (v, shape) = (lm.config().vocab_size, Shape { batch: b, seq_len: t });
    let mut passes = Prepared::new(cx, lm, params);
    let mut scored = Vec::with_capacity(b * t);
    passes.log_probs(&mut scored, &x, &y, None, shape);
    let mut sum = -scored.iter().sum::<f64>();
    if z_loss > 0.0 {
        let mut logits = vec![0.0; b * t * v];
        passes.logits(&mut logits, &x, None, shape);
        sum += z_loss * logits.chunks(v).map(|z| log_sum(z).powi(2)).sum::<f64>();
    }
    sum / (b * t) as f64
}

/// Gradients of a model against finite differences in f64.
pub(crate) fn check(config: &ModelConfig, size: (usize, usize), z_loss: f64) {
    // One thread: the bits are those of any number, and tests that run beside each other do not wait for theirs.
    let cx = &Exec::new(Isa::SCALAR, 1);
    let mut lm = build::<f64>(config, size.0 * size.1, true, false).unwrap();
    let layout = Layout::of(config);
    let mut params = noisy_model(&layout, 7);
    let data = tokens(size.0 * (size.1 + 1), config.vocab_size, 8);
    let (_, grads) = loss(cx, &mut *lm, &params, &data, size, z_loss);
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
                let loss = value(cx, &mut *lm, &params, &data, size, z_loss);
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
        let delta = DeltaConfig { conv: 1, ..tiny(name).mixers.delta };
        let mixers =
            Settings { kernel_size: 1, shortconv: ShortConvConfig { kernel_size: 1 }, delta, ..tiny(name).mixers };
        let wide = ModelConfig { dim: 48, ffn_hidden: 7, vocab_size: 300, mixers, ..tiny(name) };
        check(&wide, (2, 5), 0.0);
        // Documents of all lengths follow each other, and some chunks are full.
        check(&ModelConfig { reset: true, vocab_size: 9, blocks: 1, ..tiny(name) }, (2, 40), 0.0);
        check(&ModelConfig { blocks: 1, ..tiny(name) }, (1, 100), 0.0);
    }
}

#[test]
fn gradients_of_every_form_of_the_delta_rule_equal_finite_differences() {
    for form in [DeltaForm::Published, DeltaForm::Original] {
        for (rule, inner_norm) in [(DeltaRule::Canonical, true), (DeltaRule::Undecayed, false)] {
            let mut config = tiny("delta");
            let delta = &mut config.mixers.delta;
            (delta.form, delta.rule, delta.negative_eigenvalues) = (form, rule, inner_norm);
            if rule == DeltaRule::Canonical {
                (delta.expand_k, delta.norm_eps) = (delta.expand_v, 1e-2);
            }
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
        check(&ModelConfig { x0: true, block_norm: false, ..tiny.clone() }, (2, 40), 0.0);
        check(&ModelConfig { layer_embeddings: true, ..tiny.clone() }, (2, 7), 0.0);
        check(&ModelConfig { bigram: 50, reset: true, ..tiny.clone() }, (2, 20), 0.0);
        check(&tiny, (2, 7), 0.05);
        check(&recipe, (2, 7), 0.05);
        check(&recipe, (1, 1), 0.05);
        check(&ModelConfig { block_norm: false, ..recipe.clone() }, (1, 13), 0.0);
        let quant = QuantConfig { norm: true, ..recipe.quant.clone() };
        check(&ModelConfig { quant, vocab_size: 700, ..recipe }, (1, 5), 0.05);
    }
}

/// What is dropped is the same in every pass, and the gradient is that of what is left.
#[test]
fn gradients_with_dropout_equal_finite_differences() {
    let cx = &Exec::new(Isa::SCALAR, 1);
    for config in crate::family::small() {
        let name = format!("{} {}", config.family, config.mixer);
        let mut lm = build::<f64>(&config, 14, true, false).unwrap();
        let (layout, mut params) = (Layout::of(&config), noisy_model(&Layout::of(&config), 7));
        let data = tokens(2 * 8, config.vocab_size, 8);
        let (without, _) = loss(cx, &mut *lm, &params, &data, (2, 7), 0.0);
        lm.set_dropout(Some(Dropout::new(0.3, 1, 2, 3)));
        let (with, grads) = loss(cx, &mut *lm, &params, &data, (2, 7), 0.0);
        assert!((with - without).abs() > 1e-3, "{name}: {with} and {without}");
        for spec in layout.specs() {
            for i in [spec.range.start, spec.range.end - 1] {
                let (own, h) = (params[i], 2e-5);
                let mut at = |steps: f64| {
                    params[i] = own + steps * h;
                    let loss = loss(cx, &mut *lm, &params, &data, (2, 7), 0.0).0;
                    params[i] = own;
                    loss
                };
                let want = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
                let error = (grads[i] - want).abs();
                assert!(error <= 1e-8 + 1e-6 * want.abs(), "{name}, {} at {i}: {} for {want}", spec.name, grads[i]);
            }
        }
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
        let mut lm = build::<f64>(&capped, b * t, true, false).unwrap();
        let mut plain = build::<f64>(&ModelConfig { logit_softcap: 0.0, ..capped }, b * t, false, false).unwrap();
        let params = noisy_model(lm.layout(), 5);
        let (mut lm, mut plain) = (Prepared::new(cx, &mut *lm, &params), Prepared::new(cx, &mut *plain, &params));
        let shape = Shape { batch: b, seq_len: t };
        let (x, y) = (tokens(b * t, v, 6), tokens(b * t, v, 7));
        let (mut got, mut raw) = (vec![0.0; b * t * v], vec![0.0; b * t * v]);
        lm.logits(&mut got, &x, None, shape);
        plain.logits(&mut raw, &x, None, shape);
        assert!(raw.iter().any(|z| z.abs() > cap) && got.iter().all(|z| z.abs() < cap));
        for (got, raw) in got.iter().zip(&raw) {
            let want = cap * (raw / cap).tanh();
            assert!((got - want).abs() < 1e-12, "{got} for {want}");
        }
        let want: Vec<f64> = got.chunks(v).zip(&y).map(|(z, &target)| z[usize::from(target)] - log_sum(z)).collect();
        let mut scored = Vec::new();
        lm.log_probs(&mut scored, &x, &y, None, shape);
        assert!(scored.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-12));
        let mut grads = vec![0.0; params.len()];
        // The loss that is told leaves z-loss out.
        for z_loss in [0.0, 0.5] {
            let nats = lm.loss_backward(&mut grads, &x, &y, shape, Objective { scale: 1.0, z_loss, smoothing: 0.0 });
            assert!((nats + want.iter().sum::<f64>()).abs() < 1e-9);
        }
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
            let mut lm = build::<f64>(&config, 14, true, false).unwrap();
            let layout = Layout::of(&config);
            let mut params = layout.init::<f64>(1).to_vec();
            let data = tokens(2 * 8, config.vocab_size, 4);
            let zero = |all: &[f64]| all.iter().all(|&x| x == 0.0);
            let matrices = || layout.specs().iter().filter(|s| s.group == Group::Matrix);
            // One of each branch.
            assert_eq!(matrices().filter(|s| s.init == Init::Zeros).count(), 2 * config.blocks, "{name}");
            for moved in [false, true] {
                let (_, grads) = loss(cx, &mut *lm, &params, &data, (2, 7), 0.0);
                for spec in matrices() {
                    let (w, dw) = (&params[spec.range.clone()], &grads[spec.range.clone()]);
                    assert_eq!(zero(w), (spec.init == Init::Zeros) && !moved, "{} {moved}", spec.name);
                    assert_eq!(zero(dw), spec.init != Init::Zeros && !moved, "{} {moved}", spec.name);
                }
                params.iter_mut().zip(&grads).for_each(|(p, g)| *p -= 1e-2 * g);
            }
        }
    }
}

/// The straight-through estimator: the gradient at master weights is that of a float model at the quantised ones.
#[test]
fn ternary_gradients_pass_straight_through() {
    let cx = &Exec::new(Isa::SCALAR, 1);
    for &name in mixer::NAMES {
        for scale in [ScaleKind::Tensor, ScaleKind::Block, ScaleKind::Group] {
            let mut config = if scale == ScaleKind::Group { recipe(name) } else { tiny(name) };
            config.quant.scale = scale;
            let mut lm = build::<f64>(&config, 14, true, false).unwrap();
            let layout = Layout::of(&config);
            let params = noisy_model(&layout, 3);
            let data = tokens(2 * 8, config.vocab_size, 4);
            let (ternary, dw) = loss(cx, &mut *lm, &params, &data, (2, 7), 0.1);

            let mut quantised = params.clone();
            for spec in layout.specs().iter().filter(|s| s.group == Group::Matrix) {
                let w = &params[spec.range.clone()];
                let (mut wq, mut scratch) = (vec![0.0; w.len()], vec![0.0; w.len()]);
                let size = (spec.shape[0], spec.shape[1]);
                flashlm_kernels::ops::quantise(cx, &mut wq, &mut scratch, w, size, config.quant.quant().unwrap());
                quantised[spec.range.clone()].copy_from_slice(&wq);
            }
            config.quant.scale = ScaleKind::None;
            let mut float = build::<f64>(&config, 14, true, false).unwrap();
            assert_eq!((ternary, dw), loss(cx, &mut *float, &quantised, &data, (2, 7), 0.1));
        }
    }
}

/// Runs `test` with a model of noise in each precision that works on f32, and the error that the precision allows.
pub(crate) fn with_models(config: &ModelConfig, rows: usize, mut test: impl FnMut(&mut Prepared<f32>, f64)) {
    let cx = Exec::new(Isa::detect().unwrap(), 2);
    let params: Vec<f32> = noisy_model(&Layout::of(config), 5).iter().map(|&p| p as f32).collect();
    for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 1e-2), (Precision::Int8, 1e-2)] {
        let mut lm = precision.build(config, rows, false).unwrap();
        test(&mut Prepared::new(&cx, &mut *lm, &params), bound);
    }
}

/// `B` sequences of `T` tokens.
fn shape(batch: usize, len: usize) -> Shape {
    Shape { batch, seq_len: len }
}

#[test]
fn outputs_before_a_changed_token_stay_bit_equal() {
    for (name, mut config) in mixer::NAMES.iter().flat_map(|name| [(name, tiny(name)), (name, recipe(name))]) {
        config.quant.scale = ScaleKind::Tensor;
        for t in [1, 2, 37, 63, 100] {
            with_models(&config, t, |lm, _| {
                let v = config.vocab_size;
                let mut data = tokens(t, v, 6);
                let (mut before, mut after) = (vec![0.0; t * v], vec![0.0; t * v]);
                lm.logits(&mut before, &data, None, shape(1, t));
                for at in [0, t / 2, t - 1] {
                    let own = data[at];
                    data[at] = (own + 1) % v as Token;
                    lm.logits(&mut after, &data, None, shape(1, t));
                    data[at] = own;
                    assert_eq!(before[..at * v], after[..at * v], "{name}: token {at} of {t} changed the past");
                    let seen = before[at * v..(at + 1) * v] != after[at * v..(at + 1) * v];
                    assert!(seen, "{name}: token {at} is not seen");
                }
            });
        }
    }
}

#[test]
fn pieces_with_a_state_equal_the_whole() {
    for (name, mut config) in mixer::NAMES.iter().flat_map(|name| [(name, tiny(name)), (name, recipe(name))]) {
        config.quant.scale = ScaleKind::Group;
        let v = config.vocab_size;
        for t in [1, 63, 100, 500] {
            with_models(&config, 2 * t, |lm, bound| {
                let data = tokens(2 * t, v, 6);
                let (mut fresh, mut whole) = (vec![0.0; 2 * t * v], vec![0.0; 2 * t * v]);
                lm.logits(&mut fresh, &data, None, shape(2, t));
                let mut state = lm.model().state(2);
                lm.logits(&mut whole, &data, Some(&mut state), shape(2, t));
                // Without a state a mixer may go another way, by chunks.
                let off = ratio(&fresh, &whole);
                assert!(off < bound, "{name}: {t} tokens at once are {off:.1e} from {t} in turn");
                for piece in [1, 7, 64] {
                    let mut state = lm.model().state(2);
                    for first in (0..t).step_by(piece) {
                        let n = piece.min(t - first);
                        let part: Vec<Token> =
                            data.chunks(t).flat_map(|s| s[first..first + n].iter().copied()).collect();
                        let mut out = vec![0.0; 2 * n * v];
                        lm.logits(&mut out, &part, Some(&mut state), shape(2, n));
                        for (b, out) in out.chunks(n * v).enumerate() {
                            let at = (b * t + first) * v;
                            assert_eq!(out, &whole[at..at + n * v], "{name}: {n} tokens from {first} of {t}");
                        }
                    }
                }
                let mut empty = lm.model().state(1);
                lm.logits(&mut [], &[], Some(&mut empty), shape(1, 0));
            });
        }
    }
}

/// With the reset, a document after others gives what it gives alone, in every mixer.
#[test]
fn documents_do_not_see_each_other() {
    for (name, base) in mixer::NAMES.iter().flat_map(|name| [(name, tiny(name)), (name, recipe(name))]) {
        let mut config = ModelConfig { reset: true, ..base };
        config.quant.scale = ScaleKind::Tensor;
        let (v, eos) = (config.vocab_size, config.eos as Token);
        with_models(&config, 400, |lm, bound| {
            let lengths = [1usize, 2, 5, 31, 33, 64, 100, 3, 1, 70];
            let documents: Vec<Vec<Token>> = (lengths.iter().zip(0..))
                .map(|(&n, seed)| std::iter::once(eos).chain(tokens(n - 1, eos.into(), seed)).collect())
                .collect();
            let packed = documents.concat();
            let (mut whole, mut in_turn) = (vec![0.0; packed.len() * v], vec![0.0; packed.len() * v]);
            lm.logits(&mut whole, &packed, None, shape(1, packed.len()));
            let mut state = lm.model().state(1);
            lm.logits(&mut in_turn, &packed, Some(&mut state), shape(1, packed.len()));
            let mut at = 0;
            for own in &documents {
                let (mut alone, n) = (vec![0.0; own.len() * v], own.len() * v);
                lm.logits(&mut alone, own, None, shape(1, own.len()));
                assert_eq!(alone, whole[at..at + n], "{name}: a document of {} tokens", own.len());
                let off = ratio(&in_turn[at..at + n], &alone);
                assert!(off < bound, "{name}: a document of {} tokens in turn is {off:.1e} off", own.len());
                at += n;
            }
        });
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
                let objective = Objective { scale: 0.1, z_loss: 0.01, smoothing: 0.0 };
                lm.set_dropout((inner || config.sub_norm).then(|| Dropout::new(0.2, 1, 2, 3)));
                let mut passes = Prepared::new(&cx, &mut *lm, &params);
                let nats = passes.loss_backward(&mut grads, &data, &data, shape(3, 110), objective);
                (nats, grads)
            };
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8, Precision::Int8F32] {
                let one = run(precision, 1);
                for threads in [2, 3, 4] {
                    assert_eq!(one, run(precision, threads), "{name} in {} on {threads} threads", precision.name());
                }
            }
        }
    }
}

/// bf16 rounds operands to 8 bits, int8 to 8 bits of the largest of a row: logits and gradients stay near those of f32.
#[test]
fn bf16_and_int8_stay_near_f32() {
    for &name in mixer::NAMES {
        for (block_norm, inner, base) in
            [(true, false, tiny(name)), (false, true, tiny(name)), (true, false, recipe(name))]
        {
            let quant = QuantConfig { scale: ScaleKind::Tensor, norm: inner, ..base.quant.clone() };
            // A norm gives tokens whose output nearly cancels, and is mostly rounding, as much weight as the others.
            let mixer_norm = name == "delta" && (inner || base.sub_norm);
            let mut config = ModelConfig { vocab_size: 500, dim: 72, ffn_hidden: 96, block_norm, quant, ..base };
            config.mixers.delta.form = DeltaForm::Original;
            let run = |precision: Precision| {
                let cx = Exec::new(Isa::detect().unwrap(), 2);
                let mut lm = precision.build(&config, 128, true).unwrap();
                let params = lm.layout().init::<f32>(1);
                let data = tokens(128, 500, 2);
                let (mut logits, mut grads) = (vec![0.0; 128 * 500], vec![0.0; params.len()]);
                let mut passes = Prepared::new(&cx, &mut *lm, &params);
                passes.logits(&mut logits, &data, None, shape(2, 64));
                let objective = Objective { scale: 1.0, z_loss: 0.01, smoothing: 0.0 };
                passes.loss_backward(&mut grads, &data, &data, shape(2, 64), objective);
                (logits, grads)
            };
            let want = run(Precision::F32);
            let bound = |plain: f64| if mixer_norm { 2.0 * plain } else { plain };
            // A product of three matmuls of the same rows is off by the root of three times as much as one.
            let of_logits = if name == "shortconv" { 3f64.sqrt() * 1e-2 } else { bound(1e-2) };
            for (precision, times) in [(Precision::Bf16, 1.0), (Precision::Int8, 4.0), (Precision::Int8F32, 4.0)] {
                let (got, kept) = (run(precision), precision.name());
                let (logits, gradients) = (ratio(&got.0, &want.0), ratio(&got.1, &want.1));
                assert!(logits < times * of_logits, "{name} in {kept}: logits off by {logits:.1e}");
                assert!(gradients < times * bound(3e-2), "{name} in {kept}: gradients off by {gradients:.1e}");
            }
        }
    }
}
