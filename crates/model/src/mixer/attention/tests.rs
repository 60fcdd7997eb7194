//! Attention against PyTorch, and that a state changes nothing.

use std::path::Path;

use flashlm_kernels::{Exec, Isa, Span, Token};

use super::{AttentionConfig, Params, Train};
use crate::config::{ModelConfig, QuantConfig, ScaleKind};
use crate::family::forms::{Prepared, Shape};
use crate::io::safetensors::TensorFile;
use crate::layer::branch::Branch;
use crate::layer::linear;
use crate::layer::scratch::Scratch;
use crate::mixer::forms::Mixer;
use crate::params::Layout;
use crate::precision::Precision;
use crate::testing::{noisy, tiny, tokens};

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
        let params: Vec<f32> = noisy(Layout::of(&config).len(), 5).iter().map(|&p| p as f32).collect();
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

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    let square = |x: f64| x * x;
    let off: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(g - w))).sum();
    let ratio = (off / want.iter().map(|&w| square(f64::from(w))).sum::<f64>()).sqrt();
    assert!(got.len() == want.len() && ratio < 2e-6, "{what}: RMS ratio {ratio:.1e}");
}

#[test]
fn a_branch_equals_pytorch() {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|above| above.join("tests/reference"));
    let folder = folders.into_iter().find(|folder| folder.is_dir()).expect("tests/reference");
    let file = TensorFile::open(&folder.join("attention.safetensors")).unwrap();
    let get = |name: &str| file.f32(name).unwrap();
    let past: Vec<u32> = file.i32("past").unwrap().iter().map(|&past| past as u32).collect();
    let (b, t, d) = (2, 60, 36);
    let quant = QuantConfig { scale: ScaleKind::None, ..tiny("attention").quant };
    let mut config = ModelConfig { dim: d, quant, ..tiny("attention") };
    config.mixers.attention = AttentionConfig { heads: 3, window: 20, rope_base: 500.0 };
    let span = &Span { batch: b, len: t, past: &past };
    let (h, dy) = (get("h"), get("dy"));

    for isa in Isa::available() {
        let cx = &Exec::new(isa, 2);
        let mut layout = Layout::default();
        let layers = config.layers();
        let mut branch = Branch::new(&mut layout, "norm.scale".into(), "mixer".into(), &layers);
        let of = Params::new(&mut branch, &config.mixers.attention);
        let need = branch.need();
        let mut mixer = Train::<f32>::new(of, true);
        let mut s = Scratch::new(&layers, need, mixer.wide(), b * t, config.vocab_size);
        let mut saved = mixer.saved(b * t, true);
        let mut params = vec![0.0; layout.len()];
        for spec in layout.specs() {
            params[spec.range.clone()].copy_from_slice(&get(&format!("param.{}", spec.name)));
        }
        mixer.prepare(cx, &params, &mut s);
        let all = linear::Params { all: &params, int8: false };
        let (mut y, mut dh, mut grads) = (vec![f32::NAN; h.len()], dy.clone(), vec![0.0; params.len()]);
        let mut state = vec![0.0; b * mixer.state_len()];
        mixer.forward(cx, &mut y, &mut saved, Some(&mut state), &h, all, span);
        assert_close(&y, &get("y"), "y with a state");
        mixer.forward(cx, &mut y, &mut saved, None, &h, all, span);
        assert_close(&y, &get("y"), "y");
        mixer.backward(cx, &mut dh, &mut grads, &mut saved, &h, all, &mut s, span);
        assert_close(&dh, &get("dh"), "dh");
        for spec in layout.specs() {
            assert_close(&grads[spec.range.clone()], &get(&format!("grad.{}", spec.name)), &spec.name);
        }
    }
}
