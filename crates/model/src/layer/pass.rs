//! What every layer of one pass is told.

use flashlm_kernels::{Elem, Exec, Span};

/// One pass over `B` sequences of `T` rows.
#[derive(Clone, Copy)]
pub struct Pass<'a, E: Elem> {
    /// Where it runs. Inside of a tile its own executor takes this one's place.
    pub cx: &'a Exec,
    /// All parameters, in the order of the layout.
    pub params: &'a [E],
    /// Whether the inputs of ternary matrices and of the head are rounded to int8.
    pub int8: bool,
    /// Sizes, and how many rows of its document stand before each row.
    pub span: &'a Span<'a>,
}
