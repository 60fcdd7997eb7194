//! Working memory that all layers of a model share, sized for a largest number of rows; nothing is allocated in a step.

use flashlm_kernels::ops::Packed;
use flashlm_kernels::tile::TILE_ROWS;
use flashlm_kernels::{Buf, Store};

use super::config::{LayerConfig, Need};

/// Buffers of [`Scratch::wide`].
pub const WIDE: usize = 5;

/// Working memory; its contents mean nothing from one layer to the next.
pub struct Scratch<A: Store> {
    /// One quantised matrix.
    pub weight: Buf<A>,
    /// Magnitudes for a median.
    pub magnitudes: Buf<A::E>,
    /// For weight gradients.
    pub weights: WeightScratch<A>,
    /// Sums that tiles keep.
    pub parts: Buf<A::E>,
    /// Gradients of the taps of one convolution.
    pub dtaps: Buf<A::E>,
    /// Rows of `D`.
    pub x: Buf<A>,
    /// Rows of `D`.
    pub dy: Buf<A>,
    /// Rows of the widths that layers ask for.
    pub wide: [Buf<A>; WIDE],
}

/// Working memory of weight gradients.
pub struct WeightScratch<A: Store> {
    /// The packed input.
    pub packed: Packed<A>,
    /// The input as the matmul takes it, where that is not what the branch's norm has made.
    pub operand: Buf<A>,
}

impl<A: Store> Scratch<A> {
    /// For layers of `config` with at most `rows` rows, 0 where there is no backward pass, and an embedding matrix of `V` rows.
    pub fn new(config: &LayerConfig, need: Need, wide: [usize; WIDE], rows: usize, vocab: usize) -> Self {
        let d = config.dim;
        let own_norm = config.matrix_norm || config.sub_norm;
        Scratch {
            weight: Buf::scratch(need.matrix.max(vocab * d)),
            magnitudes: Buf::scratch(need.matrix),
            weights: WeightScratch {
                packed: Packed::new(rows, need.input.max(d)),
                operand: Buf::scratch(if own_norm || !config.block_norm { rows * need.input } else { 0 }),
            },
            parts: Buf::scratch(rows.div_ceil(*TILE_ROWS.start()) * need.part.max(d)),
            dtaps: Buf::scratch(if rows > 0 { need.taps } else { 0 }),
            x: Buf::scratch(rows * d),
            dy: Buf::scratch(rows * d),
            wide: wide.map(|width| Buf::scratch(rows * width)),
        }
    }

    /// Room for inputs of `len` elements that are rounded to int8.
    pub fn room_for_rounded(&mut self, len: usize) {
        if self.weights.operand.len() < len {
            self.weights.operand = Buf::scratch(len);
        }
    }
}
