//! The mean of the master weights over the last steps of a run (`train.average_share`): after the `n`-th of these steps
//! `mean = (1 - 1/n) mean + W / n`; with `train.average_decay`, `d`, after the first `mean = d mean + (1 - d) W`.

use flashlm_kernels::{Buf, Exec, ops};
use flashlm_model::params::{Layout, Spec};

use crate::optim::{Tensor, tensors};

/// The mean of all parameters.
pub struct Average {
    specs: Vec<Spec>,
    /// `[P]`, as the parameters.
    mean: Buf<f32>,
}

impl Average {
    /// Of no step yet.
    pub fn new(layout: &Layout) -> Average {
        Average { specs: layout.specs().to_vec(), mean: Buf::zeros(layout.len()) }
    }

    /// The parameters after the `n`-th step of those that count, from 1, with a `decay` or 0. What the mean was before the first has no
    /// effect.
    pub fn add(&mut self, cx: &Exec, params: &[f32], n: u64, decay: f64) {
        let part = if decay > 0.0 && n > 1 { 1.0 - decay } else { 1.0 / n as f64 };
        ops::scale_add(cx, &mut self.mean, 1.0 - part, params, part);
    }

    /// Puts the mean in the place of the parameters, and these in its place.
    pub fn swap(&mut self, params: &mut Buf<f32>) {
        std::mem::swap(&mut self.mean, params);
    }

    /// The mean, for a checkpoint to save or to fill.
    pub fn state(&mut self) -> Vec<Tensor<'_>> {
        tensors("mean", &self.specs, 0, &mut self.mean)
    }
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::Isa;
    use flashlm_model::ModelConfig;
    use flashlm_model::rng::Rng;

    use super::*;

    #[test]
    fn the_mean_is_that_of_a_plain_loop_and_every_parameter_is_in_its_state() {
        let cx = Exec::new(Isa::detect().unwrap(), 2);
        let layout = Layout::of(&ModelConfig { vocab_size: 60, dim: 16, ffn_hidden: 24, ..ModelConfig::v4_small() });
        let (mut average, mut rng) = (Average::new(&layout), Rng::new(1));
        for round in 0..2 {
            let steps: Vec<Vec<f32>> =
                (0..100).map(|_| (0..layout.len()).map(|_| rng.normal() as f32).collect()).collect();
            for (n, params) in (1..).zip(&steps) {
                average.add(&cx, params, n, 0.0);
            }
            for spec in layout.specs() {
                let name = format!("mean.{}", spec.name);
                let state = average.state();
                let own = state.iter().find(|tensor| tensor.name == name).unwrap();
                assert_eq!(own.shape, spec.shape);
                for (i, value) in spec.range.clone().zip(own.data.iter()) {
                    let want = steps.iter().map(|params| f64::from(params[i])).sum::<f64>() / 100.0;
                    assert!((f64::from(*value) - want).abs() < 1e-6, "{name}, round {round}: {value} for {want}");
                }
            }
            assert_eq!(average.state().len(), layout.specs().len());
            for (n, params) in (1..).zip(&steps) {
                average.add(&cx, params, n, 0.9);
            }
            for i in layout.specs().iter().flat_map(|spec| spec.range.clone()).step_by(97) {
                let want = steps[1..].iter().fold(f64::from(steps[0][i]), |mean, w| 0.9 * mean + 0.1 * f64::from(w[i]));
                assert!((f64::from(average.mean[i]) - want).abs() < 1e-6, "{i}, round {round}");
            }
        }
    }
}
