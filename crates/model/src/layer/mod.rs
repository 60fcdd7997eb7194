//! Layers: forward and backward side by side. A layer owns what it saves between the two, sized at build time for a
//! largest number of rows; nothing is allocated in a step.
//!
//! The residual stream is kept in `A::E`, everything inside a branch as `A`. A layer goes over its rows in tiles, and does
//! for one tile all that needs no other ([`flashlm_kernels::tile`]); what is left are the gradients of weights.

pub mod ffn;
pub mod head;
pub mod linear;
pub mod norm;

use flashlm_kernels::ops::Packed;
use flashlm_kernels::tile::TILE_ROWS;
use flashlm_kernels::{Buf, Store};

use self::linear::WeightScratch;
use crate::config::ModelConfig;

/// What a backward pass says without the weights for it.
const NO_BACKWARD: &str = "a model built for inference has no backward pass";

/// Working memory that all layers of a model share.
pub struct Scratch<A: Store> {
    /// One quantised matrix.
    pub weight: Buf<A>,
    /// Magnitudes for a median.
    pub magnitudes: Buf<A::E>,
    /// For weight gradients.
    pub weights: WeightScratch<A>,
    /// Sums that tiles keep.
    pub parts: Buf<A::E>,
    /// Rows of `D`.
    pub x: Buf<A>,
    /// Rows of `D`.
    pub dy: Buf<A>,
    /// Three times rows of `max(2D, F)`.
    pub wide: [Buf<A>; 3],
}

impl<A: Store> Scratch<A> {
    /// For models of `config` with at most `rows` rows; what only a backward pass needs is left out unless `training`.
    pub fn new(config: &ModelConfig, rows: usize, training: bool) -> Self {
        let (d, wide) = (config.dim, (2 * config.dim).max(config.ffn_hidden));
        let rows = if training { rows } else { 0 };
        // The norm of the block and those of three matrices, or the taps.
        let part = 2 * d + 2 * wide + d * config.kernel_size;
        Scratch {
            weight: Buf::scratch(config.vocab_size.max(wide) * d),
            magnitudes: Buf::scratch(d * wide),
            weights: WeightScratch {
                packed: Packed::new(rows, wide),
                operand: Buf::scratch(if config.quant.norm || !config.block_norm { rows * wide } else { 0 }),
            },
            parts: Buf::scratch(rows.div_ceil(*TILE_ROWS.start()) * part),
            x: Buf::scratch(rows * d),
            dy: Buf::scratch(rows * d),
            wide: std::array::from_fn(|_| Buf::scratch(rows * wide)),
        }
    }
}
