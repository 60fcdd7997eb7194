//! One op, one file: formula, body written once over [`crate::simd::Simd`], reference loop, tests.

mod adamw;
mod conv;
mod embed;
mod glu;
mod matmul;
mod norm;
mod quant;
mod reduce;
mod softmax;
#[cfg(test)]
pub(crate) mod testing;

pub use adamw::{AdamW, adamw_step};
pub use conv::{conv_gate_backward, conv_gate_forward, conv_taps_backward};
pub use embed::{embed_backward, embed_forward};
pub use glu::{glu_backward, glu_forward};
pub use matmul::{Packed, Panels, matmul, matmul_tn, matmul_transposed};
#[cfg(target_arch = "x86_64")]
pub(crate) use matmul::{Part, prefetch};
pub use norm::{rmsnorm_backward, rmsnorm_forward};
pub use quant::{Quant, Scale, Stat, quantise};
pub use reduce::{add, add_parts, narrow, sum_squares, zero};
pub use softmax::{SoftmaxRows, softmax_backward};
