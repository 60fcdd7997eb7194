//! NorMuon for master matrices `W: [rows, cols]`: Muon with one adaptive rate a row (Li et al., "NorMuon", arXiv 2510.05491),
//! as FlashLM v3 uses it, without Nesterov's look ahead:
//! `m = mu m + (1-mu) g; O = NewtonSchulz(m); v_r = b v_r + (1-b) mean_c O_rc^2; H = O / (sqrt(v) + 1e-8);`
//! `W = (1 - lr wd) W - lr 0.2 sqrt(rows cols) / (|H|_F + 1e-8) H`, so that an element moves by 0.2 lr (RMS). `g` is the
//! clipped gradient, `b` = `train.matrix_beta2`, without bias correction; the other settings are those of Muon.

use flashlm_kernels::{Buf, Exec, ops};
use flashlm_model::params::{Layout, Spec};

use super::newton_schulz::NewtonSchulz;
use super::optimizer::{Optimizer, Owns, Step, Tensor, sizes};

const EPS: f64 = 1e-8;
/// RMS of an element's update at a rate of 1, near that of AdamW.
const RMS: f64 = 0.2;

/// What is kept of each matrix.
pub struct NorMuon {
    matrices: Vec<Matrix>,
    newton_schulz: NewtonSchulz,
}

struct Matrix {
    spec: Spec,
    /// Running mean of gradients.
    m: Buf<f32>,
    /// Running mean square of each row of `O`.
    v: Buf<f32>,
}

impl NorMuon {
    /// Zero moments.
    pub fn new(layout: &Layout, owns: Owns) -> Self {
        let owned = layout.specs().iter().filter(|spec| owns(spec.group));
        let newton_schulz = NewtonSchulz::new(owned.clone().map(sizes));
        let matrix = |spec: &Spec| {
            let (rows, cols) = sizes(spec);
            Matrix { spec: spec.clone(), m: Buf::zeros(rows * cols), v: Buf::zeros(rows) }
        };
        NorMuon { matrices: owned.map(matrix).collect(), newton_schulz }
    }
}

impl Optimizer for NorMuon {
    fn step(&mut self, cx: &Exec, params: &mut [f32], grads: &[f32], step: &Step) {
        let (t, lr) = (step.settings, step.matrix_lr());
        let momentum = ops::Momentum { mu: t.momentum, blend: 1.0, grad_scale: step.grad_scale };
        for Matrix { spec, m, v } in &mut self.matrices {
            let (w, g) = (&mut params[spec.range.clone()], &grads[spec.range.clone()]);
            ops::momentum_step(cx, self.newton_schulz.input(g.len()), m, g, momentum);
            let x = self.newton_schulz.run(cx, sizes(spec), t);
            ops::rows_normalise(cx, x, v, t.matrix_beta2, EPS);
            let rate = lr * RMS * (x.len() as f64).sqrt() / (ops::sum_squares(cx, x).sqrt() + EPS);
            ops::scale_add(cx, w, 1.0 - lr * t.matrix_weight_decay, x, -rate);
        }
    }

    fn state(&mut self) -> Vec<Tensor<'_>> {
        let mut all = Vec::new();
        for Matrix { spec, m, v } in &mut self.matrices {
            all.push(Tensor { name: format!("m.{}", spec.name), shape: spec.shape.clone(), data: m });
            all.push(Tensor { name: format!("v.{}", spec.name), shape: vec![v.len()], data: v });
        }
        all
    }
}
