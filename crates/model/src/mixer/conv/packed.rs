//! Gated convolutions in the packed runtime: `u = up(x)`, one part of which the taps go over, and a gate on what they make of it.

use std::marker::PhantomData;
use std::ops::Range;

use flashlm_kernels::ops::{Act, ConvRows, exact_conv, exact_conv_keep, exact_gate};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Buf, Exec};

use super::Params;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::layer::linear::Linear;
use crate::layer::packed::{Input, PackedLinear, PackedScratch, packed_taps};
use crate::layer::taps::Taps;
use crate::mixer::forms::{PackedMixer, RowParallel};

/// What is particular to one of them; `D` channels.
pub(crate) trait Gate: Send + Sync {
    /// Parts of `D` in a row of `u`. The taps go over the last.
    const PARTS: usize;

    /// What becomes of a row of `u: [PARTS D]` before the taps.
    fn before(u: &mut [f32], d: usize);

    /// `m: [D]` of a row, from what the taps made, `y: [D]`, and `u`.
    fn after(cx: &Exec, m: &mut [f32], y: &[f32], u: &[f32]);
}

/// Its weights.
pub(crate) struct PackedConv<G> {
    up: PackedLinear,
    /// `[K, D]`.
    taps: Buf<f32>,
    down: PackedLinear,
    d: usize,
    gate: PhantomData<G>,
}

/// `u` of a row is `[g, v]`, `m` the convolution of `v`, times `sigmoid(g)`.
pub(crate) type Packed = PackedConv<Sigmoid>;

/// The gate of `conv`.
pub(crate) struct Sigmoid;

impl Gate for Sigmoid {
    const PARTS: usize = 2;

    fn before(_: &mut [f32], _: usize) {}

    fn after(cx: &Exec, m: &mut [f32], y: &[f32], u: &[f32]) {
        exact_gate(cx, m, &u[..y.len()], y, Act::Sigmoid);
    }
}

impl Packed {
    pub(crate) fn read(from: &Reader, of: &Params) -> Result<Self, PackError> {
        PackedConv::of(from, &of.up, &of.conv, &of.down)
    }
}

impl<G: Gate> PackedConv<G> {
    /// The weights of these matrices and taps.
    pub(crate) fn of(from: &Reader, up: &Linear, taps: &Taps, down: &Linear) -> Result<Self, PackError> {
        let d = down.outputs;
        let (up, down) = (PackedLinear::read(from, up)?, PackedLinear::read(from, down)?);
        Ok(PackedConv { up, taps: packed_taps(from, taps)?, down, d, gate: PhantomData })
    }

    fn rows<'a>(&self, u: &'a [f32], past: &'a [u32]) -> ConvRows<'a> {
        ConvRows { u, ld: self.width(), at: self.width() - self.d, past }
    }
}

impl<G: Gate> PackedMixer for PackedConv<G> {
    fn inputs(&self) -> Vec<&PackedLinear> {
        vec![&self.up]
    }

    fn output(&self) -> &PackedLinear {
        &self.down
    }

    fn width(&self) -> usize {
        G::PARTS * self.d
    }

    fn state_len(&self) -> usize {
        self.taps.len() - self.d
    }

    fn project(&self, cx: &Exec, u: &mut [f32], x: &[f32], work: &mut PackedScratch) {
        let width = self.width();
        self.up.forward(cx, (&mut *u, width, 0), &mut Input::new(x), work, false);
        u.chunks_exact_mut(width).for_each(|u| G::before(u, self.d));
    }

    fn mix(&self, cx: &Exec, m: &mut [f32], u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local) {
        self.mix_rows(cx, m, (u, past), 0..past.len(), state, local);
        self.advance_state((u, past), state);
    }

    fn row_parallel(&self) -> Option<&dyn RowParallel> {
        Some(self)
    }
}

impl<G: Gate> RowParallel for PackedConv<G> {
    fn mix_rows(
        &self,
        cx: &Exec,
        m: &mut [f32],
        (u, past): (&[f32], &[u32]),
        rows: Range<usize>,
        state: &[f32],
        local: &Local,
    ) {
        let d = self.d;
        let y = local.take::<f32>(rows.len() * d);
        exact_conv(cx, y, state, self.rows(u, past), rows.clone(), &self.taps);
        let own = u.chunks_exact(self.width()).skip(rows.start);
        for ((m, y), u) in m.chunks_exact_mut(d).zip(y.chunks_exact(d)).zip(own) {
            G::after(cx, m, y, u);
        }
    }

    fn advance_state(&self, (u, past): (&[f32], &[u32]), state: &mut [f32]) {
        exact_conv_keep(state, self.rows(u, past), self.d);
    }
}
