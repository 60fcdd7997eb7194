//! The mixer in training: convolutions in float, rows in tiles. A convolution reads rows before its own, or after it in the backward
//! pass: each pass over tiles ends where the next must see its neighbours.

use flashlm_kernels::ops::{
    Act, add, gate_backward, gate_forward, grouped_backward_input, grouped_backward_weights, grouped_forward, narrow,
};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Buf, Elem, Exec, Store};

use super::{LayerParams, MixerParams, by_group, place};
use crate::layer::linear::BitLinear;
use crate::layer::norm::{Input, Tiles};
use crate::layer::pass::Pass;
use crate::layer::scratch::Scratch;
use crate::layer::taps::keep_last_rows;

/// Its weights.
pub(super) struct Mixer<A: Store> {
    of: MixerParams,
    layers: Vec<Layer<A::E>>,
    out: BitLinear<A>,
}

/// The two convolutions of a layer, `[G, K, I, O]`; for the backward pass `[G, K, O, I]`.
struct Layer<E: Elem> {
    weights: [Buf<E>; 2],
    turned: [Buf<E>; 2],
}

/// What one application saves, `[rows, D]` each.
pub(super) struct Saved<A: Store> {
    /// What enters the mixer, and each layer's sum.
    x: Vec<Buf<A::E>>,
    /// Of each layer: its input after the norm, gate and value.
    layers: Vec<[Buf<A::E>; 3]>,
    /// The last sum, as the matrix takes it.
    m: Buf<A>,
}

/// Scratch of the backward pass.
pub(super) struct Work<E: Elem> {
    dx: Buf<E>,
    /// Gradients of gate and value.
    dy: [Buf<E>; 2],
    /// Gradients of the weights of a convolution.
    dw: Buf<E>,
}

impl<A: Store> Mixer<A> {
    /// Room for the weights.
    pub(super) fn new(of: MixerParams, training: bool) -> Self {
        let layer = |of: &LayerParams| {
            let len = of.gate.len();
            let room = |len| [(); 2].map(|()| Buf::scratch(len));
            Layer { weights: room(len), turned: room(if training { len } else { 0 }) }
        };
        Mixer { layers: of.layers.iter().map(layer).collect(), out: BitLinear::new(&of.out, training), of }
    }

    fn width(&self) -> usize {
        self.of.out.outputs
    }

    /// Room for what a pass of at most `rows` rows saves.
    pub(super) fn saved(&self, rows: usize) -> Saved<A> {
        let n = rows * self.width();
        Saved {
            x: (0..=self.layers.len()).map(|_| Buf::scratch(n)).collect(),
            layers: self.layers.iter().map(|_| [(); 3].map(|()| Buf::scratch(n))).collect(),
            m: Buf::scratch(n),
        }
    }

    /// Scratch for backward passes of at most `rows` rows.
    pub(super) fn work(&self, rows: usize) -> Work<A::E> {
        let n = rows * self.width();
        let weights = self.of.layers.iter().map(|layer| layer.gate.len()).max().unwrap_or(0);
        let weights = if rows == 0 { 0 } else { weights };
        Work { dx: Buf::scratch(n), dy: [(); 2].map(|()| Buf::scratch(n)), dw: Buf::scratch(weights) }
    }

    /// The start of `batch` sequences: of each layer, `[B, (K-1) s, D]`.
    pub(super) fn state(&self, batch: usize) -> impl Iterator<Item = Buf<A::E>> {
        self.of.layers.iter().map(move |layer| Buf::zeros(batch * layer.state_len()))
    }

    /// Quantises and packs the weights.
    pub(super) fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.out.prepare(cx, params, s);
        for (of, layer) in self.of.layers.iter().zip(&mut self.layers) {
            for (i, range) in [&of.gate, &of.value].into_iter().enumerate() {
                let w = &params[range.clone()];
                by_group(&mut layer.weights[i], w, of.of);
                if !layer.turned[i].is_empty() {
                    w.iter().enumerate().for_each(|(at, &w)| layer.turned[i][place(at, of.of, true)] = w);
                }
            }
        }
    }

    /// `y, h: [rows, D]`; with a state, of each layer, the sequences go on where it stands, and it moves on.
    pub(super) fn forward(
        &self,
        pass: Pass<A::E>,
        y: &mut [A::E],
        saved: &mut Saved<A>,
        state: Option<&mut [Buf<A::E>]>,
        h: &[A::E],
    ) {
        let Pass { cx, params, span, .. } = pass;
        let (d, rows) = (self.width(), span.rows());
        let MixerParams { norm, layers, .. } = &self.of;
        let norm = norm.0.as_ref().expect("a norm before the mixer");
        let Saved { x, layers: kept, m } = saved;
        cx.tiles(rows, (Rows(&mut x[0], d), Rows(&mut kept[0][0], d)), |cx, r, (x, normed), _| {
            norm.forward(cx, x, &h[r.start * d..r.end * d], params);
            layers[0].norm.forward(cx, normed, x, params);
        });
        for (i, (of, own)) in layers.iter().zip(&self.layers).enumerate() {
            let (before, after) = x.split_at_mut(i + 1);
            let (now, later) = kept.split_at_mut(i + 1);
            let ([normed, gate, value], before) = (&mut now[i], &before[i]);
            let history = state.as_deref().map(|state| &state[i][..]);
            // The next layer's input; behind the last one the matrix's.
            let next = later.first_mut().map(|[normed, ..]| normed);
            let (wide, last) = (if next.is_some() { d } else { 0 }, next.is_none());
            let next: &mut [A::E] = next.map_or(&mut [], |next| &mut next[..]);
            let buffers = (
                Rows(&mut after[0], d),
                Rows(gate, d),
                Rows(value, d),
                Rows(next, wide),
                Rows(&mut *m, if last { d } else { 0 }),
                Rows(&mut *y, if last { d } else { 0 }),
            );
            cx.tiles(rows, buffers, |cx, r, (x, gate, value, next, m, y), local| {
                let cells = r.start * d..r.end * d;
                for (to, w) in [&mut *gate, &mut *value].into_iter().zip(&own.weights) {
                    grouped_forward(cx, to, normed, history, w, of.of, (r.clone(), span));
                }
                gate_forward(cx, x, gate, value, Act::Sigmoid);
                add(cx, x, &before[cells.clone()]);
                match layers.get(i + 1) {
                    Some(layer) => layer.norm.forward(cx, next, x, params),
                    None => {
                        narrow(cx, m, x);
                        y.copy_from_slice(&h[cells]);
                        self.out.forward(cx, y, Input::Saved(m), pass, local, true);
                    }
                }
            });
        }
        let Some(state) = state else { return };
        for ((of, state), [normed, ..]) in layers.iter().zip(state).zip(kept) {
            let states = state.chunks_exact_mut(of.state_len().max(1)).take(span.batch);
            for (i, last) in states.enumerate() {
                keep_last_rows::<A::E>(last, (&normed[i * span.len * d..], d, 0), span.len, d);
            }
        }
    }

    /// Turns `dh` from the gradient of `y` into that of `h`; adds to `grads`.
    pub(super) fn backward(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        saved: &Saved<A>,
        h: &[A::E],
        (s, work): (&mut Scratch<A>, &mut Work<A::E>),
    ) {
        let Pass { cx, params, span, .. } = pass;
        let (d, rows, width) = (self.width(), span.rows(), self.of.part);
        let MixerParams { norm, layers, .. } = &self.of;
        let sums = cx.tile_count(rows) * width;
        let Work { dx, dy: [dgate, dvalue], dw } = work;
        let buffers = (Rows(&mut s.dy, d), Rows(&mut *dx, d), Parts(&mut s.parts[..sums], width));
        cx.tiles(rows, buffers, |cx, r, (dy, dx, part), local| {
            part.fill(A::E::ZERO);
            let cells = r.start * d..r.end * d;
            narrow(cx, dy, &dh[cells.clone()]);
            self.out.backward_input(cx, dx, part, dy, Input::Saved(&saved.m[cells]), pass, local, false);
        });
        for (i, (of, own)) in layers.iter().zip(&self.layers).enumerate().rev() {
            let [normed, gate, value] = &saved.layers[i];
            cx.tiles(rows, (Rows(&mut *dgate, d), Rows(&mut *dvalue, d)), |cx, r, (dgate, dvalue), _| {
                let cells = r.start * d..r.end * d;
                let (gate, value) = (&gate[cells.clone()], &value[cells.clone()]);
                gate_backward::<A::E>(cx, dgate, dvalue, &dx[cells], gate, value, Act::Sigmoid);
            });
            let both = [(&of.gate, &dgate[..]), (&of.value, &dvalue[..])];
            for (range, dy) in both {
                let (dw, each) = (&mut dw[..range.len()], of.of.weights());
                dw.fill(A::E::ZERO);
                cx.tiles_by(1, of.of.groups, (Rows(dw, each),), |cx, group, (dw,), _| {
                    grouped_backward_weights(cx, dw, normed, dy, group.start, of.of, span);
                });
                let own = grads[range.clone()].iter_mut().enumerate();
                own.for_each(|(at, grad)| *grad += dw[place(at, of.of, false)]);
            }
            let buffers = (Rows(&mut *dx, d), Parts(&mut s.parts[..sums], width));
            cx.tiles(rows, buffers, |cx, r, (dx, part), local| {
                let cells = r.start * d..r.end * d;
                let dnormed = local.take::<A::E>(cells.len());
                for (accumulate, ((_, dy), w)) in [false, true].into_iter().zip(both.iter().zip(&own.turned)) {
                    grouped_backward_input(cx, dnormed, dy, w, of.of, (r.clone(), span), accumulate);
                }
                of.norm.backward(cx, dx, part, dnormed, &saved.x[i][cells], params, true);
            });
        }
        let buffers = (Rows(&mut *dh, d), Parts(&mut s.parts[..sums], width));
        cx.tiles(rows, buffers, |cx, r, (dh, part), _| {
            let cells = r.start * d..r.end * d;
            norm.backward(cx, dh, part, &dx[cells.clone()], &h[cells], params);
        });
        let tiles = &Tiles { sums: &s.parts[..sums], width };
        norm.add_parts(grads, tiles);
        layers.iter().for_each(|layer| layer.norm.add_parts(grads, tiles));
        let (m, dy) = (Input::Saved(&saved.m[..rows * d]), &s.dy[..rows * d]);
        BitLinear::backward_weights(pass, grads, &[(&self.out, dy)], m, &mut s.weights, tiles);
    }
}
