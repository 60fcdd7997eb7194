//! The binary as a person uses it.

mod commands;
mod common;
mod curriculum;
mod data;
#[cfg(target_os = "linux")]
mod disk;
mod documented;
mod exports;
mod faults;
mod hands;
mod hub;
mod hub_server;
#[cfg(target_os = "linux")]
mod kills;
mod neo;
mod paths;
mod peers;
mod resume;
mod schema;
mod scripts;
#[cfg(target_os = "linux")]
mod shim;
mod story;
mod sweep;
#[cfg(target_os = "linux")]
mod terminal;
mod texts;
mod timeline;
mod v3;

#[cfg(not(target_os = "linux"))]
#[test]
#[ignore = "needs LD_PRELOAD and /proc: Linux only"]
fn failing_disks_and_kills() {}
