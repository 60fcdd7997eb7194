//! Layers: forward and backward side by side. Where the parameters of a layer lie, its packed weights, and what its forward pass
//! saves are three things: the first takes no memory and is all that a [`Layout`](crate::params::Layout) needs, the second is
//! made again after each change of the parameters, the third belongs to one application of the layer.
//!
//! The residual stream is kept in `A::E`, everything inside a branch as `A`. A layer goes over its rows in tiles, and does
//! for one tile all that needs no other ([`flashlm_kernels::tile`]); what is left are the gradients of weights.

pub mod bigram;
pub mod branch;
pub mod config;
pub mod dropout;
pub mod ffn;
pub mod head;
pub mod linear;
pub mod norm;
pub(crate) mod packed;
pub mod pass;
pub mod pointer;
pub mod round;
pub mod scratch;
pub mod taps;
