//! What holds for the training form of every mixer, beside the models of `gradcheck.rs`.

use std::path::Path;

use flashlm_kernels::{Exec, Isa, Span};

use super::forms::AnySaved;
use super::shortconv::ShortConvConfig;
use super::{NAMES, Params, Settings};
use crate::config::{AttentionConfig, ModelConfig};
use crate::io::safetensors::TensorFile;
use crate::layer::branch::Branch;
use crate::layer::config::Need;
use crate::layer::pass::Pass;
use crate::layer::scratch::Scratch;
use crate::params::Layout;
use crate::testing::{noisy, ratio, tiny};

/// Sequences and tokens.
const SIZE: (usize, usize) = (2, 5);

/// `f(h) = mix(mix(h))`: the same weights twice, each time with what it saves of its own.
struct Twice {
    config: ModelConfig,
    layout: Layout,
    of: Params,
    need: Need,
}

impl Twice {
    fn new(name: &str) -> Self {
        let config = tiny(name);
        let mut layout = Layout::default();
        let layers = config.layers();
        let mut branch = Branch::new(&mut layout, "norm.scale".into(), "mixer".into(), &layers);
        let of = Params::new(name, &mut branch, &config.mixers);
        Twice { need: branch.need(), of, layout, config }
    }

    /// `sum(w * f(h))`, and the gradients of `h` and of the parameters.
    fn run(&self, params: &[f64], h: &[f64], w: &[f64]) -> (f64, Vec<f64>, Vec<f64>) {
        let cx = &Exec::new(Isa::SCALAR, 1);
        let (rows, past) = (SIZE.0 * SIZE.1, [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]);
        let span = &Span { batch: SIZE.0, len: SIZE.1, past: &past };
        let mut mixer = self.of.clone().train::<f64>(true);
        let mut s = Scratch::new(&self.config.layers(), self.need, mixer.wide(), rows, 1);
        mixer.prepare(cx, params, &mut s);
        let mixer = mixer;
        let mut saved: [AnySaved; 2] = std::array::from_fn(|_| mixer.saved(rows, true));
        let (mut once, mut twice) = (vec![f64::NAN; h.len()], vec![f64::NAN; h.len()]);
        let pass = Pass { cx, params, int8: false, span };
        mixer.forward(pass, &mut once, &mut saved[0], None, h);
        mixer.forward(pass, &mut twice, &mut saved[1], None, &once);
        let (mut dh, mut grads) = (w.to_vec(), vec![0.0; params.len()]);
        mixer.backward(pass, &mut dh, &mut grads, &mut saved[1], &once, &mut s);
        mixer.backward(pass, &mut dh, &mut grads, &mut saved[0], h, &mut s);
        (twice.iter().zip(w).map(|(y, w)| y * w).sum(), dh, grads)
    }
}

#[test]
fn a_block_applied_twice_has_the_gradients_of_both() {
    for name in NAMES {
        let twice = Twice::new(name);
        let n = SIZE.0 * SIZE.1 * twice.config.dim;
        let (mut params, mut h, w) = (noisy(twice.layout.len(), 1), noisy(n, 2), noisy(n, 3));
        let (_, dh, grads) = twice.run(&params, &h, &w);
        let close = |got: f64, want: f64, what: &str| {
            assert!((got - want).abs() < 1e-5 + 1e-5 * want.abs(), "{name}, {what}: {got} for {want}");
        };
        let step = 1e-5;
        for i in [0, n / 2, n - 1] {
            let own = h[i];
            let mut at = |by: f64| {
                h[i] = own + by;
                twice.run(&params, &h, &w).0
            };
            close(dh[i], (at(step) - at(-step)) / (2.0 * step), "the stream");
            h[i] = own;
        }
        for spec in twice.layout.specs() {
            let i = spec.range.end - 1;
            let own = params[i];
            let mut at = |by: f64| {
                params[i] = own + by;
                twice.run(&params, &h, &w).0
            };
            close(grads[i], (at(step) - at(-step)) / (2.0 * step), &spec.name);
            params[i] = own;
        }
    }
}

/// Weights are shared: two threads that read them at once get what one alone gets.
#[test]
fn threads_share_one_mixer() {
    for name in NAMES {
        let twice = Twice::new(name);
        let (d, rows) = (twice.config.dim, SIZE.0 * SIZE.1);
        let params = noisy(twice.layout.len(), 1);
        let cx = &Exec::new(Isa::SCALAR, 1);
        let mut mixer = twice.of.clone().train::<f64>(false);
        let mut s = Scratch::new(&twice.config.layers(), twice.need, mixer.wide(), 0, 1);
        mixer.prepare(cx, &params, &mut s);
        let (mixer, params) = (&mixer, &params);
        let run = |seed| {
            let past: Vec<u32> = (0..rows as u32).map(|row| row % SIZE.1 as u32).collect();
            let span = &Span { batch: SIZE.0, len: SIZE.1, past: &past };
            let (h, mut y, mut saved) = (noisy(rows * d, seed), vec![f64::NAN; rows * d], mixer.saved(rows, false));
            let pass = Pass { cx: &Exec::new(Isa::SCALAR, 1), params, int8: false, span };
            mixer.forward(pass, &mut y, &mut saved, None, &h);
            y
        };
        let alone = [4, 5].map(run);
        let together = std::thread::scope(|scope| {
            let other = scope.spawn(|| run(5));
            [run(4), other.join().unwrap()]
        });
        assert!(alone == together, "{name}");
    }
}

#[test]
fn a_new_mixer_needs_no_table_of_settings() {
    let text = serde_json::to_string(&Settings { ..tiny("leaky").mixers }).unwrap();
    assert!(!text.contains("leaky"), "{text}");
    assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), tiny("leaky").mixers);
}

/// The vectors of `tests/reference/NAME.py`: three documents in one sequence, one in the other.
#[test]
fn a_branch_equals_pytorch() {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|above| above.join("tests/reference"));
    let folder = folders.into_iter().find(|folder| folder.is_dir()).expect("tests/reference");
    let attention = AttentionConfig { heads: 3, window: 20, rope_base: 500.0 };
    let (b, t, d, shortconv) = (2, 60, 36, ShortConvConfig { kernel_size: 5 });
    for name in ["attention", "shortconv"] {
        let file = TensorFile::open(&folder.join(format!("{name}.safetensors"))).unwrap();
        let get = |tensor: &str| file.f32(tensor).unwrap();
        let past: Vec<u32> = file.i32("past").unwrap().iter().map(|&past| past as u32).collect();
        let mixers = Settings { attention: attention.clone(), shortconv: shortconv.clone(), ..tiny(name).mixers };
        let config = ModelConfig { dim: d, mixers, ..tiny(name) };
        let span = &Span { batch: b, len: t, past: &past };
        let (h, dy) = (get("h"), get("dy"));
        let close = |got: &[f32], want: &[f32], what: &str| {
            let off = ratio(got, want);
            assert!(got.len() == want.len() && off < 2e-6, "{name}, {what}: RMS ratio {off:.1e}");
        };
        for isa in Isa::available() {
            let cx = &Exec::new(isa, 2);
            let (mut layout, layers) = (Layout::default(), config.layers());
            let mut branch = Branch::new(&mut layout, "norm.scale".into(), "mixer".into(), &layers);
            let of = Params::new(name, &mut branch, &config.mixers);
            let need = branch.need();
            let mut mixer = of.train::<f32>(true);
            let mut s = Scratch::new(&layers, need, mixer.wide(), b * t, config.vocab_size);
            let mut saved = mixer.saved(b * t, true);
            let mut params = vec![0.0; layout.len()];
            for spec in layout.specs() {
                params[spec.range.clone()].copy_from_slice(&get(&format!("param.{}", spec.name)));
            }
            mixer.prepare(cx, &params, &mut s);
            let pass = Pass { cx, params: &params, int8: false, span };
            let (mut y, mut dh, mut grads) = (vec![f32::NAN; h.len()], dy.clone(), vec![0.0; params.len()]);
            let mut state = vec![0.0; b * mixer.state_len()];
            mixer.forward(pass, &mut y, &mut saved, Some(&mut state), &h);
            close(&y, &get("y"), "y with a state");
            mixer.forward(pass, &mut y, &mut saved, None, &h);
            close(&y, &get("y"), "y");
            mixer.backward(pass, &mut dh, &mut grads, &mut saved, &h, &mut s);
            close(&dh, &get("dh"), "dh");
            for spec in layout.specs() {
                close(&grads[spec.range.clone()], &get(&format!("grad.{}", spec.name)), &spec.name);
            }
        }
    }
}
