//! What holds for the training form of every mixer, beside the models of `gradcheck.rs`.

use flashlm_kernels::{Exec, Isa, Span};

use super::forms::AnySaved;
use super::{NAMES, Params, Settings};
use crate::config::ModelConfig;
use crate::layer::branch::Branch;
use crate::layer::config::Need;
use crate::layer::linear;
use crate::layer::scratch::Scratch;
use crate::params::Layout;
use crate::testing::{noisy, tiny};

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
        let all = linear::Params { all: params, int8: false };
        mixer.forward(cx, &mut once, &mut saved[0], None, h, all, span);
        mixer.forward(cx, &mut twice, &mut saved[1], None, &once, all, span);
        let (mut dh, mut grads) = (w.to_vec(), vec![0.0; params.len()]);
        mixer.backward(cx, &mut dh, &mut grads, &mut saved[1], &once, all, &mut s, span);
        mixer.backward(cx, &mut dh, &mut grads, &mut saved[0], h, all, &mut s, span);
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
            let all = linear::Params { all: params, int8: false };
            mixer.forward(&Exec::new(Isa::SCALAR, 1), &mut y, &mut saved, None, &h, all, span);
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
