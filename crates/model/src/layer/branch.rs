//! The parameters of one branch of the residual stream, added to a layout in order. Every layer gets two places: among the
//! parameters, and among the sums that one tile of rows keeps for gradients. Nothing here takes memory for weights.

use std::ops::Range;

use flashlm_kernels::ops::Quant;

use super::config::{LayerConfig, Need};
use super::linear::Linear;
use super::norm::{BranchNorm, Norm};
use super::taps::Taps;
use crate::params::{Group, Init, Layout};

/// A branch under construction.
pub struct Branch<'a> {
    layout: &'a mut Layout,
    prefix: String,
    config: &'a LayerConfig,
    norm: BranchNorm,
    need: Need,
}

impl<'a> Branch<'a> {
    /// Starts with the norm before the branch, `norm: [D]`, where the model has one; all else is named `prefix.`.
    pub fn new(layout: &'a mut Layout, norm: String, prefix: String, config: &'a LayerConfig) -> Self {
        let mut branch = Branch::bare(layout, prefix, config);
        if config.block_norm {
            branch.norm.0 = Some(branch.norm_named(norm, config.dim, config.eps));
        }
        branch
    }

    /// The same without a norm.
    pub fn bare(layout: &'a mut Layout, prefix: String, config: &'a LayerConfig) -> Self {
        Branch { layout, prefix, config, norm: BranchNorm(None), need: Need::default() }
    }

    /// What layers need to know of the model.
    pub fn config(&self) -> &LayerConfig {
        self.config
    }

    /// The norm before the branch.
    pub fn branch_norm(&self) -> BranchNorm {
        self.norm.clone()
    }

    /// The scratch that all layers added so far ask for.
    pub fn need(&self) -> Need {
        self.need
    }

    /// A ternary matrix `name.weight: [outputs, inputs]`.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Linear {
        let init = Init::Normal((2.0 / outputs as f64).sqrt());
        self.ternary(name, outputs, inputs, self.config.matrix_norm, init)
    }

    /// The ternary matrix that leads back to the residual stream: `name.weight: [D, inputs]`.
    pub fn output(&mut self, name: &str, inputs: usize) -> Linear {
        let LayerConfig { dim, zero_init, matrix_norm, sub_norm, .. } = *self.config;
        let init = if zero_init { Init::Zeros } else { Init::Normal((2.0 / dim as f64).sqrt()) };
        self.ternary(name, dim, inputs, matrix_norm || sub_norm, init)
    }

    /// A ternary matrix with a start of its own, and no norm.
    pub fn matrix(&mut self, name: &str, outputs: usize, inputs: usize, init: Init) -> Linear {
        self.ternary(name, outputs, inputs, false, init)
    }

    /// Weights of a convolution that sees more than one channel.
    pub fn convolution(&mut self, name: &str, shape: &[usize], init: Init) -> Range<usize> {
        self.add(name, shape, init, Group::Conv)
    }

    /// A small matrix that stays float: `name.weight: [outputs, inputs]`.
    pub fn float(&mut self, name: &str, outputs: usize, inputs: usize) -> Linear {
        self.float_from(name, outputs, inputs, Init::Normal((1.0 / (3 * inputs) as f64).sqrt()))
    }

    /// The same with a start of its own.
    pub fn float_from(&mut self, name: &str, outputs: usize, inputs: usize, init: Init) -> Linear {
        let weight = self.add(&format!("{name}.weight"), &[outputs, inputs], init, Group::Gate);
        Linear { float: true, ..self.of(weight, None, None, outputs, inputs) }
    }

    fn ternary(&mut self, name: &str, outputs: usize, inputs: usize, norm: bool, init: Init) -> Linear {
        let weight = self.add(&format!("{name}.weight"), &[outputs, inputs], init, Group::Matrix);
        let norm = norm.then(|| self.norm(&format!("{name}.norm.scale"), inputs, self.config.eps));
        self.of(weight, norm, self.config.quant, outputs, inputs)
    }

    fn of(
        &mut self,
        weight: Range<usize>,
        norm: Option<Norm>,
        quant: Option<Quant>,
        outputs: usize,
        inputs: usize,
    ) -> Linear {
        let own = Need { matrix: outputs * inputs, input: inputs, ..Need::default() };
        self.need = self.need.max(own);
        Linear { weight, norm, inputs, outputs, quant, int8: self.config.int8, float: false }
    }

    /// The scale of an RMSNorm, `name: [width]`.
    pub fn norm(&mut self, name: &str, width: usize, eps: f64) -> Norm {
        self.norm_named(format!("{}.{name}", self.prefix), width, eps)
    }

    fn norm_named(&mut self, name: String, width: usize, eps: f64) -> Norm {
        Norm { scale: self.layout.add(name, &[width], Init::Ones, Group::Norm), part: self.part(width), eps }
    }

    /// Taps of a convolution, `name: [channels, 1, k]`, normal with the standard deviation `std`.
    pub fn taps(&mut self, name: &str, channels: usize, k: usize, std: f64) -> Taps {
        let weight = self.add(name, &[channels, 1, k], Init::Normal(std), Group::Conv);
        self.need = self.need.max(Need { taps: weight.len(), ..Need::default() });
        Taps { part: self.part(weight.len()), weight, k }
    }

    /// Float numbers of another kind, `name: [n]`: their places among the parameters, and among the sums that one tile keeps.
    pub fn scalars(&mut self, name: &str, n: usize, init: Init) -> (Range<usize>, Range<usize>) {
        (self.add(name, &[n], init, Group::Scalar), self.part(n))
    }

    /// Numbers that are not trained, `name: [n]`.
    pub fn constants(&mut self, name: &str, n: usize, init: Init) -> Range<usize> {
        self.add(name, &[n], init, Group::Constant)
    }

    fn add(&mut self, name: &str, shape: &[usize], init: Init, group: Group) -> Range<usize> {
        self.layout.add(format!("{}.{name}", self.prefix), shape, init, group)
    }

    fn part(&mut self, len: usize) -> Range<usize> {
        let start = self.need.part;
        self.need.part += len;
        start..self.need.part
    }
}
