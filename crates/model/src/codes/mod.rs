//! Weights as the integers that they are: ternary codes, bytes, nibbles, and the tensors of a file that hold them.

pub mod error;
pub mod format;
pub mod options;
pub(crate) mod reader;
pub mod weight;
pub(crate) mod weights;
