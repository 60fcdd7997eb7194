//! The binary as a person uses it.

mod common;
mod data;
mod faults;
mod resume;
mod story;
