//! The binary as a person uses it.

mod common;
mod curriculum;
mod faults;
mod resume;
mod story;
