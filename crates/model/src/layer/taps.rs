//! Taps of a causal depthwise convolution ([`flashlm_kernels::ops::conv_forward`]): the parameter is `[C, 1, K]` as in PyTorch,
//! the kernels take `[K, C]`.

use std::ops::Range;

use flashlm_kernels::{Buf, Elem, Store};

use super::norm::Tiles;

/// Where the taps of one convolution lie.
#[derive(Clone, Debug)]
pub struct Taps {
    /// Their place among the parameters.
    pub weight: Range<usize>,
    /// The place of their gradient, `[K, C]`, among the sums that one tile keeps.
    pub part: Range<usize>,
    /// `K`.
    pub k: usize,
}

impl Taps {
    /// `C`.
    pub fn channels(&self) -> usize {
        self.weight.len() / self.k
    }

    /// `[K, C]` from all parameters.
    pub fn by_row<E: Elem>(&self, taps: &mut [E], params: &[E]) {
        turn(taps, &params[self.weight.clone()], self.k);
    }

    /// Adds what the tiles have summed up to `grads`; `dtaps` is scratch.
    pub fn add_parts<E: Elem>(&self, grads: &mut [E], dtaps: &mut [E], tiles: &Tiles<E>) {
        let dtaps = &mut dtaps[..self.weight.len()];
        dtaps.fill(E::ZERO);
        tiles.add(dtaps, &(0..self.weight.len()), &self.part);
        let channels = self.channels();
        for (c, own) in grads[self.weight.clone()].chunks_exact_mut(self.k).enumerate() {
            own.iter_mut().enumerate().for_each(|(j, dw)| *dw += dtaps[j * channels + c]);
        }
    }
}

/// `[K, C]` from `[C, 1, K]`.
pub(crate) fn turned(params: &[f32], k: usize) -> Buf<f32> {
    let mut taps = Buf::zeros(params.len());
    turn(&mut taps, params, k);
    taps
}

fn turn<E: Elem>(taps: &mut [E], params: &[E], k: usize) {
    let channels = params.len() / k;
    for (c, own) in params.chunks_exact(k).enumerate() {
        own.iter().enumerate().for_each(|(j, &w)| taps[j * channels + c] = w);
    }
}

/// Advances `last: [K-1, d]`, the last rows of a sequence, by `t` rows: columns from `at` on of rows that are `ld` apart.
pub fn keep_last_rows<A: Store>(last: &mut [A::E], (rows, ld, at): (&[A], usize, usize), t: usize, d: usize) {
    let held = last.len() / d;
    let kept = held.saturating_sub(t);
    last.copy_within((held - kept) * d.., 0);
    for (j, row) in last.chunks_exact_mut(d).enumerate().skip(kept) {
        let from = (t + j - held) * ld + at;
        row.iter_mut().zip(&rows[from..from + d]).for_each(|(row, v)| *row = v.widen());
    }
}
