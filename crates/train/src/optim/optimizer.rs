//! What an optimizer is: an update of the parameters it owns, and a state that a checkpoint can hold.

use flashlm_kernels::Exec;
use flashlm_model::params::{Group, Spec};

/// The figures of all optimizers, as `[train]` names them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Settings {
    /// AdamW's learning rate at the peak of the schedule.
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest global norm of a gradient.
    pub clip: f64,
    /// Peak learning rate of the matrices under Muon and NorMuon.
    pub matrix_lr: f64,
    /// Decay of Muon's and NorMuon's running mean of gradients in this step.
    pub momentum: f64,
    /// Whether Muon and NorMuon scale the rows of what goes into Newton-Schulz to equal norms.
    pub row_normalise: bool,
    /// Steps of Newton-Schulz.
    pub newton_schulz_steps: usize,
    /// Decay of NorMuon's running mean square of each row, per step.
    pub matrix_beta2: f64,
    /// Weight decay of the matrices under Muon and NorMuon.
    pub matrix_weight_decay: f64,
    /// First steps in which the embedding stays as it started.
    pub frozen_embedding: u64,
}

/// What one update is told besides parameters and gradients.
pub(super) struct Step<'a> {
    pub settings: &'a Settings,
    /// Learning rate of AdamW; that of the matrices falls with it.
    pub lr: f64,
    /// Number of the update, from 1.
    pub number: u64,
    /// The clip's factor for every gradient.
    pub grad_scale: f64,
}

impl Step<'_> {
    /// Learning rate of the master matrices: `matrix_lr` at the peak of the schedule.
    pub fn matrix_lr(&self) -> f64 {
        self.settings.matrix_lr * self.lr / self.settings.lr
    }
}

/// One tensor of an optimizer's state, as a checkpoint names it.
pub struct Tensor<'a> {
    /// Kind of state and name of the parameter, such as `m.final_norm.scale`.
    pub name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// The values.
    pub data: &'a mut [f32],
}

/// Whether an optimizer gets the parameters of a group.
pub(super) type Owns<'a> = &'a dyn Fn(Group) -> bool;

/// What changes some of the parameters, by their gradients.
pub(super) trait Optimizer: Send {
    /// One update of those of `params` that it owns. Nothing is allocated.
    fn step(&mut self, cx: &Exec, params: &mut [f32], grads: &[f32], step: &Step);

    /// All that the next update depends on, besides parameters and gradients.
    fn state(&mut self) -> Vec<Tensor<'_>>;
}

/// The tensors of a buffer that holds one value of this kind for each parameter from `start` on, gaps included.
pub fn tensors<'a>(kind: &str, specs: &[Spec], start: usize, mut buf: &'a mut [f32]) -> Vec<Tensor<'a>> {
    let mut at = start;
    let tensor = |spec: &Spec| {
        let (_, from) = std::mem::take(&mut buf).split_at_mut(spec.range.start - at);
        let (data, after) = from.split_at_mut(spec.range.len());
        (buf, at) = (after, spec.range.end);
        Tensor { name: format!("{kind}.{}", spec.name), shape: spec.shape.clone(), data }
    };
    specs.iter().map(tensor).collect()
}

/// Rows and columns of a matrix.
pub(super) fn sizes(spec: &Spec) -> (usize, usize) {
    (spec.shape[0], spec.range.len() / spec.shape[0])
}
