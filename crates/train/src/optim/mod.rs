//! Optimizers: one optimizer, one file, its state in flat buffers laid out like the parameters.

mod adamw;

pub use adamw::AdamW;
