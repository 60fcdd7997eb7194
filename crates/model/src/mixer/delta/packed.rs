//! The gated delta rule in the packed runtime.

use flashlm_kernels::ops::{
    ConvRows, exact_conv, exact_conv_keep, exact_delta_step, exact_delta_width, exact_gate, exact_matvec,
    exact_sigmoid, exact_silu_unit, exact_softplus,
};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Buf, Exec};

use super::Params;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::layer::packed::{Input, PackedLinear, PackedNorm, PackedScratch, packed_taps};
use crate::mixer::forms::PackedMixer;

/// `u` of a row is `[q, k, v, gate, a, b]`; mixing leaves the rule's output in the place of `v`.
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
}

impl PackedMixer for Packed {
    fn linears(&self) -> Vec<&PackedLinear> {
        let gates: &[PackedLinear] = match &self.gates {
            Gates::Ternary(gates) => &gates[..],
            Gates::Float { .. } => &[],
        };
        self.inputs.iter().chain(gates).chain([&self.output]).collect()
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
                    u[at[4]..at[5]].iter_mut().for_each(|a| *a = -softplus(-*a) / 16.0);
                }
            }
            Gates::Float { a, b, rate, bias } => {
                let d = x.len() / (u.len() / at[6]);
                for (u, x) in u.chunks_exact_mut(at[6]).zip(x.chunks_exact(d)) {
                    exact_matvec(cx, &mut u[at[4]..at[5]], a, x);
                    exact_matvec(cx, &mut u[at[5]..at[6]], b, x);
                    for (head, a) in u[at[4]..at[5]].iter_mut().enumerate() {
                        *a = -rate[head] * softplus(*a + bias[head]);
                    }
                }
            }
        }
        for u in u.chunks_exact_mut(at[6]) {
            u[at[6] - heads..].iter_mut().for_each(|b| *b = self.strength * exact_sigmoid(*b));
        }
    }

    fn mix(&self, cx: &Exec, u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local) {
        let (at, Params { heads, dk, dv, units, rule, .. }) = (self.places(), &self.of);
        let (heads, dk, dv) = (*heads, *dk, *dv);
        let n = past.len();
        let ld = at[6];
        let mut rest = state;
        let (q, k, v) =
            (local.take::<f32>(n * heads * dk), local.take::<f32>(n * heads * dk), local.take::<f32>(n * heads * dv));
        let norms = [Some(units[0]), Some(units[1]), None];
        for (i, (y, width)) in [(&mut *q, dk), (&mut *k, dk), (&mut *v, dv)].into_iter().enumerate() {
            let (history, left) = rest.split_at_mut(self.taps[i].len() - heads * width);
            rest = left;
            let from = ConvRows { u, ld, at: at[i], past };
            exact_conv(cx, y, history, from, 0..n, &self.taps[i]);
            exact_conv_keep(history, from, heads * width);
            exact_silu_unit(cx, y, norms[i], width);
        }
        let each = dk * exact_delta_width(dv);
        for (t, (u, past)) in u.chunks_exact_mut(ld).zip(past).enumerate() {
            if *past == 0 {
                rest.fill(0.0);
            }
            for (head, s) in rest.chunks_exact_mut(each).enumerate() {
                let row = t * heads + head;
                let keys = row * dk..(row + 1) * dk;
                let inputs = (&q[keys.clone()], &k[keys], &v[row * dv..(row + 1) * dv]);
                let gates = (u[at[4] + head], u[at[5] + head]);
                let o = &mut u[at[2] + head * dv..at[2] + (head + 1) * dv];
                exact_delta_step(cx, o, s, inputs, gates, *rule);
            }
        }
    }

    fn output(&self, cx: &Exec, h: &mut [f32], u: &[f32], work: &mut PackedScratch, local: &Local) {
        let at = self.places();
        let (ld, values, act) = (at[6], at[3] - at[2], self.of.act);
        let rows = u.len() / ld;
        let (m, normed) = (local.take::<f32>(rows * values), local.take::<f32>(values));
        for (m, u) in m.chunks_exact_mut(values).zip(u.chunks_exact(ld)) {
            let (o, gate) = (&u[at[2]..at[3]], &u[at[3]..at[4]]);
            match &self.head_norm {
                Some(norm) => {
                    norm.forward(cx, normed, o);
                    exact_gate(cx, m, gate, normed, act);
                }
                None => exact_gate(cx, m, gate, o, act),
            }
        }
        let d = h.len() / rows;
        self.output.forward(cx, (h, d, 0), &mut Input::new(m), work, true);
    }
}
