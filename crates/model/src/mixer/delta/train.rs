//! The gated delta rule in training: in chunks without a state, row by row with one.

use flashlm_kernels::ops::{
    conv_taps_backward, delta_backward, delta_forward, delta_room, delta_steps, delta_work, gate_backward, narrow,
    silu_unit_backward,
};
use flashlm_kernels::tile::{Heads, Parts, Rows};
use flashlm_kernels::{Buf, Elem, Exec, Store};

use super::Params;
use crate::layer::linear::BitLinear;
use crate::layer::norm::{Input, Tiles};
use crate::layer::pass::Pass;
use crate::layer::scratch::{Scratch, WIDE};
use crate::layer::taps::keep_last_rows;
use crate::mixer::forms::Mixer;

/// Most rows of a chunk.
const CHUNK: usize = 64;

/// Its weights.
pub struct Train<A: Store> {
    pub(super) of: Params,
    /// Of queries, keys, values, the output gate, decay and write strength.
    inputs: [BitLinear<A>; 6],
    /// Of queries, keys and values: `[K, C]`.
    pub(super) taps: [Buf<A::E>; 3],
    output: BitLinear<A>,
}

/// What the forward pass saves, and gradients that the backward pass makes of it.
pub struct Saved<A: Store> {
    /// What goes into the convolutions, `[rows, C]`, and the output gate.
    u: [Buf<A>; 3],
    gate: Buf<A>,
    /// `g` and `beta` of each row: `[rows, 2H]`.
    gates: Buf<A::E>,
    /// Their gradients, in pairs: `[rows, H, 2]`.
    dgates: Buf<A::E>,
    /// Gradients before the gates' functions: `[rows, H]`.
    da: Buf<A>,
    db: Buf<A>,
    o: Buf<A>,
    /// States before chunks that go on: `[B H, (T-1) / CHUNK, dk, dv]`.
    states: Buf<A::E>,
}

impl<A: Store> Train<A> {
    /// Room for the weights.
    pub(crate) fn new(of: Params, training: bool) -> Self {
        let ([q, k, v, g], [a, b]) = (&of.inputs, &of.gates);
        let inputs = [q, k, v, g, a, b].map(|matrix| BitLinear::new(matrix, training));
        let taps = std::array::from_fn(|i| Buf::scratch(of.convs[i].weight.len()));
        Train { inputs, taps, output: BitLinear::new(&of.output, training), of }
    }
}

impl<A: Store> Mixer<A> for Train<A> {
    type Saved = Saved<A>;

    fn saved(&self, rows: usize, training: bool) -> Saved<A> {
        let Params { heads, dk, dv, .. } = self.of;
        let [keys, _, values] = self.of.widths();
        let with_gradient = if training { rows } else { 0 };
        Saved {
            u: [keys, keys, values].map(|width| Buf::scratch(rows * width)),
            gate: Buf::scratch(rows * values),
            gates: Buf::scratch(rows * 2 * heads),
            dgates: Buf::scratch(with_gradient * 2 * heads),
            da: Buf::scratch(with_gradient * heads),
            db: Buf::scratch(with_gradient * heads),
            o: Buf::scratch(rows * values),
            states: Buf::scratch(with_gradient / CHUNK * heads * dk * dv),
        }
    }

    fn wide(&self) -> [usize; WIDE] {
        let [keys, _, values] = self.of.widths();
        [values, values, values, 2 * keys, 2 * keys]
    }

    fn state_len(&self) -> usize {
        self.of.heads * self.head_state()
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.inputs.iter_mut().chain([&mut self.output]).for_each(|matrix| matrix.prepare(cx, params, s));
        for (taps, of) in self.taps.iter_mut().zip(&self.of.convs) {
            of.by_row(taps, params);
        }
    }

    fn forward(&self, pass: Pass<A::E>, y: &mut [A::E], saved: &mut Saved<A>, state: Option<&mut [A::E]>, h: &[A::E]) {
        let Pass { cx, params, span, .. } = pass;
        let (of, Saved { u, gate, gates, o, states, .. }) = (&self.of, saved);
        let (d, rows, t) = (of.output.outputs, span.rows(), span.len);
        let Params { heads, dk, dv, rule, .. } = *of;
        let [keys, _, values] = of.widths();
        let [uq, uk, uv] = u;
        let buffers = (Rows(uq, keys), Rows(uk, keys), Rows(uv, values), Rows(gate, values), Rows(gates, 2 * heads));
        cx.tiles(rows, buffers, |cx, r, (uq, uk, uv, gate, gates), local| {
            let x = local.take(r.len() * d);
            let x = of.norm.forward(cx, x, &h[r.start * d..r.end * d], params);
            let z = local.take(r.len() * keys.max(values));
            for (u, linear) in [uq, uk, uv, gate].into_iter().zip(&self.inputs) {
                let z = &mut z[..u.len()];
                linear.forward(cx, z, x, pass, local, false);
                narrow(cx, u, z);
            }
            let (a, b) = (local.take(r.len() * heads), local.take(r.len() * heads));
            self.inputs[4].forward(cx, a, x, pass, local, false);
            self.inputs[5].forward(cx, b, x, pass, local, false);
            for (row, gates) in gates.chunks_exact_mut(2 * heads).enumerate() {
                for head in 0..heads {
                    let at = row * heads + head;
                    (gates[head], gates[heads + head]) = self.gates_forward(head, a[at], b[at], params);
                }
            }
        });

        let width = self.head_state();
        let (state, held) = match state {
            Some(state) => (state, width),
            None => (&mut [][..], 0),
        };
        let keep = if held > 0 || states.is_empty() { 0 } else { t.saturating_sub(1) / CHUNK * dk * dv };
        let buffers = (Heads(o, t, heads, dv), Rows(states, keep), Rows(state, held));
        cx.tiles_by(1, span.batch * heads, buffers, |cx, unit, (mut o, states, state), local| {
            let place = (unit.start / heads, unit.start % heads);
            let span = &span.sequence(place.0);
            let (sums, kq) = (local.take(CHUNK * 2 * dk), local.take(CHUNK * 2 * dk));
            let (c, v, out) = (local.take(CHUNK * dv), local.take(CHUNK * dv), local.take(CHUNK * dv));
            let (g, beta) = (local.take(CHUNK), local.take(CHUNK));
            let work = local.take(delta_work((CHUNK, dk, dv)));
            let (s, mut history) = match held {
                0 => (local.take(dk * dv), None),
                _ => {
                    let (s, history) = state.split_at_mut(dk * dv);
                    (s, Some(history))
                }
            };
            let mut at = 0;
            while at < t {
                let run = span.run(at..t, CHUNK);
                let n = run.len();
                if span.past[at] == 0 {
                    s.fill(A::E::ZERO);
                } else if keep > 0 {
                    states[(at / CHUNK - 1) * dk * dv..][..dk * dv].copy_from_slice(s);
                }
                let (kq, v, out) = (&mut kq[..2 * n * dk], &mut v[..n * dv], &mut out[..n * dv]);
                let sums = (&mut sums[..2 * n * dk], &mut c[..n * dv]);
                let (g, beta) = (&mut g[..n], &mut beta[..n]);
                self.make_inputs(cx, u, sums, (kq, v), false, history.as_deref(), place, (run.clone(), span));
                self.copy_gates((&mut *g, &mut *beta), gates, place, run, t);
                match history {
                    None => delta_forward(cx, out, s, kq, v, (g, beta), rule, work, (n, dk, dv)),
                    Some(_) => delta_steps(cx, out, s, kq, v, (g, beta), rule, (n, dk, dv)),
                }
                o.store(cx, out, at);
                at += n;
            }
            if let Some(mut history) = history.take() {
                for (u, width) in u.iter().zip([dk, dk, dv]) {
                    let (last, rest) = history.split_at_mut((self.k() - 1) * width);
                    let all = heads * width;
                    keep_last_rows(last, (&u[place.0 * t * all..], all, place.1 * width), t, width);
                    history = rest;
                }
            }
        });

        cx.tiles(rows, (Rows(y, d),), |cx, r, (y,), local| {
            let cells = r.start * values..r.end * values;
            let (m, normed) = (local.take(cells.len()), local.take(cells.len()));
            self.gated(cx, m, normed, &gate[cells.clone()], &o[cells], params);
            y.copy_from_slice(&h[r.start * d..r.end * d]);
            self.output.forward(cx, y, Input::Saved(m), pass, local, true);
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
        let (of, Saved { u, gate, gates, dgates, da, db, o, states }) = (&self.of, saved);
        let (d, rows, t, width) = (of.output.outputs, span.rows(), span.len, of.part);
        let Params { heads, dk, dv, rule, .. } = *of;
        let [keys, _, values] = of.widths();
        let parts = &mut s.parts[..cx.tile_count(rows) * width];

        let [m, dgate, d_o, ..] = &mut s.wide;
        let buffers =
            (Rows(&mut s.dy, d), Rows(m, values), Rows(dgate, values), Rows(d_o, values), Parts(parts, width));
        cx.tiles(rows, buffers, |cx, r, (dy, m, dgate, d_o, part), local| {
            part.fill(A::E::ZERO);
            let cells = r.start * values..r.end * values;
            let (dm, dnormed) = (local.take(cells.len()), local.take(cells.len()));
            let normed = local.take(cells.len());
            let (gate, o) = (&gate[cells.clone()], &o[cells]);
            self.gated(cx, m, normed, gate, o, params);
            narrow(cx, dy, &dh[r.start * d..r.end * d]);
            self.output.backward_input(cx, dm, part, dy, Input::Saved(m), pass, local, false);
            match &of.head_norm {
                None => {
                    gate_backward(cx, dgate, dnormed, dm, gate, o, of.act);
                    narrow(cx, d_o, dnormed);
                }
                Some(norm) => {
                    gate_backward(cx, dgate, dnormed, dm, gate, normed, of.act);
                    norm.backward(cx, dm, part, dnormed, o, params, false);
                    narrow(cx, d_o, dm);
                }
            }
        });
        let (m, dy) = (Input::Saved(&s.wide[0][..rows * values]), &s.dy[..rows * d]);
        let tiles = &Tiles { sums: &s.parts[..cx.tile_count(rows) * width], width };
        BitLinear::backward_weights(pass, grads, &[(&self.output, dy)], m, &mut s.weights, tiles);

        let [_, _, d_o, dc_qk, ..] = &mut s.wide;
        let (dc_q, dc_k) = dc_qk[..2 * rows * keys].split_at_mut(rows * keys);
        let slots = t.saturating_sub(1) / CHUNK * dk * dv;
        let buffers = (
            Heads(dc_q, t, heads, dk),
            Heads(dc_k, t, heads, dk),
            Heads(d_o, t, heads, dv),
            Heads(dgates, t, heads, 2),
        );
        cx.tiles_by(1, span.batch * heads, buffers, |cx, unit, (mut dc_q, mut dc_k, mut d_o, mut dgates), local| {
            let place = (unit.start / heads, unit.start % heads);
            let span = &span.sequence(place.0);
            let states = &states[unit.start * slots..][..slots];
            let (sums, kq, dkq) = (local.take(CHUNK * 2 * dk), local.take(CHUNK * 2 * dk), local.take(CHUNK * 2 * dk));
            let (c, v, dout, dvs) =
                (local.take(CHUNK * dv), local.take(CHUNK * dv), local.take(CHUNK * dv), local.take(CHUNK * dv));
            let four = local.take(4 * CHUNK);
            let (ds, zero) = (local.take(dk * dv), local.take(dk * dv));
            let work = local.take(delta_work((CHUNK, dk, dv)));
            let room = local.take::<A>(delta_room((CHUNK, dk, dv)));
            zero.fill(A::E::ZERO);
            ds.fill(A::E::ZERO);
            let mut end = t;
            while end > 0 {
                let run = end - 1 - span.past[end - 1] as usize % CHUNK..end;
                let n = run.len();
                if end < t && span.past[end] == 0 {
                    ds.fill(A::E::ZERO);
                }
                let s0: &[A::E] = if span.past[run.start] == 0 {
                    zero
                } else {
                    &states[(run.start / CHUNK - 1) * dk * dv..][..dk * dv]
                };
                let (sums, c) = (&mut sums[..2 * n * dk], &mut c[..n * dv]);
                let (kq, v) = (&mut kq[..2 * n * dk], &mut v[..n * dv]);
                let (dkq, dvs, dout) = (&mut dkq[..2 * n * dk], &mut dvs[..n * dv], &mut dout[..n * dv]);
                let (g, rest) = four.split_at_mut(CHUNK);
                let (beta, rest) = rest.split_at_mut(CHUNK);
                let (dg, dbeta) = rest.split_at_mut(CHUNK);
                let (g, beta, dg, dbeta) = (&mut g[..n], &mut beta[..n], &mut dg[..n], &mut dbeta[..n]);
                self.make_inputs(
                    cx,
                    u,
                    (&mut *sums, &mut *c),
                    (&mut *kq, &mut *v),
                    true,
                    None,
                    place,
                    (run.clone(), span),
                );
                self.copy_gates((&mut *g, &mut *beta), gates, place, run.clone(), t);
                d_o.load(cx, dout, run.clone());
                let out = (&mut *dkq, &mut *dvs, &mut *dg, &mut *dbeta);
                delta_backward(cx, out, ds, dout, s0, kq, v, (g, beta), rule, work, room, (n, dk, dv));
                let ((dk_rows, dq_rows), (k_gains, q_gains)) = (dkq.split_at_mut(n * dk), sums.split_at(n * dk));
                let (keys, queries) = kq.split_at(n * dk);
                silu_unit_backward(cx, dq_rows, q_gains, queries, Some(of.units[0]), dk);
                silu_unit_backward(cx, dk_rows, k_gains, keys, Some(of.units[1]), dk);
                silu_unit_backward(cx, dvs, c, v, None, dv);
                dc_q.store(cx, dq_rows, run.start);
                dc_k.store(cx, dk_rows, run.start);
                d_o.store(cx, dvs, run.start);
                for (i, (&dg, &dbeta)) in dg.iter().zip(&*dbeta).enumerate() {
                    dgates.row(run.start + i).copy_from_slice(&[dg, dbeta]);
                }
                end = run.start;
            }
        });

        let parts = &mut s.parts[..cx.tile_count(rows) * width];
        let [du_v, dgate, dc_v, dc_qk, du_qk] = &mut s.wide;
        let (dc_q, dc_k) = dc_qk[..2 * rows * keys].split_at(rows * keys);
        let (du_q, du_k) = du_qk[..2 * rows * keys].split_at_mut(rows * keys);
        let dcs = [dc_q, dc_k, &dc_v[..rows * values]];
        let buffers = (
            Rows(dh, d),
            Rows(&mut s.x, d),
            Rows(&mut *du_q, keys),
            Rows(&mut *du_k, keys),
            Rows(&mut *du_v, values),
            Rows(da, heads),
            Rows(db, heads),
            Parts(parts, width),
        );
        cx.tiles(rows, buffers, |cx, r, (dh, x, du_q, du_k, du_v, da, db, part), local| {
            let h = &h[r.start * d..r.end * d];
            let x = of.norm.forward(cx, x, h, params);
            for (i, (du, width)) in
                [(&mut *du_q, keys), (&mut *du_k, keys), (&mut *du_v, values)].into_iter().enumerate()
            {
                let (place, u) = ((r.clone(), span, (width, self.k())), (&u[i][..], width, 0));
                let dtaps = &mut part[of.convs[i].part.clone()];
                conv_taps_backward(cx, (du, width, 0), dtaps, dcs[i], u, &self.taps[i], place);
            }
            for (row, n) in r.clone().zip(0..) {
                for head in 0..heads {
                    let (own, pair) = (row * 2 * heads, row * 2 * heads + 2 * head);
                    let gates = [gates[own + head], gates[own + heads + head]];
                    let [a, b, log, bias] = self.gates_backward(head, gates, [dgates[pair], dgates[pair + 1]], params);
                    da[n * heads + head] = A::narrow(A::E::from_f64(a));
                    db[n * heads + head] = A::narrow(A::E::from_f64(b));
                    if let Some([(_, dlog), (_, dbias)]) = &of.decay {
                        part[dlog.start + head] += A::E::from_f64(log);
                        part[dbias.start + head] += A::E::from_f64(bias);
                    }
                }
            }
            let dx = local.take(r.len() * d);
            let dgate = &dgate[r.start * values..r.end * values];
            for (i, (linear, dy)) in self.inputs.iter().zip([du_q, du_k, du_v, dgate, da, db]).enumerate() {
                linear.backward_input(cx, dx, part, dy, x, pass, local, i > 0);
            }
            of.norm.backward(cx, dh, part, dx, h, params);
        });

        let tiles = &Tiles { sums: &s.parts[..cx.tile_count(rows) * width], width };
        let x = of.norm.input(&s.x[..rows * d], h);
        let dys =
            [&*du_q, du_k, &du_v[..rows * values], &dgate[..rows * values], &da[..rows * heads], &db[..rows * heads]];
        let matrices: [_; 6] = std::array::from_fn(|i| (&self.inputs[i], dys[i]));
        BitLinear::backward_weights(pass, grads, &matrices, x, &mut s.weights, tiles);
        of.norm.add_parts(grads, tiles);
        of.head_norm.iter().for_each(|norm| norm.add_parts(grads, tiles));
        of.convs.iter().for_each(|conv| conv.add_parts(grads, &mut s.dtaps, tiles));
        for (place, part) in of.decay.iter().flatten() {
            tiles.add(grads, place, part);
        }
    }
}
