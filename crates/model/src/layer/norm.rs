//! RMSNorm layer: `y = x / sqrt(mean(x^2) + eps) * scale`; see [`flashlm_kernels::ops::rmsnorm_forward`].

use std::ops::Range;

use flashlm_kernels::ops::{rmsnorm_backward, rmsnorm_forward};
use flashlm_kernels::{Buf, Elem, Exec};

use crate::params::{Group, Init, Layout};

/// A learned scale and the saved reciprocal roots.
pub struct Norm<E: Elem> {
    scale: Range<usize>,
    rstd: Buf<E>,
    eps: f64,
}

impl<E: Elem> Norm<E> {
    /// Adds `name: [d]` to the layout.
    pub fn new(layout: &mut Layout, name: String, d: usize, eps: f64, rows: usize) -> Self {
        Norm { scale: layout.add(name, &[d], Init::Ones, Group::Norm), rstd: Buf::scratch(rows), eps }
    }

    /// `y, x: [rows, d]`; saves what `backward` needs.
    pub fn forward(&mut self, cx: &Exec, y: &mut [E], x: &[E], params: &[E], rows: usize) {
        let d = self.scale.len();
        rmsnorm_forward(cx, y, &mut self.rstd, x, &params[self.scale.clone()], self.eps, (rows, d));
    }

    /// `dx: [rows, d]`, added to where `accumulate`; the gradient of `scale` is added to `grads`.
    pub fn backward(
        &mut self,
        cx: &Exec,
        dx: &mut [E],
        grads: &mut [E],
        partials: &mut [E],
        dy: &[E],
        x: &[E],
        params: &[E],
        rows: usize,
        accumulate: bool,
    ) {
        let (scale, d) = (self.scale.clone(), self.scale.len());
        let dscale = &mut grads[scale.clone()];
        rmsnorm_backward(cx, dx, dscale, partials, dy, &self.rstd, x, &params[scale], (rows, d), accumulate);
    }
}
