//! AdamW. The formula of the update is in [`flashlm_kernels::ops::adamw_step`].

use std::ops::Range;

use flashlm_kernels::{Buf, Exec, ops};
use flashlm_model::params::{Group, Layout, Spec};

use super::optimizer::{Optimizer, Owns, Step, Tensor, tensors};

/// Whether weight decay acts on a group.
fn decays(group: Group) -> bool {
    match group {
        Group::Matrix | Group::Embedding | Group::Table | Group::Norm | Group::Conv | Group::Gate => true,
        Group::Scalar | Group::Unused | Group::Constant => false,
    }
}

/// AdamW over runs of neighbours that are treated alike.
pub struct AdamW {
    runs: Vec<Run>,
}

/// Parameters that follow each other, gaps included.
struct Run {
    specs: Vec<Spec>,
    range: Range<usize>,
    decays: bool,
    /// Whether it is the embedding, which may be frozen for a while.
    embedding: bool,
    /// Running mean of gradients.
    m: Buf<f32>,
    /// Running mean of squared gradients.
    v: Buf<f32>,
}

impl AdamW {
    /// Zero moments.
    pub fn new(layout: &Layout, owns: Owns) -> Self {
        let treated = |spec: &Spec| owns(spec.group).then(|| (decays(spec.group), spec.group == Group::Embedding));
        let run = |specs: &[Spec]| {
            let (decays, embedding) = treated(&specs[0])?;
            let range = specs[0].range.start..specs[specs.len() - 1].range.end;
            let [m, v] = [(); 2].map(|()| Buf::zeros(range.len()));
            Some(Run { specs: specs.to_vec(), range, decays, embedding, m, v })
        };
        AdamW { runs: layout.specs().chunk_by(|a, b| treated(a) == treated(b)).filter_map(run).collect() }
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, cx: &Exec, params: &mut [f32], grads: &[f32], step: &Step) {
        let t = step.settings;
        for run in &mut self.runs {
            let frozen = if run.embedding { t.frozen_embedding } else { 0 };
            if step.number <= frozen {
                continue;
            }
            let settings = ops::AdamW {
                lr: step.lr,
                beta1: t.beta1,
                beta2: t.beta2,
                eps: t.eps,
                weight_decay: if run.decays { t.weight_decay } else { 0.0 },
                step: step.number - frozen,
                grad_scale: step.grad_scale,
            };
            let (params, grads) = (&mut params[run.range.clone()], &grads[run.range.clone()]);
            ops::adamw_step(cx, params, &mut run.m, &mut run.v, grads, settings);
        }
    }

    fn state(&mut self) -> Vec<Tensor<'_>> {
        let mut all = Vec::new();
        for Run { specs, range, m, v, .. } in &mut self.runs {
            all.extend(tensors("m", specs, range.start, m));
            all.extend(tensors("v", specs, range.start, v));
        }
        all
    }
}
