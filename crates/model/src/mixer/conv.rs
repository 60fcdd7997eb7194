//! GatedConvMixer: `[g, v] = W_up x` (`D -> 2D`), `v' = causal depthwise conv(v)` with `K` float taps a channel,
//! `y = W_down (v' * sigmoid(g))` (`D -> D`); see [`flashlm_kernels::ops::conv_gate_forward`].
//!
//! The state of a sequence is its last `K-1` rows of `v`.

use std::ops::Range;

use flashlm_kernels::ops::{conv_gate_backward, conv_gate_forward};
use flashlm_kernels::{Buf, Elem, Exec};

use crate::config::ModelConfig;
use crate::layer::Scratch;
use crate::layer::linear::Linear;
use crate::mixer::Mixer;
use crate::params::{Group, Init, Layout};

/// Two matrices, the taps, and the saved `u = [g, v]` and gated `m`.
pub struct Conv<E: Elem> {
    up: Linear<E>,
    conv: Range<usize>,
    down: Linear<E>,
    d: usize,
    k: usize,
    /// Taps as `[K, D]`; the parameter is `[D, 1, K]`.
    taps: Buf<E>,
    dtaps: Buf<E>,
    u: Buf<E>,
    m: Buf<E>,
}

impl<E: Elem> Conv<E> {
    /// Adds `prefix.up`, `.conv`, `.down` to the layout.
    pub fn new(layout: &mut Layout, prefix: &str, config: &ModelConfig, rows: usize, training: bool) -> Self {
        let (d, k) = (config.dim, config.kernel_size);
        let up = Linear::new(layout, &format!("{prefix}.up"), (2 * d, d), config, rows, training);
        let init = Init::Normal((2.0 / (d * k) as f64).sqrt());
        let conv = layout.add(format!("{prefix}.conv.weight"), &[d, 1, k], init, Group::Conv);
        let down = Linear::new(layout, &format!("{prefix}.down"), (d, d), config, rows, training);
        let (taps, dtaps) = (Buf::scratch(k * d), Buf::scratch(k * d));
        Conv { up, conv, down, d, k, taps, dtaps, u: Buf::scratch(rows * 2 * d), m: Buf::scratch(rows * d) }
    }
}

impl<E: Elem> Mixer<E> for Conv<E> {
    fn prepare(&mut self, cx: &Exec, params: &[E], s: &mut Scratch<E>) {
        self.up.prepare(cx, params, &mut s.linear);
        self.down.prepare(cx, params, &mut s.linear);
        for (c, taps) in params[self.conv.clone()].chunks_exact(self.k).enumerate() {
            for (j, &w) in taps.iter().enumerate() {
                self.taps[j * self.d + c] = w;
            }
        }
    }

    fn state_len(&self) -> usize {
        (self.k - 1) * self.d
    }

    fn forward(
        &mut self,
        cx: &Exec,
        y: &mut [E],
        state: Option<&mut [E]>,
        x: &[E],
        params: &[E],
        s: &mut Scratch<E>,
        (b, t): (usize, usize),
    ) {
        let (d, k) = (self.d, self.k);
        self.up.forward(cx, &mut self.u, x, params, &mut s.linear, b * t, false);
        conv_gate_forward(cx, &mut self.m, &self.u, state.as_deref(), &self.taps, (b, t, d, k));
        if let Some(state) = state {
            for (i, last) in state.chunks_exact_mut(((k - 1) * d).max(1)).take(b).enumerate() {
                let kept = (k - 1).saturating_sub(t);
                last.copy_within((k - 1 - kept) * d.., 0);
                for (j, row) in last.chunks_exact_mut(d).enumerate().skip(kept) {
                    let from = i * t + (t + j + 1 - k);
                    row.copy_from_slice(&self.u[from * 2 * d + d..(from + 1) * 2 * d]);
                }
            }
        }
        self.down.forward(cx, y, &self.m, params, &mut s.linear, b * t, true);
    }

    fn backward(
        &mut self,
        cx: &Exec,
        dx: &mut [E],
        grads: &mut [E],
        dy: &[E],
        x: &[E],
        params: &[E],
        s: &mut Scratch<E>,
        (b, t): (usize, usize),
    ) {
        let (d, k, rows) = (self.d, self.k, b * t);
        self.down.backward(cx, &mut s.a, grads, dy, &self.m, params, &mut s.linear, rows, false);
        self.dtaps.fill(E::ZERO);
        let size = (b, t, d, k);
        let partials = &mut s.linear.partials;
        conv_gate_backward(cx, &mut s.b, &mut self.dtaps, &mut s.c, partials, &s.a, &self.u, &self.taps, size);
        for (c, dw) in grads[self.conv.clone()].chunks_exact_mut(k).enumerate() {
            for (j, dw) in dw.iter_mut().enumerate() {
                *dw += self.dtaps[j * d + c];
            }
        }
        self.up.backward(cx, dx, grads, &s.b, x, params, &mut s.linear, rows, false);
    }
}
