//! FlashLM v3: one block, applied `N` times (`blocks`) with the same weights, and a head tied with the embedding.
//!
//! ```text
//! h = E[tokens];   N times: h = h + mixer(norm(h));  h = h + GLU(norm(h));   logits = norm(h) E^T
//! mixer(x):  for each dilation: x = x + sigmoid(conv_g(norm(x))) * conv_v(norm(x));   then W_out x
//! GLU(x) = W_down (relu(W_gate x)^2 * (W_up x))
//! ```
//!
//! The convolutions ([`flashlm_kernels::ops::Grouped`]) are float, in groups of channels; the four matrices are ternary. The
//! original's quantiser has no scale (`quant.scale = "unit"`). A router `[1, D]` with its bias is kept with the model and never read.
//!
//! The state of a sequence is, for each application and each dilation `s`, the last `(K-1) s` rows that the convolutions read.

mod mixer;
mod packed;
#[cfg(test)]
mod reference;
mod train;
mod validate;

pub(crate) use packed::read;
pub use train::Train;
pub(super) use validate::validate;

use std::ops::Range;

use flashlm_kernels::ops::{Act, Grouped};

use crate::config::ModelConfig;
use crate::layer::branch::Branch;
use crate::layer::config::{LayerConfig, Need};
use crate::layer::ffn::FfnParams;
use crate::layer::head::HeadParams;
use crate::layer::linear::Linear;
use crate::layer::norm::{BranchNorm, Norm};
use crate::params::{Group, Init, Layout};

/// Where the parameters lie.
pub(super) struct Params {
    head: HeadParams,
    mixer: MixerParams,
    ffn: FfnParams,
    norm: Norm,
    need: Need,
    /// `N`.
    passes: usize,
}

/// Those of the mixer.
#[derive(Clone)]
struct MixerParams {
    /// The norm before it.
    norm: BranchNorm,
    layers: Vec<LayerParams>,
    /// `[D, D]`.
    out: Linear,
    /// Elements of the sums that one tile keeps.
    part: usize,
}

/// Those of one of its layers.
#[derive(Clone)]
struct LayerParams {
    norm: Norm,
    /// Weights of the two convolutions, `[D, D/G, K]`.
    gate: Range<usize>,
    value: Range<usize>,
    of: Grouped,
}

impl LayerParams {
    /// Numbers of the state that a sequence has here.
    fn state_len(&self) -> usize {
        self.of.reach() * self.of.groups * self.of.inputs
    }
}

impl Params {
    /// Adds all parameters of a valid config; `int8` is what [`super::build`] is told.
    pub(super) fn new(layout: &mut Layout, config: &ModelConfig, int8: bool) -> Self {
        let (d, eps, k) = (config.dim, config.norm_eps, config.mixers.kernel_size);
        // Its norms have no weight decay: they are scalars, added by hand.
        let layers = LayerConfig { int8, block_norm: false, ..config.layers() };
        let head = HeadParams::new(layout, config.vocab_size, d, config.logit_softcap, int8);
        let norm = |b: &mut Branch, name: &str| {
            let (scale, part) = b.scalars(name, d, Init::Ones);
            Norm { scale, part, eps }
        };
        // Convolutions start as wide as matrices do, by their inputs; PyTorch's own would start at a third of the variance.
        let fan_in = |n: usize| Init::Normal((1.0 / n as f64).sqrt());

        let mut b = Branch::new(layout, String::new(), "block".into(), &layers);
        let before = norm(&mut b, "norm1.scale");
        let group = d / config.dilated.groups;
        let convolutions = config.dilated.dilations.iter().enumerate().map(|(i, &dilation)| {
            let of = Grouped { groups: config.dilated.groups, inputs: group, outputs: group, taps: k, dilation };
            let mut conv = |name| {
                let name = format!("token_mixer.layers.{i}.{name}.conv.weight");
                b.convolution(&name, &[d, group, k], fan_in(group * k))
            };
            let (gate, value) = (conv("conv_gate"), conv("conv_value"));
            LayerParams { norm: norm(&mut b, &format!("token_mixer.norms.{i}.scale")), gate, value, of }
        });
        let layers_of = convolutions.collect();
        let out = b.matrix("token_mixer.out_proj", d, d, Init::Normal(0.01));
        let need = b.need();
        let mixer = MixerParams { norm: BranchNorm(Some(before)), layers: layers_of, out, part: need.part };

        let mut b = Branch::new(layout, String::new(), "block".into(), &layers);
        let before = norm(&mut b, "norm2.scale");
        let f = config.ffn_hidden;
        let gate = b.matrix("glu.gate_proj", f, d, fan_in(d));
        let up = b.matrix("glu.up_proj", f, d, fan_in(d));
        let down = b.matrix("glu.down_proj", d, f, Init::Normal(0.01));
        let ffn = FfnParams::of(&b, BranchNorm(Some(before)), [gate, up, down], Act::Relu2);
        let need = need.max(b.need());

        layout.add("block.router.linear.weight".into(), &[1, d], Init::Zeros, Group::Unused);
        layout.add("block.router.linear.bias".into(), &[1], Init::Zeros, Group::Unused);
        let scale = layout.add("final_norm.scale".into(), &[d], Init::Ones, Group::Scalar);
        Params { head, mixer, ffn, norm: Norm { scale, part: 0..d, eps }, need, passes: config.blocks }
    }

    /// Numbers that training keeps of a row, about: of each application the `ends` of matrices twice, for gradients, and of each layer
    /// what enters it, its norm, gate and value; states, at most one for 64 rows.
    pub(super) fn row_len(&self, ends: usize) -> usize {
        let (d, layers) = (self.norm.part.len(), self.mixer.layers.len());
        self.passes * (2 * ends + 8 * d + (4 * layers + 2) * d) + self.state_len().div_ceil(64)
    }

    /// Numbers in the state of one sequence in the packed runtime.
    pub(super) fn state_len(&self) -> usize {
        self.passes * self.mixer.layers.iter().map(LayerParams::state_len).sum::<usize>()
    }
}

/// Turns the weights of a convolution, `[G O, I, K]`, into `[G, K, I, O]`.
fn by_group<E: Copy>(to: &mut [E], from: &[E], of: Grouped) {
    for (at, &w) in from.iter().enumerate() {
        to[place(at, of, false)] = w;
    }
}

/// Where element `at` of `[G O, I, K]` lies in `[G, K, I, O]`, or in `[G, K, O, I]`.
fn place(at: usize, of: Grouped, turned: bool) -> usize {
    let Grouped { inputs, outputs, taps, .. } = of;
    let (row, a, j) = (at / (inputs * taps), at / taps % inputs, at % taps);
    let (g, b) = (row / outputs, row % outputs);
    let start = (g * taps + j) * inputs * outputs;
    start + if turned { b * inputs + a } else { a * outputs + b }
}

/// Small models: float weights, so that differences are smooth.
#[cfg(test)]
pub(super) fn small() -> Vec<ModelConfig> {
    use crate::config::{ActivationKind, DilatedConfig};
    let plain = ModelConfig {
        family: "v3".into(),
        mixer: "conv".into(),
        activation: ActivationKind::Relu2,
        norm_eps: 1e-8,
        dilated: DilatedConfig { groups: 3, dilations: vec![1, 4, 9] },
        ..crate::testing::tiny("conv")
    };
    let odd = ModelConfig {
        blocks: 3,
        reset: true,
        dilated: DilatedConfig { groups: 12, dilations: vec![5, 2] },
        ..plain.clone()
    };
    vec![plain, odd]
}
