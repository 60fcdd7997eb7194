//! BitLinear: `y = x Wq^T`, `x: [rows, in]`, `W: [out, in]`, `Wq` the ternary form of the master `W` (see
//! [`flashlm_kernels::ops::quantise`]), optionally with its own RMSNorm on `x`. No bias.
//!
//! Backward: `dx = dy Wq`, `dW = dy^T x` straight through to `W` (arXiv 1308.3432). Weights are quantised and packed once
//! a step by `prepare`. Forward and input gradient run on one tile of rows, the weight gradient on all rows.
//!
//! The matrix that leads back to the residual stream is the branch's output projection. It has its own switches: the
//! norm alone (sub-LN, arXiv 2210.06423), and a start at zero, where the straight-through gradient moves it first.
//!
//! In int8 (`Linear::int8`) the forward matmul takes rows of `x` rounded to int8, and where a matrix has one scale that of the input's
//! gradient rows of `dy`; the weight gradient takes `x` and `dy` as they are.
//!
//! With int8 activations both matmuls with `x` take it rounded ([`crate::layer::round`]), after the norm of the matrix's own;
//! `dx` passes straight through the rounding.

use std::ops::Range;

use flashlm_kernels::ops::{
    CodeRows, Codes, Packed, Quant, Scale, matmul, matmul_int8, matmul_transposed, narrow, quantise,
};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Exec, Store};

use super::norm::{Input, Norm, Tiles};
use super::pass::Pass;
use super::round::round;
use super::scratch::{Scratch, WeightScratch};

/// What a backward pass says without the weights for it.
pub(crate) const NO_BACKWARD: &str = "a model built for inference has no backward pass";

/// Where one matrix lies, and what becomes of it.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Its place among the parameters: `[outputs, inputs]`.
    pub weight: Range<usize>,
    /// Its own RMSNorm on the input.
    pub norm: Option<Norm>,
    /// Width of a row of `x`.
    pub inputs: usize,
    /// Width of a row of `y`.
    pub outputs: usize,
    /// How it becomes ternary; `None`: it stays float.
    pub quant: Option<Quant>,
    /// Whether it is multiplied in int8.
    pub int8: bool,
    /// Whether it is no BitLinear: its input is never rounded either.
    pub float: bool,
}

/// A matrix with its weights packed for matmuls.
pub struct BitLinear<A: Store> {
    of: Linear,
    forward: Operand<A>,
    backward: Option<Operand<A>>,
}

/// The weights of one of its two matmuls, `[k, n]`.
enum Operand<A: Store> {
    Float(Packed<A>),
    Int8(Codes),
}

impl<A: Store> Operand<A> {
    /// `segment`: depths that share a scale, where they are multiplied in int8.
    fn new(k: usize, n: usize, segment: Option<usize>) -> Self {
        segment
            .map_or_else(|| Operand::Float(Packed::new(k, n)), |segment| Operand::Int8(Codes::segments(k, n, segment)))
    }

    /// One tile: `y: [rows, n] (+)= x w`, `x: [rows, k]`.
    fn multiply(&self, cx: &Exec, y: &mut [A::E], x: &[A], k: usize, local: &Local, accumulate: bool) {
        match self {
            Operand::Float(packed) => matmul(cx, y, x, k, packed, x.len() / k, accumulate),
            Operand::Int8(codes) => local.within(|local| {
                matmul_int8(cx, y, &CodeRows::round(cx, local, x, k, codes.segment()), codes, accumulate);
            }),
        }
    }
}

impl<A: Store> BitLinear<A> {
    /// Room for the packed weights; those that only a backward pass takes are left out unless `training`.
    pub fn new(of: &Linear, training: bool) -> Self {
        let Linear { inputs, outputs, int8, quant, .. } = *of;
        let int8 = int8 && inputs.max(outputs) <= CodeRows::WIDEST;
        // Forward, a group is a segment of depths. Backward the groups of a column have scales of their own at each depth.
        let (forward, backward) = match quant.map(|quant| quant.scale) {
            Some(Scale::Tensor | Scale::Unit) if int8 => (Some(inputs), Some(outputs)),
            Some(Scale::Group(n)) if int8 && (n >= inputs || n.is_multiple_of(4)) => (Some(n), None),
            _ => (None, None),
        };
        let backward = training.then(|| Operand::new(outputs, inputs, backward));
        BitLinear { of: of.clone(), forward: Operand::new(inputs, outputs, forward), backward }
    }

    /// Quantises and packs the weight.
    pub fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        let Linear { weight, inputs, outputs, quant, .. } = &self.of;
        let (w, inputs, outputs) = (&params[weight.clone()], *inputs, *outputs);
        let wq = &mut s.weight[..w.len()];
        match *quant {
            None => narrow(cx, wq, w),
            Some(quant) => quantise(cx, wq, &mut s.magnitudes, w, (outputs, inputs), quant),
        }
        match &mut self.forward {
            Operand::Float(packed) => packed.pack_transposed(cx, wq, inputs, outputs),
            Operand::Int8(codes) => codes.pack_transposed(cx, wq, inputs, outputs),
        }
        match &mut self.backward {
            Some(Operand::Float(packed)) => packed.pack(cx, wq, inputs, outputs, inputs),
            Some(Operand::Int8(codes)) => codes.pack(cx, wq, outputs, inputs),
            None => {}
        }
    }

    /// Whether the input goes through a norm of the matrix's own.
    pub fn has_norm(&self) -> bool {
        self.of.norm.is_some()
    }

    /// Whether its input is rounded to int8.
    fn rounds(&self, pass: Pass<A::E>) -> bool {
        pass.int8 && !self.of.float
    }

    /// One tile: `y: [rows, out]`, added to where `accumulate`.
    pub fn forward(&self, cx: &Exec, y: &mut [A::E], x: Input<A>, pass: Pass<A::E>, local: &Local, accumulate: bool) {
        let x = match (&self.of.norm, x) {
            (None, Input::Saved(x)) if !self.rounds(pass) => x,
            _ => {
                let operand = local.take(x.size());
                self.operand(cx, operand, x, pass);
                operand
            }
        };
        self.forward.multiply(cx, y, x, self.of.inputs, local, accumulate);
    }

    /// What the matmul takes of `x`: normalised where the matrix has a norm, and rounded where activations are.
    fn operand(&self, cx: &Exec, operand: &mut [A], x: Input<A>, pass: Pass<A::E>) {
        match (&self.of.norm, x) {
            (None, Input::Saved(x)) => operand.copy_from_slice(x),
            (None, Input::Residual(h)) => narrow(cx, operand, h),
            (Some(norm), Input::Saved(x)) => norm.forward(cx, operand, x, pass.params),
            (Some(norm), Input::Residual(h)) => norm.forward(cx, operand, h, pass.params),
        }
        if self.rounds(pass) {
            round(cx, operand, self.of.inputs);
        }
    }

    /// One tile: `dx: [rows, in]`, added to where `accumulate`; the gradient of the norm's scale is added to the tile's sums
    /// `part`.
    pub fn backward_input(
        &self,
        cx: &Exec,
        dx: &mut [A::E],
        part: &mut [A::E],
        dy: &[A],
        x: Input<A>,
        pass: Pass<A::E>,
        local: &Local,
        accumulate: bool,
    ) {
        let Linear { norm, inputs, outputs, .. } = &self.of;
        let weight = self.backward.as_ref().expect(NO_BACKWARD);
        let rows = dy.len() / outputs;
        let Some(norm) = norm else { return weight.multiply(cx, dx, dy, *outputs, local, accumulate) };
        let dnormed = local.take(rows * inputs);
        weight.multiply(cx, dnormed, dy, *outputs, local, false);
        match x {
            Input::Saved(x) => norm.backward(cx, dx, part, dnormed, x, pass.params, accumulate),
            Input::Residual(h) => norm.backward(cx, dx, part, dnormed, h, pass.params, accumulate),
        }
    }

    /// All rows: adds the gradients of the weights of matrices with the same input `x`, given as `(matrix, dy)`, and of their
    /// norms' scales.
    pub fn backward_weights(
        pass: Pass<A::E>,
        grads: &mut [A::E],
        matrices: &[(&Self, &[A])],
        x: Input<A>,
        w: &mut WeightScratch<A>,
        tiles: &Tiles<A::E>,
    ) {
        let cx = pass.cx;
        // Where the packed input is that of a matrix without a norm, whether it is rounded: the next such one takes it as it is.
        let mut shared = None;
        for &(matrix, dy) in matrices {
            let Linear { weight, norm, inputs, outputs, .. } = &matrix.of;
            let rows = x.size() / inputs;
            let rounds = matrix.rounds(pass);
            if norm.is_some() || shared != Some(rounds) {
                let x = match (norm, x) {
                    (None, Input::Saved(x)) if !rounds => x,
                    _ => {
                        let operand = &mut w.operand[..x.size()];
                        matrix.operand(cx, operand, x, pass);
                        operand
                    }
                };
                w.packed.pack(cx, x, *inputs, rows, *inputs);
                shared = norm.is_none().then_some(rounds);
            }
            matmul_transposed(cx, &mut grads[weight.clone()], dy, *outputs, &w.packed, *outputs, true);
            if let Some(norm) = norm {
                norm.add_parts(grads, tiles);
            }
        }
    }
}
