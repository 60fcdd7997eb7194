//! The convolution in training. A row needs the `K-1` rows before it, or after it in the backward pass: each pass over tiles ends
//! where the next must see its neighbours.

use flashlm_kernels::ops::{conv_gate_backward, conv_gate_forward, conv_taps_backward, narrow};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Buf, Exec, Store};

use super::Params;
use crate::layer::linear::BitLinear;
use crate::layer::norm::{Input, Tiles};
use crate::layer::pass::Pass;
use crate::layer::scratch::{Scratch, WIDE};
use crate::layer::taps::keep_last_rows;
use crate::mixer::forms::Mixer;

/// Its weights.
pub struct Train<A: Store> {
    of: Params,
    up: BitLinear<A>,
    down: BitLinear<A>,
    /// `[K, D]`.
    taps: Buf<A::E>,
}

/// `u = [g, v]: [rows, 2D]` and the gated `m: [rows, D]`.
pub struct Saved<A: Store> {
    u: Buf<A>,
    m: Buf<A>,
}

impl<A: Store> Train<A> {
    /// Room for the weights.
    pub(crate) fn new(of: Params, training: bool) -> Self {
        let (up, down) = (BitLinear::new(&of.up, training), BitLinear::new(&of.down, training));
        Train { up, down, taps: Buf::scratch(of.conv.weight.len()), of }
    }
}

impl<A: Store> Mixer<A> for Train<A> {
    type Saved = Saved<A>;

    fn saved(&self, rows: usize, _: bool) -> Saved<A> {
        let d = self.of.down.outputs;
        Saved { u: Buf::scratch(rows * 2 * d), m: Buf::scratch(rows * d) }
    }

    fn wide(&self) -> [usize; WIDE] {
        let d = self.of.down.outputs;
        [2 * d, d, 0, 0, 0]
    }

    fn state_len(&self) -> usize {
        self.of.state_len()
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.up.prepare(cx, params, s);
        self.down.prepare(cx, params, s);
        self.of.conv.by_row(&mut self.taps, params);
    }

    fn forward(&self, pass: Pass<A::E>, y: &mut [A::E], saved: &mut Saved<A>, state: Option<&mut [A::E]>, h: &[A::E]) {
        let Pass { cx, params, span, .. } = pass;
        let (Train { of, up, down, taps }, Saved { u, m }) = (self, saved);
        let (d, k, rows) = (of.down.outputs, of.conv.k, span.rows());
        cx.tiles(rows, (Rows(u, 2 * d),), |cx, r, (u,), local| {
            let (x, z) = (local.take(r.len() * d), local.take(u.len()));
            let x = of.norm.forward(cx, x, &h[r.start * d..r.end * d], params);
            up.forward(cx, z, x, pass, local, false);
            narrow(cx, u, z);
        });
        let history = state.as_deref();
        cx.tiles(rows, (Rows(y, d), Rows(m, d)), |cx, r, (y, m), local| {
            y.copy_from_slice(&h[r.start * d..r.end * d]);
            conv_gate_forward(cx, m, u, history, taps, (r, span, (d, k)));
            down.forward(cx, y, Input::Saved(m), pass, local, true);
        });
        if let Some(state) = state {
            for (i, last) in state.chunks_exact_mut(((k - 1) * d).max(1)).take(span.batch).enumerate() {
                keep_last_rows(last, (&u[i * span.len * 2 * d..], 2 * d, d), span.len, d);
            }
        }
    }

    fn backward(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        saved: &mut Saved<A>,
        h: &[A::E],
        s: &mut Scratch<A>,
    ) {
        let Pass { cx, params, span, .. } = pass;
        let (Train { of, up, down, taps }, Saved { u, m }) = (self, saved);
        let (d, k, rows, width) = (of.down.outputs, of.conv.k, span.rows(), of.part);
        let tiles = cx.tile_count(rows) * width;
        let [du, dc, ..] = &mut s.wide;
        let buffers = (Rows(&mut s.dy, d), Rows(du, 2 * d), Rows(dc, d), Parts(&mut s.parts[..tiles], width));
        cx.tiles(rows, buffers, |cx, r, (dy, du, dc, part), local| {
            part.fill(A::E::ZERO);
            let cells = r.start * d..r.end * d;
            let dm = local.take(r.len() * d);
            narrow(cx, dy, &dh[cells.clone()]);
            let m = &m[cells];
            down.backward_input(cx, dm, part, dy, Input::Saved(m), pass, local, false);
            conv_gate_backward(cx, du, dc, dm, m, u, (r, d));
        });
        let [du, dc, ..] = &mut s.wide;
        let parts = Parts(&mut s.parts[..tiles], width);
        let buffers = (Rows(dh, d), Rows(&mut s.x, d), Rows(du, 2 * d), parts);
        cx.tiles(rows, buffers, |cx, r, (dh, x, du, part), local| {
            let h = &h[r.start * d..r.end * d];
            let dx = local.take(r.len() * d);
            let x = of.norm.forward(cx, x, h, params);
            let (v, dtaps) = ((&u[..], 2 * d, d), &mut part[of.conv.part.clone()]);
            conv_taps_backward(cx, (&mut *du, 2 * d, d), dtaps, dc, v, taps, (r, span, (d, k)));
            up.backward_input(cx, dx, part, du, x, pass, local, false);
            of.norm.backward(cx, dh, part, dx, h, params);
        });
        let tiles = &Tiles { sums: &s.parts[..tiles], width };
        let w = &mut s.weights;
        let (x, m) = (of.norm.input(&s.x[..rows * d], h), Input::Saved(&m[..rows * d]));
        BitLinear::backward_weights(pass, grads, &[(down, &s.dy[..rows * d])], m, w, tiles);
        BitLinear::backward_weights(pass, grads, &[(up, &s.wide[0][..rows * 2 * d])], x, w, tiles);
        of.norm.add_parts(grads, tiles);
        of.conv.add_parts(grads, &mut s.dtaps, tiles);
    }
}
