//! The binary as a person uses it.

mod commands;
mod common;
mod curriculum;
mod data;
mod faults;
mod hub;
mod hub_server;
mod resume;
mod story;
