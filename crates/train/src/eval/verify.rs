//! Runs the test vectors of a file and measures how far this program is from them.
//!
//! A file holds `param.*`, `x`, `y`: `[B, T]`, `logits: [B, T, V]`, `loss` (mean nats) and `grad.*` of one forward and
//! backward pass (with z-loss in the gradients alone), and a trajectory from the same parameters: `traj.batches: [n, B, T+1]`
//! used in turn, `traj.losses:
//! [steps]`. The metadata key `config` says in JSON which model and optimizer they are of (`tests/reference/README.md`).
//! The trajectory is that of `optim` with a constant learning rate: AdamW, or another on the master matrices. Losses of `v3` are smoothed, and
//! have their z-loss in them.

mod outcome;
mod v3;

use crate::config;
use crate::optim::{self, Optimizers};
use flashlm_kernels::{Buf, Exec, Token};
use flashlm_model::config::{ActivationKind, DeltaConfig, DeltaForm, DeltaRule, QuantConfig, ScaleKind, StatKind};
use flashlm_model::io::IoError;
use flashlm_model::io::safetensors::TensorFile;
use flashlm_model::model_file::{ModelError, read_gradients, read_params};
use flashlm_model::params::Layout;
use flashlm_model::{LanguageModel, ModelConfig, Objective, Precision, Prepared, Shape, mixer};
pub use outcome::{Check, Outcome};
use serde::Deserialize;

/// The architectures whose vectors can be run.
const ARCHS: [&str; 4] = ["v4", "v4-blockwise", "gdn", "v3"];
/// Epsilon of RMSNorm in all.
const NORM_EPS: f64 = 1e-6;
/// Most activations a file may ask for, 1 GiB.
const MAX_ACTIVATIONS: usize = 1 << 28;
/// Steps that count as the first of a trajectory.
const FIRST: usize = 3;

/// Why vectors could not be run.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file could not be read or lacks a tensor.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The parameters or gradients are not those of the config.
    #[error(transparent)]
    Tensors(#[from] ModelError),
    /// Vectors of a model that does not exist here.
    #[error("unknown architecture {found}; this version knows {}", ARCHS.join(", "))]
    Arch {
        /// Its name.
        found: String,
    },
    /// Settings that say nothing, or ask for what does not exist here.
    #[error("metadata `config`: {reason}; expected the settings of test vectors, see tests/reference/README.md")]
    Config {
        /// What is wrong.
        reason: String,
    },
    /// A tensor that does not fit the others.
    #[error(
        "tensor `{name}`: expected {expected}, found {found}; is the file complete, and does it fit the settings in its \
         metadata?"
    )]
    Tensor {
        /// The tensor.
        name: &'static str,
        /// What the settings and the other tensors ask for.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// What a file is of.
struct Task {
    arch: String,
    model: ModelConfig,
    optim: optim::Settings,
    /// Of the master matrices.
    optimizer: String,
    z_loss: f64,
    smoothing: f64,
    /// Whether the losses have the z-loss in them.
    whole: bool,
    steps: usize,
}

impl Task {
    fn read(file: &TensorFile) -> Result<Task, VerifyError> {
        let bad = |reason: String| VerifyError::Config { reason };
        let json = file.metadata("config").ok_or_else(|| bad("there is none".into()))?;
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
        // First: other architectures have other keys.
        let task = match value.get("arch").and_then(|arch| arch.as_str()) {
            Some(arch @ "v3") => {
                let arch = arch.to_string();
                let v3::Trained { model, optim, z_loss, smoothing, steps } = v3::read(value).map_err(bad)?;
                Task { arch, model, optim, optimizer: "normuon".into(), z_loss, smoothing, whole: true, steps }
            }
            Some(arch) if ARCHS.contains(&arch) => Settings::task(value)?,
            Some(arch) => return Err(VerifyError::Arch { found: format!("{arch:?}") }),
            None => return Err(bad("`arch` is missing or not a string".into())),
        };
        task.model.validate().map_err(|e| bad(e.to_string()))?;
        Ok(task)
    }

    fn objective(&self, scale: f64) -> Objective {
        Objective { scale, z_loss: self.z_loss, smoothing: self.smoothing }
    }

    /// The mean loss of a batch as the file has it; adds to `grads`.
    fn loss(&self, passes: &mut Prepared<f32>, grads: &mut [f32], x: &[Token], y: &[Token], shape: Shape) -> f64 {
        let mean = 1.0 / shape.rows() as f64;
        let mut nats = passes.loss_backward(grads, x, y, shape, self.objective(mean));
        if self.whole && self.z_loss > 0.0 {
            let v = self.model.vocab_size;
            let mut logits = vec![0.0; shape.rows() * v];
            passes.logits(&mut logits, x, None, shape);
            nats += self.z_loss * logits.chunks(v).map(|z| log_sum(z).powi(2)).sum::<f64>();
        }
        mean * nats
    }
}

/// `ln sum exp(z)`.
fn log_sum(z: &[f32]) -> f64 {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(max) + z.iter().map(|&z| f64::from(z - max).exp()).sum::<f64>().ln()
}

/// The metadata; `None` where a file leaves it to the architecture.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    arch: String,
    dim: usize,
    vocab: usize,
    blocks: usize,
    hidden: usize,
    kernel: Option<usize>,
    rule: Option<DeltaRule>,
    heads: Option<usize>,
    expand_k: Option<f64>,
    expand_v: Option<f64>,
    conv: Option<usize>,
    form: Option<DeltaForm>,
    negative_eigenvalues: Option<bool>,
    scale: Option<ScaleKind>,
    stat: Option<StatKind>,
    block_size: Option<usize>,
    bitlinear_norm: Option<bool>,
    block_norms: Option<bool>,
    #[serde(default)]
    activation: ActivationKind,
    #[serde(default)]
    sub_norm: bool,
    #[serde(default)]
    zero_init: bool,
    #[serde(default)]
    logit_softcap: f64,
    #[serde(default)]
    z_loss: f64,
    steps: usize,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    clip: f64,
    /// Of the master matrices; none: AdamW.
    optimizer: Option<String>,
    matrix_lr: Option<f64>,
    momentum: Option<f64>,
    matrix_beta2: Option<f64>,
    matrix_weight_decay: Option<f64>,
    schedule: String,
    /// Shapes say these better: the trajectory's `T` may be another.
    #[serde(rename = "batch")]
    _batch: Option<usize>,
    #[serde(rename = "seq")]
    _seq: Option<usize>,
    #[serde(rename = "seed")]
    _seed: Option<u64>,
    #[serde(rename = "made_with")]
    _made_with: Option<String>,
}

impl Settings {
    fn task(value: serde_json::Value) -> Result<Task, VerifyError> {
        let bad = |reason: String| VerifyError::Config { reason };
        let settings: Settings = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        if settings.schedule != "constant" {
            return Err(bad(format!("schedule {:?}, expected \"constant\"", settings.schedule)));
        }
        if let Some(other) = settings.optimizer.as_ref().filter(|name| !optim::NAMES.contains(&name.as_str())) {
            return Err(bad(format!("optimizer {other:?}, expected one of {}", optim::NAMES.join(", "))));
        }
        let (model, optim) = (settings.model()?, settings.optim());
        let Settings { arch, optimizer, z_loss, steps, .. } = settings;
        let optimizer = optimizer.unwrap_or(optim::ADAMW.into());
        Ok(Task { arch, model, optim, optimizer, z_loss, smoothing: 0.0, whole: false, steps })
    }

    fn optim(&self) -> optim::Settings {
        let default = config::Settings::default().train;
        optim::Settings {
            lr: self.lr,
            beta1: self.betas[0],
            beta2: self.betas[1],
            eps: self.eps,
            weight_decay: self.weight_decay,
            clip: self.clip,
            matrix_lr: self.matrix_lr.unwrap_or(default.matrix_lr),
            momentum: self.momentum.unwrap_or(default.momentum),
            matrix_beta2: self.matrix_beta2.unwrap_or(default.matrix_beta2),
            matrix_weight_decay: self.matrix_weight_decay.unwrap_or(default.matrix_weight_decay),
            ..default.optim()
        }
    }

    fn model(&self) -> Result<ModelConfig, VerifyError> {
        let blockwise = self.arch == "v4-blockwise";
        let scale = if blockwise { ScaleKind::Block } else { ScaleKind::Tensor };
        let gdn = self.arch == "gdn";
        let missing = |key: &str| VerifyError::Config { reason: format!("no {key} for {}", self.arch) };
        let kernel_size = match self.kernel {
            Some(kernel) => kernel,
            None if gdn => 1,
            None => return Err(missing("`kernel`")),
        };
        let mixers = ModelConfig::v4_small().mixers;
        let delta = &mixers.delta;
        let delta = DeltaConfig {
            form: self.form.unwrap_or(DeltaForm::Original),
            rule: self.rule.unwrap_or(DeltaRule::Undecayed),
            heads: self.heads.unwrap_or(delta.heads),
            expand_k: self.expand_k.unwrap_or(delta.expand_k),
            expand_v: self.expand_v.unwrap_or(delta.expand_v),
            conv: self.conv.unwrap_or(delta.conv),
            negative_eigenvalues: self.negative_eigenvalues.unwrap_or(false),
            norm_eps: delta.norm_eps,
        };
        let config = ModelConfig {
            vocab_size: self.vocab,
            dim: self.dim,
            blocks: self.blocks,
            ffn_hidden: self.hidden,
            mixer: if gdn { "delta" } else { "conv" }.into(),
            mixers: mixer::Settings { kernel_size, delta, ..mixers },
            block_norm: self.block_norms.unwrap_or(!blockwise),
            norm_eps: NORM_EPS,
            activation: self.activation,
            sub_norm: self.sub_norm,
            zero_init: self.zero_init,
            logit_softcap: self.logit_softcap,
            quant: QuantConfig {
                scale: self.scale.unwrap_or(scale),
                size: self.block_size.unwrap_or(256),
                stat: self.stat.unwrap_or(StatKind::Mean),
                norm: self.bitlinear_norm.unwrap_or(blockwise),
            },
            ..ModelConfig::v4_small()
        };
        Ok(config)
    }
}

/// Runs the vectors of a file, which are f32, in a precision.
pub fn verify(cx: &Exec, file: &TensorFile, precision: Precision) -> Result<Outcome, VerifyError> {
    let task = Task::read(file)?;
    let config = task.model.clone();
    let layout = Layout::of(&config);
    let params = read_params(file, &config, "param.")?;
    let want_grads = read_gradients(file, &config, "grad.")?;

    let (b, t) = match *file.shape("x")? {
        [b, t] => (b, t),
        ref shape => return Err(misfit("x", "two axes, [B, T]", format!("{shape:?}"))),
    };
    let (x, y) = (tokens(file, "x", &[b, t], &config)?, tokens(file, "y", &[b, t], &config)?);
    let want_logits = floats(file, "logits", &[b, t, config.vocab_size])?;
    let want_loss = match file.f32("loss")?[..] {
        [loss] => f64::from(loss),
        ref values => return Err(misfit("loss", "one element", values.len().to_string())),
    };
    let (n, tb, tt) = match *file.shape("traj.batches")? {
        [n, b, t1] if n > 0 && t1 > 1 => (n, b, t1 - 1),
        ref shape => return Err(misfit("traj.batches", "three axes, [n, B, T+1]", format!("{shape:?}"))),
    };
    let batches = tokens(file, "traj.batches", &[n, tb, tt + 1], &config)?;
    let want_losses = file.f64("traj.losses")?;
    if want_losses.is_empty() || want_losses.len() != task.steps {
        return Err(misfit("traj.losses", format!("{} losses (`steps`)", task.steps), want_losses.len().to_string()));
    }
    let rows = (b * t).max(tb * tt);
    // The z-loss of a whole loss is of all logits at once.
    let row = config.row_len() + if task.whole { config.vocab_size } else { 0 };
    if b * t == 0 || tb == 0 || rows.saturating_mul(row) > MAX_ACTIVATIONS {
        let most = MAX_ACTIVATIONS / row;
        return Err(misfit("x", format!("batches of 1 to {most} tokens for a model of this size"), rows.to_string()));
    }

    let invalid = |e: flashlm_model::config::ConfigError| VerifyError::Config { reason: e.to_string() };
    let mut lm = precision.build(&config, rows, true).map_err(invalid)?;
    let (mut passes, shape) = (Prepared::new(cx, &mut *lm, &params), Shape { batch: b, seq_len: t });
    let mut logits = vec![0.0; want_logits.len()];
    passes.logits(&mut logits, &x, None, shape);
    let mut grads = Buf::zeros(layout.len());
    let loss = task.loss(&mut passes, &mut grads, &x, &y, shape);
    let ratios = layout.specs().iter().map(|spec| {
        let range = spec.range.clone();
        (rms_ratio(&grads[range.clone()], &want_grads[range]), &spec.name)
    });
    let (grad_rms_ratio_max, grad_worst) = ratios.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::NAN, &task.arch));

    let losses = trajectory(cx, &mut *lm, params, &layout, &task, &batches, (n, tb, tt));
    let off: Vec<f64> = losses.iter().zip(&want_losses).map(|(got, want)| (got - want).abs() / want.abs()).collect();
    Ok(Outcome {
        precision,
        steps: task.steps,
        logits_rms_ratio: rms_ratio(&logits, &want_logits),
        loss_abs_diff: (loss - want_loss).abs(),
        grad_rms_ratio_max,
        grad_worst: grad_worst.clone(),
        traj_loss_rel_diff_first: largest(&off[..FIRST.min(off.len())]),
        traj_loss_rel_diff_max: largest(&off),
        arch: task.arch,
    })
}

/// The loss of every step.
fn trajectory(
    cx: &Exec,
    lm: &mut dyn LanguageModel<f32>,
    mut params: Buf<f32>,
    layout: &Layout,
    task: &Task,
    batches: &[Token],
    (n, b, t): (usize, usize, usize),
) -> Vec<f64> {
    let settings = task.optim;
    let mut optimizers = Optimizers::new(layout, &task.optimizer, false);
    let mut grads = Buf::<f32>::zeros(layout.len());
    let step = |i: usize| {
        let windows = batches[i % n * b * (t + 1)..][..b * (t + 1)].chunks_exact(t + 1);
        let x: Vec<Token> = windows.clone().flat_map(|window| &window[..t]).copied().collect();
        let y: Vec<Token> = windows.flat_map(|window| &window[1..]).copied().collect();
        grads.fill(0.0);
        let shape = Shape { batch: b, seq_len: t };
        let loss = task.loss(&mut Prepared::new(cx, lm, &params), &mut grads, &x, &y, shape);
        optimizers.step(cx, &mut params, &grads, &settings, settings.lr, i as u64 + 1);
        loss
    };
    (0..task.steps).map(step).collect()
}

fn misfit(name: &'static str, expected: impl Into<String>, found: String) -> VerifyError {
    VerifyError::Tensor { name, expected: expected.into(), found }
}

fn fits(file: &TensorFile, name: &'static str, shape: &[usize]) -> Result<(), VerifyError> {
    match file.shape(name)? {
        found if found == shape => Ok(()),
        found => Err(misfit(name, format!("shape {shape:?}"), format!("{found:?}"))),
    }
}

fn floats(file: &TensorFile, name: &'static str, shape: &[usize]) -> Result<Vec<f32>, VerifyError> {
    fits(file, name, shape)?;
    Ok(file.f32(name)?)
}

fn tokens(file: &TensorFile, name: &'static str, shape: &[usize], c: &ModelConfig) -> Result<Vec<Token>, VerifyError> {
    fits(file, name, shape)?;
    let token = |&id: &i32| match Token::try_from(id) {
        Ok(token) if usize::from(token) < c.vocab_size => Ok(token),
        _ => Err(misfit(name, format!("tokens below {}", c.vocab_size), id.to_string())),
    };
    file.i32(name)?.iter().map(token).collect()
}

/// RMS of the difference over the RMS of `want`; 0 where both are all zeros.
pub(crate) fn rms_ratio(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = got.iter().zip(want).map(|(&g, &w)| square(f64::from(g) - f64::from(w))).sum();
    let all: f64 = want.iter().map(|&w| square(f64::from(w))).sum();
    // Without its sign even what is not a number sorts last in `total_cmp`.
    if off == 0.0 { 0.0 } else { (off / all).sqrt().abs() }
}

/// The largest; not a number if one of them is none.
fn largest(values: &[f64]) -> f64 {
    values.iter().map(|v| v.abs()).max_by(f64::total_cmp).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::shared;
    use crate::eval::testing::{exec_on_all_isas, reference};
    use serde_json::{Value, json};
    use std::path::Path;

    /// Bound for trajectories that keep away from rounding edges.
    const TIGHT: f64 = 2e-6;

    /// `tight` bounds the whole trajectory.
    fn run(path: &Path, tight: f64) {
        let file = TensorFile::open(path).unwrap();
        let name = path.file_stem().unwrap().display();
        exec_on_all_isas(|cx| {
            for precision in [Precision::Bf16, Precision::Int8, Precision::Int8F32] {
                let outcome = verify(cx, &file, precision).unwrap();
                assert!(outcome.passed(), "{name} in {} on {}: {outcome:?}", precision.name(), cx.isa().name());
            }
        });
        run_f32(path, tight);
    }

    /// What needs no step, in every precision, but for gradients in int8, which are up to 16 % off where three applications of the block
    /// have rounded their inputs. The trajectory is f32's alone: a weight of a matrix without a scale goes from 0 to 1 at its threshold, and NorMuon's steps
    /// are as long whatever the gradient, so that a trajectory which rounds more goes other ways within a few steps.
    fn run_v3(path: &Path) {
        let file = TensorFile::open(path).unwrap();
        let name = path.file_stem().unwrap().display();
        exec_on_all_isas(|cx| {
            for precision in [Precision::Bf16, Precision::Int8, Precision::Int8F32] {
                let outcome = verify(cx, &file, precision).unwrap();
                let first = &outcome.checks()[..if precision == Precision::Bf16 { 3 } else { 2 }];
                let (of, isa) = (precision.name(), cx.isa().name());
                assert!(first.iter().all(|check| check.pass), "{name} in {of} on {isa}: {first:?}");
            }
        });
        run_f32(path, TIGHT);
    }

    fn run_f32(path: &Path, tight: f64) {
        let file = TensorFile::open(path).unwrap();
        let name = path.file_stem().unwrap().display();
        exec_on_all_isas(|cx| {
            let outcome = verify(cx, &file, Precision::F32).unwrap();
            assert!(outcome.passed(), "{name} on {}: {outcome:?}", cx.isa().name());
            assert!(outcome.traj_loss_rel_diff_max <= tight, "{name} on {}: {outcome:?}", cx.isa().name());
        });
    }

    #[test]
    fn every_switch_equals_pytorch() {
        for name in [
            "tensor_median",
            "block64_mean_no_norms",
            "group16_mean_inner_norm",
            "group24_median_both_norms",
            "block1024_mean_kernel3",
            "block96_median_outer_norms",
            "delta_original",
            "model_muon",
            "model_normuon",
            "relu2_subnorm",
            "relu2_subnorm_zero_init",
            "softcap_zloss",
        ] {
            run(&reference(&format!("{name}.safetensors")), TIGHT);
        }
    }

    /// Heads whose outputs are near 0 in the first tokens: their norm magnifies rounding, float32 PyTorch's too, and more so that
    /// of bf16.
    #[test]
    fn the_published_delta_rule_equals_pytorch() {
        for name in ["delta_published", "delta_negative"] {
            run_f32(&reference(&format!("{name}.safetensors")), 1e-5);
        }
    }

    #[test]
    fn v3_equals_pytorch() {
        for name in ["v3_wide", "v3_far", "v3_thrice"] {
            run_v3(&reference(&format!("{name}.safetensors")));
        }
        let Some(shared) = shared() else { return };
        run_v3(&shared.join("fixtures/v3_tiny.safetensors"));
    }

    #[test]
    fn given_vectors_of_the_original_equal_pytorch() {
        let Some(shared) = shared() else { return };
        for name in ["v4_tiny", "v4_small_2blocks", "blockwise_tiny", "gdn_tiny", "gdn_small_1block"] {
            run(&shared.join(format!("fixtures/{name}.safetensors")), 1e-2);
        }
    }

    /// A reference file with its header and data changed.
    fn edited_file(name: &str, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) -> TensorFile {
        let bytes = std::fs::read(reference(&format!("{name}.safetensors"))).unwrap();
        let (length, rest) = bytes.split_first_chunk().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
        edit(&mut header, &mut data);
        let header = serde_json::to_vec(&header).unwrap();
        let length = (header.len() as u64).to_le_bytes();
        TensorFile::from_bytes([&length, &header[..], &data].concat(), "edited").unwrap()
    }

    fn edited(edit: impl FnOnce(&mut Value, &mut Vec<u8>)) -> TensorFile {
        edited_file("group24_median_both_norms", edit)
    }

    fn start(header: &Value, name: &str) -> usize {
        header[name]["data_offsets"][0].as_u64().unwrap() as usize
    }

    /// With another value at element `at` of a tensor.
    fn with<const N: usize>(name: &str, at: usize, value: [u8; N]) -> TensorFile {
        edited(|header, data| data[start(header, name) + at * N..][..N].copy_from_slice(&value))
    }

    /// Changes the settings in a header.
    fn settings_of(header: &mut Value, edit: impl FnOnce(&mut Value)) {
        let text = &mut header["__metadata__"]["config"];
        let mut settings: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        edit(&mut settings);
        *text = settings.to_string().into();
    }

    /// With settings changed.
    fn with_settings(edit: impl FnOnce(&mut Value)) -> TensorFile {
        with_settings_of("group24_median_both_norms", edit)
    }

    fn with_settings_of(name: &str, edit: impl FnOnce(&mut Value)) -> TensorFile {
        edited_file(name, |header, _| settings_of(header, edit))
    }

    fn failing(file: &TensorFile) -> Vec<&'static str> {
        let outcome = verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), file, Precision::F32).unwrap();
        let failed: Vec<_> = outcome.checks().iter().filter(|check| !check.pass).map(|check| check.name).collect();
        assert_eq!(failed.is_empty(), outcome.passed());
        failed
    }

    #[test]
    fn each_figure_fails_when_its_vectors_are_wrong() {
        assert!(failing(&edited(|_, _| {})).is_empty());
        for value in [100.0f32, f32::NAN, f32::INFINITY] {
            assert_eq!(failing(&with("logits", 5, value.to_le_bytes())), ["logits_rms_ratio"]);
            assert_eq!(failing(&with("loss", 0, value.to_le_bytes())), ["loss_abs_diff"]);
        }
        let taps = "grad.blocks.0.mixer.conv.weight";
        assert_eq!(failing(&with(taps, 3, 1.0f32.to_le_bytes())), ["grad_rms_ratio_max"]);
        let file = with(taps, 3, 1.0f32.to_le_bytes());
        let outcome = verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), &file, Precision::F32).unwrap();
        assert_eq!(outcome.grad_worst, "blocks.0.mixer.conv.weight");
        let both = ["traj_loss_rel_diff_first", "traj_loss_rel_diff_max"];
        assert_eq!(failing(&with("traj.losses", 2, 9.0f64.to_le_bytes())), both);
        assert_eq!(failing(&with("traj.losses", 3, f64::NAN.to_le_bytes())), both[1..]);
        // A model that runs into what is no number.
        assert!(!failing(&with_settings(|s| s["lr"] = json!(1e30))).is_empty());
        assert!(!failing(&with_settings(|s| s["stat"] = json!("mean"))).is_empty());
    }

    #[test]
    fn every_switch_of_the_model_shows_in_its_vectors() {
        let [logits, loss, grads] = ["logits_rms_ratio", "loss_abs_diff", "grad_rms_ratio_max"];
        for (name, key, value, figures) in [
            ("relu2_subnorm", "activation", json!("silu"), [logits, loss, grads].as_slice()),
            ("relu2_subnorm_zero_init", "activation", json!("silu"), &[grads]),
            ("softcap_zloss", "logit_softcap", json!(0.0), &[logits, loss, grads]),
            ("softcap_zloss", "logit_softcap", json!(2.1), &[logits, loss, grads]),
            // Not in the loss that is told.
            ("softcap_zloss", "z_loss", json!(0.0), &[grads]),
            ("softcap_zloss", "z_loss", json!(0.04), &[grads]),
        ] {
            let failed = failing(&edited_file(name, |header, _| settings_of(header, |s| s[key] = value)));
            let (first, trajectory): (Vec<&str>, Vec<&str>) = failed.iter().partition(|name| !name.starts_with("traj"));
            assert_eq!(first, figures, "{name}, {key}");
            assert!(!trajectory.is_empty(), "{name}, {key}");
        }
        let file = edited_file("relu2_subnorm", |header, _| settings_of(header, |s| s["sub_norm"] = json!(false)));
        let error = verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), &file, Precision::F32).unwrap_err().to_string();
        assert!(error.contains("expected no tensor of this name"), "{error}");
    }

    #[test]
    fn every_setting_of_the_optimizer_shows_in_the_trajectory() {
        let (adamw, muon, normuon) = ("group24_median_both_norms", "model_muon", "model_normuon");
        let others = [
            (adamw, "clip", json!(1e3)),
            (adamw, "betas", json!([0.9, 0.9])),
            (adamw, "weight_decay", json!(0.0)),
            (adamw, "lr", json!(4e-4)),
            (muon, "optimizer", json!("adamw")),
            (muon, "optimizer", json!("normuon")),
            (muon, "matrix_lr", json!(0.01)),
            (muon, "momentum", json!(0.9)),
            (muon, "matrix_weight_decay", json!(0.0)),
            (normuon, "matrix_beta2", json!(0.9)),
        ];
        for (name, key, value) in others {
            let file = with_settings_of(name, |s| s[key] = value);
            let off = verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), &file, Precision::F32)
                .unwrap()
                .traj_loss_rel_diff_max;
            assert!(off > 2.0 * TIGHT, "{key}: {off}");
        }
    }

    /// Of v3: its losses are smoothed and have the z-loss in them.
    #[test]
    fn every_setting_of_v3_shows_in_its_vectors() {
        for (key, value) in [
            ("dilations", json!([1, 4])),
            ("recursions", json!(1)),
            ("label_smoothing", json!(0.1)),
            ("z_loss", json!(0.0)),
        ] {
            let file = edited_file("v3_wide", |header, _| settings_of(header, |s| s[key] = value));
            let failed = failing(&file);
            assert!(failed.contains(&"loss_abs_diff") && failed.contains(&"grad_rms_ratio_max"), "{key}: {failed:?}");
        }
        for (part, key, value) in [
            ("normuon", "beta2", json!(0.9)),
            ("normuon", "lr", json!(0.01)),
            ("adamw", "lr", json!(3e-3)),
            ("adamw", "decay", json!(3.0)),
        ] {
            let file = edited_file("v3_wide", |header, _| settings_of(header, |s| s[part][key] = value));
            let off = verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), &file, Precision::F32).unwrap();
            assert!(off.traj_loss_rel_diff_max > 2.0 * TIGHT, "{part}.{key}: {off:?}");
        }
        let error = |key: &str, value: Value| {
            let file = edited_file("v3_wide", |header, _| settings_of(header, |s| s[key] = value));
            verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), &file, Precision::F32).unwrap_err().to_string()
        };
        for (key, value, says) in [
            ("groups", json!(5), "dilated.groups"),
            ("positions", json!("some"), "expected \"all\""),
            ("label_smoothing", json!(1.5), "not between 0 and 1"),
            ("dilations", json!([]), "dilated.dilations"),
            ("inner", json!(60), "expected shape [60, 48], found [61, 48]"),
        ] {
            assert!(error(key, value).contains(says), "{key}");
        }
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        let error = |file: &TensorFile| {
            let outcome = verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), file, Precision::F32);
            outcome.map(|o| panic!("{o:?}")).unwrap_err().to_string()
        };
        let settings = |key: &str, value: Value| error(&with_settings(|s| s[key] = value));
        let has = |text: String, part: &str| assert!(text.contains(part), "{text}");
        has(settings("arch", "v9".into()), "\"v9\"; this version knows v4, v4-blockwise, gdn, v3");
        has(settings("arch", json!(4)), "`arch` is missing or not a string");
        has(settings("depth", json!(4)), "unknown field `depth`");
        has(settings("schedule", "cosine".into()), "expected \"constant\"");
        has(settings("optimizer", "none-such".into()), &format!("expected one of {}", optim::NAMES.join(", ")));
        has(settings("kernel", json!(-1)), "invalid value");
        has(settings("dim", json!(1u64 << 40)), "must be between 1 and 8192");
        has(settings("steps", json!(13)), "expected 13 losses (`steps`), found 12");
        has(settings("hidden", json!(42)), "expected shape [42, 31], found [43, 31]");
        has(settings("bitlinear_norm", json!(false)), "expected no tensor of this name");
        has(
            error(&edited(|header, _| header["__metadata__"]["config"] = "[]".into())),
            "`arch` is missing or not a string",
        );
        has(error(&edited(|header, _| header["__metadata__"] = json!({}))), "there is none");
        has(error(&with("x", 4, 37i32.to_le_bytes())), "expected tokens below 37, found 37");
        has(error(&with("traj.batches", 4, (-1i32).to_le_bytes())), "expected tokens below 37, found -1");
        has(error(&edited(|header, _| header["y"]["shape"] = json!([23, 3]))), "`y`: expected shape [3, 23]");
        has(error(&edited(|header, _| header["x"]["shape"] = json!([69]))), "expected two axes");
        has(error(&edited(|header, _| header["x"]["dtype"] = "F32".into())), "type I32, found F32");
        let renamed = edited(|header, _| {
            let logits = header.as_object_mut().unwrap().remove("logits").unwrap();
            header["other"] = logits;
        });
        has(error(&renamed), "expected a tensor `logits`");
    }

    #[test]
    fn a_config_larger_than_its_tensors_is_refused_before_memory_is_taken() {
        let file = with_settings(|s| {
            for (key, value) in [("dim", 4096), ("blocks", 6), ("hidden", 8192), ("vocab", 10_000)] {
                s[key] = json!(value);
            }
        });
        let error = verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), &file, Precision::F32).unwrap_err().to_string();
        assert!(error.contains("embedding.weight`: expected shape [10000, 4096]"), "{error}");
    }

    /// What a row takes, written down once more: `v3_wide` has D 48, F 61, V 97 and three layers. A file has as many rows as it likes.
    #[test]
    fn rows_that_v3_has_no_memory_for_are_refused_before_it_is_taken() {
        for passes in [2, 128] {
            let matrices = 2 * 48 + 3 * (48 + 61);
            // At least, without states and logits.
            let row = passes * (2 * matrices + 8 * 48 + (4 * 2 + 2) * 48);
            let rows = (1 << 28) / row + 1;
            let file = edited_file("v3_wide", |header, data| {
                settings_of(header, |s| s["recursions"] = json!(passes));
                let (start, t) = (data.len(), rows + 1);
                data.resize(start + 4 * t, 0);
                // The data before it may not lie there without a name.
                header["unused"] = header["traj.batches"].take();
                header["traj.batches"] = header["unused"].clone();
                header["traj.batches"]["shape"] = json!([1, 1, t]);
                header["traj.batches"]["data_offsets"] = json!([start, data.len()]);
            });
            let outcome = verify(&Exec::new(flashlm_kernels::Isa::SCALAR, 1), &file, Precision::F32);
            let error = outcome.map(|o| panic!("{o:?}")).unwrap_err().to_string();
            assert!(error.contains("tokens for a model of this size") && error.contains(&rows.to_string()), "{error}");
        }
    }

    #[test]
    fn ratios_are_of_the_whole_and_hide_nothing() {
        assert_eq!(rms_ratio(&[3.0, 4.0], &[0.0, 4.0]), 0.75);
        assert_eq!(rms_ratio(&[0.0], &[0.0]), 0.0);
        assert_eq!(rms_ratio(&[1.0], &[0.0]), f64::INFINITY);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
            let ratio = rms_ratio(&[1.0, 1.0], &[1.0, bad]);
            assert!(ratio.is_nan() && largest(&[1.0, ratio, -2.0]).is_nan());
        }
    }
}
