//! One optimizer step: forward and backward of a batch in micro-batches, or passes, of at most [`pass_rows`] rows, clip, update.
//!
//! Passes bound the memory of activations for any batch. Their size is part of the arithmetic: it is one of the run's
//! settings, so that results do not depend on the machine.
//!
//! Ranks share out the passes of a step: each adds up its own subtree, and the ranks' sums are added in the same tree.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use flashlm_kernels::ops::NO_TARGET;
use flashlm_kernels::{Buf, Exec, Token};
pub use flashlm_model::Shape;
use flashlm_model::config::ConfigError;
use flashlm_model::{Dropout, LanguageModel, ModelConfig, Objective, Precision, Prepared};
use xxhash_rust::xxh3::Xxh3;

use crate::comm::{Comm, CommError, NOTHING, Sent, Solo, gather, share};
use crate::config::TrainSettings;
use crate::data::window::Window;
use crate::gradient::Gradient;
use crate::optim::{self, Optimizers};
use crate::positions::Positions;

/// Most rows of one pass where the settings leave it open.
pub const ROWS: usize = 2048;

/// Most rows of one pass over batches of at most this shape: those of the settings, but at least one sequence.
pub fn pass_rows(settings: &TrainSettings, shape: Shape) -> usize {
    let rows = if settings.pass_rows == 0 { ROWS } else { settings.pass_rows };
    rows.min(shape.rows()).max(shape.seq_len)
}

/// The inputs of a step besides its windows.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Of its batch: `T` is the most that a window predicts.
    pub shape: Shape,
    /// The run's settings.
    pub settings: &'a TrainSettings,
    /// AdamW's learning rate.
    pub lr: f64,
    /// Momentum of the matrices.
    pub momentum: f64,
    /// From 1.
    pub number: u64,
    /// First steps in which the embedding stays as it started.
    pub frozen: u64,
}

/// A model with everything that training changes.
pub struct Stepper {
    /// The layers and their activations.
    pub lm: Box<dyn LanguageModel<f32>>,
    /// Master weights, laid out by `lm.layout()`.
    pub params: Buf<f32>,
    /// What applies gradients to parameters, and its state.
    pub optimizers: Optimizers,
    /// Seconds that each rank has waited for the slowest, where there are several.
    pub waited: Vec<f64>,
    gradient: Gradient,
    /// Of all ranks, `[P]`, where there are several.
    total: Vec<f32>,
    inputs: Vec<Token>,
    targets: Vec<Token>,
}

/// The outcome of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Mean nats per token that the loss is of: cross-entropy, label smoothing included.
    pub loss: f64,
    /// Tokens that were predicted, whether drawn for the loss or not; sequences shorter than `T` have fewer.
    pub tokens: u64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
}

impl StepResult {
    /// Whether loss and norm are finite; if not, the parameters are unchanged.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

impl Stepper {
    /// A model with fresh parameters from the settings' seed and their optimizer, for batches of at most this shape.
    pub fn new(
        config: &ModelConfig,
        precision: Precision,
        shape: Shape,
        settings: &TrainSettings,
    ) -> Result<Self, ConfigError> {
        let rows = pass_rows(settings, shape);
        let lm = precision.build(config, rows, true)?;
        let params: Buf<f32> = lm.layout().init(settings.seed);
        let optimizers = Optimizers::new(lm.layout(), &settings.optimizer, settings.frozen_taps);
        let (inputs, targets) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let gradient = Gradient::new(lm.layout());
        Ok(Stepper { lm, params, optimizers, waited: Vec::new(), gradient, total: Vec::new(), inputs, targets })
    }

    /// One step on the windows of a batch. The loss is the mean over all tokens of the batch, however they lie in windows.
    pub fn step<'a, W: Into<Window<'a>>>(&mut self, cx: &Exec, step: Step, window: impl Fn(usize) -> W) -> StepResult {
        let done = self.step_unless(&AtomicBool::new(false), &Solo, cx, step, window);
        done.expect("there is one rank").expect("nothing stops it")
    }

    /// The same, shared out over ranks, which have the same parameters before and after; `None`, with nothing changed, if `stop` is
    /// set on any of them before its last micro-batch.
    pub fn step_unless<'a, W: Into<Window<'a>>>(
        &mut self,
        stop: &AtomicBool,
        comm: &dyn Comm,
        cx: &Exec,
        step: Step,
        window: impl Fn(usize) -> W,
    ) -> Result<Option<StepResult>, CommError> {
        let Step { shape: Shape { batch, seq_len }, settings, lr, momentum, number, frozen } = step;
        comm.at(Some(number));
        let began = Instant::now();
        self.gradient.clear();
        let tokens: usize = (0..batch).map(|i| window(i).into().targets()).sum();
        let positions = Positions::new(settings.loss_share, settings.seed, number);
        let row_of = |i: usize| (i * seq_len) as u64;
        let scored = |i: usize| {
            let own = window(i).into().targets() as u64;
            (row_of(i)..row_of(i) + own).filter(|&row| positions.has(row)).count()
        };
        let drawn = if settings.loss_share < 1.0 { (0..batch).map(scored).sum() } else { tokens };
        // Of a batch so small that none was drawn, all count.
        let (some, count) = if drawn == 0 { (false, tokens) } else { (settings.loss_share < 1.0, drawn) };
        let scale = 1.0 / count as f64;
        let objective = Objective { scale, z_loss: settings.z_loss, smoothing: settings.label_smoothing };
        let micro_batch = (self.lm.rows() / seq_len).max(1);
        let own = share(batch.div_ceil(micro_batch), comm.rank(), comm.size());
        let mut prepared = Prepared::new(cx, &mut *self.lm, &self.params);
        for pass in own.clone() {
            let first = pass * micro_batch;
            if first > 0 && stop.load(Relaxed) {
                if comm.size() == 1 {
                    return Ok(None);
                }
                break;
            }
            comm.at(Some(number));
            let n = micro_batch.min(batch - first);
            self.inputs.clear();
            self.targets.clear();
            for i in first..first + n {
                let window = window(i).into();
                let (start, end) = (self.inputs.len(), self.inputs.len() + seq_len);
                window.append_to(&mut self.targets);
                self.inputs.push(window.first);
                self.inputs.extend_from_slice(&self.targets[start..self.targets.len() - 1]);
                // Causal models do not look at what comes after.
                self.inputs.resize(end, window.first);
                self.targets.resize(end, NO_TARGET);
                if some {
                    let rows = (row_of(i)..).zip(&mut self.targets[start..]);
                    rows.filter(|(row, _)| !positions.has(*row)).for_each(|(_, target)| *target = NO_TARGET);
                }
            }
            let shape = Shape { batch: n, seq_len };
            let (inputs, targets) = (&self.inputs, &self.targets);
            let row = (first * seq_len) as u64;
            prepared.set_dropout(
                (settings.dropout > 0.0).then(|| Dropout::new(settings.dropout, settings.seed, number, row)),
            );
            self.gradient.add(cx, |grads, touched| {
                let nats = prepared.loss_backward(grads, inputs, targets, shape, objective);
                prepared.model().touched(inputs, &mut |place, row| touched.add(place, row));
                nats
            });
        }
        let mut loss = (!own.is_empty()).then(|| self.gradient.finish(cx));
        if comm.size() > 1 {
            loss = match self.join(stop, comm, loss, began, settings.rank_sums)? {
                Some(loss) => Some(loss),
                None => return Ok(None),
            };
        }
        let loss = loss.unwrap_or(f64::NAN) * scale;
        if !loss.is_finite() {
            return Ok(Some(StepResult { loss, tokens: tokens as u64, grad_norm: f64::NAN }));
        }
        let settings = optim::Settings { momentum, frozen_embedding: frozen, ..settings.optim() };
        let grads = if comm.size() > 1 { &self.total } else { self.gradient.values() };
        let grad_norm = self.optimizers.step(cx, &mut self.params, grads, &settings, lr, number);
        Ok(Some(StepResult { loss, tokens: tokens as u64, grad_norm }))
    }

    /// A checksum of the gradient of one sequence: the same where two machines compute alike. Branches start as zeros, and what is behind
    /// them is not seen; so the parameters are moved a little.
    pub(crate) fn arithmetic(&mut self, cx: &Exec, settings: &TrainSettings) -> u64 {
        let drawn = |i: usize| (i as u32 ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b1) >> 8;
        let mut moved = std::mem::take(&mut self.total);
        moved.clear();
        // Exact: 24 bits, and a power of two.
        moved.extend(self.params.iter().enumerate().map(|(i, x)| x + (drawn(i) as f32 - 8_388_608.0) / 536_870_912.0));
        let config = self.lm.config();
        let (vocab, bits, seq_len) = (config.vocab_size, config.activation_bits, settings.seq_len.min(self.lm.rows()));
        let token = |i: usize| (drawn(i) as usize % vocab) as Token;
        self.inputs.clear();
        self.inputs.extend((0..seq_len).map(token));
        self.targets.clear();
        self.targets.extend((1..=seq_len).map(token));
        self.lm.set_activation_bits(bits);
        self.gradient.clear();
        let mut prepared = Prepared::new(cx, &mut *self.lm, &moved);
        let objective = Objective { scale: 1.0, z_loss: settings.z_loss, smoothing: settings.label_smoothing };
        let (inputs, targets) = (&self.inputs, &self.targets);
        self.gradient.add(cx, |grads, touched| {
            let nats = prepared.loss_backward(grads, inputs, targets, Shape { batch: 1, seq_len }, objective);
            prepared.model().touched(inputs, &mut |place, row| touched.add(place, row));
            nats
        });
        let mut hash = Xxh3::new();
        hash.update(&self.gradient.finish(cx).to_le_bytes());
        self.gradient.values().iter().for_each(|x| hash.update(&x.to_le_bytes()));
        self.total = moved;
        hash.digest()
    }

    /// Adds up what the ranks have; returns the loss of all passes, or nothing, and sets `stop`, where it is set on any rank.
    fn join(
        &mut self,
        stop: &AtomicBool,
        comm: &dyn Comm,
        loss: Option<f64>,
        began: Instant,
        sent: Sent,
    ) -> Result<Option<f64>, CommError> {
        let busy = began.elapsed().as_secs_f64().to_le_bytes();
        let own = [&[stop.load(Relaxed).into(), loss.is_some().into()][..], &loss.unwrap_or(0.0).to_le_bytes(), &busy];
        let all = gather(comm, &own.concat())?;
        if all.iter().any(|rank| rank[0] == 1) {
            stop.store(true, Relaxed);
            return Ok(None);
        }
        let losses: Vec<_> = all.iter().map(|rank| (rank[1] == 1).then(|| number(&rank[2..]))).collect();
        let busy: Vec<_> = all.iter().map(|rank| number(&rank[10..])).collect();
        let slowest = busy.iter().copied().fold(0.0, f64::max);
        self.waited.resize(busy.len(), 0.0);
        self.waited.iter_mut().zip(busy).for_each(|(waited, busy)| *waited += slowest - busy);
        self.total.clear();
        match loss {
            Some(_) => self.total.extend_from_slice(self.gradient.values()),
            None => self.total.resize(self.params.len(), NOTHING),
        }
        comm.sum_as(&mut self.total, sent)?;
        Ok(sum(&losses))
    }
}

/// Added as gradients are.
fn sum(losses: &[Option<f64>]) -> Option<f64> {
    if let [one] = losses {
        return *one;
    }
    let (left, right) = losses.split_at(losses.len() / 2);
    match (sum(left), sum(right)) {
        (Some(left), Some(right)) => Some(left + right),
        (one, other) => one.or(other),
    }
}

fn number(bytes: &[u8]) -> f64 {
    f64::from_le_bytes(std::array::from_fn(|i| bytes[i]))
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::Isa;
    use flashlm_model::mixer;

    use super::*;
    use crate::config::{Settings, preset};
    use crate::gradient::tests::tree;

    fn small() -> Settings {
        let mut settings = preset("v4-small").unwrap();
        settings.model = ModelConfig { vocab_size: 50, dim: 16, blocks: 1, ffn_hidden: 24, ..settings.model };
        settings
    }

    fn first<'a>(shape: Shape, settings: &'a Settings) -> Step<'a> {
        Step { shape, settings: &settings.train, lr: 1e-3, momentum: settings.train.momentum, number: 1, frozen: 0 }
    }

    fn window(i: usize, len: usize) -> Vec<Token> {
        (0..len).map(|j| ((i * 31 + j * j * 7) % 50) as Token).collect()
    }

    #[test]
    fn passes_add_up_to_the_whole_batch() {
        let (cx, settings) = (Exec::new(Isa::detect().unwrap(), 2), small());
        // 4,800 rows: two full micro-batches and a short one.
        let (batch, seq_len) = (48, 100);
        let shape = Shape { batch, seq_len };
        let data: Vec<Vec<Token>> = (0..batch).map(|i| window(i, seq_len + 1)).collect();
        let mut stepper = Stepper::new(&settings.model, Precision::F32, shape, &settings.train).unwrap();
        assert!(stepper.lm.rows() < batch * seq_len);
        let mut whole = Precision::F32.build(&settings.model, batch * seq_len, true).unwrap();
        let part = |r: fn(&Vec<Token>) -> &[Token]| data.iter().flat_map(|w| r(w).to_vec()).collect::<Vec<_>>();
        let (inputs, targets) = (part(|w| &w[..w.len() - 1]), part(|w| &w[1..]));
        let mut grads = vec![0.0; stepper.params.len()];
        let scale = 1.0 / (batch * seq_len) as f64;
        let objective = Objective { scale, z_loss: settings.train.z_loss, smoothing: 0.0 };
        let mut prepared = Prepared::new(&cx, &mut *whole, &stepper.params);
        let nats = prepared.loss_backward(&mut grads, &inputs, &targets, shape, objective);
        let norm = grads.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();

        let result = stepper.step(&cx, first(shape, &settings), |i| &data[i]);
        assert!((result.loss - nats * scale).abs() < 1e-6 * result.loss, "{} for {}", result.loss, nats * scale);
        assert!((result.grad_norm - norm).abs() < 1e-5 * norm, "{} for {norm}", result.grad_norm);
        for (own, want) in stepper.gradient.values().iter().zip(&grads) {
            assert!((own - want).abs() <= 1e-5 * norm as f32, "{own} for {want}");
        }
    }

    /// A share of the positions, with smoothed labels: those drawn, as targets of one pass, whatever the passes.
    #[test]
    fn the_loss_is_of_the_positions_that_were_drawn() {
        let (cx, mut settings) = (Exec::new(Isa::detect().unwrap(), 2), preset("v3").unwrap());
        settings.model = ModelConfig { vocab_size: 50, dim: 32, ffn_hidden: 24, ..settings.model };
        let (batch, seq_len) = (12, 30);
        let shape = Shape { batch, seq_len };
        let data: Vec<Vec<Token>> = (0..batch).map(|i| window(i, seq_len + 1)).collect();
        let inputs: Vec<Token> = data.iter().flat_map(|w| w[..seq_len].to_vec()).collect();
        let positions = Positions::new(0.25, settings.train.seed, 1);
        let mut targets: Vec<Token> = data.iter().flat_map(|w| w[1..].to_vec()).collect();
        (0..).zip(&mut targets).filter(|(row, _)| !positions.has(*row)).for_each(|(_, target)| *target = NO_TARGET);
        let drawn = targets.iter().filter(|&&target| target != NO_TARGET).count();
        assert!((40..140).contains(&drawn), "{drawn} of 360");
        for model in [settings.model.clone(), ModelConfig { vocab_size: 50, dim: 16, ..ModelConfig::v4_small() }] {
            settings.train.pass_rows = 100;
            let mut stepper = Stepper::new(&model, Precision::F32, shape, &settings.train).unwrap();
            let mut whole = Precision::F32.build(&model, batch * seq_len, true).unwrap();
            let mut grads = vec![0.0; stepper.params.len()];
            let scale = 1.0 / drawn as f64;
            let objective = Objective { scale, z_loss: 1e-4, smoothing: 0.1 };
            let params = stepper.params.clone();
            let mut prepared = Prepared::new(&cx, &mut *whole, &params);
            let nats = prepared.loss_backward(&mut grads, &inputs, &targets, shape, objective);
            let result = stepper.step(&cx, first(shape, &settings), |i| &data[i]);
            assert_eq!(result.tokens, 360);
            assert!((result.loss - nats * scale).abs() < 1e-6 * result.loss, "{} for {}", result.loss, nats * scale);
            let norm = grads.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            for (own, want) in stepper.gradient.values().iter().zip(&grads) {
                assert!((own - want).abs() <= 1e-5 * norm as f32, "{own} for {want}");
            }
        }
    }

    /// Of full passes and a short one, each computed by itself.
    #[test]
    fn passes_are_added_in_a_tree() {
        let mut settings = small();
        // Two sequences each.
        settings.train.pass_rows = 90;
        let seq_len = 40;
        for threads in 1..=3 {
            let cx = Exec::new(Isa::detect().unwrap(), threads);
            for batch in 1..=18 {
                let shape = Shape { batch, seq_len };
                let data: Vec<Vec<Token>> = (0..batch).map(|i| window(i, seq_len + 1)).collect();
                let mut stepper = Stepper::new(&settings.model, Precision::F32, shape, &settings.train).unwrap();
                let params = stepper.params.clone();
                let mut alone = Precision::F32.build(&settings.model, 2 * seq_len, true).unwrap();
                let mut alone = Prepared::new(&cx, &mut *alone, &params);
                let objective =
                    Objective { scale: 1.0 / shape.rows() as f64, z_loss: settings.train.z_loss, smoothing: 0.0 };
                let pass = |windows: &[Vec<Token>]| {
                    let inputs: Vec<Token> = windows.iter().flat_map(|w| w[..seq_len].to_vec()).collect();
                    let targets: Vec<Token> = windows.iter().flat_map(|w| w[1..].to_vec()).collect();
                    let mut grads = vec![0.0; params.len()];
                    let shape = Shape { batch: windows.len(), seq_len };
                    let nats = alone.loss_backward(&mut grads, &inputs, &targets, shape, objective);
                    (grads, nats)
                };
                let passes: Vec<_> = data.chunks(2).map(pass).collect();
                let (grads, nats) = tree(&passes, 0, passes.len().next_power_of_two()).unwrap();
                let result = stepper.step(&cx, first(shape, &settings), |i| &data[i]);
                assert_eq!(result.loss, nats * objective.scale, "batch {batch} on {threads} threads");
                assert!(stepper.gradient.values() == grads, "batch {batch} on {threads} threads");
            }
        }
    }

    /// Documents of several lengths, padded, against each alone in its own micro-batch: every mixer, with a soft cap and z-loss.
    #[test]
    fn padding_leaves_no_trace_in_loss_and_gradients() {
        let (seq_len, lengths) = (40, [40, 7, 1, 23]);
        let total: usize = lengths.iter().sum();
        let stories: Vec<Vec<Token>> = lengths.iter().enumerate().map(|(i, len)| window(i, len + 1)).collect();
        for &mixer in mixer::NAMES {
            for precision in [Precision::F32, Precision::Bf16] {
                let (cx, mut settings) = (Exec::new(Isa::detect().unwrap(), 2), small());
                let of = ModelConfig { mixer: mixer.into(), logit_softcap: 15.0, blocks: 2, ..settings.model };
                settings.model = ModelConfig { x0: true, bigram: 64, layer_embeddings: true, ..of };
                settings.train.z_loss = 1e-2;
                let shape = Shape { batch: lengths.len(), seq_len };
                let mut stepper = Stepper::new(&settings.model, precision, shape, &settings.train).unwrap();
                let params = stepper.params.clone();
                let mut alone = precision.build(&settings.model, seq_len, true).unwrap();
                let mut alone = Prepared::new(&cx, &mut *alone, &params);
                let objective = Objective { scale: 1.0 / total as f64, z_loss: settings.train.z_loss, smoothing: 0.0 };
                let (mut grads, mut nats) = (vec![0.0; params.len()], 0.0);
                for story in &stories {
                    let shape = Shape { batch: 1, seq_len: story.len() - 1 };
                    nats += alone.loss_backward(&mut grads, &story[..shape.seq_len], &story[1..], shape, objective);
                }
                let result = stepper.step(&cx, first(shape, &settings), |i| &stories[i]);
                assert_eq!(result.tokens, total as u64);
                let loss = nats / total as f64;
                assert!((result.loss - loss).abs() < 1e-6 * loss, "{mixer}: {} for {loss}", result.loss);
                let off = |a: &[f32], b: &[f32]| {
                    let square = |x: f32| f64::from(x) * f64::from(x);
                    let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
                    (off / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
                };
                let (ratio, bound) =
                    (off(stepper.gradient.values(), &grads), if precision == Precision::F32 { 1e-5 } else { 5e-3 });
                assert!(ratio < bound, "{mixer}, {}: {ratio:e}", precision.name());
            }
        }
    }

    /// The same rows of the batch drop the same, whatever pass they are in; another step drops others.
    #[test]
    fn dropout_does_not_depend_on_passes() {
        let (cx, mut settings) = (Exec::new(Isa::detect().unwrap(), 2), small());
        settings.model = ModelConfig { blocks: 2, bigram: 64, layer_embeddings: true, ..settings.model };
        let (batch, seq_len) = (7, 40);
        let data: Vec<Vec<Token>> = (0..batch).map(|i| window(i, seq_len + 1)).collect();
        let shape = Shape { batch, seq_len };
        let mut run = |dropout, pass_rows, number| {
            (settings.train.dropout, settings.train.pass_rows) = (dropout, pass_rows);
            let mut stepper = Stepper::new(&settings.model, Precision::F32, shape, &settings.train).unwrap();
            let result = stepper.step(&cx, Step { number, ..first(shape, &settings) }, |i| &data[i]);
            (result.loss, stepper.gradient.values().to_vec())
        };
        let whole = run(0.3, 280, 1);
        let off = |other: &(f64, Vec<f32>)| {
            let square = |x: f32| f64::from(x).powi(2);
            let off: f64 = whole.1.iter().zip(&other.1).map(|(a, b)| square(a - b)).sum();
            (off / whole.1.iter().map(|&a| square(a)).sum::<f64>()).sqrt()
        };
        for pass_rows in [40, 80, 120] {
            let cut = run(0.3, pass_rows, 1);
            assert!((cut.0 - whole.0).abs() < 1e-6 && off(&cut) < 1e-5, "{pass_rows} rows: {:.1e}", off(&cut));
        }
        assert!(off(&run(0.3, 280, 2)) > 1e-3 && off(&run(0.0, 280, 1)) > 1e-3);
    }

    #[test]
    fn what_is_not_a_number_changes_nothing() {
        let (cx, settings) = (Exec::new(Isa::detect().unwrap(), 1), small());
        let data = window(1, 21);
        let shape = Shape { batch: 1, seq_len: 20 };
        let mut stepper = Stepper::new(&settings.model, Precision::F32, shape, &settings.train).unwrap();
        let at = stepper.lm.layout().find("final_norm.scale").unwrap().range.start;
        stepper.params[at] = f32::INFINITY;
        let before = stepper.params.to_vec();
        let result = stepper.step(&cx, first(shape, &settings), |_| &data);
        assert!(!result.is_finite());
        assert_eq!(before, stepper.params.to_vec());
    }
}
