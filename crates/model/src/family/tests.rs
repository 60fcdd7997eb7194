//! What holds for every family; the switches and mixers of `flash` have tests of their own in `gradcheck.rs`.

use std::sync::Arc;

use flashlm_kernels::ops::{NO_TARGET, Objective};
use flashlm_kernels::{Exec, Isa, Token};

use super::forms::{Prepared, Shape};
use super::{build, small};
use crate::config::{ModelConfig, QuantConfig, ScaleKind};
use crate::gradcheck::{check, with_models};
use crate::infer::testing::Noise;
use crate::infer::{Engine, PackedModel};
use crate::io::safetensors::{TensorFile, write_tensors};
use crate::layer::dropout::Dropout;
use crate::model_file::{FORMAT, read_params, save_params};
use crate::params::Layout;
use crate::precision::Precision;
use crate::roundcheck;
use crate::testing::{log_sum, noisy_model, ratio, slope, tokens};

#[test]
fn gradients_equal_finite_differences() {
    for config in small() {
        check(&config, (2, 7), 0.0);
        check(&config, (1, 13), 0.05);
    }
}

#[test]
fn a_token_changes_nothing_before_it_and_pieces_with_a_state_are_the_whole() {
    for config in small() {
        let (t, v) = (40, config.vocab_size);
        with_models(&config, t, |lm, _| {
            let logits = |lm: &mut super::forms::Prepared<f32>, data: &[Token]| {
                let mut out = vec![0.0; data.len() * v];
                let mut state = lm.model().state(1);
                lm.logits(&mut out, data, Some(&mut state), Shape { batch: 1, seq_len: data.len() });
                out
            };
            let mut data = tokens(t, v, 6);
            let before = logits(lm, &data);
            data[t / 2] = (data[t / 2] + 1) % v as Token;
            let after = logits(lm, &data);
            let at = t / 2 * v;
            assert!(before[..at] == after[..at] && before[at..] != after[at..], "{config:?}");
            let (mut state, mut pieces) = (lm.model().state(1), vec![0.0; t * v]);
            for (piece, out) in data.chunks(7).zip(pieces.chunks_mut(7 * v)) {
                lm.logits(out, piece, Some(&mut state), Shape { batch: 1, seq_len: piece.len() });
            }
            assert!(pieces == after, "{config:?}");
        });
    }
}

#[test]
fn parameters_survive_a_file() {
    for config in small() {
        let layout = Layout::of(&config);
        let params: Vec<f32> = noisy_model(&layout, 3).iter().map(|&p| p as f32).collect();
        let (tensors, metadata) = save_params(&layout, &params, &config);
        let mut bytes = Vec::new();
        write_tensors(&mut bytes, &tensors, &metadata).unwrap();
        let file = TensorFile::from_bytes(bytes, "model").unwrap();
        assert_eq!(file.metadata("format"), Some(FORMAT));
        let read = read_params(&file, &config, "").unwrap();
        for spec in layout.specs() {
            assert_eq!(read[spec.range.clone()], params[spec.range.clone()], "{}", spec.name);
        }
        let config: ModelConfig = serde_json::from_str(file.metadata("config").unwrap()).unwrap();
        assert_eq!(config.parameters(), layout.parameters());
    }
}

/// At once, in pieces and token by token, on one thread and on more: the same logits to the bit.
#[test]
fn a_packed_model_gives_the_same_however_it_is_asked() {
    for config in small() {
        let noise = Noise::new(config);
        let tokens = tokens(30, noise.config.vocab_size, 4);
        let (one_by_one, _) = noise.in_turn(&tokens);
        let model = Arc::new(PackedModel::from_bytes(noise.bytes.clone(), "small").unwrap());
        for (threads, rows) in [(1, 64), (2, 5)] {
            let mut engine = Engine::new(model.clone(), Exec::new(Isa::detect().unwrap(), threads), rows);
            let mut state = model.new_state();
            assert_eq!(engine.prefill(&mut state, &tokens), one_by_one[29], "{threads} threads, {rows} rows");
        }
        let state = noise.config.state_len();
        assert_eq!(
            noise.model.new_state().save().len(),
            4 * state + 4,
            "four bytes for each number, and those of the count"
        );
    }
}

/// Rows without a target, in the middle too, smoothed labels and the z-loss: against differences of the loss written down from logits.
#[test]
fn rows_without_a_target_count_for_nothing() {
    let cx = &Exec::new(Isa::SCALAR, 1);
    for config in small() {
        let (b, t, v) = (2, 7, config.vocab_size);
        let (shape, layout) = (Shape { batch: b, seq_len: t }, Layout::of(&config));
        let mut lm = build::<f64>(&config, b * t, true, false).unwrap();
        let mut params = noisy_model(&layout, 7);
        let (x, mut y) = (tokens(b * t, v, 8), tokens(b * t, v, 9));
        [0, 3, 4, 6, 11].into_iter().for_each(|row| y[row] = NO_TARGET);
        // Labels are not smoothed under a soft cap.
        let smoothing = if config.logit_softcap > 0.0 { 0.0 } else { 0.1 };
        let (scale, z_loss) = (1.0 / 9.0, 0.05);
        let objective = Objective { scale, z_loss, smoothing };
        let mut grads = vec![0.0; params.len()];
        let nats = Prepared::new(cx, &mut *lm, &params).loss_backward(&mut grads, &x, &y, shape, objective);
        let mut logits = vec![0.0; b * t * v];
        let mut loss = |params: &[f64], z_loss: f64| {
            Prepared::new(cx, &mut *lm, params).logits(&mut logits, &x, None, shape);
            let row = |(z, &target): (&[f64], &Token)| {
                let (all, own) = (log_sum(z), z[usize::from(target)]);
                let smooth = (1.0 - smoothing) * own + smoothing * z.iter().sum::<f64>() / v as f64;
                all - smooth + z_loss * all * all
            };
            logits.chunks(v).zip(&y).filter(|(_, target)| **target != NO_TARGET).map(row).sum::<f64>() * scale
        };
        assert!((loss(&params, 0.0) - nats * scale).abs() < 1e-9, "{config:?}");
        for spec in layout.specs() {
            for i in [spec.range.start, spec.range.start + spec.range.len() / 2, spec.range.end - 1] {
                let want = slope(&mut params, i, |params| loss(params, z_loss));
                let off = (grads[i] - want).abs();
                assert!(off <= 1e-8 + 1e-6 * want.abs(), "{} at {i}: {} for {want}, {config:?}", spec.name, grads[i]);
            }
        }
        // None at all.
        grads.fill(0.0);
        y.fill(NO_TARGET);
        let nats = Prepared::new(cx, &mut *lm, &params).loss_backward(&mut grads, &x, &y, shape, objective);
        assert!(nats == 0.0 && grads.iter().all(|&g| g == 0.0), "{nats}, {config:?}");
    }
}

#[test]
fn gradients_pass_straight_through_rounded_activations() {
    for config in small() {
        roundcheck::check(&config, (2, 7), 0.05);
    }
}

/// Larger, of ternary weights: of v3 without a scale.
fn ternary() -> Vec<ModelConfig> {
    let larger = |config: ModelConfig| {
        let scale = if config.family == "v3" { ScaleKind::Unit } else { ScaleKind::Tensor };
        let quant = QuantConfig { scale, ..config.quant };
        ModelConfig { vocab_size: 700, dim: 48, ffn_hidden: 72, quant, ..config }
    };
    small().into_iter().map(larger).collect()
}

#[test]
fn gradients_with_dropout_do_not_depend_on_threads() {
    for config in ternary() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let run = |threads, dropout: f64| {
                let cx = Exec::new(Isa::detect().unwrap(), threads);
                let mut lm = precision.build(&config, 3 * 110, true).unwrap();
                let params = lm.layout().init::<f32>(1);
                let mut data = tokens(3 * 110, 700, 2);
                let inputs = data.clone();
                data.iter_mut().step_by(3).for_each(|target| *target = NO_TARGET);
                let mut grads = vec![0.0; params.len()];
                lm.set_dropout((dropout > 0.0).then(|| Dropout::new(dropout, 1, 2, 3)));
                let objective = Objective { scale: 0.1, z_loss: 0.01, smoothing: 0.0 };
                let shape = Shape { batch: 3, seq_len: 110 };
                let mut passes = Prepared::new(&cx, &mut *lm, &params);
                (passes.loss_backward(&mut grads, &inputs, &data, shape, objective), grads)
            };
            let one = run(1, 0.2);
            let name = precision.name();
            assert!(one == run(2, 0.2) && one == run(3, 0.2) && one != run(1, 0.0), "{name}, {config:?}");
        }
    }
}

/// Each mixer of `flash` has a bound of its own, in `gradcheck`.
#[test]
fn other_precisions_are_near_f32() {
    let (cx, t) = (Exec::new(Isa::detect().unwrap(), 2), 90);
    for config in ternary().into_iter().filter(|config| config.family != "flash") {
        let run = |precision: Precision| {
            let mut lm = precision.build(&config, t, false).unwrap();
            let params = lm.layout().init::<f32>(1);
            let mut logits = vec![0.0; t * 700];
            let shape = Shape { batch: 1, seq_len: t };
            Prepared::new(&cx, &mut *lm, &params).logits(&mut logits, &tokens(t, 700, 2), None, shape);
            logits
        };
        let want = run(Precision::F32);
        for (precision, bound) in [(Precision::Bf16, 2e-2), (Precision::Int8, 4e-2), (Precision::Int8F32, 4e-2)] {
            let off = ratio(&run(precision), &want);
            assert!(off > 0.0 && off < bound, "{} is {off:.1e} off, {config:?}", precision.name());
        }
    }
}
