//! The packed model: one safetensors file that holds all a runtime needs, weights as the integers that they are.
//!
//! ```text
//! x.weight of a BitLinear  U8 [out, ceil(in / n)]   n = 4: codes w + 1 of 2 bits, column 4 i + j in bits 2 j
//!                                                   n = 5: codes as digits of base 3, column 5 i + j times 3^j
//! x.weight.scale           F32 [1], or one for each unit of the quantiser in the order of its rows
//! embedding.weight         I8 [V, D], row r times embedding.weight.scale [V]; likewise matrices that stay float in training
//!   or, table_bits "4"     the same of the first n = ceil(V / 8) rows, which are most of any text, and of the others
//! embedding.rare.weight    U8 [V - n, ceil(D / 2)], codes w + 8 of 4 bits, column 2 i in the low ones; 16 columns of a row
//! share one
//!                          of embedding.rare.weight.scale, BF16 [V - n, ceil(D / 16)]
//! tokenizer                U8 [bytes]
//! all else                 F32 as in training: norms, taps, gates
//! metadata                 format "flashlm-packed", version "1", config (JSON), per_byte "4" or "5", table_bits "8" or "4", xxh3
//! ```
//!
//! `xxh3` is XXH3-64 of the config's bytes and then of all the data; a file whose numbers were damaged is refused. Writing
//! starts from master parameters, reading gives the cells of [`PackedMatrix`](flashlm_kernels::ops::PackedMatrix).

pub(crate) mod open;
#[cfg(test)]
mod tests;
mod unpack;
mod write;

pub use crate::codes::error::PackError;
pub use crate::codes::format::FORMAT;
pub use crate::codes::options::{Density, Options, TableBits};
pub use unpack::unpack;
pub use write::pack;
