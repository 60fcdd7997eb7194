//! The binary as a person uses it.

mod common;
mod faults;
mod resume;
mod story;
