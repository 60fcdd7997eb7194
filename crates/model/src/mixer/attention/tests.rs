//! A state changes nothing of attention.

use flashlm_kernels::{Exec, Isa, Token};

use crate::config::ModelConfig;
use crate::family::forms::{Prepared, Shape};
use crate::params::Layout;
use crate::precision::Precision;
use crate::testing::{noisy_model, tiny, tokens};

/// Within a window and beyond it, over several blocks, with and without documents that end.
#[test]
fn a_state_changes_no_bit() {
    let cx = &Exec::new(Isa::detect().unwrap(), 2);
    for (precision, reset, window) in [
        (Precision::F32, false, 9),
        (Precision::F32, true, 64),
        (Precision::Bf16, true, 1),
        (Precision::Bf16, false, 100),
    ] {
        let mut config = ModelConfig { reset, ..tiny("attention") };
        config.mixers.attention.window = window;
        let (t, v) = (300, config.vocab_size);
        let mut lm = precision.build(&config, 2 * t, false).unwrap();
        let params: Vec<f32> = noisy_model(&Layout::of(&config), 5).iter().map(|&p| p as f32).collect();
        let mut lm = Prepared::new(cx, &mut *lm, &params);
        let data = tokens(2 * t, v, 6);
        let mut whole = vec![0.0; 2 * t * v];
        lm.logits(&mut whole, &data, None, Shape { batch: 2, seq_len: t });
        for piece in [1, 50, t] {
            let mut state = lm.model().state(2);
            for first in (0..t).step_by(piece) {
                let part: Vec<Token> = data.chunks(t).flat_map(|s| s[first..][..piece].to_vec()).collect();
                let mut out = vec![f32::NAN; 2 * piece * v];
                lm.logits(&mut out, &part, Some(&mut state), Shape { batch: 2, seq_len: piece });
                for (b, out) in out.chunks(piece * v).enumerate() {
                    assert_eq!(out, &whole[(b * t + first) * v..][..piece * v], "{piece} tokens from {first}");
                }
            }
        }
    }
}
