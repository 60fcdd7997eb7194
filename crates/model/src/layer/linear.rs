//! BitLinear: `y = x Wq^T`, `x: [rows, in]`, `W: [out, in]`, `Wq` the ternary form of the latent `W` (see
//! [`flashlm_kernels::ops::quantise`]), optionally with an RMSNorm of its own on `x`. No bias.
//!
//! Backward: `dx = dy Wq`, `dW = dy^T x` straight through to `W` (arXiv 1308.3432). Weights are quantised and packed once
//! a step by `prepare`.

use std::ops::Range;

use flashlm_kernels::ops::{Packed, Quant, matmul, matmul_tn, quantise};
use flashlm_kernels::{Elem, Exec};

use crate::config::ModelConfig;
use crate::layer::LinearScratch;
use crate::layer::norm::Norm;
use crate::params::{Group, Init, Layout};

/// One matrix.
pub struct Linear<E: Elem> {
    weight: Range<usize>,
    norm: Option<Norm<E>>,
    inputs: usize,
    outputs: usize,
    quant: Option<Quant>,
    forward: Packed<E>,
    backward: Option<Packed<E>>,
}

impl<E: Elem> Linear<E> {
    /// Adds `name.weight: [out, in]` and, with the config's switch, `name.norm.scale: [in]` to the layout.
    pub fn new(
        layout: &mut Layout,
        name: &str,
        (outputs, inputs): (usize, usize),
        config: &ModelConfig,
        rows: usize,
        training: bool,
    ) -> Self {
        let init = Init::Normal((2.0 / outputs as f64).sqrt());
        let weight = layout.add(format!("{name}.weight"), &[outputs, inputs], init, Group::Matrix);
        let norm = || Norm::new(layout, format!("{name}.norm.scale"), inputs, config.norm_eps, rows);
        Linear {
            weight,
            norm: config.quant.norm.then(norm),
            inputs,
            outputs,
            quant: config.quant.quant(),
            forward: Packed::new(inputs, outputs),
            backward: training.then(|| Packed::new(outputs, inputs)),
        }
    }

    /// Quantises and packs the weight; to be called after every change of `params`.
    pub fn prepare(&mut self, cx: &Exec, params: &[E], s: &mut LinearScratch<E>) {
        let w = &params[self.weight.clone()];
        let w = match self.quant {
            None => w,
            Some(quant) => {
                let wq = &mut s.wq[..w.len()];
                quantise(cx, wq, &mut s.magnitudes, w, (self.outputs, self.inputs), quant);
                &*wq
            }
        };
        self.forward.pack_transposed(cx, w, self.inputs, self.outputs);
        if let Some(backward) = &mut self.backward {
            backward.pack(cx, w, self.inputs, self.outputs, self.inputs);
        }
    }

    /// `y: [rows, out]`, added to where `accumulate`.
    pub fn forward(
        &mut self,
        cx: &Exec,
        y: &mut [E],
        x: &[E],
        params: &[E],
        s: &mut LinearScratch<E>,
        rows: usize,
        accumulate: bool,
    ) {
        let x = match &mut self.norm {
            None => x,
            Some(norm) => {
                norm.forward(cx, &mut s.x, x, params, rows);
                &s.x
            }
        };
        matmul(cx, y, x, self.inputs, &self.forward, rows, accumulate);
    }

    /// `dx: [rows, in]`, added to where `accumulate`; gradients of the parameters are added to `grads`.
    pub fn backward(
        &mut self,
        cx: &Exec,
        dx: &mut [E],
        grads: &mut [E],
        dy: &[E],
        x: &[E],
        params: &[E],
        s: &mut LinearScratch<E>,
        rows: usize,
        accumulate: bool,
    ) {
        let weight = self.backward.as_ref().expect("a model built for inference has no backward pass");
        let size = (self.outputs, self.inputs, rows);
        let dw = &mut grads[self.weight.clone()];
        match &mut self.norm {
            None => {
                matmul_tn(cx, dw, &mut s.packed, dy, self.outputs, x, self.inputs, size, true);
                matmul(cx, dx, dy, self.outputs, weight, rows, accumulate);
            }
            Some(norm) => {
                norm.forward(cx, &mut s.x, x, params, rows);
                matmul_tn(cx, dw, &mut s.packed, dy, self.outputs, &s.x, self.inputs, size, true);
                matmul(cx, &mut s.dx, dy, self.outputs, weight, rows, false);
                norm.backward(cx, dx, grads, &mut s.partials, &s.dx, x, params, rows, accumulate);
            }
        }
    }
}
