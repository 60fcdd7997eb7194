//! Kernels of FlashLM: every op is a formula written once over the trait `Simd` and run on the best ISA of the machine.
//!
//! Axes mean one thing everywhere: `B` batch, `T` sequence length, `D` model width, `F` GLU hidden width, `V` vocabulary,
//! `K` convolution taps; `rows` is `B * T`. Matrices are row-major slices; a linear layer's weight is `[out, in]`.
//! Functions are `x_forward` and `x_backward`; gradients are `d` + name; arguments come in the order outputs, saved,
//! inputs, parameters, sizes. Every function takes the executor [`Exec`] first.
//!
//! Contract: one ISA gives the same bits for any number of threads (each output element is summed in one fixed order);
//! two ISAs agree in f32 within an RMS ratio of 1e-5. The same bodies run in f64 on one scalar lane for gradient checks.

mod bf16;
mod buf;
pub mod cpu;
mod dispatch;
mod dot;
mod exec;
pub mod heap;
mod isa;
pub mod map;
pub mod measure;
mod number;
pub mod ops;
mod part;
pub mod pool;
pub mod profile;
pub mod replay;
mod simd;
mod size;
pub mod span;
#[cfg(test)]
mod testing;
pub mod tile;

pub use bf16::Bf16;
pub use buf::Buf;
pub use dispatch::Isa;
pub use exec::Exec;
pub use simd::{Elem, Store};
pub use span::Span;

/// A token id. Vocabularies hold at most 65,535 tokens.
pub type Token = u16;
