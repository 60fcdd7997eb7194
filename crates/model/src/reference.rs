//! Layers in plain loops and f64, on the weights as the packed runtime has them: what `formats.md` and the headers of the layers
//! say, written down once more. Activations are int8 here too where nothing else is asked for, so what is left between the two is rounding, not quantisation.

use std::collections::BTreeMap;
use std::rc::Rc;

use flashlm_kernels::ops::quantise;
use flashlm_kernels::{Exec, Isa};

use crate::config::ModelConfig;
use crate::params::{Group, Layout};

/// The parameters of a model, or of the part of it that is named `prefix...`.
#[derive(Clone)]
pub(crate) struct Weights {
    prefix: String,
    /// Epsilon of its RMSNorms.
    eps: f64,
    /// Whether activations are int8.
    rounds: bool,
    /// Values as the runtime has them.
    params: Rc<BTreeMap<String, Tensor>>,
}

struct Tensor {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// What a mixer has seen of one document: the rows of each of its parts.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) rows: [Vec<Vec<f64>>; 3],
    /// `S` of each head, `[dk][dv]`.
    pub(crate) s: Vec<Vec<Vec<f64>>>,
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn softplus(x: f64) -> f64 {
    (1.0 + x.exp()).ln()
}

pub(crate) fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// The nearest of the 255 multiples of `max |x| / 127`.
fn int8(x: &[f64]) -> Vec<f64> {
    let step = x.iter().fold(0.0, |m: f64, x| m.max(x.abs())) / 127.0;
    x.iter().map(|x| if step == 0.0 { 0.0 } else { (x / step).round_ties_even() * step }).collect()
}

impl Weights {
    /// Of all parameters of the config's model.
    pub(crate) fn new(config: &ModelConfig, all: &[f32]) -> Self {
        let mut params = BTreeMap::new();
        for spec in Layout::of(config).specs() {
            let mut w = all[spec.range.clone()].to_vec();
            match (spec.group, config.quant.quant()) {
                (Group::Matrix, Some(quant)) => {
                    let (latent, size) = (w.clone(), (spec.shape[0], spec.shape[1]));
                    quantise(&Exec::new(Isa::SCALAR, 1), &mut w, &mut latent.clone(), &latent, size, quant);
                }
                (Group::Matrix | Group::Embedding | Group::Table, _) => {
                    for row in w.chunks_mut(spec.shape[1]) {
                        let m = row.iter().fold(0.0, |m: f32, w| m.max(w.abs()));
                        row.iter_mut().for_each(|w| *w = (*w * (127.0 / m)).round_ties_even() * (m / 127.0));
                    }
                }
                _ => {}
            }
            let values = w.iter().map(|&w| w.into()).collect();
            params.insert(spec.name.clone(), Tensor { shape: spec.shape.clone(), values });
        }
        Weights { prefix: String::new(), eps: config.norm_eps, rounds: true, params: Rc::new(params) }
    }

    /// The same model with activations of int8 or as they are.
    pub(crate) fn rounding(self, rounds: bool) -> Self {
        Weights { rounds, ..self }
    }

    /// What enters a matrix.
    pub(crate) fn rounded(&self, x: &[f64]) -> Vec<f64> {
        if self.rounds { int8(x) } else { x.to_vec() }
    }

    /// The same, to be named without `prefix.`.
    pub(crate) fn of(&self, prefix: &str) -> Self {
        Weights { prefix: format!("{}{prefix}.", self.prefix), ..self.clone() }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn at(&self, name: &str) -> &Tensor {
        &self.params[&self.name(name)]
    }

    pub(crate) fn get(&self, name: &str) -> &[f64] {
        &self.at(name).values
    }

    pub(crate) fn norm(&self, name: &str, x: &[f64], eps: f64) -> Vec<f64> {
        let r = 1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt();
        x.iter().zip(self.get(name)).map(|(x, scale)| x * r * scale).collect()
    }

    /// The norm where the model has one of that name.
    pub(crate) fn norm_if(&self, name: &str, x: &[f64]) -> Vec<f64> {
        if self.params.contains_key(&self.name(name)) { self.norm(name, x, self.eps) } else { x.to_vec() }
    }

    pub(crate) fn float(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.get(&format!("{name}.weight")).chunks(x.len()).map(|w| dot(w, x)).collect()
    }

    pub(crate) fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.float(name, &self.rounded(&self.norm_if(&format!("{name}.norm.scale"), x)))
    }

    /// The convolution of the last row in `history`; tap `K-1` is the newest row's.
    pub(crate) fn conv(&self, name: &str, history: &[Vec<f64>]) -> Vec<f64> {
        let Tensor { shape, values: taps } = self.at(name);
        let k = shape[2];
        let newest = history.len() - 1;
        let tap = |c: usize, back: usize| taps[c * k + k - 1 - back] * history[newest - back][c];
        (0..shape[0]).map(|c| (0..k.min(history.len())).map(|back| tap(c, back)).sum()).collect()
    }
}
