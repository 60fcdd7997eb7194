//! The short convolution in training. A row needs the `K-1` rows before it, or after it in the backward pass: each pass over tiles
//! ends where the next must see its neighbours.

use flashlm_kernels::ops::{
    conv_forward, conv_taps_backward, narrow, shortconv_in_backward, shortconv_in_forward, shortconv_out_backward,
    shortconv_out_forward,
};
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

/// `u = [b, c, x]: [rows, 3D]`, what goes into the convolution and what comes out of it, `v` and `s: [rows, D]`.
pub struct Saved<A: Store> {
    u: Buf<A>,
    v: Buf<A>,
    s: Buf<A>,
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
        Saved { u: Buf::scratch(rows * 3 * d), v: Buf::scratch(rows * d), s: Buf::scratch(rows * d) }
    }

    fn wide(&self) -> [usize; WIDE] {
        let d = self.of.down.outputs;
        [3 * d, d, d, 0, 0]
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
        let (Train { of, up, down, taps }, Saved { u, v, s }) = (self, saved);
        let (d, k, rows) = (of.down.outputs, of.conv.k, span.rows());
        cx.tiles(rows, (Rows(u, 3 * d), Rows(v, d)), |cx, r, (u, v), local| {
            let (x, z) = (local.take(r.len() * d), local.take(u.len()));
            let x = of.norm.forward(cx, x, &h[r.start * d..r.end * d], params);
            up.forward(cx, z, x, pass, local, false);
            shortconv_in_forward(cx, v, u, z, d);
        });
        let history = state.as_deref();
        cx.tiles(rows, (Rows(y, d), Rows(s, d)), |cx, r, (y, s), local| {
            let (m, sums) = (local.take(s.len()), local.take(s.len()));
            y.copy_from_slice(&h[r.start * d..r.end * d]);
            conv_forward(cx, sums, (v, d, 0), history, (taps, d, 0), (r.clone(), span, (d, k)));
            narrow(cx, s, sums);
            shortconv_out_forward(cx, m, sums, &u[r.start * 3 * d..r.end * 3 * d], d);
            down.forward(cx, y, Input::Saved(m), pass, local, true);
        });
        if let Some(state) = state {
            for (i, last) in state.chunks_exact_mut(((k - 1) * d).max(1)).take(span.batch).enumerate() {
                keep_last_rows(last, (&v[i * span.len * d..], d, 0), span.len, d);
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
        scratch: &mut Scratch<A>,
    ) {
        let Pass { cx, params, span, .. } = pass;
        let (Train { of, up, down, taps }, Saved { u, v, s }) = (self, saved);
        let (d, k, rows, width) = (of.down.outputs, of.conv.k, span.rows(), of.part);
        let sums = cx.tile_count(rows) * width;
        let [du, ds, m, ..] = &mut scratch.wide;
        let parts = Parts(&mut scratch.parts[..sums], width);
        let buffers = (Rows(&mut scratch.dy, d), Rows(&mut *du, 3 * d), Rows(&mut *ds, d), Rows(&mut *m, d), parts);
        cx.tiles(rows, buffers, |cx, r, (dy, du, ds, m, part), local| {
            part.fill(A::E::ZERO);
            let (s, u) = (&s[r.start * d..r.end * d], &u[r.start * 3 * d..r.end * 3 * d]);
            let dm = local.take(s.len());
            narrow(cx, dy, &dh[r.start * d..r.end * d]);
            shortconv_out_forward(cx, m, s, u, d);
            down.backward_input(cx, dm, part, dy, Input::Saved(m), pass, local, false);
            shortconv_out_backward(cx, du, ds, dm, s, u, d);
        });
        let parts = Parts(&mut scratch.parts[..sums], width);
        let buffers = (Rows(dh, d), Rows(&mut scratch.x, d), Rows(&mut *du, 3 * d), parts);
        cx.tiles(rows, buffers, |cx, r, (dh, x, du, part), local| {
            let (h, u) = (&h[r.start * d..r.end * d], &u[r.start * 3 * d..r.end * 3 * d]);
            let (dv, dx) = (local.take(h.len()), local.take(h.len()));
            let x = of.norm.forward(cx, x, h, params);
            let dtaps = &mut part[of.conv.part.clone()];
            conv_taps_backward(cx, (&mut *dv, d, 0), dtaps, ds, (v, d, 0), taps, (r, span, (d, k)));
            shortconv_in_backward(cx, du, dv, u, d);
            up.backward_input(cx, dx, part, du, x, pass, local, false);
            of.norm.backward(cx, dh, part, dx, h, params);
        });
        let tiles = &Tiles { sums: &scratch.parts[..sums], width };
        let (x, m) = (of.norm.input(&scratch.x[..rows * d], h), Input::Saved(&m[..rows * d]));
        let w = &mut scratch.weights;
        BitLinear::backward_weights(pass, grads, &[(down, &scratch.dy[..rows * d])], m, w, tiles);
        BitLinear::backward_weights(pass, grads, &[(up, &du[..rows * 3 * d])], x, w, tiles);
        of.norm.add_parts(grads, tiles);
        of.conv.add_parts(grads, &mut scratch.dtaps, tiles);
    }
}
