//! Layers: forward and backward side by side. A layer owns what it saves between the two, sized at build time for a
//! largest number of rows; nothing is allocated in a step.
//!
//! The residual stream is kept in `A::E`, everything inside a branch as `A`. A layer goes over its rows in tiles, and does
//! for one tile all that needs no other ([`flashlm_kernels::tile`]); what is left are the gradients of weights.

pub mod ffn;
pub mod head;
pub mod linear;
pub mod norm;
pub mod round;

use flashlm_kernels::ops::Packed;
use flashlm_kernels::tile::TILE_ROWS;
use flashlm_kernels::{Buf, Store};

use self::linear::WeightScratch;
use crate::config::ModelConfig;

/// What a backward pass says without the weights for it.
const NO_BACKWARD: &str = "a model built for inference has no backward pass";

/// What a layer takes of the [`Scratch`].
#[derive(Clone, Copy, Default)]
pub struct Need {
    /// Elements of its largest matrix.
    pub matrix: usize,
    /// Width of the widest input of a matrix.
    pub input: usize,
    /// Elements of the sums that one tile keeps.
    pub part: usize,
    /// Widths of [`Scratch::wide`].
    pub wide: [usize; 5],
}

impl Need {
    /// Enough for either.
    pub fn max(self, other: Need) -> Need {
        Need {
            matrix: self.matrix.max(other.matrix),
            input: self.input.max(other.input),
            part: self.part.max(other.part),
            wide: std::array::from_fn(|i| self.wide[i].max(other.wide[i])),
        }
    }
}

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
    /// Rows of the widths that layers ask for.
    pub wide: [Buf<A>; 5],
}

impl<A: Store> Scratch<A> {
    /// For models of `config` with at most `rows` rows; what only a backward pass needs is left out unless `training`.
    pub fn new(config: &ModelConfig, need: Need, rows: usize, training: bool) -> Self {
        let d = config.dim;
        let rows = if training { rows } else { 0 };
        let own_norm = config.quant.norm || config.sub_norm;
        Scratch {
            weight: Buf::scratch(need.matrix.max(config.vocab_size * d)),
            magnitudes: Buf::scratch(need.matrix),
            weights: WeightScratch {
                packed: Packed::new(rows, need.input.max(d)),
                operand: Buf::scratch(if own_norm || !config.block_norm { rows * need.input } else { 0 }),
            },
            parts: Buf::scratch(rows.div_ceil(*TILE_ROWS.start()) * need.part.max(d)),
            x: Buf::scratch(rows * d),
            dy: Buf::scratch(rows * d),
            wide: need.wide.map(|width| Buf::scratch(rows * width)),
        }
    }
}
