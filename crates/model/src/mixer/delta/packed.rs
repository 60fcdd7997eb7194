//! The gated delta rule in the packed runtime.

use std::ops::Range;

use flashlm_kernels::ops::{
    ConvRows, DeltaRows, exact_conv, exact_conv_keep, exact_delta, exact_delta_width, exact_exp, exact_gate,
    exact_matvec, exact_sigmoid, exact_silu_unit, exact_softplus,
};
use flashlm_kernels::tile::{Heads, Local, Rows};
use flashlm_kernels::{Buf, Exec};

use super::Params;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::layer::packed::{Input, PackedLinear, PackedNorm, PackedScratch, packed_taps};
use crate::mixer::forms::PackedMixer;

/// Rows of a prompt that a thread convolves at once.
const CONVOLVED: usize = 16;

/// `u` of a row is `[q, k, v, gate, decay, strength]`, `m` the rule's output, normed and gated.
///
/// The state is the history of the convolutions of `q`, `k` and `v` of all heads, then `S` of each head.
pub(crate) struct Packed {
    of: Params,
    /// Of queries, keys, values, the output gate.
    inputs: [PackedLinear; 4],
    gates: Gates,
    /// `[K, C]` of queries, keys, values.
    taps: [Buf<f32>; 3],
    head_norm: Option<PackedNorm>,
    output: PackedLinear,
    strength: f32,
}

/// What decay and write strength are made of.
enum Gates {
    /// Two ternary matrices: the original form.
    Ternary(Box<[PackedLinear; 2]>),
    /// Two float matrices `[H, D]`, `exp(A_log)` and `dt_bias`: the published form.
    Float { a: Vec<f32>, b: Vec<f32>, rate: Vec<f32>, bias: Vec<f32> },
}

impl Packed {
    pub(crate) fn read(from: &Reader, of: &Params) -> Result<Self, PackError> {
        let ([q, k, v, gate], [a, b], [q_conv, k_conv, v_conv]) = (&of.inputs, &of.gates, &of.convs);
        let linear = |of| PackedLinear::read(from, of);
        Ok(Packed {
            inputs: [linear(q)?, linear(k)?, linear(v)?, linear(gate)?],
            gates: match &of.decay {
                Some([(log, _), (bias, _)]) => Gates::Float {
                    a: from.floats(&a.weight)?,
                    b: from.floats(&b.weight)?,
                    // Once for a model, in f64 and rounded: no platform's `exp` is off by as much as matters then.
                    rate: from.floats(log)?.iter().map(|&x| f64::from(x).exp() as f32).collect(),
                    bias: from.floats(bias)?,
                },
                None => Gates::Ternary(Box::new([linear(a)?, linear(b)?])),
            },
            taps: [packed_taps(from, q_conv)?, packed_taps(from, k_conv)?, packed_taps(from, v_conv)?],
            head_norm: of.head_norm.as_ref().map(|norm| PackedNorm::read(from, norm)).transpose()?,
            output: linear(&of.output)?,
            strength: of.strength as f32,
            of: of.clone(),
        })
    }

    /// Where `q, k, v, gate, a, b` begin in a row of `u`, and its end.
    fn places(&self) -> [usize; 7] {
        let ([queries, keys, values], heads) = (self.of.widths(), self.of.heads);
        let mut at = [0; 7];
        for (i, width) in [queries, keys, values, values, heads, heads].into_iter().enumerate() {
            at[i + 1] = at[i] + width;
        }
        at
    }

    /// Elements of the history of the convolutions.
    fn history(&self) -> usize {
        self.taps.iter().map(|taps| taps.len()).sum::<usize>() - self.convolved()
    }

    /// Elements of the state of a head.
    fn head_state(&self) -> usize {
        self.of.dk * exact_delta_width(self.of.dv)
    }

    /// Elements of a row `[q, k, v]`.
    fn convolved(&self) -> usize {
        self.places()[3]
    }

    /// Of each convolution its place in a row, its columns, taps and history.
    fn convolutions<'h>(&self, mut history: &'h [f32]) -> [(usize, usize, &Buf<f32>, &'h [f32]); 3] {
        let at = self.places();
        std::array::from_fn(|i| {
            let (taps, columns) = (&self.taps[i], at[i + 1] - at[i]);
            let (own, rest) = history.split_at(taps.len() - columns);
            history = rest;
            (at[i], columns, taps, own)
        })
    }

    /// `[q, k, v]` of the rows `rows` into `x`, convolved, through SiLU and normed.
    fn convolve(
        &self,
        cx: &Exec,
        x: &mut [f32],
        history: &[f32],
        (u, past): (&[f32], &[u32]),
        rows: Range<usize>,
        local: &Local,
    ) {
        let (ld, width, Params { dk, dv, units, .. }) = (self.width(), self.convolved(), &self.of);
        let norms = [(Some(units[0]), *dk), (Some(units[1]), *dk), (None, *dv)];
        for ((at, columns, taps, history), (norm, head)) in self.convolutions(history).into_iter().zip(norms) {
            let from = ConvRows { u, ld, at, past };
            let y = local.take::<f32>(rows.len() * columns);
            exact_conv(cx, y, history, from, rows.clone(), taps);
            exact_silu_unit(cx, y, norm, head);
            for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact(columns)) {
                x[at..at + columns].copy_from_slice(y);
            }
        }
    }

    /// Advances the histories past the rows.
    fn keep(&self, mut history: &mut [f32], (u, past): (&[f32], &[u32])) {
        let at = self.places();
        for (i, taps) in self.taps.iter().enumerate() {
            let columns = at[i + 1] - at[i];
            let own = history.split_off_mut(..taps.len() - columns).expect("a history of each convolution");
            exact_conv_keep(own, ConvRows { u, ld: at[6], at: at[i], past }, columns);
        }
    }

    /// Rows of one head; `put` is given the output of each.
    fn step(
        &self,
        cx: &Exec,
        mut put: impl FnMut(usize, &[f32]),
        head: usize,
        (u, x, past): (&[f32], &[f32], &[u32]),
        s: &mut [f32],
        local: &Local,
    ) {
        let (at, n, Params { dk, dv, rule, act, .. }) = (self.places(), past.len(), &self.of);
        let (decay, beta) = (local.take::<f32>(n), local.take::<f32>(n));
        for ((decay, beta), u) in decay.iter_mut().zip(&mut *beta).zip(u.chunks_exact(at[6])) {
            (*decay, *beta) = (u[at[4] + head], u[at[5] + head]);
        }
        let places = [at[0] + head * dk, at[1] + head * dk, at[2] + head * dv];
        let rows = DeltaRows { x, ld: at[3], at: places, dk: *dk, past };
        let (o, normed, gated) = (local.take::<f32>(n * dv), local.take::<f32>(n * dv), local.take::<f32>(*dv));
        exact_delta(cx, o, s, rows, (decay, beta), *rule);
        let o = match &self.head_norm {
            Some(norm) => {
                norm.forward(cx, normed, o);
                normed
            }
            None => o,
        };
        for (t, (o, u)) in o.chunks_exact(*dv).zip(u.chunks_exact(at[6])).enumerate() {
            exact_gate(cx, gated, &u[at[3] + head * dv..][..*dv], o, *act);
            put(t, gated);
        }
    }
}

impl PackedMixer for Packed {
    fn inputs(&self) -> Vec<&PackedLinear> {
        let gates: &[PackedLinear] = match &self.gates {
            Gates::Ternary(gates) => &gates[..],
            Gates::Float { .. } => &[],
        };
        self.inputs.iter().chain(gates).collect()
    }

    fn output(&self) -> &PackedLinear {
        &self.output
    }

    fn width(&self) -> usize {
        self.places()[6]
    }

    fn state_len(&self) -> usize {
        self.of.state_len()
    }

    fn project(&self, cx: &Exec, u: &mut [f32], x: &[f32], work: &mut PackedScratch) {
        let (at, heads) = (self.places(), self.of.heads);
        let mut input = Input::new(x);
        for (i, linear) in self.inputs.iter().enumerate() {
            linear.forward(cx, (u, at[6], at[i]), &mut input, work, false);
        }
        let softplus = exact_softplus;
        match &self.gates {
            Gates::Ternary(gates) => {
                for (i, linear) in gates.iter().enumerate() {
                    linear.forward(cx, (u, at[6], at[4 + i]), &mut input, work, false);
                }
                for u in u.chunks_exact_mut(at[6]) {
                    u[at[4]..at[5]].iter_mut().for_each(|a| *a = exact_exp(-softplus(-*a) / 16.0));
                }
            }
            Gates::Float { a, b, rate, bias } => {
                let d = x.len() / (u.len() / at[6]);
                for (u, x) in u.chunks_exact_mut(at[6]).zip(x.chunks_exact(d)) {
                    exact_matvec(cx, &mut u[at[4]..at[5]], a, x);
                    exact_matvec(cx, &mut u[at[5]..at[6]], b, x);
                    for (head, a) in u[at[4]..at[5]].iter_mut().enumerate() {
                        *a = exact_exp(-rate[head] * softplus(*a + bias[head]));
                    }
                }
            }
        }
        for u in u.chunks_exact_mut(at[6]) {
            u[at[6] - heads..].iter_mut().for_each(|b| *b = self.strength * exact_sigmoid(*b));
        }
    }

    fn mix(&self, cx: &Exec, m: &mut [f32], u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local) {
        let (Params { heads, dv, .. }, n) = (&self.of, past.len());
        let x = local.take::<f32>(n * self.convolved());
        let (history, states) = state.split_at_mut(self.history());
        local.within(|local| self.convolve(cx, x, history, (u, past), 0..n, local));
        self.keep(history, (u, past));
        for (head, s) in states.chunks_exact_mut(self.head_state()).enumerate() {
            let put = |t: usize, o: &[f32]| m[(t * heads + head) * dv..][..*dv].copy_from_slice(o);
            local.within(|local| self.step(cx, put, head, (u, x, past), s, local));
        }
    }

    fn mix_prompt(&self, cx: &Exec, m: &mut [f32], (u, x): (&mut [f32], &mut [f32]), state: &mut [f32], past: &[u32]) {
        let (Params { heads, dv, .. }, n) = (&self.of, past.len());
        let x = &mut x[..n * self.convolved()];
        let (history, states) = state.split_at_mut(self.history());
        cx.tiles_by(CONVOLVED, n, (Rows(x, self.convolved()),), |cx, rows, (x,), local| {
            self.convolve(cx, x, history, (u, past), rows, local);
        });
        self.keep(history, (u, past));
        let buffers = (Heads(m, n, *heads, *dv), Rows(states, self.head_state()));
        cx.tiles_by(1, *heads, buffers, |cx, head, (mut m, s), local| {
            let put = |t: usize, o: &[f32]| m.row(t).copy_from_slice(o);
            self.step(cx, put, head.start, (u, x, past), s, local);
        });
    }
}
