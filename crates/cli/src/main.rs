//! The program `flashlm`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    flashlm::program(std::env::args_os())
}
