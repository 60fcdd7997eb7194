//! The short convolution in the packed runtime.

use flashlm_kernels::Exec;

use super::Params;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::mixer::conv::{Gate, PackedConv};

/// `u` of a row is `[b, c, v]`, `v` being `b` times what was projected; `m` is `c` times the convolution of `v`.
pub(crate) type Packed = PackedConv<Products>;

/// Its gate.
pub(crate) struct Products;

impl Gate for Products {
    const PARTS: usize = 3;

    fn before(u: &mut [f32], d: usize) {
        let (b, rest) = u.split_at_mut(d);
        rest[d..].iter_mut().zip(b).for_each(|(x, b)| *x *= *b);
    }

    fn after(_: &Exec, m: &mut [f32], y: &[f32], u: &[f32]) {
        let c = &u[y.len()..];
        m.iter_mut().zip(y).zip(c).for_each(|((m, y), c)| *m = y * c);
    }
}

impl Packed {
    pub(crate) fn read(from: &Reader, of: &Params) -> Result<Self, PackError> {
        PackedConv::of(from, &of.up, &of.conv, &of.down)
    }
}
