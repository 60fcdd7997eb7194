//! Layers: forward and backward side by side. A layer owns what it saves between the two, sized at build time for a
//! largest number of rows; nothing is allocated in a step.

pub mod ffn;
pub mod head;
pub mod linear;
pub mod norm;

use flashlm_kernels::ops::{PARTIALS, Packed};
use flashlm_kernels::{Buf, Elem};

use crate::config::ModelConfig;

/// Working memory that all layers of a model share.
pub struct Scratch<E: Elem> {
    /// For products and norms.
    pub linear: LinearScratch<E>,
    /// Rows of `max(2D, F)`.
    pub a: Buf<E>,
    /// Rows of `max(2D, F)`.
    pub b: Buf<E>,
    /// Rows of `max(2D, F)`.
    pub c: Buf<E>,
}

/// What a [`linear::Linear`] needs besides its inputs and outputs.
pub struct LinearScratch<E: Elem> {
    /// Normalised input, rows of `max(2D, F)`.
    pub x: Buf<E>,
    /// Its gradient.
    pub dx: Buf<E>,
    /// Partial sums over rows.
    pub partials: Buf<E>,
    /// The packed side of a weight gradient.
    pub packed: Packed<E>,
    /// One quantised matrix.
    pub wq: Buf<E>,
    /// Magnitudes for a median.
    pub magnitudes: Buf<E>,
}

impl<E: Elem> Scratch<E> {
    /// For models of `config` with at most `rows` rows; what only a backward pass needs is left out unless `training`.
    pub fn new(config: &ModelConfig, rows: usize, training: bool) -> Self {
        let wide = (2 * config.dim).max(config.ffn_hidden);
        let matrix = config.dim * wide;
        let train = if training { rows } else { 0 };
        let partials = PARTIALS * wide.max(config.dim * config.kernel_size);
        Scratch {
            linear: LinearScratch {
                x: Buf::scratch(if config.quant.norm { rows * wide } else { 0 }),
                dx: Buf::scratch(if config.quant.norm { train * wide } else { 0 }),
                partials: Buf::scratch(if training { partials } else { 0 }),
                packed: Packed::new(train, wide),
                wq: Buf::scratch(matrix),
                magnitudes: Buf::scratch(matrix),
            },
            a: Buf::scratch(rows * wide),
            b: Buf::scratch(train * wide),
            c: Buf::scratch(train * wide),
        }
    }
}
