//! Attention in training: [`BLOCK`] queries at a time against the keys in their window.

use flashlm_kernels::ops::{attention_backward, attention_forward, attention_room, attention_work, narrow, rope};
use flashlm_kernels::tile::{Heads, Parts, Rows};
use flashlm_kernels::{Buf, Exec, Store};

use super::Params;
use super::angles::Angles;
use crate::layer::linear::BitLinear;
use crate::layer::norm::{Input, Tiles};
use crate::layer::pass::Pass;
use crate::layer::scratch::{Scratch, WIDE};
use crate::mixer::forms::Mixer;

/// Most queries of a block.
const BLOCK: usize = 48;

/// Its weights.
pub struct Train<A: Store> {
    of: Params,
    inputs: [BitLinear<A>; 3],
    output: BitLinear<A>,
}

/// What the forward pass saves.
pub struct Saved<A: Store> {
    /// What comes out of the three matrices: `[rows, D]`.
    qkv: [Buf<A>; 3],
    /// Queries and keys as they are multiplied: `[rows, D]`.
    rotated: [Buf<A>; 2],
    o: Buf<A>,
    /// `[B H, T]`.
    log_sum: Buf<A::E>,
    /// Of the first `rows` positions.
    angles: Angles<A::E>,
}

impl<A: Store> Train<A> {
    /// Room for the weights.
    pub(crate) fn new(of: Params, training: bool) -> Self {
        let inputs = std::array::from_fn(|i| BitLinear::new(&of.inputs[i], training));
        Train { inputs, output: BitLinear::new(&of.output, training), of }
    }
}

impl<A: Store> Mixer<A> for Train<A> {
    type Saved = Saved<A>;

    fn saved(&self, rows: usize, _: bool) -> Saved<A> {
        let d = self.of.output.outputs;
        Saved {
            qkv: std::array::from_fn(|_| Buf::scratch(rows * d)),
            rotated: std::array::from_fn(|_| Buf::scratch(rows * d)),
            o: Buf::scratch(rows * d),
            log_sum: Buf::scratch(rows * self.of.heads),
            angles: Angles::new(self.of.width(), self.of.rope_base, rows),
        }
    }

    fn wide(&self) -> [usize; WIDE] {
        let d = self.of.output.outputs;
        [d, d, d, 0, 0]
    }

    fn state_len(&self) -> usize {
        2 * self.of.window * self.of.output.outputs
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.inputs.iter_mut().for_each(|matrix| matrix.prepare(cx, params, s));
        self.output.prepare(cx, params, s);
    }

    fn forward(&self, pass: Pass<A::E>, y: &mut [A::E], saved: &mut Saved<A>, state: Option<&mut [A::E]>, h: &[A::E]) {
        let Pass { cx, params, span, .. } = pass;
        let (scales, width) = (self.of.scales(), self.of.width());
        let (Train { of, inputs, output }, Saved { qkv, rotated, o, log_sum, angles }) = (self, saved);
        let Params { norm, head_norms, heads, window, .. } = of;
        let (d, heads, window, rows, t) = (of.output.outputs, *heads, *window, span.rows(), span.len);
        let ([q, k, v], [rotated_q, rotated_k]) = (qkv, rotated);

        let buffers = (Rows(q, d), Rows(k, d), Rows(v, d), Rows(rotated_q, d), Rows(rotated_k, d));
        cx.tiles(rows, buffers, |cx, r, (q, k, v, rotated_q, rotated_k), local| {
            let (x, z) = (local.take(r.len() * d), local.take(r.len() * d));
            let x = norm.forward(cx, x, &h[r.start * d..r.end * d], params);
            for (u, linear) in [&mut *q, &mut *k, v].into_iter().zip(inputs) {
                linear.forward(cx, z, x, pass, local, false);
                narrow(cx, u, z);
            }
            let rotation = local.take(r.len() * width);
            angles.fill(rotation, &span.past[r]);
            for (i, (rotated, u)) in [(rotated_q, q), (rotated_k, k)].into_iter().enumerate() {
                head_norms[i].forward(cx, z, u, params);
                rope(cx, rotated, z, rotation, (heads, width), scales[i], false);
            }
        });

        let most = BLOCK.min(t);
        let of_head = |buffer| Heads(buffer, t, heads, width);
        let buffers = (of_head(o), of_head(rotated_q), of_head(rotated_k), of_head(v), Rows(log_sum, t));
        match state {
            None => {
                cx.tiles_by(1, span.batch * heads, buffers, |cx, unit, (mut o, mut q, mut k, mut v, sums), local| {
                    let span = &span.sequence(unit.start / heads);
                    let (keys, values) = (local.take(t * width), local.take(t * width));
                    let (queries, out) = (local.take(most * width), local.take(most * width));
                    let work = local.take(attention_work(most, t.min(window + most)));
                    let room = local.take::<A>(attention_room((most, width), t.min(window + most)));
                    k.load(cx, keys, 0..t);
                    v.load(cx, values, 0..t);
                    let mut at = 0;
                    while at < t {
                        let run = span.run(at..t, BLOCK);
                        let n = run.len();
                        let before = (span.past[at] as usize).min(window - 1);
                        let seen = (at - before) * width..run.end * width;
                        let (queries, out) = (&mut queries[..n * width], &mut out[..n * width]);
                        q.load(cx, queries, run.clone());
                        let pieces = [(&keys[seen.clone()], &values[seen])];
                        let sizes = (n, width, window);
                        attention_forward(cx, out, &mut sums[run], queries, &pieces, work, room, sizes);
                        o.store(cx, out, at);
                        at += n;
                    }
                });
            }
            Some(state) => {
                let (o, q, k, v, sums) = buffers;
                let buffers = (o, q, k, v, sums, Rows(state, 2 * window * width));
                cx.tiles_by(1, span.batch * heads, buffers, |cx, unit, share, local| {
                    let (mut o, mut q, mut k, mut v, sums, state) = share;
                    let span = &span.sequence(unit.start / heads);
                    let (keys, values) = (local.take(most * width), local.take(most * width));
                    let (queries, out) = (local.take(most * width), local.take(most * width));
                    let work = local.take(attention_work(most, window + most));
                    let room = local.take::<A>(attention_room((most, width), window + most));
                    let (past_keys, past_values) = state.split_at_mut(window * width);
                    let mut at = 0;
                    while at < t {
                        let run = span.run(at..t, BLOCK);
                        let n = run.len();
                        let (keys, values) = (&mut keys[..n * width], &mut values[..n * width]);
                        let (queries, out) = (&mut queries[..n * width], &mut out[..n * width]);
                        q.load(cx, queries, run.clone());
                        k.load(cx, keys, run.clone());
                        v.load(cx, values, run.clone());
                        // The rows before, from their slots on to the last one, and on from slot 0.
                        let past = span.past[at] as usize;
                        let before = past.min(window - 1);
                        let first = (past - before) % window;
                        let end = window.min(first + before);
                        let (older, newer) = (first * width..end * width, 0..(before + first - end) * width);
                        let pieces = [
                            (&past_keys[older.clone()], &past_values[older]),
                            (&past_keys[newer.clone()], &past_values[newer]),
                            (&*keys, &*values),
                        ];
                        let sizes = (n, width, window);
                        attention_forward(cx, out, &mut sums[run], queries, &pieces, work, room, sizes);
                        o.store(cx, out, at);
                        for (i, (key, value)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
                            let slot = (past + i) % window * width;
                            past_keys[slot..slot + width].copy_from_slice(key);
                            past_values[slot..slot + width].copy_from_slice(value);
                        }
                        at += n;
                    }
                });
            }
        }

        cx.tiles(rows, (Rows(y, d),), |cx, r, (y,), local| {
            let cells = r.start * d..r.end * d;
            y.copy_from_slice(&h[cells.clone()]);
            output.forward(cx, y, Input::Saved(&o[cells]), pass, local, true);
        });
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
        let (scales, width, part_width) = (self.of.scales(), self.of.width(), self.of.part);
        let (Train { of, inputs, output }, Saved { qkv, rotated, o, log_sum, angles }) = (self, saved);
        let Params { norm, head_norms, heads, window, .. } = of;
        let (d, heads, window, rows, t) = (of.output.outputs, *heads, *window, span.rows(), span.len);

        let parts = &mut s.parts[..cx.tile_count(rows) * part_width];
        let [d_o, dq, dk, ..] = &mut s.wide;
        let buffers = (Rows(&mut s.dy, d), Rows(d_o, d), Parts(parts, part_width));
        cx.tiles(rows, buffers, |cx, r, (dy, d_o, part), local| {
            part.fill(A::E::ZERO);
            let cells = r.start * d..r.end * d;
            let z = local.take(cells.len());
            narrow(cx, dy, &dh[cells.clone()]);
            let o = Input::Saved(&o[cells]);
            output.backward_input(cx, z, part, dy, o, pass, local, false);
            narrow(cx, d_o, z);
        });
        let tiles = &Tiles { sums: &s.parts[..cx.tile_count(rows) * part_width], width: part_width };
        let (w, kept) = (&mut s.weights, Input::Saved(&o[..rows * d]));
        BitLinear::backward_weights(pass, grads, &[(output, &s.dy[..rows * d])], kept, w, tiles);

        // The gradient of values takes the place of that of the output.
        let most = BLOCK.min(t);
        let ([q, k], v) = (rotated, &mut qkv[2]);
        let of_head = |buffer| Heads(buffer, t, heads, width);
        let buffers = (of_head(d_o), of_head(dq), of_head(dk), of_head(o), of_head(q), of_head(k), of_head(v));
        cx.tiles_by(1, span.batch * heads, buffers, |cx, unit, share, local| {
            let (mut d_o, mut dq, mut dk, mut o, mut q, mut k, mut v) = share;
            let sums = &log_sum[unit.start * t..][..t];
            let span = &span.sequence(unit.start / heads);
            let (keys, values) = (local.take(t * width), local.take(t * width));
            let (dkeys, dvalues) = (local.take(t * width), local.take(t * width));
            let (queries, dqueries) = (local.take(most * width), local.take(most * width));
            let (out, dout) = (local.take(most * width), local.take(most * width));
            let work = local.take(attention_work(most, 0));
            let room = local.take::<A>(attention_room((most, width), 0));
            k.load(cx, keys, 0..t);
            v.load(cx, values, 0..t);
            dkeys.fill(A::E::ZERO);
            dvalues.fill(A::E::ZERO);
            let mut at = 0;
            while at < t {
                let run = span.run(at..t, BLOCK);
                let n = run.len();
                let before = (span.past[at] as usize).min(window - 1);
                let seen = (at - before) * width..run.end * width;
                let (queries, dqueries) = (&mut queries[..n * width], &mut dqueries[..n * width]);
                let (out, dout) = (&mut out[..n * width], &mut dout[..n * width]);
                q.load(cx, queries, run.clone());
                o.load(cx, out, run.clone());
                d_o.load(cx, dout, run.clone());
                let grads = (&mut *dqueries, &mut dkeys[seen.clone()], &mut dvalues[seen.clone()]);
                let operands = (&*queries, &keys[seen.clone()], &values[seen]);
                attention_backward(cx, grads, dout, (out, &sums[run]), operands, work, room, (n, width, window));
                dq.store(cx, dqueries, at);
                at += n;
            }
            dk.store(cx, dkeys, 0);
            d_o.store(cx, dvalues, 0);
        });

        let parts = &mut s.parts[..cx.tile_count(rows) * part_width];
        let [dv, dq, dk, ..] = &mut s.wide;
        let buffers = (Rows(dh, d), Rows(&mut s.x, d), Rows(dq, d), Rows(dk, d), Parts(parts, part_width));
        cx.tiles(rows, buffers, |cx, r, (dh, x, dq, dk, part), local| {
            let cells = r.start * d..r.end * d;
            let h = &h[cells.clone()];
            let x = norm.forward(cx, x, h, params);
            let (rotation, z, dx) = (local.take(r.len() * width), local.take(cells.len()), local.take(cells.len()));
            angles.fill(rotation, &span.past[r]);
            for (i, du) in [&mut *dq, &mut *dk].into_iter().enumerate() {
                let u = &qkv[i][cells.clone()];
                rope(cx, z, du, rotation, (heads, width), scales[i], true);
                head_norms[i].backward(cx, dx, part, z, u, params, false);
                narrow(cx, du, dx);
            }
            for (i, (linear, du)) in inputs.iter().zip([&*dq, dk, &dv[cells]]).enumerate() {
                linear.backward_input(cx, dx, part, du, x, pass, local, i > 0);
            }
            norm.backward(cx, dh, part, dx, h, params);
        });

        let tiles = &Tiles { sums: &s.parts[..cx.tile_count(rows) * part_width], width: part_width };
        let x = norm.input(&s.x[..rows * d], h);
        let dus = [&dq[..rows * d], &dk[..rows * d], &dv[..rows * d]];
        let matrices: [_; 3] = std::array::from_fn(|i| (&inputs[i], dus[i]));
        BitLinear::backward_weights(pass, grads, &matrices, x, &mut s.weights, tiles);
        norm.add_parts(grads, tiles);
        head_norms.iter().for_each(|norm| norm.add_parts(grads, tiles));
    }
}
