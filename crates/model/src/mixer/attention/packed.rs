//! Attention in the packed runtime.

use flashlm_kernels::Exec;
use flashlm_kernels::ops::{exact_attention, exact_rope};
use flashlm_kernels::tile::Local;

use super::Params;
use super::angles::Angles;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::layer::packed::{Input, PackedLinear, PackedNorm, PackedScratch};
use crate::mixer::forms::PackedMixer;

/// `u` of a row is `[q, k, v]`; mixing leaves the output in the place of `q`.
///
/// The state is the ring of keys of each head, then that of values: the row at `past` stands in slot `past % window`.
pub(crate) struct Packed {
    inputs: [PackedLinear; 3],
    head_norms: [PackedNorm; 2],
    output: PackedLinear,
    angles: Angles<f32>,
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
            angles: Angles::new(of.width(), of.rope_base, 0),
            heads: of.heads,
            window: of.window,
            d: of.output.outputs,
        })
    }
}

impl PackedMixer for Packed {
    fn linears(&self) -> Vec<&PackedLinear> {
        self.inputs.iter().chain([&self.output]).collect()
    }

    fn width(&self) -> usize {
        3 * self.d
    }

    fn state_len(&self) -> usize {
        2 * self.window * self.d
    }

    fn project(&self, cx: &Exec, u: &mut [f32], x: &[f32], work: &mut PackedScratch) {
        let mut input = Input::new(x);
        for (i, linear) in self.inputs.iter().enumerate() {
            linear.forward(cx, (u, 3 * self.d, i * self.d), &mut input, work, false);
        }
    }

    fn mix(&self, cx: &Exec, u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local) {
        let (d, heads, window) = (self.d, self.heads, self.window);
        let width = d / heads;
        let (keys, values) = state.split_at_mut(window * d);
        let (angles, normed) = (local.take::<f32>(width), local.take::<f32>(d));
        let scores = local.take::<f32>(window);
        for (u, &past) in u.chunks_exact_mut(3 * d).zip(past) {
            self.angles.fill(angles, &[past]);
            for (i, by) in [(width as f64).powf(-0.5) as f32, 1.0].into_iter().enumerate() {
                let x = &mut u[i * d..(i + 1) * d];
                self.head_norms[i].forward(cx, normed, x);
                normed.chunks_exact_mut(width).for_each(|x| exact_rope(x, angles, by));
                x.copy_from_slice(normed);
            }
            let (slot, count) = (past as usize % window, window.min(past as usize + 1));
            let from = (slot + window + 1 - count) % window;
            let (q, kv) = u.split_at_mut(d);
            for (head, q) in q.chunks_exact_mut(width).enumerate() {
                let ring = head * window * width..(head + 1) * window * width;
                let (keys, values) = (&mut keys[ring.clone()], &mut values[ring]);
                let place = slot * width..(slot + 1) * width;
                keys[place.clone()].copy_from_slice(&kv[head * width..(head + 1) * width]);
                values[place].copy_from_slice(&kv[d + head * width..d + (head + 1) * width]);
                let o = &mut normed[..width];
                exact_attention(cx, o, q, (keys, values), scores, (from, count));
                q.copy_from_slice(o);
            }
        }
    }

    fn output(&self, cx: &Exec, h: &mut [f32], u: &[f32], work: &mut PackedScratch, local: &Local) {
        let d = self.d;
        let o = local.take::<f32>(h.len());
        for (o, u) in o.chunks_exact_mut(d).zip(u.chunks_exact(3 * d)) {
            o.copy_from_slice(&u[..d]);
        }
        self.output.forward(cx, (h, d, 0), &mut Input::new(o), work, true);
    }
}
