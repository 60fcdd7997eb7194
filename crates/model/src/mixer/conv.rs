//! GatedConvMixer branch: `[g, v] = W_up x`, `x = norm(h)` (`D -> 2D`), `v' = causal depthwise conv(v)` with `K` float taps
//! a channel, `y = h + W_down (v' * sigmoid(g))` (`D -> D`); see [`flashlm_kernels::ops::conv_gate_forward`].
//!
//! The state of a sequence is its last `K-1` rows of `v`. A row needs `K-1` rows before it, or after it in the backward
//! pass: each pass over tiles ends where the next must see its neighbours.

use std::ops::Range;

use flashlm_kernels::ops::{add_parts, conv_gate_backward, conv_gate_forward, conv_taps_backward, narrow};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Buf, Elem, Exec, Span, Store};

use crate::config::ModelConfig;
use crate::layer::linear::Linear;
use crate::layer::norm::{Input, Norm, branch_backward, branch_forward, branch_input};
use crate::layer::{Need, Scratch};
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
        let down = Linear::output(layout, &format!("{prefix}.down"), (d, d), config, training);
        let (taps, dtaps) = (Buf::scratch(k * d), Buf::scratch(k * d));
        Conv { norm, up, conv, down, d, k, taps, dtaps, u: Buf::scratch(rows * 2 * d), m: Buf::scratch(rows * d) }
    }

    /// See [`crate::mixer::sizes`].
    pub fn sizes(config: &ModelConfig) -> (usize, usize) {
        let (d, k) = (config.dim, config.kernel_size);
        let down = Linear::<A>::output_parameters((d, d), config);
        (Linear::<A>::parameters((2 * d, d), config) + k * d + down, (k - 1) * d)
    }
}

impl<A: Store> Mixer<A> for Conv<A> {
    fn linears(&mut self) -> Vec<&mut Linear<A>> {
        vec![&mut self.up, &mut self.down]
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.up.prepare(cx, params, s);
        self.down.prepare(cx, params, s);
        taps_by_row(&mut self.taps, &params[self.conv.clone()], self.k);
    }

    fn need(&self) -> Need {
        let (d, k) = (self.d, self.k);
        Need { matrix: 2 * d * d, input: d, part: 3 * d + k * d, wide: [2 * d, d, 0, 0, 0] }
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
        span: &Span,
    ) {
        let Conv { norm, up, down, d, k, taps, u, m, .. } = self;
        let (d, k, rows) = (*d, *k, span.rows());
        cx.tiles(rows, (Rows(u, 2 * d),), |cx, r, (u,), local| {
            let (x, z) = (local.take(r.len() * d), local.take(u.len()));
            let x = branch_forward(cx, norm.as_ref(), x, &h[r.start * d..r.end * d], params);
            up.forward(cx, z, x, params, local, false);
            narrow(cx, u, z);
        });
        let history = state.as_deref();
        cx.tiles(rows, (Rows(y, d), Rows(m, d)), |cx, r, (y, m), local| {
            y.copy_from_slice(&h[r.start * d..r.end * d]);
            conv_gate_forward(cx, m, u, history, taps, (r, span, (d, k)));
            down.forward(cx, y, Input::Kept(m), params, local, true);
        });
        if let Some(state) = state {
            for (i, last) in state.chunks_exact_mut(((k - 1) * d).max(1)).take(span.batch).enumerate() {
                remember(last, (&u[i * span.len * 2 * d..], 2 * d, d), span.len, d);
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
        span: &Span,
    ) {
        let Conv { norm, up, down, d, k, taps, dtaps, u, m, .. } = self;
        let (d, k, rows) = (*d, *k, span.rows());
        let own = norm.as_ref().map_or(0, Norm::width);
        let (at_down, at_taps) = (own + up.part_width(), own + up.part_width() + down.part_width());
        let width = at_taps + k * d;
        let parts = &mut s.parts[..cx.tile_count(rows) * width];
        let [du, dc, ..] = &mut s.wide;
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
        let [du, dc, ..] = &mut s.wide;
        let buffers = (Rows(dh, d), Rows(&mut s.x, d), Rows(du, 2 * d), Parts(parts, width));
        cx.tiles(rows, buffers, |cx, r, (dh, x, du, part), local| {
            let h = &h[r.start * d..r.end * d];
            let dx = local.take(r.len() * d);
            let x = branch_forward(cx, norm.as_ref(), x, h, params);
            let v = (&u[..], 2 * d, d);
            conv_taps_backward(cx, (&mut *du, 2 * d, d), &mut part[at_taps..], dc, v, taps, (r, span, (d, k)));
            up.backward_input(cx, dx, &mut part[own..at_down], du, x, params, local, false);
            branch_backward(cx, norm.as_ref(), dh, &mut part[..own], dx, h, params);
        });
        let parts = &s.parts[..cx.tile_count(rows) * width];
        if let Some(norm) = norm {
            norm.add_parts(grads, parts, width, 0);
        }
        let w = &mut s.weights;
        let x = branch_input(norm.as_ref(), &s.x[..rows * d], h);
        let (m, parts_of) = (Input::Kept(&m[..rows * d]), (parts, width));
        Linear::backward_weights(cx, grads, &[(down, &s.dy[..rows * d], at_down)], m, params, w, parts_of);
        Linear::backward_weights(cx, grads, &[(up, &s.wide[0][..rows * 2 * d], own)], x, params, w, parts_of);
        dtaps.fill(A::E::ZERO);
        add_parts(dtaps, parts, width, at_taps);
        add_taps(&mut grads[self.conv.clone()], dtaps, k);
    }
}

/// Taps as `[K, C]` from the parameter, `[C, 1, K]`.
pub(crate) fn taps_by_row<E: Elem>(taps: &mut [E], params: &[E], k: usize) {
    let channels = params.len() / k;
    for (c, own) in params.chunks_exact(k).enumerate() {
        own.iter().enumerate().for_each(|(j, &w)| taps[j * channels + c] = w);
    }
}

/// Adds gradients of taps, `[K, C]`, to those of the parameter, `[C, 1, K]`.
pub(super) fn add_taps<E: Elem>(grads: &mut [E], dtaps: &[E], k: usize) {
    let channels = grads.len() / k;
    for (c, own) in grads.chunks_exact_mut(k).enumerate() {
        own.iter_mut().enumerate().for_each(|(j, dw)| *dw += dtaps[j * channels + c]);
    }
}

/// Moves `last: [K-1, d]`, the last rows of a sequence, on by `t` rows: columns from `.2` on of rows `.1` apart.
pub(super) fn remember<A: Store>(last: &mut [A::E], (rows, ld, at): (&[A], usize, usize), t: usize, d: usize) {
    let held = last.len() / d;
    let kept = held.saturating_sub(t);
    last.copy_within((held - kept) * d.., 0);
    for (j, row) in last.chunks_exact_mut(d).enumerate().skip(kept) {
        let from = (t + j - held) * ld + at;
        row.iter_mut().zip(&rows[from..from + d]).for_each(|(row, v)| *row = v.widen());
    }
}
