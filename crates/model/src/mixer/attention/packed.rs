//! Attention in the packed runtime.

use flashlm_kernels::Exec;
use flashlm_kernels::ops::{EXACT_QUERIES, exact_attention, exact_attention_keep, exact_rope, exact_slots};
use flashlm_kernels::tile::{Heads, Local, Rows};

use super::Params;
use super::angles::Turns;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::layer::packed::{Input, PackedLinear, PackedNorm, PackedScratch};
use crate::mixer::forms::PackedMixer;

/// Rows of a prompt that a thread turns at once.
const TURNED: usize = 8;

/// `u` of a row is `[q, k, v]`, `m` the output of all heads.
///
/// The state of a head is a ring of keys, then one of values ([`exact_attention`]).
pub(crate) struct Packed {
    inputs: [PackedLinear; 3],
    head_norms: [PackedNorm; 2],
    output: PackedLinear,
    turns: Turns,
    heads: usize,
    window: usize,
    d: usize,
}

impl Packed {
    pub(crate) fn read(from: &Reader, of: &Params) -> Result<Self, PackError> {
        let ([q, k, v], [q_norm, k_norm]) = (&of.inputs, &of.head_norms);
        let linear = |of| PackedLinear::read(from, of);
        Ok(Packed {
            inputs: [linear(q)?, linear(k)?, linear(v)?],
            head_norms: [PackedNorm::read(from, q_norm)?, PackedNorm::read(from, k_norm)?],
            output: linear(&of.output)?,
            turns: Turns::new(of.width(), of.rope_base),
            heads: of.heads,
            window: of.window,
            d: of.output.outputs,
        })
    }

    /// Elements of the state of a head.
    fn head_state(&self) -> usize {
        2 * exact_slots(self.window) * (self.d / self.heads)
    }

    /// Norms and turns queries and keys of the rows `u`.
    fn turn(&self, cx: &Exec, u: &mut [f32], past: &[u32], local: &Local) {
        let (d, width) = (self.d, self.d / self.heads);
        let (angles, normed) = (local.take::<f32>(width), local.take::<f32>(d));
        for (u, &past) in u.chunks_exact_mut(3 * d).zip(past) {
            self.turns.fill(angles, past);
            for (i, by) in [(width as f64).powf(-0.5) as f32, 1.0].into_iter().enumerate() {
                let x = &mut u[i * d..(i + 1) * d];
                self.head_norms[i].forward(cx, normed, x);
                exact_rope(cx, x, normed, angles, by);
            }
        }
    }

    /// Rows of one head, whose state moves on; `put` is given the output of each.
    fn attend(
        &self,
        cx: &Exec,
        mut put: impl FnMut(usize, &[f32]),
        head: usize,
        (u, past): (&[f32], &[u32]),
        state: &mut [f32],
        local: &Local,
    ) {
        let (d, width) = (self.d, self.d / self.heads);
        let (q, o) = (local.take::<f32>(EXACT_QUERIES * width), local.take::<f32>(EXACT_QUERIES * width));
        let weights = local.take::<f32>(EXACT_QUERIES * exact_slots(self.window));
        let (keys, values) = state.split_at_mut(self.head_state() / 2);
        let mut t = 0;
        while t < past.len() {
            // Rows that follow each other in one document.
            let follows = |i: usize| past.get(t + i).is_some_and(|&next| next.checked_sub(past[t]) == Some(i as u32));
            let n = (1..EXACT_QUERIES).find(|&i| !follows(i)).unwrap_or(EXACT_QUERIES);
            for (i, q) in q.chunks_exact_mut(width).take(n).enumerate() {
                let part = |of: usize| &u[((t + i) * 3 + of) * d + head * width..][..width];
                q.copy_from_slice(part(0));
                exact_attention_keep((keys, values), part(1), part(2), past[t + i]);
            }
            let (q, o) = (&q[..n * width], &mut o[..n * width]);
            exact_attention(cx, o, q, (keys, values), weights, (past[t], self.window, width));
            o.chunks_exact(width).enumerate().for_each(|(i, o)| put(t + i, o));
            t += n;
        }
    }
}

impl PackedMixer for Packed {
    fn inputs(&self) -> Vec<&PackedLinear> {
        self.inputs.iter().collect()
    }

    fn output(&self) -> &PackedLinear {
        &self.output
    }

    fn width(&self) -> usize {
        3 * self.d
    }

    fn state_len(&self) -> usize {
        self.heads * self.head_state()
    }

    fn project(&self, cx: &Exec, u: &mut [f32], x: &[f32], work: &mut PackedScratch) {
        let mut input = Input::new(x);
        for (i, linear) in self.inputs.iter().enumerate() {
            linear.forward(cx, (u, 3 * self.d, i * self.d), &mut input, work, false);
        }
    }

    fn mix(&self, cx: &Exec, m: &mut [f32], u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local) {
        let (d, width) = (self.d, self.d / self.heads);
        local.within(|local| self.turn(cx, u, past, local));
        for (head, state) in state.chunks_exact_mut(self.head_state()).enumerate() {
            let put = |t: usize, o: &[f32]| m[t * d + head * width..][..width].copy_from_slice(o);
            local.within(|local| self.attend(cx, put, head, (u, past), state, local));
        }
    }

    fn mix_prompt(&self, cx: &Exec, m: &mut [f32], (u, _): (&mut [f32], &mut [f32]), state: &mut [f32], past: &[u32]) {
        let (d, n) = (self.d, past.len());
        cx.tiles_by(TURNED, n, (Rows(u, 3 * d),), |cx, rows, (u,), local| self.turn(cx, u, &past[rows], local));
        let buffers = (Heads(m, n, self.heads, d / self.heads), Rows(state, self.head_state()));
        cx.tiles_by(1, self.heads, buffers, |cx, head, (mut m, state), local| {
            let put = |t: usize, o: &[f32]| m.row(t).copy_from_slice(o);
            self.attend(cx, put, head.start, (u, past), state, local);
        });
    }
}
