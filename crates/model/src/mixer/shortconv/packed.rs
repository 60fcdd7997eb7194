//! The short convolution in the packed runtime.

use std::ops::Range;

use flashlm_kernels::ops::{ConvRows, exact_conv, exact_conv_keep};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Buf, Exec};

use super::Params;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::layer::packed::{Input, PackedLinear, PackedScratch, packed_taps};
use crate::mixer::forms::{PackedMixer, RowParallel};

/// `u` of a row is `[b, c, v]`, `m` is `c` times the convolution of `v`.
pub(crate) struct Packed {
    up: PackedLinear,
    /// `[K, D]`.
    taps: Buf<f32>,
    down: PackedLinear,
    d: usize,
}

impl Packed {
    pub(crate) fn read(from: &Reader, of: &Params) -> Result<Self, PackError> {
        let (up, down) = (PackedLinear::read(from, &of.up)?, PackedLinear::read(from, &of.down)?);
        Ok(Packed { up, taps: packed_taps(from, &of.conv)?, down, d: of.down.outputs })
    }

    fn rows<'a>(&self, u: &'a [f32], past: &'a [u32]) -> ConvRows<'a> {
        ConvRows { u, ld: 3 * self.d, at: 2 * self.d, past }
    }
}

impl PackedMixer for Packed {
    fn inputs(&self) -> Vec<&PackedLinear> {
        vec![&self.up]
    }

    fn output(&self) -> &PackedLinear {
        &self.down
    }

    fn width(&self) -> usize {
        3 * self.d
    }

    fn state_len(&self) -> usize {
        self.taps.len() - self.d
    }

    fn project(&self, cx: &Exec, u: &mut [f32], x: &[f32], work: &mut PackedScratch) {
        self.up.forward(cx, (u, 3 * self.d, 0), &mut Input::new(x), work, false);
        for u in u.chunks_exact_mut(3 * self.d) {
            let (b, rest) = u.split_at_mut(self.d);
            rest[self.d..].iter_mut().zip(b).for_each(|(x, b)| *x *= *b);
        }
    }

    fn mix(&self, cx: &Exec, m: &mut [f32], u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local) {
        self.mix_rows(cx, m, (u, past), 0..past.len(), state, local);
        self.advance_state((u, past), state);
    }

    fn row_parallel(&self) -> Option<&dyn RowParallel> {
        Some(self)
    }
}

impl RowParallel for Packed {
    fn mix_rows(
        &self,
        cx: &Exec,
        m: &mut [f32],
        (u, past): (&[f32], &[u32]),
        rows: Range<usize>,
        state: &[f32],
        _: &Local,
    ) {
        let d = self.d;
        exact_conv(cx, m, state, self.rows(u, past), rows.clone(), &self.taps);
        for (m, u) in m.chunks_exact_mut(d).zip(u.chunks_exact(3 * d).skip(rows.start)) {
            m.iter_mut().zip(&u[d..2 * d]).for_each(|(m, c)| *m *= c);
        }
    }

    fn advance_state(&self, (u, past): (&[f32], &[u32]), state: &mut [f32]) {
        exact_conv_keep(state, self.rows(u, past), self.d);
    }
}
