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
pub use conv::{conv_gate_backward, conv_gate_forward};
pub use embed::{embed_backward, embed_forward};
pub use glu::{glu_backward, glu_forward};
pub use matmul::{Packed, matmul, matmul_tn};
pub use norm::{rmsnorm_backward, rmsnorm_forward};
pub use quant::{Quant, Scale, Stat, quantise};
pub use reduce::{PARTIALS, add, copy, scale, sum_squares};
pub use softmax::{cross_entropy, log_probs};
