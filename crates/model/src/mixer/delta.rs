//! Gated delta rule branch: `H` heads, each with a state of `dk x dv` that a gate decays and an error corrects (arXiv 2412.06464;
//! the rule itself: [`flashlm_kernels::ops::delta_forward`]). With `x = norm(h)`:
//!
//! ```text
//! q, k, v = silu(conv(W_q x)), silu(conv(W_k x)), silu(conv(W_v x))      causal depthwise convolutions
//! q, k <- q/|q| a head, k/|k|;   o = delta_rule(q, k, v, g, beta)
//! ```
//!
//! | | published | original |
//! |---|---|---|
//! | scale of q | `dk^-1/2` | 1 |
//! | `g` | `-exp(A_log) softplus(W_a x + dt_bias)`, float | `logsigmoid(W_gk x) / 16` |
//! | `beta` | `sigmoid(W_b x)`, float; times 2 with negative eigenvalues | `sigmoid(W_beta x)` |
//! | output | `y = h + W_o (norm(o) silu(W_g x))`, one norm scale for all heads | `y = h + W_o (o sigmoid(W_g x))` |
//!
//! Without a state, chunks of at most `CHUNK` rows run at once and end where a story does. The states before chunks are kept for
//! the backward pass, `dk dv H / CHUNK` elements a row; everything else of the rule is made again there. With a state, rows go
//! one by one. The state of a sequence is, for each head, `S` and the last rows of the three convolutions.

use std::ops::Range;

use flashlm_kernels::ops::{
    Act, Rule, add_parts, conv_forward, conv_taps_backward, delta_backward, delta_forward, delta_steps, delta_work,
    exact_delta_width, gate_backward, gate_forward, narrow, silu_unit_backward, silu_unit_forward,
};
use flashlm_kernels::tile::{Heads, Parts, Rows};
use flashlm_kernels::{Buf, Elem, Exec, Span, Store};

use crate::config::{DeltaForm, DeltaRule, ModelConfig};
use crate::layer::linear::Linear;
use crate::layer::norm::{Input, Norm, branch_backward, branch_forward, branch_input};
use crate::layer::{Need, Scratch};
use crate::mixer::Mixer;
use crate::mixer::conv::{add_taps, remember, taps_by_row};
use crate::params::{Group, Init, Layout};

/// Most rows of a chunk.
const CHUNK: usize = 64;
/// Epsilon of the norm of a head's output.
pub(crate) const NORM_EPS: f64 = 1e-5;

/// The layer, and what its forward pass saves.
pub struct Delta<A: Store> {
    layer: Layer<A>,
    dtaps: Buf<A::E>,
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

/// Seven matrices, three convolutions and the gates' scalars.
struct Layer<A: Store> {
    norm: Option<Norm>,
    /// Of queries, keys, values, the output gate, decay and write strength.
    inputs: [Linear<A>; 6],
    /// Taps of queries, keys and values; the parameters are `[C, 1, K]`, these `[K, C]`.
    convs: [Range<usize>; 3],
    taps: [Buf<A::E>; 3],
    /// `A_log` and `dt_bias`, each `[H]`, of the published form.
    decay: Option<[Range<usize>; 2]>,
    head_norm: Option<Norm>,
    output: Linear<A>,
    act: Act,
    rule: Rule,
    /// `beta` is this times a sigmoid.
    strength: f64,
    /// Epsilon and scale of queries' and keys' norms.
    units: [(f64, f64); 2],
    d: usize,
    heads: usize,
    /// Widths of one head.
    dk: usize,
    dv: usize,
    k: usize,
}

impl<A: Store> Delta<A> {
    /// Adds its parameters under `prefix` to the layout; `norm` is in it already.
    pub fn new(
        layout: &mut Layout,
        prefix: &str,
        norm: Option<Norm>,
        config: &ModelConfig,
        rows: usize,
        training: bool,
    ) -> Self {
        let (d, c) = (config.dim, &config.delta);
        let (heads, k, (dk, dv)) = (c.heads, c.conv, c.widths(d));
        let (keys, values) = (heads * dk, heads * dv);
        let published = c.form == DeltaForm::Published;
        let name = |part: &str| format!("{prefix}.{part}");
        let [q, key, v, g] = [("q_proj", keys), ("k_proj", keys), ("v_proj", values), ("g_proj", values)]
            .map(|(part, width)| Linear::new(layout, &name(part), (width, d), config, training));
        let gates = if published { ["a_proj", "b_proj"] } else { ["gk_proj", "beta_proj"] };
        let [a, b] = gates.map(|part| match published {
            true => Linear::float(layout, &name(part), (heads, d), training),
            false => Linear::new(layout, &name(part), (heads, d), config, training),
        });
        let std = if published { (1.0 / (3 * k) as f64).sqrt() } else { 0.02 };
        let convs = [("q_conv.weight", keys), ("k_conv.weight", keys), ("v_conv.weight", values)]
            .map(|(part, width)| layout.add(name(part), &[width, 1, k], Init::Normal(std), Group::Conv));
        let decay = published.then(|| {
            [("A_log", Init::LnUniform(1e-3, 16.0)), ("dt_bias", Init::InverseSoftplus(1e-3, 0.1))]
                .map(|(part, init)| layout.add(name(part), &[heads], init, Group::Scalar))
        });
        let head_norm = published.then(|| Norm::new(layout, name("o_norm.scale"), dv, NORM_EPS));
        let output = Linear::output(layout, &name("o_proj"), (d, values), config, training);
        let saved = if training { rows } else { 0 };
        let layer = Layer {
            norm,
            inputs: [q, key, v, g, a, b],
            convs,
            taps: [keys, keys, values].map(|width| Buf::scratch(k * width)),
            decay,
            head_norm,
            output,
            act: if published { Act::Silu } else { Act::Sigmoid },
            rule: match c.rule {
                DeltaRule::Canonical => Rule::Canonical,
                DeltaRule::Undecayed => Rule::Undecayed,
            },
            strength: if c.negative_eigenvalues { 2.0 } else { 1.0 },
            units: units(c.form, dk),
            d,
            heads,
            dk,
            dv,
            k,
        };
        Delta {
            layer,
            dtaps: Buf::scratch(k * keys.max(values)),
            u: [keys, keys, values].map(|width| Buf::scratch(rows * width)),
            gate: Buf::scratch(rows * values),
            gates: Buf::scratch(rows * 2 * heads),
            dgates: Buf::scratch(saved * 2 * heads),
            da: Buf::scratch(saved * heads),
            db: Buf::scratch(saved * heads),
            o: Buf::scratch(rows * values),
            states: Buf::scratch(saved / CHUNK * heads * dk * dv),
        }
    }

    /// See [`crate::mixer::sizes`].
    pub fn sizes(config: &ModelConfig) -> (usize, usize) {
        let (d, c) = (config.dim, &config.delta);
        let (heads, (dk, dv)) = (c.heads, c.widths(d));
        let (keys, values) = (heads * dk, heads * dv);
        let linear = |outputs| Linear::<A>::parameters((outputs, d), config);
        let gates = match c.form {
            DeltaForm::Published => 2 * heads * d + 2 * heads + dv,
            DeltaForm::Original => 2 * linear(heads),
        };
        let output = Linear::<A>::output_parameters((d, values), config);
        let channels = 2 * keys + values;
        let parameters = 2 * linear(keys) + 2 * linear(values) + gates + c.conv * channels + output;
        (parameters, (c.conv - 1) * channels + keys * exact_delta_width(dv))
    }
}

/// Epsilon and scale of the norms of queries and keys of width `dk`.
pub(crate) fn units(form: DeltaForm, dk: usize) -> [(f64, f64); 2] {
    match form {
        DeltaForm::Published => [(1e-6, (dk as f64).powf(-0.5)), (1e-6, 1.0)],
        DeltaForm::Original => [(1e-24, 1.0); 2],
    }
}

impl<A: Store> Layer<A> {
    /// Widths of queries, keys and values of all heads.
    fn widths(&self) -> [usize; 3] {
        [self.heads * self.dk, self.heads * self.dk, self.heads * self.dv]
    }

    /// Where the gradients of one tile lie: the branch's norm, those of the six inputs, of the output, the heads' norm, the three
    /// convolutions, `A_log` with `dt_bias`, and the end.
    fn places(&self) -> [usize; 14] {
        let mut ends = [0; 14];
        let inputs = self.inputs.iter().map(Linear::part_width);
        let parts = std::iter::once(self.norm.as_ref().map_or(0, Norm::width))
            .chain(inputs)
            .chain([self.output.part_width(), self.head_norm.as_ref().map_or(0, Norm::width)])
            .chain(self.widths().map(|width| self.k * width))
            .chain([2 * self.heads]);
        for (i, width) in parts.enumerate() {
            ends[i + 1] = ends[i] + width;
        }
        ends
    }

    /// `g` and `beta` from `a` and `b`, one head of one row.
    fn gates_forward(&self, head: usize, a: A::E, b: A::E, params: &[A::E]) -> (A::E, A::E) {
        let (a, b) = (a.to_f64(), b.to_f64());
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let g = match &self.decay {
            None => -softplus(-a) / 16.0,
            Some([log, bias]) => {
                -params[log.start + head].to_f64().exp() * softplus(a + params[bias.start + head].to_f64())
            }
        };
        (A::E::from_f64(g), A::E::from_f64(self.strength / (1.0 + (-b).exp())))
    }

    /// Gradients of `a` and `b`, and of `A_log` and `dt_bias`, from those of `g` and `beta`.
    fn gates_backward(&self, head: usize, gates: [A::E; 2], dgates: [A::E; 2], params: &[A::E]) -> [f64; 4] {
        let ([g, beta], [dg, dbeta]) = (gates.map(A::E::to_f64), dgates.map(A::E::to_f64));
        // 1 - sigmoid(a) = 1 - exp(logsigmoid(a)), and sigmoid(z) = 1 - exp(-softplus(z)).
        let (da, dlog, dbias) = match &self.decay {
            None => (dg * -(16.0 * g).exp_m1() / 16.0, 0.0, 0.0),
            Some([log, _]) => {
                let rate = params[log.start + head].to_f64().exp();
                let da = dg * rate * (g / rate).exp_m1();
                (da, dg * g, da)
            }
        };
        [da, dbeta * beta * (1.0 - beta / self.strength), dlog, dbias]
    }

    /// Elements of one head's state.
    fn head_state(&self) -> usize {
        self.dk * self.dv + (self.k - 1) * (2 * self.dk + self.dv)
    }

    /// Keys and queries of unit norm, stacked, and values of rows `run` of one head of one sequence: what comes out of the
    /// convolutions, or where `gains` what [`silu_unit_forward`] makes of it, in `sums`, and after SiLU and norms in `units`. `history` is the head's state behind `S`.
    fn make_inputs(
        &self,
        cx: &Exec,
        u: &[Buf<A>; 3],
        sums: (&mut [A::E], &mut [A::E]),
        units: (&mut [A::E], &mut [A::E]),
        gains: bool,
        history: Option<&[A::E]>,
        (sequence, head): (usize, usize),
        (run, span): (Range<usize>, &Span),
    ) {
        let (n, dk, dv) = (run.len(), self.dk, self.dv);
        let ((keys, queries), (unit_keys, unit_queries)) = (sums.0.split_at_mut(n * dk), units.0.split_at_mut(n * dk));
        let mut at = 0;
        for (i, (sums, width)) in [(queries, dk), (keys, dk), (sums.1, dv)].into_iter().enumerate() {
            let all = self.heads * width;
            let u = (&u[i][sequence * span.len * all..], all, head * width);
            let len = (self.k - 1) * width;
            let history = history.map(|history| &history[at..at + len]);
            at += len;
            let place = (run.clone(), span, (width, self.k));
            conv_forward(cx, sums, u, history, (&self.taps[i], all, head * width), place);
            match i {
                0 => silu_unit_forward(cx, unit_queries, sums, Some(self.units[0]), gains, dk),
                1 => silu_unit_forward(cx, unit_keys, sums, Some(self.units[1]), gains, dk),
                _ => silu_unit_forward(cx, units.1, sums, None, gains, dv),
            }
        }
    }

    /// `g` and `beta` of rows `run` of one head of one sequence.
    fn copy_gates(
        &self,
        (g, beta): (&mut [A::E], &mut [A::E]),
        gates: &[A::E],
        (sequence, head): (usize, usize),
        run: Range<usize>,
        t: usize,
    ) {
        let rows = gates[sequence * t * 2 * self.heads..].chunks_exact(2 * self.heads);
        for ((g, beta), row) in g.iter_mut().zip(beta).zip(rows.skip(run.start)) {
            (*g, *beta) = (row[head], row[self.heads + head]);
        }
    }

    /// The output's input, `m: [rows, H dv]`, from the gate and the rule's output; `normed` becomes that output with its norm,
    /// where there is one.
    fn gated(&self, cx: &Exec, m: &mut [A], normed: &mut [A], gate: &[A], o: &[A], params: &[A::E]) {
        match &self.head_norm {
            None => gate_forward(cx, m, gate, o, self.act),
            Some(norm) => {
                norm.forward(cx, normed, o, params);
                gate_forward(cx, m, gate, normed, self.act);
            }
        }
    }
}

impl<A: Store> Mixer<A> for Delta<A> {
    fn linears(&mut self) -> Vec<&mut Linear<A>> {
        let layer = &mut self.layer;
        // The published form keeps the matrices of its gates float.
        let ternary = if layer.decay.is_some() { 4 } else { 6 };
        layer.inputs[..ternary].iter_mut().chain([&mut layer.output]).collect()
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        let layer = &mut self.layer;
        layer.inputs.iter_mut().for_each(|linear| linear.prepare(cx, params, s));
        layer.output.prepare(cx, params, s);
        for (taps, range) in layer.taps.iter_mut().zip(&layer.convs) {
            taps_by_row(taps, &params[range.clone()], layer.k);
        }
    }

    fn need(&self) -> Need {
        let layer = &self.layer;
        let [keys, _, values] = layer.widths();
        let wide = [values, values, values, 2 * keys, 2 * keys];
        let largest = layer.d * keys.max(values).max(layer.heads);
        Need { matrix: largest, input: layer.d.max(values), part: layer.places()[13], wide }
    }

    fn state_len(&self) -> usize {
        self.layer.heads * self.layer.head_state()
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
        let Delta { layer, u, gate, gates, o, states, .. } = self;
        let (d, heads, rows, t) = (layer.d, layer.heads, span.rows(), span.len);
        let (dk, dv) = (layer.dk, layer.dv);
        let [keys, _, values] = layer.widths();
        let [uq, uk, uv] = u;
        let buffers = (Rows(uq, keys), Rows(uk, keys), Rows(uv, values), Rows(gate, values), Rows(gates, 2 * heads));
        cx.tiles(rows, buffers, |cx, r, (uq, uk, uv, gate, gates), local| {
            let x = local.take(r.len() * d);
            let x = branch_forward(cx, layer.norm.as_ref(), x, &h[r.start * d..r.end * d], params);
            let z = local.take(r.len() * keys.max(values));
            for (u, linear) in [uq, uk, uv, gate].into_iter().zip(&layer.inputs) {
                let z = &mut z[..u.len()];
                linear.forward(cx, z, x, params, local, false);
                narrow(cx, u, z);
            }
            let (a, b) = (local.take(r.len() * heads), local.take(r.len() * heads));
            layer.inputs[4].forward(cx, a, x, params, local, false);
            layer.inputs[5].forward(cx, b, x, params, local, false);
            for (row, gates) in gates.chunks_exact_mut(2 * heads).enumerate() {
                for head in 0..heads {
                    let at = row * heads + head;
                    (gates[head], gates[heads + head]) = layer.gates_forward(head, a[at], b[at], params);
                }
            }
        });

        let width = layer.head_state();
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
                layer.make_inputs(cx, u, sums, (kq, v), false, history.as_deref(), place, (run.clone(), span));
                layer.copy_gates((&mut *g, &mut *beta), gates, place, run, t);
                match history {
                    None => delta_forward(cx, out, s, kq, v, (g, beta), layer.rule, work, (n, dk, dv)),
                    Some(_) => delta_steps(cx, out, s, kq, v, (g, beta), layer.rule, (n, dk, dv)),
                }
                o.store(cx, out, at);
                at += n;
            }
            if let Some(mut history) = history.take() {
                for (u, width) in u.iter().zip([dk, dk, dv]) {
                    let (last, rest) = history.split_at_mut((layer.k - 1) * width);
                    let all = heads * width;
                    remember(last, (&u[place.0 * t * all..], all, place.1 * width), t, width);
                    history = rest;
                }
            }
        });

        cx.tiles(rows, (Rows(y, d),), |cx, r, (y,), local| {
            let cells = r.start * values..r.end * values;
            let (m, normed) = (local.take(cells.len()), local.take(cells.len()));
            layer.gated(cx, m, normed, &gate[cells.clone()], &o[cells], params);
            y.copy_from_slice(&h[r.start * d..r.end * d]);
            layer.output.forward(cx, y, Input::Kept(m), params, local, true);
        });
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
        let Delta { layer, dtaps, u, gate, gates, dgates, da, db, o, states } = self;
        let (d, heads, rows, t) = (layer.d, layer.heads, span.rows(), span.len);
        let (dk, dv) = (layer.dk, layer.dv);
        let [keys, _, values] = layer.widths();
        let at = layer.places();
        let width = at[13];
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
            layer.gated(cx, m, normed, gate, o, params);
            narrow(cx, dy, &dh[r.start * d..r.end * d]);
            layer.output.backward_input(cx, dm, &mut part[at[7]..at[8]], dy, Input::Kept(m), params, local, false);
            match &layer.head_norm {
                None => {
                    gate_backward(cx, dgate, dnormed, dm, gate, o, layer.act);
                    narrow(cx, d_o, dnormed);
                }
                Some(norm) => {
                    gate_backward(cx, dgate, dnormed, dm, gate, normed, layer.act);
                    norm.backward(cx, dm, &mut part[at[8]..at[9]], dnormed, o, params, false);
                    narrow(cx, d_o, dm);
                }
            }
        });
        let (m, dy) = (Input::Kept(&s.wide[0][..rows * values]), &s.dy[..rows * d]);
        let parts = &s.parts[..cx.tile_count(rows) * width];
        let matrix = [(&layer.output, dy, at[7])];
        Linear::backward_weights(cx, grads, &matrix, m, params, &mut s.weights, (parts, width));

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
                layer.make_inputs(
                    cx,
                    u,
                    (&mut *sums, &mut *c),
                    (&mut *kq, &mut *v),
                    true,
                    None,
                    place,
                    (run.clone(), span),
                );
                layer.copy_gates((&mut *g, &mut *beta), gates, place, run.clone(), t);
                d_o.load(cx, dout, run.clone());
                let out = (&mut *dkq, &mut *dvs, &mut *dg, &mut *dbeta);
                delta_backward(cx, out, ds, dout, s0, kq, v, (g, beta), layer.rule, work, (n, dk, dv));
                let ((dk_rows, dq_rows), (k_gains, q_gains)) = (dkq.split_at_mut(n * dk), sums.split_at(n * dk));
                let (keys, queries) = kq.split_at(n * dk);
                silu_unit_backward(cx, dq_rows, q_gains, queries, Some(layer.units[0]), dk);
                silu_unit_backward(cx, dk_rows, k_gains, keys, Some(layer.units[1]), dk);
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
            let x = branch_forward(cx, layer.norm.as_ref(), x, h, params);
            for (i, (du, width)) in
                [(&mut *du_q, keys), (&mut *du_k, keys), (&mut *du_v, values)].into_iter().enumerate()
            {
                let (place, u) = ((r.clone(), span, (width, layer.k)), (&u[i][..], width, 0));
                conv_taps_backward(
                    cx,
                    (du, width, 0),
                    &mut part[at[9 + i]..at[10 + i]],
                    dcs[i],
                    u,
                    &layer.taps[i],
                    place,
                );
            }
            for (row, n) in r.clone().zip(0..) {
                for head in 0..heads {
                    let (own, pair) = (row * 2 * heads, row * 2 * heads + 2 * head);
                    let gates = [gates[own + head], gates[own + heads + head]];
                    let [a, b, log, bias] = layer.gates_backward(head, gates, [dgates[pair], dgates[pair + 1]], params);
                    da[n * heads + head] = A::narrow(A::E::from_f64(a));
                    db[n * heads + head] = A::narrow(A::E::from_f64(b));
                    part[at[12] + head] += A::E::from_f64(log);
                    part[at[12] + heads + head] += A::E::from_f64(bias);
                }
            }
            let dx = local.take(r.len() * d);
            let dgate = &dgate[r.start * values..r.end * values];
            for (i, (linear, dy)) in layer.inputs.iter().zip([du_q, du_k, du_v, dgate, da, db]).enumerate() {
                linear.backward_input(cx, dx, &mut part[at[1 + i]..at[2 + i]], dy, x, params, local, i > 0);
            }
            branch_backward(cx, layer.norm.as_ref(), dh, &mut part[..at[1]], dx, h, params);
        });

        let parts = &s.parts[..cx.tile_count(rows) * width];
        let x = branch_input(layer.norm.as_ref(), &s.x[..rows * d], h);
        let dys =
            [&*du_q, du_k, &du_v[..rows * values], &dgate[..rows * values], &da[..rows * heads], &db[..rows * heads]];
        let matrices: [_; 6] = std::array::from_fn(|i| (&layer.inputs[i], dys[i], at[1 + i]));
        Linear::backward_weights(cx, grads, &matrices, x, params, &mut s.weights, (parts, width));
        for (norm, at) in [(&layer.norm, at[0]), (&layer.head_norm, at[8])] {
            if let Some(norm) = norm {
                norm.add_parts(grads, parts, width, at);
            }
        }
        for (i, range) in layer.convs.iter().enumerate() {
            let dtaps = &mut dtaps[..range.len()];
            dtaps.fill(A::E::ZERO);
            add_parts(dtaps, parts, width, at[9 + i]);
            add_taps(&mut grads[range.clone()], dtaps, layer.k);
        }
        if let Some([log, bias]) = &layer.decay {
            add_parts(&mut grads[log.clone()], parts, width, at[12]);
            add_parts(&mut grads[bias.clone()], parts, width, at[12] + heads);
        }
    }
}
