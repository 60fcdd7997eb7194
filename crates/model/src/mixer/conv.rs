//! GatedConvMixer branch: `[g, v] = W_up x`, `x = norm(h)` (`D -> 2D`), `v' = causal depthwise conv(v)` with `K` float taps
//! a channel, `y = h + W_down (v' * sigmoid(g))` (`D -> D`); see [`flashlm_kernels::ops::conv_gate_forward`].
//!
//! The state of a sequence is its last `K-1` rows of `v`. A row needs `K-1` rows before it, or after it in the backward
//! pass: each pass over tiles ends where the next must see its neighbours.

use std::ops::Range;

use flashlm_kernels::ops::{add_parts, conv_gate_backward, conv_gate_forward, conv_taps_backward, narrow};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Buf, Exec, Store};

use crate::config::ModelConfig;
use crate::layer::Scratch;
use crate::layer::linear::Linear;
use crate::layer::norm::{Input, Norm, branch_backward, branch_forward, branch_input};
use crate::mixer::Mixer;
use crate::params::{Group, Init, Layout};

/// Two matrices, the taps, and the saved `u = [g, v]` and gated `m`.
pub struct Conv<A: Store> {
    norm: Option<Norm>,
    up: Linear<A>,
    conv: Range<usize>,
    down: Linear<A>,
    d: usize,
    k: usize,
    /// Taps as `[K, D]`; the parameter is `[D, 1, K]`.
    taps: Buf<A::E>,
    dtaps: Buf<A::E>,
    u: Buf<A>,
    m: Buf<A>,
}

impl<A: Store> Conv<A> {
    /// Adds `prefix.up`, `.conv`, `.down` to the layout; `norm` is in it already.
    pub fn new(
        layout: &mut Layout,
        prefix: &str,
        norm: Option<Norm>,
        config: &ModelConfig,
        rows: usize,
        training: bool,
    ) -> Self {
        let (d, k) = (config.dim, config.kernel_size);
        let up = Linear::new(layout, &format!("{prefix}.up"), (2 * d, d), config, training);
        let init = Init::Normal((2.0 / (d * k) as f64).sqrt());
        let conv = layout.add(format!("{prefix}.conv.weight"), &[d, 1, k], init, Group::Conv);
        let down = Linear::new(layout, &format!("{prefix}.down"), (d, d), config, training);
        let (taps, dtaps) = (Buf::scratch(k * d), Buf::scratch(k * d));
        Conv { norm, up, conv, down, d, k, taps, dtaps, u: Buf::scratch(rows * 2 * d), m: Buf::scratch(rows * d) }
    }
}

impl<A: Store> Mixer<A> for Conv<A> {
    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.up.prepare(cx, params, s);
        self.down.prepare(cx, params, s);
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
        y: &mut [A::E],
        state: Option<&mut [A::E]>,
        h: &[A::E],
        params: &[A::E],
        (b, t): (usize, usize),
    ) {
        let Conv { norm, up, down, d, k, taps, u, m, .. } = self;
        let (d, k, rows) = (*d, *k, b * t);
        cx.tiles(rows, (Rows(u, 2 * d),), |cx, r, (u,), local| {
            let (x, z) = (local.take(r.len() * d), local.take(u.len()));
            let x = branch_forward(cx, norm.as_ref(), x, &h[r.start * d..r.end * d], params);
            up.forward(cx, z, x, params, local, false);
            narrow(cx, u, z);
        });
        let history = state.as_deref();
        cx.tiles(rows, (Rows(y, d), Rows(m, d)), |cx, r, (y, m), local| {
            y.copy_from_slice(&h[r.start * d..r.end * d]);
            conv_gate_forward(cx, m, u, history, taps, (r, (t, d, k)));
            down.forward(cx, y, Input::Kept(m), params, local, true);
        });
        if let Some(state) = state {
            for (i, last) in state.chunks_exact_mut(((k - 1) * d).max(1)).take(b).enumerate() {
                let kept = (k - 1).saturating_sub(t);
                last.copy_within((k - 1 - kept) * d.., 0);
                for (j, row) in last.chunks_exact_mut(d).enumerate().skip(kept) {
                    let from = i * t + (t + j + 1 - k);
                    let v = &u[from * 2 * d + d..(from + 1) * 2 * d];
                    row.iter_mut().zip(v).for_each(|(row, v)| *row = v.widen());
                }
            }
        }
    }

    fn backward(
        &mut self,
        cx: &Exec,
        dh: &mut [A::E],
        grads: &mut [A::E],
        h: &[A::E],
        params: &[A::E],
        s: &mut Scratch<A>,
        (b, t): (usize, usize),
    ) {
        let Conv { norm, up, down, d, k, taps, dtaps, u, m, .. } = self;
        let (d, k, rows) = (*d, *k, b * t);
        let own = norm.as_ref().map_or(0, Norm::width);
        let (at_down, at_taps) = (own + up.part_width(), own + up.part_width() + down.part_width());
        let width = at_taps + k * d;
        let parts = &mut s.parts[..cx.tile_count(rows) * width];
        let [du, dc, _] = &mut s.wide;
        let buffers = (Rows(&mut s.dy, d), Rows(du, 2 * d), Rows(dc, d), Parts(parts, width));
        cx.tiles(rows, buffers, |cx, r, (dy, du, dc, part), local| {
            part.fill(A::E::ZERO);
            let cells = r.start * d..r.end * d;
            let dm = local.take(r.len() * d);
            narrow(cx, dy, &dh[cells.clone()]);
            let m = &m[cells];
            down.backward_input(cx, dm, &mut part[at_down..at_taps], dy, Input::Kept(m), params, local, false);
            conv_gate_backward(cx, du, dc, dm, m, u, (r, d));
        });
        let parts = &mut s.parts[..cx.tile_count(rows) * width];
        let [du, dc, _] = &mut s.wide;
        let buffers = (Rows(dh, d), Rows(&mut s.x, d), Rows(du, 2 * d), Parts(parts, width));
        cx.tiles(rows, buffers, |cx, r, (dh, x, du, part), local| {
            let h = &h[r.start * d..r.end * d];
            let dx = local.take(r.len() * d);
            let x = branch_forward(cx, norm.as_ref(), x, h, params);
            conv_taps_backward(cx, du, &mut part[at_taps..], dc, u, taps, (r, (t, d, k)));
            up.backward_input(cx, dx, &mut part[own..at_down], du, x, params, local, false);
            branch_backward(cx, norm.as_ref(), dh, &mut part[..own], dx, h, params);
        });
        let parts = &s.parts[..cx.tile_count(rows) * width];
        if let Some(norm) = norm {
            norm.add_parts(grads, parts, width, 0);
        }
        let w = &mut s.weights;
        let x = branch_input(norm.as_ref(), &s.x[..rows * d], h);
        down.backward_weight(cx, grads, &s.dy, Input::Kept(&m[..rows * d]), params, w, (parts, width, at_down));
        up.backward_weight(cx, grads, &s.wide[0], x, params, w, (parts, width, own));
        dtaps.fill(A::E::ZERO);
        add_parts(dtaps, parts, width, at_taps);
        for (c, dw) in grads[self.conv.clone()].chunks_exact_mut(k).enumerate() {
            for (j, dw) in dw.iter_mut().enumerate() {
                *dw += dtaps[j * d + c];
            }
        }
    }
}
