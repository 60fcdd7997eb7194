//! AdamW over all parameters, with clipping by global norm: `coef = min(1, clip / (norm + 1e-6))`, as PyTorch does it.
//! The formula of the update is in [`flashlm_kernels::ops::adamw_step`].

use flashlm_kernels::{Buf, Exec, ops};

use crate::config::TrainSettings;

/// First and second moments.
pub struct AdamW {
    /// Running mean of gradients.
    pub m: Buf<f32>,
    /// Running mean of squared gradients.
    pub v: Buf<f32>,
}

impl AdamW {
    /// Zero moments for `len` parameters.
    pub fn new(len: usize) -> Self {
        AdamW { m: Buf::zeros(len), v: Buf::zeros(len) }
    }

    /// Update number `step` (from 1) of `params`; returns the gradient's global norm before clipping.
    pub fn step(&mut self, cx: &Exec, params: &mut [f32], grads: &[f32], t: &TrainSettings, lr: f64, step: u64) -> f64 {
        let norm = ops::sum_squares(cx, grads).sqrt();
        if !norm.is_finite() {
            return norm;
        }
        let settings = ops::AdamW {
            lr,
            beta1: t.beta1,
            beta2: t.beta2,
            eps: t.eps,
            weight_decay: t.weight_decay,
            step,
            grad_scale: (t.clip / (norm + 1e-6)).min(1.0),
        };
        ops::adamw_step(cx, params, &mut self.m, &mut self.v, grads, settings);
        norm
    }
}
