//! TernaryGLU: `y = W_down (silu(W_gate x) * (W_up x))`, widths `D -> F -> D`; forward adds to `y` (the residual).

use flashlm_kernels::ops::{glu_backward, glu_forward};
use flashlm_kernels::{Buf, Elem, Exec};

use crate::config::ModelConfig;
use crate::layer::Scratch;
use crate::layer::linear::Linear;
use crate::params::Layout;

/// Three matrices and the saved gate and value.
pub struct Ffn<E: Elem> {
    gate: Linear<E>,
    up: Linear<E>,
    down: Linear<E>,
    hidden: usize,
    g: Buf<E>,
    u: Buf<E>,
}

impl<E: Elem> Ffn<E> {
    /// Adds `prefix.W_gate`, `.W_up`, `.W_down` to the layout.
    pub fn new(layout: &mut Layout, prefix: &str, config: &ModelConfig, rows: usize, training: bool) -> Self {
        let (d, f) = (config.dim, config.ffn_hidden);
        let mut linear = |name, size| Linear::new(layout, &format!("{prefix}.{name}"), size, config, rows, training);
        Ffn {
            gate: linear("W_gate", (f, d)),
            up: linear("W_up", (f, d)),
            down: linear("W_down", (d, f)),
            hidden: f,
            g: Buf::scratch(rows * f),
            u: Buf::scratch(rows * f),
        }
    }

    /// Quantises and packs the weights.
    pub fn prepare(&mut self, cx: &Exec, params: &[E], s: &mut Scratch<E>) {
        for linear in [&mut self.gate, &mut self.up, &mut self.down] {
            linear.prepare(cx, params, &mut s.linear);
        }
    }

    /// `y += GLU(x)`, `y, x: [rows, D]`.
    pub fn forward(&mut self, cx: &Exec, y: &mut [E], x: &[E], params: &[E], s: &mut Scratch<E>, rows: usize) {
        let n = rows * self.hidden;
        self.gate.forward(cx, &mut self.g, x, params, &mut s.linear, rows, false);
        self.up.forward(cx, &mut self.u, x, params, &mut s.linear, rows, false);
        glu_forward(cx, &mut s.a[..n], &self.g[..n], &self.u[..n]);
        self.down.forward(cx, y, &s.a, params, &mut s.linear, rows, true);
    }

    /// Overwrites `dx: [rows, D]`; adds to `grads`.
    pub fn backward(
        &mut self,
        cx: &Exec,
        dx: &mut [E],
        grads: &mut [E],
        dy: &[E],
        x: &[E],
        params: &[E],
        s: &mut Scratch<E>,
        rows: usize,
    ) {
        let n = rows * self.hidden;
        let (g, u, linear) = (&self.g[..n], &self.u[..n], &mut s.linear);
        // The product is made again rather than kept: it costs less than its memory traffic.
        glu_forward(cx, &mut s.a[..n], g, u);
        self.down.backward(cx, &mut s.b, grads, dy, &s.a, params, linear, rows, false);
        glu_backward(cx, &mut s.a[..n], &mut s.c[..n], &s.b[..n], g, u);
        self.gate.backward(cx, dx, grads, &s.a, x, params, linear, rows, false);
        self.up.backward(cx, dx, grads, &s.c, x, params, linear, rows, true);
    }
}
