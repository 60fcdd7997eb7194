//! BitLinear: `y = x Wq^T`, `x: [rows, in]`, `W: [out, in]`, `Wq` the ternary form of the latent `W` (see
//! [`flashlm_kernels::ops::quantise`]), optionally with an RMSNorm of its own on `x`. No bias.
//!
//! Backward: `dx = dy Wq`, `dW = dy^T x` straight through to `W` (arXiv 1308.3432). Weights are quantised and packed once
//! a step by `prepare`. Forward and input gradient run on one tile of rows, the weight gradient on all rows.
//!
//! The matrix that leads back to the residual stream is the branch's output projection. It has switches of its own: the
//! norm alone (sub-LN, arXiv 2210.06423), and a start at zero, where the straight-through gradient moves it first.
//!
//! With int8 activations both products with `x` take it rounded ([`crate::layer::round`]), after the norm of the matrix's own;
//! `dx` passes straight through the rounding.

use std::ops::Range;

use flashlm_kernels::ops::{Packed, Quant, matmul, matmul_transposed, narrow, quantise};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Buf, Exec, Store};

use crate::config::ModelConfig;
use crate::layer::norm::{Input, Norm};
use crate::layer::round::round;
use crate::layer::{NO_BACKWARD, Scratch};
use crate::params::{Group, Init, Layout};

/// One matrix.
pub struct Linear<A: Store> {
    weight: Range<usize>,
    norm: Option<Norm>,
    inputs: usize,
    outputs: usize,
    quant: Option<Quant>,
    forward: Packed<A>,
    backward: Option<Packed<A>>,
    /// Whether inputs are rounded to int8.
    pub(crate) int8: bool,
}

impl<A: Store> Linear<A> {
    /// Adds `name.weight: [out, in]` and, with the config's switch, `name.norm.scale: [in]` to the layout.
    pub fn new(layout: &mut Layout, name: &str, size: (usize, usize), config: &ModelConfig, training: bool) -> Self {
        let init = Init::Normal((2.0 / size.0 as f64).sqrt());
        Linear::with(layout, name, size, config, training, (config.quant.norm, init))
    }

    /// The same for the output projection of a branch.
    pub fn output(layout: &mut Layout, name: &str, size: (usize, usize), config: &ModelConfig, training: bool) -> Self {
        let init = if config.zero_init { Init::Zeros } else { Init::Normal((2.0 / size.0 as f64).sqrt()) };
        Linear::with(layout, name, size, config, training, (config.quant.norm || config.sub_norm, init))
    }

    fn with(
        layout: &mut Layout,
        name: &str,
        (outputs, inputs): (usize, usize),
        config: &ModelConfig,
        training: bool,
        (has_norm, init): (bool, Init),
    ) -> Self {
        let weight = layout.add(format!("{name}.weight"), &[outputs, inputs], init, Group::Matrix);
        let norm = || Norm::new(layout, format!("{name}.norm.scale"), inputs, config.norm_eps);
        let norm = has_norm.then(norm);
        Self::of(weight, norm, config.quant.quant(), (outputs, inputs), training)
    }

    /// Parameters of one of this size.
    pub fn parameters((outputs, inputs): (usize, usize), config: &ModelConfig) -> usize {
        (outputs + usize::from(config.quant.norm)) * inputs
    }

    /// The same of an output projection.
    pub fn output_parameters((outputs, inputs): (usize, usize), config: &ModelConfig) -> usize {
        (outputs + usize::from(config.quant.norm || config.sub_norm)) * inputs
    }

    /// A small matrix that stays float: `name.weight: [out, in]`.
    pub fn float(layout: &mut Layout, name: &str, (outputs, inputs): (usize, usize), training: bool) -> Self {
        let init = Init::Normal((1.0 / (3 * inputs) as f64).sqrt());
        let weight = layout.add(format!("{name}.weight"), &[outputs, inputs], init, Group::Gate);
        Self::of(weight, None, None, (outputs, inputs), training)
    }

    fn of(
        weight: Range<usize>,
        norm: Option<Norm>,
        quant: Option<Quant>,
        (outputs, inputs): (usize, usize),
        training: bool,
    ) -> Self {
        let (forward, backward) = (Packed::new(inputs, outputs), training.then(|| Packed::new(outputs, inputs)));
        Linear { weight, norm, inputs, outputs, quant, forward, backward, int8: false }
    }

    /// Quantises and packs the weight; to be called after every change of `params`.
    pub fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        let w = &params[self.weight.clone()];
        let wq = &mut s.weight[..w.len()];
        match self.quant {
            None => narrow(cx, wq, w),
            Some(quant) => quantise(cx, wq, &mut s.magnitudes, w, (self.outputs, self.inputs), quant),
        }
        self.forward.pack_transposed(cx, wq, self.inputs, self.outputs);
        if let Some(backward) = &mut self.backward {
            backward.pack(cx, wq, self.inputs, self.outputs, self.inputs);
        }
    }

    /// Elements that a tile keeps for the gradient of the norm's scale.
    pub fn part_width(&self) -> usize {
        self.norm.as_ref().map_or(0, Norm::width)
    }

    /// Whether the input goes through a norm of the matrix's own.
    pub fn has_norm(&self) -> bool {
        self.norm.is_some()
    }

    /// One tile: `y: [rows, out]`, added to where `accumulate`.
    pub fn forward(&self, cx: &Exec, y: &mut [A::E], x: Input<A>, params: &[A::E], local: &Local, accumulate: bool) {
        let rows = x.size() / self.inputs;
        let x = match (&self.norm, x) {
            (None, Input::Kept(x)) if !self.int8 => x,
            _ => {
                let operand = local.take(x.size());
                self.operand(cx, operand, x, params);
                operand
            }
        };
        matmul(cx, y, x, self.inputs, &self.forward, rows, accumulate);
    }

    /// What the product takes of `x`: normalised where the matrix has a norm, and rounded where activations are.
    fn operand(&self, cx: &Exec, operand: &mut [A], x: Input<A>, params: &[A::E]) {
        match (&self.norm, x) {
            (None, Input::Kept(x)) => operand.copy_from_slice(x),
            (None, Input::Stream(h)) => narrow(cx, operand, h),
            (Some(norm), Input::Kept(x)) => norm.forward(cx, operand, x, params),
            (Some(norm), Input::Stream(h)) => norm.forward(cx, operand, h, params),
        }
        if self.int8 {
            round(cx, operand, self.inputs);
        }
    }

    /// One tile: `dx: [rows, in]`, added to where `accumulate`; `part: [part_width]` is added to.
    pub fn backward_input(
        &self,
        cx: &Exec,
        dx: &mut [A::E],
        part: &mut [A::E],
        dy: &[A],
        x: Input<A>,
        params: &[A::E],
        local: &Local,
        accumulate: bool,
    ) {
        let weight = self.backward.as_ref().expect(NO_BACKWARD);
        let rows = dy.len() / self.outputs;
        let Some(norm) = &self.norm else { return matmul(cx, dx, dy, self.outputs, weight, rows, accumulate) };
        let dnormed = local.take(rows * self.inputs);
        matmul(cx, dnormed, dy, self.outputs, weight, rows, false);
        match x {
            Input::Kept(x) => norm.backward(cx, dx, part, dnormed, x, params, accumulate),
            Input::Stream(h) => norm.backward(cx, dx, part, dnormed, h, params, accumulate),
        }
    }

    /// All rows: adds the gradients of the weights of matrices with the same input `x`, given as `(matrix, dy, at)`, and of their
    /// norms' scales from `parts: [tiles, width]` at `at`.
    pub fn backward_weights(
        cx: &Exec,
        grads: &mut [A::E],
        matrices: &[(&Self, &[A], usize)],
        x: Input<A>,
        params: &[A::E],
        w: &mut WeightScratch<A>,
        (parts, width): (&[A::E], usize),
    ) {
        // Where the packed input is that of a matrix without a norm, whether it is rounded: the next such one takes it as it is.
        let mut shared = None;
        for &(linear, dy, at) in matrices {
            let rows = x.size() / linear.inputs;
            if linear.norm.is_some() || shared != Some(linear.int8) {
                let x = match (&linear.norm, x) {
                    (None, Input::Kept(x)) if !linear.int8 => x,
                    _ => {
                        let operand = &mut w.operand[..x.size()];
                        linear.operand(cx, operand, x, params);
                        operand
                    }
                };
                w.packed.pack(cx, x, linear.inputs, rows, linear.inputs);
                shared = linear.norm.is_none().then_some(linear.int8);
            }
            let dw = &mut grads[linear.weight.clone()];
            matmul_transposed(cx, dw, dy, linear.outputs, &w.packed, linear.outputs, true);
            if let Some(norm) = &linear.norm {
                norm.add_parts(grads, parts, width, at);
            }
        }
    }
}

/// Working memory of weight gradients.
pub struct WeightScratch<A: Store> {
    /// The packed input.
    pub packed: Packed<A>,
    /// The input as the product takes it, where that is not what the branch's norm has made.
    pub operand: Buf<A>,
}
