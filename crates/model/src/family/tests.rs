//! What holds for every family; the switches and mixers of `flash` have tests of their own in `gradcheck.rs`.

use std::sync::Arc;

use flashlm_kernels::{Exec, Isa, Token};

use super::forms::Shape;
use super::small;
use crate::config::ModelConfig;
use crate::gradcheck::{check, with_models};
use crate::infer::testing::Noise;
use crate::infer::{Engine, PackedModel};
use crate::io::safetensors::{TensorFile, write_tensors};
use crate::model_file::{FORMAT, read_params, save_params};
use crate::params::Layout;
use crate::testing::{noisy, tokens};

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
        let params: Vec<f32> = noisy(layout.len(), 3).iter().map(|&p| p as f32).collect();
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
