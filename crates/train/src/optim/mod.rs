//! Optimizers: one optimizer is one file and one line in `optimizers!`, its state in its own buffers. The test against
//! PyTorch's vectors, threads, and stopping and resuming then run by themselves.
//!
//! `train.optimizer` names the one that gets the master matrices ([`Group::Matrix`]); all other parameters are AdamW's.
//! With `train.frozen_taps` nobody gets the taps of convolutions ([`Group::Conv`]), and ever nobody what a model does not use
//! ([`Group::Unused`]): they stay as they started. In the first steps of a run with `train.frozen_embedding` so does the embedding, whose
//! AdamW then starts afresh. What is not trained in a step is left out of the norm, too.
//! Gradients are clipped by the global norm of all that are trained, whoever gets them: `g *= min(1, clip / (norm + 1e-6))`, as
//! PyTorch does it. Muon's update does not depend on the length of its gradient, but through the clip one wild
//! gradient does not take over its momentum.

mod adamw;
mod muon;
mod newton_schulz;
mod normuon;
mod optimizer;

use std::ops::Range;

use flashlm_kernels::{Exec, ops};
use flashlm_model::params::{Group, Layout};

use optimizer::{Optimizer, Owns, Step};
pub use optimizer::{Settings, Tensor, tensors};

macro_rules! optimizers {
    ($($name:literal => $optimizer:ty),* $(,)?) => {
        /// The names that `train.optimizer` may have.
        pub const NAMES: &[&str] = &[$($name),*];

        /// The optimizer of that name for the parameters that it `owns`, with its state at the start.
        fn build(name: &str, layout: &Layout, owns: Owns) -> Box<dyn Optimizer> {
            match name {
                $($name => Box::new(<$optimizer>::new(layout, owns)),)*
                other => panic!("unknown optimizer {other:?} in validated settings"),
            }
        }
    };
}

optimizers! {
    "adamw" => adamw::AdamW,
    "muon" => muon::Muon,
    "normuon" => normuon::NorMuon,
}

/// The name of the one that gets what is no matrix.
pub const ADAMW: &str = NAMES[0];

/// The optimizers of a run, which share its parameters between them.
pub struct Optimizers {
    parts: Vec<Box<dyn Optimizer>>,
    /// Places of the parameters that are trained, gaps included.
    trained: Vec<Range<usize>>,
    /// Of these the embedding, if it is one.
    embedding: Option<Range<usize>>,
}

impl Optimizers {
    /// Those that `train.optimizer` asks for; with `frozen_taps` taps are left alone.
    ///
    /// # Panics
    /// If there is none of that name, which [`crate::config::Settings::validate`] rules out.
    pub fn new(layout: &Layout, name: &str, frozen_taps: bool) -> Self {
        let trained = |group: Group| group.is_trained() && (!frozen_taps || group != Group::Conv);
        let parts = match name {
            ADAMW => vec![build(ADAMW, layout, &trained)],
            name => vec![
                build(name, layout, &|group| group == Group::Matrix),
                build(ADAMW, layout, &|group| group != Group::Matrix && trained(group)),
            ],
        };
        let runs = layout.specs().chunk_by(|a, b| trained(a.group) == trained(b.group));
        let trained = runs.filter(|specs| trained(specs[0].group));
        let trained = trained.map(|specs| specs[0].range.start..specs[specs.len() - 1].range.end).collect();
        let embedding =
            layout.specs().iter().find(|spec| spec.group == Group::Embedding).map(|spec| spec.range.clone());
        Optimizers { parts, trained, embedding }
    }

    /// Update `number` (from 1) of `params` with AdamW's learning rate `lr`; returns the gradient's global norm before
    /// clipping. If that is not finite, nothing changes.
    pub fn step(
        &mut self,
        cx: &Exec,
        params: &mut [f32],
        grads: &[f32],
        settings: &Settings,
        lr: f64,
        number: u64,
    ) -> f64 {
        let squares = |range: Range<usize>| ops::sum_squares(cx, &grads[range]);
        let frozen = self.embedding.as_ref().filter(|_| number <= settings.frozen_embedding);
        let norm = match frozen {
            None => self.trained.iter().map(|range| squares(range.clone())).sum::<f64>(),
            Some(out) => {
                let (before, after) =
                    (|range: &Range<usize>| range.start..range.end.min(out.start).max(range.start), out.end);
                let behind = |range: &Range<usize>| range.start.max(after).min(range.end)..range.end;
                self.trained.iter().map(|range| squares(before(range)) + squares(behind(range))).sum::<f64>()
            }
        };
        let norm = norm.sqrt();
        if !norm.is_finite() {
            return norm;
        }
        let step = Step { settings, lr, number, grad_scale: (settings.clip / (norm + 1e-6)).min(1.0) };
        self.parts.iter_mut().for_each(|part| part.step(cx, params, grads, &step));
        norm
    }

    /// The state of all of them, for a checkpoint to save or to fill.
    pub fn state(&mut self) -> Vec<Tensor<'_>> {
        self.parts.iter_mut().flat_map(|part| part.state()).collect()
    }
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::{Buf, Isa, Token};
    use flashlm_model::io::safetensors::{TensorFile, TensorRef, write_tensors};
    use flashlm_model::params::{Init, Spec};
    use flashlm_model::{ModelConfig, Precision, Shape};
    use serde::Deserialize;

    use super::*;
    use crate::config::{TrainSettings, preset};
    use crate::eval::testing::{exec_on_all_isas, reference};
    use crate::load::read_state;
    use crate::stepper::{self, Stepper};

    /// RMS ratio to what the steps changed. PyTorch's float32 is 1.3e-6 or less from its float64 (`optimizers.py`).
    const BOUND: f64 = 5e-6;

    /// The settings of `tests/reference/optimizers.py`.
    #[derive(Deserialize)]
    struct Vectors {
        lr: f64,
        betas: [f64; 2],
        eps: f64,
        weight_decay: f64,
        clip: f64,
        matrix_lr: f64,
        momentum: f64,
        matrix_beta2: f64,
        matrix_weight_decay: f64,
        #[serde(default)]
        row_normalise: bool,
        newton_schulz_steps: Option<usize>,
        steps: usize,
        middle: usize,
        rates: Vec<f64>,
        /// Momentum of each step, where it changes.
        momenta: Option<Vec<f64>>,
        optimizer: String,
    }

    #[test]
    fn every_file_of_an_optimizer_is_in_the_list_and_has_vectors() {
        let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/optim").read_dir().unwrap();
        for path in files.map(|entry| entry.unwrap().path()) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            if name != "mod" && std::fs::read_to_string(&path).unwrap().contains("impl Optimizer for") {
                assert!(NAMES.contains(&name), "{} wants a line in `optimizers!`", path.display());
            }
        }
        for name in NAMES {
            let vectors = reference(&format!("{name}.safetensors"));
            assert!(vectors.is_file(), "{name} wants {}; tests/reference/optimizers.py makes it", vectors.display());
        }
    }

    #[test]
    fn every_optimizer_equals_pytorch() {
        for name in NAMES.iter().chain(&["muon_rows", "normuon_rows"]) {
            let file = TensorFile::open(&reference(&format!("{name}.safetensors"))).unwrap();
            let s: Vectors = serde_json::from_str(file.metadata("config").unwrap()).unwrap();
            let settings = Settings {
                lr: s.lr,
                beta1: s.betas[0],
                beta2: s.betas[1],
                eps: s.eps,
                weight_decay: s.weight_decay,
                clip: s.clip,
                matrix_lr: s.matrix_lr,
                momentum: s.momentum,
                row_normalise: s.row_normalise,
                newton_schulz_steps: s.newton_schulz_steps.unwrap_or(5),
                matrix_beta2: s.matrix_beta2,
                matrix_weight_decay: s.matrix_weight_decay,
                frozen_embedding: 0,
            };
            let mut layout = Layout::default();
            for name in file.names().iter().filter_map(|name| name.strip_prefix("param.")) {
                let shape = file.shape(&format!("param.{name}")).unwrap();
                let group = if shape.len() == 2 { Group::Matrix } else { Group::Norm };
                layout.add(name.into(), shape, Init::Ones, group);
            }
            assert_eq!(layout.specs().len(), 6);
            let read = |kind: &str, at: usize| {
                let mut all = Buf::<f32>::zeros(layout.len());
                for spec in layout.specs() {
                    let values = file.f32(&format!("{kind}.{}", spec.name)).unwrap();
                    all[spec.range.clone()].copy_from_slice(&values[at * spec.range.len()..][..spec.range.len()]);
                }
                all
            };
            exec_on_all_isas(|cx| {
                let start = read("param", 0);
                let (mut params, mut optimizers) = (start.clone(), Optimizers::new(&layout, &s.optimizer, false));
                for step in 0..s.steps {
                    let (grads, lr) = (read("grads", step), s.lr * s.rates[step]);
                    let settings =
                        Settings { momentum: s.momenta.as_ref().map_or(s.momentum, |all| all[step]), ..settings };
                    optimizers.step(cx, &mut params, &grads, &settings, lr, step as u64 + 1);
                    if ![s.middle, s.steps].contains(&(step + 1)) {
                        continue;
                    }
                    let want = read(&format!("after{}", step + 1), 0);
                    for spec in layout.specs() {
                        let sum =
                            |f: &dyn Fn(usize) -> f32| spec.range.clone().map(|i| f64::from(f(i)).powi(2)).sum::<f64>();
                        let (off, moved) = (sum(&|i| params[i] - want[i]), sum(&|i| want[i] - start[i]));
                        let ratio = (off / moved).sqrt();
                        let (step, of, isa) = (step + 1, &spec.name, cx.isa().name());
                        assert!(ratio <= BOUND, "{name}, {of} after step {step} on {isa}: {ratio:.1e}");
                    }
                }
            });
        }
    }

    const SHAPE: Shape = Shape { batch: 3, seq_len: 20 };

    fn stepper(optimizer: &str) -> (Stepper, TrainSettings) {
        let settings = preset("flash-small").unwrap();
        let sizes = ModelConfig { vocab_size: 50, dim: 40, blocks: 2, ffn_hidden: 72, ..settings.model };
        let model = ModelConfig { x0: true, bigram: 30, layer_embeddings: true, ..sizes };
        let train = TrainSettings { optimizer: optimizer.into(), ..settings.train };
        (Stepper::new(&model, Precision::F32, SHAPE, &train).unwrap(), train)
    }

    /// Updates `from` to `to` on windows that follow from their numbers.
    fn train(cx: &Exec, (trained, train): &mut (Stepper, TrainSettings), from: u64, to: u64) {
        for step in from..=to {
            let token = |i: usize, j: usize| ((i * 31 + j * j * 7 + step as usize * 11) % 50) as Token;
            let data: Vec<Vec<Token>> = (0..3).map(|i| (0..21).map(|j| token(i, j)).collect()).collect();
            let (settings, lr, momentum) = (&*train, train.lr, train.momentum);
            let told = stepper::Step { shape: SHAPE, settings, lr, momentum, number: step, frozen: 0 };
            assert!(trained.step(cx, told, |i| &data[i]).is_finite());
        }
    }

    fn state(stepper: &mut Stepper) -> Vec<(String, Vec<f32>)> {
        let mut all: Vec<_> = stepper.optimizers.state().into_iter().map(|t| (t.name, t.data.to_vec())).collect();
        all.push(("params".into(), stepper.params.to_vec()));
        all
    }

    #[test]
    fn threads_change_nothing() {
        for name in NAMES {
            let of = |threads| {
                let mut at = stepper(name);
                train(&Exec::new(Isa::detect().unwrap(), threads), &mut at, 1, 5);
                state(&mut at.0)
            };
            let one = of(1);
            assert!(one == of(2) && one == of(3) && one == of(7), "{name}");
        }
    }

    #[test]
    fn state_through_a_file_goes_on_with_the_same_bits() {
        let cx = Exec::new(Isa::detect().unwrap(), 2);
        for name in NAMES {
            let mut never = stepper(name);
            train(&cx, &mut never, 1, 3);
            let mut bytes = Vec::new();
            let kept = never.0.optimizers.state();
            let tensors: Vec<_> =
                kept.iter().map(|t| TensorRef { name: &t.name, shape: &t.shape, data: t.data }).collect();
            write_tensors(&mut bytes, &tensors, &Default::default()).unwrap();
            let file = TensorFile::from_bytes(bytes, "state").unwrap();
            let mut resumed = stepper(name);
            read_state(&file, &mut resumed.0.optimizers.state()).unwrap();
            resumed.0.params = never.0.params.clone();
            train(&cx, &mut never, 4, 6);
            train(&cx, &mut resumed, 4, 6);
            assert!(state(&mut never.0) == state(&mut resumed.0), "{name}");
            // Where both have tensors of the same names, the settings of the checkpoint tell them apart.
            let tensors = |of: &str| stepper(of).0.optimizers.state().into_iter().map(|t| t.name).collect::<Vec<_>>();
            for other in NAMES.iter().filter(|other| tensors(other) != tensors(name)) {
                let error = read_state(&file, &mut stepper(other).0.optimizers.state()).unwrap_err().to_string();
                assert!(error.contains("expected"), "{name} as {other}: {error}");
            }
        }
    }

    /// Taps of every mixer that has some; all else is updated as if the gradients of taps were zero.
    #[test]
    fn frozen_taps_stay_and_count_for_nothing() {
        let (cx, (_, train)) = (Exec::new(Isa::detect().unwrap(), 2), stepper(ADAMW));
        let pattern = ["conv", "delta", "shortconv"].map(String::from).to_vec();
        let model =
            ModelConfig { vocab_size: 50, dim: 40, blocks: 3, ffn_hidden: 72, pattern, ..ModelConfig::v4_small() };
        let layout = Layout::of(&model);
        let taps = |spec: &&Spec| spec.group == Group::Conv;
        assert_eq!(layout.specs().iter().filter(taps).count(), 5);
        for name in NAMES {
            let mut grads: Buf<f32> = layout.init(7);
            // So short that nothing is clipped.
            grads.iter_mut().for_each(|g| *g *= 1e-3);
            let mut without = grads.clone();
            layout.specs().iter().filter(taps).for_each(|spec| without[spec.range.clone()].fill(0.0));
            let run = |frozen, grads: &[f32]| {
                let (mut params, mut optimizers) = (layout.init::<f32>(3), Optimizers::new(&layout, name, frozen));
                let norm = optimizers.step(&cx, &mut params, grads, &train.optim(), train.lr, 1);
                (params, norm, optimizers.state().into_iter().map(|t| t.name).collect::<Vec<_>>())
            };
            let (start, (params, norm, state)) = (layout.init::<f32>(3), run(true, &grads));
            let (want, want_norm, _) = run(false, &without);
            assert!(norm < train.clip && (norm - want_norm).abs() < 1e-6 * norm, "{name}: {norm} for {want_norm}");
            assert!(norm < 0.999 * run(false, &grads).1, "{name}: {norm}");
            for spec in layout.specs().iter().filter(taps) {
                assert!(params[spec.range.clone()] == start[spec.range.clone()], "{name}: {}", spec.name);
                assert!(!state.iter().any(|of| of.ends_with(&spec.name)), "{name}: state of {}", spec.name);
            }
            for spec in layout.specs().iter().filter(|spec| !taps(spec)) {
                let [got, want] = [&params, &want].map(|params| &params[spec.range.clone()]);
                assert!(got == want && *got != start[spec.range.clone()], "{name}: {}", spec.name);
            }
        }
    }

    /// For so many steps the embedding stays and counts for nothing; then it starts as in a first step. The router is never touched.
    #[test]
    fn a_frozen_embedding_stays_and_then_starts_afresh() {
        let (cx, v3) = (Exec::new(Isa::detect().unwrap(), 2), preset("v3").unwrap());
        let layout = Layout::of(&ModelConfig { vocab_size: 40, dim: 32, ffn_hidden: 24, ..v3.model });
        let place = |name: &str| layout.find(name).unwrap().range.clone();
        let (table, router) = (place("embedding.weight"), place("block.router.linear.weight"));
        let mut grads: Buf<f32> = layout.init(7);
        grads.iter_mut().for_each(|g| *g *= 1e-3);
        for name in NAMES {
            let (start, mut optimizers) = (layout.init::<f32>(3), Optimizers::new(&layout, name, false));
            let mut params = start.clone();
            let settings = Settings { frozen_embedding: 2, ..v3.train.optim() };
            let sum = |out: &Range<usize>| {
                let of = layout.specs().iter().filter(|spec| spec.range != *out && spec.group.is_trained());
                let squares = of.flat_map(|spec| &grads[spec.range.clone()]).map(|&g| f64::from(g).powi(2));
                squares.sum::<f64>().sqrt()
            };
            for step in 1..=3 {
                let norm = optimizers.step(&cx, &mut params, &grads, &settings, settings.lr, step);
                let want = if step <= 2 { sum(&table) } else { sum(&(0..0)) };
                assert!((norm - want).abs() < 1e-6 * want, "{name}, step {step}: {norm} for {want}");
                assert_eq!(params[table.clone()] == start[table.clone()], step <= 2, "{name}, step {step}");
            }
            assert!(params[router.clone()] == start[router.clone()]);
            let (mut first, mut fresh) = (start.clone(), Optimizers::new(&layout, name, false));
            fresh.step(&cx, &mut first, &grads, &Settings { frozen_embedding: 0, ..settings }, settings.lr, 1);
            assert!(first[table.clone()] == params[table.clone()], "{name}");
        }
    }

    #[test]
    fn every_parameter_has_one_owner_and_matrices_that_of_the_settings() {
        for name in NAMES {
            let (mut stepper, _) = stepper(name);
            let names: Vec<String> = stepper.optimizers.state().into_iter().map(|t| t.name).collect();
            let mut owned = 0;
            for spec in stepper.lm.layout().specs().iter().filter(|spec| spec.group.is_trained()) {
                let mine = |state: &&String| state.split_once('.').is_some_and(|(_, of)| of == spec.name);
                let kinds: Vec<&String> = names.iter().filter(mine).collect();
                assert!(!kinds.is_empty() && kinds.windows(2).all(|two| two[0] != two[1]), "{name}: {kinds:?}");
                if spec.group != Group::Matrix {
                    assert_eq!(kinds, [&format!("m.{}", spec.name), &format!("v.{}", spec.name)], "{name}: AdamW's");
                }
                owned += kinds.len();
            }
            assert_eq!(owned, names.len(), "{name}: state of what is no parameter");
        }
    }
}
