//! One op, one file: formula, body written once over the trait `Simd`, reference loop, tests.

mod adamw;
mod attention;
mod conv;
mod delta;
mod embed;
pub(crate) mod exact;
mod gate;
mod glu;
mod int8;
mod matmul;
mod muon;
mod norm;
mod packed;
mod quant;
mod reduce;
mod rope;
mod rows;
mod small;
mod softcap;
mod softmax;
mod unit;

pub use adamw::{AdamW, adamw_step};
pub use attention::{attention_backward, attention_forward, attention_work};
pub use conv::{conv_forward, conv_gate_backward, conv_gate_forward, conv_taps_backward};
pub use delta::{Rule, delta_backward, delta_forward, delta_steps, delta_work};
pub use embed::{embed_backward, embed_forward};
pub use exact::attention::{exact_attention, exact_rope};
pub use exact::choose::{exact_max, exact_weights};
pub use exact::conv::{ConvRows, exact_conv, exact_conv_keep};
pub use exact::delta::{exact_delta_step, exact_delta_width, exact_sigmoid, exact_softplus};
pub use exact::rows::{
    Gate, exact_gate, exact_log_sum_exp, exact_matvec, exact_rmsnorm, exact_silu_unit, exact_softcap,
};
pub use gate::{Act, gate_backward, gate_forward};
pub use glu::{Activation, glu_again, glu_backward, glu_forward};
pub use int8::round_int8;
pub use matmul::{Packed, Panels, matmul, matmul_tn, matmul_transposed};
pub use muon::{Momentum, momentum_step, rows_normalise, scale, scale_add};
pub use norm::{rmsnorm_backward, rmsnorm_forward};
pub use packed::{Columns, INT8_ROWS, Int8Rows, PackedMatrix, packed_matmul};
pub use quant::{Quant, Scale, Stat, quantise};
pub use reduce::{add, add_parts, narrow, sum_squares, zero};
pub use rope::rope;
pub use small::{Triangle, small_matmul, solve_unit_lower, solve_unit_upper};
pub use softcap::softcap;
pub use softmax::{NO_TARGET, Objective, SoftmaxRows, softmax_backward};
pub use unit::{silu_unit_backward, silu_unit_forward};
