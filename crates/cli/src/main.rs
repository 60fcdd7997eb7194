//! The program `flashlm`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    flashlm::run(std::env::args_os())
}
