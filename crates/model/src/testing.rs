//! What tests share: small models, numbers, tokens.

use flashlm_kernels::{Elem, Token};

use crate::config::{
    ActivationKind, AttentionConfig, DeltaConfig, ModelConfig, QuantConfig, ScaleKind, ShortConvConfig, StatKind,
};
use crate::mixer::Settings;
use crate::params::{Group, Layout};
use crate::rng::Rng;

/// A small model of odd sizes.
pub(crate) fn tiny(mixer: &str) -> ModelConfig {
    ModelConfig {
        vocab_size: 23,
        blocks: 2,
        ffn_hidden: 19,
        mixer: mixer.into(),
        quant: QuantConfig { scale: ScaleKind::None, size: 16, stat: StatKind::Mean, norm: false },
        dim: 24,
        eos: 7,
        mixers: Settings {
            kernel_size: 4,
            delta: DeltaConfig { heads: 3, expand_k: 0.625, expand_v: 0.875, norm_eps: 1e-4, ..DeltaConfig::default() },
            attention: AttentionConfig { heads: 3, window: 9, ..AttentionConfig::default() },
            shortconv: ShortConvConfig { kernel_size: 5 },
        },
        ..ModelConfig::v4_small()
    }
}

/// The same with every switch of a recipe that changes what is computed.
pub(crate) fn recipe(mixer: &str) -> ModelConfig {
    ModelConfig {
        activation: ActivationKind::Relu2,
        sub_norm: true,
        logit_softcap: 1.5,
        x0: true,
        bigram: 31,
        layer_embeddings: true,
        pointer: 6,
        pointer_words: true,
        ..tiny(mixer)
    }
}

/// Parameters with a spread that makes every path count; `n` tokens below `v`.
pub(crate) fn noisy(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.normal() * 0.4 + 0.1).collect()
}

/// The same as parameters of a model, its constants set.
pub(crate) fn noisy_model(layout: &Layout, seed: u64) -> Vec<f64> {
    let mut params = noisy(layout.len(), seed);
    set_constants(layout, &mut params);
    params
}

/// Sets the constants of a model: neighbours in a vocabulary are twins, and every third token opens.
pub(crate) fn set_constants<E: Elem>(layout: &Layout, params: &mut [E]) {
    for spec in layout.specs().iter().filter(|spec| spec.group == Group::Constant) {
        let n = spec.range.len();
        for (v, x) in params[spec.range.clone()].iter_mut().enumerate() {
            let value = if spec.name.ends_with("twin") { (v ^ 1).min(n - 1) } else { usize::from(v % 3 == 0) };
            *x = E::from_f64(value as f64);
        }
    }
}

pub(crate) fn tokens(n: usize, v: usize, seed: u64) -> Vec<Token> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.below(v as u64) as Token).collect()
}

/// `ln sum_j exp(z_j)` of a row.
pub(crate) fn log_sum(z: &[f64]) -> f64 {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln()
}

/// RMS of the difference over the RMS of what is wanted.
pub(crate) fn ratio(got: &[f32], want: &[f32]) -> f64 {
    let off: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
    (off / want.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>()).sqrt()
}

/// The slope of `f` along `params[i]`, from four values of it: the error is of the fourth order in the distance.
pub(crate) fn slope(params: &mut [f64], i: usize, mut f: impl FnMut(&[f64]) -> f64) -> f64 {
    let (own, h) = (params[i], 2e-5);
    let mut at = |steps: f64| {
        params[i] = own + steps * h;
        let y = f(params);
        params[i] = own;
        y
    };
    (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h)
}
