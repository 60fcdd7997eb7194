//! The binary as a person uses it.

mod common;
mod curriculum;
mod data;
mod faults;
mod hub;
mod hub_server;
mod paths;
mod resume;
mod story;
mod timeline;
