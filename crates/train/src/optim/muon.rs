//! Muon for master matrices `W: [rows, cols]` (Keller Jordan, 2024; github.com/KellerJordan/Muon):
//! `m = mu m + (1-mu) g; U = g + mu (m - g); X = NewtonSchulz(U);`
//! `W = (1 - lr wd) W - lr sqrt(max(1, rows/cols)) X`, with `g` the clipped gradient, `mu` = `train.momentum`, `lr` =
//! `train.matrix_lr` times the schedule, `wd` = `train.matrix_weight_decay`.

use flashlm_kernels::{Buf, Exec, ops};
use flashlm_model::params::{Layout, Spec};

use super::newton_schulz::NewtonSchulz;
use super::optimizer::{Optimizer, Owns, Step, Tensor, sizes};

/// The momentum of each matrix.
pub struct Muon {
    matrices: Vec<(Spec, Buf<f32>)>,
    newton_schulz: NewtonSchulz,
}

impl Muon {
    /// No momentum yet.
    pub fn new(layout: &Layout, owns: Owns) -> Self {
        let owned = layout.specs().iter().filter(|spec| owns(spec.group));
        let newton_schulz = NewtonSchulz::new(owned.clone().map(sizes));
        Muon { matrices: owned.map(|spec| (spec.clone(), Buf::zeros(spec.range.len()))).collect(), newton_schulz }
    }
}

impl Optimizer for Muon {
    fn step(&mut self, cx: &Exec, params: &mut [f32], grads: &[f32], step: &Step) {
        let (mu, lr) = (step.settings.momentum, step.matrix_lr());
        let momentum = ops::Momentum { mu, blend: mu, grad_scale: step.grad_scale };
        for (spec, m) in &mut self.matrices {
            let (rows, cols) = sizes(spec);
            let (w, g) = (&mut params[spec.range.clone()], &grads[spec.range.clone()]);
            ops::momentum_step(cx, self.newton_schulz.input(g.len()), m, g, momentum);
            let x = self.newton_schulz.run(cx, (rows, cols), step.settings);
            let rate = lr * (rows as f64 / cols as f64).max(1.0).sqrt();
            ops::scale_add(cx, w, 1.0 - lr * step.settings.matrix_weight_decay, x, -rate);
        }
    }

    fn state(&mut self) -> Vec<Tensor<'_>> {
        self.matrices
            .iter_mut()
            .map(|(spec, m)| Tensor { name: format!("m.{}", spec.name), shape: spec.shape.clone(), data: m })
            .collect()
    }
}
