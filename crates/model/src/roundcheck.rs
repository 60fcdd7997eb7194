//! Models whose activations are rounded to int8: their gradients, and that the packed runtime computes the same.

use std::sync::Arc;

use flashlm_kernels::ops::{Objective, round_int8};
use flashlm_kernels::{Exec, Isa, Token};

use crate::config::{DeltaForm, ModelConfig, QuantConfig, ScaleKind};
use crate::family::build;
use crate::family::forms::{Prepared, Shape};
use crate::infer::{Engine, PackedModel};
use crate::layer::round::constants;
use crate::mixer;
use crate::pack::{self, pack};
use crate::params::Layout;
use crate::precision::Precision;
use crate::rng::Rng;
use crate::testing::{log_sum, noisy_model, ratio, recipe, slope, tiny, tokens};
use crate::tok::Tokenizer;

/// Straight through: the gradients are those of a model that adds constants where this one rounds.
pub(crate) fn check(config: &ModelConfig, (b, t): (usize, usize), z_loss: f64) {
    let cx = &Exec::new(Isa::SCALAR, 1);
    let mut lm = build::<f64>(config, b * t, true, false).unwrap();
    let (layout, v, shape) = (Layout::of(config), config.vocab_size, Shape { batch: b, seq_len: t });
    let mut params = noisy_model(&layout, 7);
    let (x, y) = (tokens(b * t, v, 8), tokens(b * t, v, 9));
    let scale = 1.0 / (b * t) as f64;
    let mut grads = vec![0.0; params.len()];
    lm.set_activation_bits(8);
    let mut passes = Prepared::new(cx, &mut *lm, &params);
    let nats = passes.loss_backward(&mut grads, &x, &y, shape, Objective { scale, z_loss, smoothing: 0.0 });

    let mut logits = vec![0.0; b * t * v];
    let added = constants::keep(|| passes.logits(&mut logits, &x, None, shape));
    assert!(added.iter().filter(|&&c| c != 0.0).count() > added.len() / 2, "nothing is rounded");
    let mut loss = |params: &[f64], z_loss: f64| {
        let mut passes = Prepared::new(cx, &mut *lm, params);
        constants::add(&added, || passes.logits(&mut logits, &x, None, shape));
        let row = |(z, &target): (&[f64], &Token)| log_sum(z) - z[usize::from(target)] + z_loss * log_sum(z).powi(2);
        logits.chunks(v).zip(&y).map(row).sum::<f64>() * scale
    };
    assert!((loss(&params, 0.0) - nats * scale).abs() < 1e-9, "the passes with a gradient and without one differ");
    let mut rng = Rng::new(9);
    for spec in layout.specs() {
        let mut picks = vec![spec.range.start, spec.range.end - 1];
        picks.extend((0..3).map(|_| spec.range.start + rng.below(spec.range.len() as u64) as usize));
        for i in picks {
            let want = slope(&mut params, i, |params| loss(params, z_loss));
            let error = (grads[i] - want).abs();
            assert!(error <= 1e-8 + 1e-6 * want.abs(), "{} at {i}: {} for {want}, {config:?}", spec.name, grads[i]);
        }
    }
}

#[test]
fn gradients_pass_straight_through_the_rounding() {
    for &name in mixer::NAMES {
        for (block_norm, norm) in [(true, false), (false, true), (true, true), (false, false)] {
            let base = tiny(name);
            let quant = QuantConfig { norm, ..base.quant.clone() };
            check(&ModelConfig { block_norm, quant, ..base }, (2, 7), 0.0);
        }
        check(&recipe(name), (2, 7), 0.05);
    }
    let mut original = tiny("delta");
    original.mixers.delta.form = DeltaForm::Original;
    check(&original, (1, 13), 0.0);
}

#[test]
fn gradients_do_not_depend_on_threads_nor_on_what_was_on_before() {
    for (&name, precision) in
        mixer::NAMES.iter().flat_map(|name| [Precision::F32, Precision::Bf16, Precision::Int8].map(|p| (name, p)))
    {
        let mut config = ModelConfig { vocab_size: 700, dim: 48, ffn_hidden: 72, ..recipe(name) };
        config.quant.scale = ScaleKind::Tensor;
        let run = |threads, bits: &[u32]| {
            let cx = Exec::new(Isa::detect().unwrap(), threads);
            let mut lm = precision.build(&config, 3 * 110, true).unwrap();
            let params = lm.layout().init::<f32>(1);
            let data = tokens(3 * 110, 700, 2);
            let mut grads = vec![0.0; params.len()];
            bits.iter().for_each(|&bits| lm.set_activation_bits(bits));
            let objective = Objective { scale: 0.1, z_loss: 0.01, smoothing: 0.0 };
            let shape = Shape { batch: 3, seq_len: 110 };
            let nats = Prepared::new(&cx, &mut *lm, &params).loss_backward(&mut grads, &data, &data, shape, objective);
            (nats, grads)
        };
        let (off, on) = (run(1, &[]), run(1, &[8]));
        assert!(off != on, "{name}");
        assert!(on == run(2, &[8]) && on == run(3, &[0, 8, 8]), "{name} in {}", precision.name());
        assert!(off == run(2, &[8, 0]), "{name} in {}", precision.name());
    }
}

/// A matmul in int8 rounds its input itself, as a model with rounded activations does: where the embedding matrix is one of rounded
/// numbers, both have the same logits.
#[test]
fn int8_matmuls_are_those_of_rounded_activations() {
    let cx = Exec::new(Isa::detect().unwrap(), 2);
    let models = mixer::NAMES.iter().flat_map(|name| [(name, tiny(name)), (name, recipe(name))]);
    let scales = [(ScaleKind::Tensor, 256), (ScaleKind::Group, 20)];
    for ((&name, base), (scale, size)) in models.flat_map(|model| scales.map(|scale| (model.clone(), scale))) {
        let quant = QuantConfig { scale, size, ..base.quant.clone() };
        let config = ModelConfig { vocab_size: 300, dim: 48, ffn_hidden: 72, quant, ..base };
        let (d, t) = (config.dim, 40);
        let mut params = Layout::of(&config).init::<f32>(1);
        // Integers up to 127 are their own codes.
        for row in params[..config.vocab_size * d].chunks_mut(d) {
            let m = row.iter().fold(0f32, |m, x| m.max(x.abs()));
            row.iter_mut().for_each(|x| *x = (*x * 127.0 / m).round() / 1024.0);
        }
        let data = tokens(t, config.vocab_size, 2);
        let run = |precision: Precision, bits| {
            let mut lm = precision.build(&config, t, false).unwrap();
            lm.set_activation_bits(bits);
            let mut logits = vec![0.0; t * config.vocab_size];
            let shape = Shape { batch: 1, seq_len: t };
            Prepared::new(&cx, &mut *lm, &params).logits(&mut logits, &data, None, shape);
            logits
        };
        let want = run(Precision::F32, 8);
        for got in [run(Precision::Int8F32, 8), run(Precision::Int8F32, 0)] {
            // A number next to a half may be rounded the other way in one row, and that row's tokens are then a little off.
            let rows = got.chunks(config.vocab_size).zip(want.chunks(config.vocab_size));
            let equal = rows.filter(|(got, want)| ratio(got, want) < 1e-5).count();
            assert!(
                equal * 2 >= t && ratio(&got, &want) < 2e-2,
                "{name}: {equal} of {t} rows, {:e}",
                ratio(&got, &want)
            );
        }
    }
}

/// The packed runtime computes what such a model computes, apart from the int8 embedding matrix.
#[test]
fn the_packed_runtime_computes_the_same() {
    let cx = Exec::new(Isa::detect().unwrap(), 2);
    let tokenizer = Tokenizer::bytes();
    for (&name, base) in mixer::NAMES.iter().flat_map(|name| [(name, tiny(name)), (name, recipe(name))]) {
        for (scale, form) in [
            (ScaleKind::Tensor, DeltaForm::Published),
            (ScaleKind::Block, DeltaForm::Original),
            (ScaleKind::Group, DeltaForm::Published),
        ] {
            let (b, t, v) = (12, 8, tokenizer.vocab_size());
            let eos = tokenizer.eos().into();
            let mut config = ModelConfig { vocab_size: v, eos, ffn_hidden: 40, ..base.clone() };
            config.quant = QuantConfig { scale, size: 8, ..config.quant };
            (config.mixers.delta.form, config.mixers.delta.expand_v) = (form, 1.0);
            let mut lm = build::<f32>(&config, b * t, false, false).unwrap();
            let mut params = lm.layout().init::<f32>(3);
            let table = lm.layout().find("embedding.weight").unwrap().range.clone();
            round_int8(&cx, &mut params[table], config.dim);
            let bytes = pack(&cx, &config, &params, &tokenizer, pack::Options::default());
            let model = Arc::new(PackedModel::from_bytes(bytes, "test").unwrap());
            let mut engine = Engine::new(model.clone(), Exec::new(cx.isa(), 1), 16);
            let texts = tokens(b * t, v, 4);
            let mut packed = Vec::new();
            for text in texts.chunks(t) {
                let mut state = model.new_state();
                text.iter().for_each(|&token| packed.extend_from_slice(engine.prefill(&mut state, &[token])));
            }
            let mut logits = vec![0.0; b * t * v];
            let mut median = |bits| {
                lm.set_activation_bits(bits);
                let shape = Shape { batch: b, seq_len: t };
                Prepared::new(&cx, &mut *lm, &params).logits(&mut logits, &texts, None, shape);
                let mut off: Vec<f64> = packed.chunks(v).zip(logits.chunks(v)).map(|(p, z)| ratio(p, z)).collect();
                *off.select_nth_unstable_by(b * t / 2, f64::total_cmp).1
            };
            // A number next to a half may be rounded to the other side, and what follows in its text is off by as much.
            let (off, on) = (median(0), median(8));
            assert!(on < 2e-6 && off > 5e-3, "{name}, {scale:?}: {on:.1e} with int8 activations, {off:.1e} without");
        }
    }
}
