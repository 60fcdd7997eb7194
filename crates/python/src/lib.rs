//! FlashLM as a module of Python: `flashlm._flashlm`, which the package `flashlm` (`python/flashlm`) shows. The same texts and bits as
//! the program; docs/python.md is for its users, `_flashlm.pyi` has the types.
#![forbid(unsafe_code)]

mod asked;
mod engines;
mod error;
mod files;
mod generation;
mod json;
mod model;
mod settings;
mod stream;
mod texts;
mod tokenizer;
mod trainer;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use pyo3::prelude::*;

/// Runs a command of the program with these arguments, the program's name first, and returns its exit code.
#[pyfunction]
fn run(py: Python, args: Vec<OsString>) -> u8 {
    let code = py.detach(|| flashlm::program(args));
    // An exit code can be compared, not read.
    (0..=u8::MAX).find(|&number| ExitCode::from(number) == code).unwrap_or(1)
}

#[pymodule(gil_used = false)]
mod _flashlm {
    #[pymodule_export]
    use crate::files::{export, pack, verify};
    #[pymodule_export]
    use crate::generation::Generation;
    #[pymodule_export]
    use crate::model::{Model, load};
    #[pymodule_export]
    use crate::run;
    #[pymodule_export]
    use crate::stream::Stream;
    #[pymodule_export]
    use crate::tokenizer::Tokenizer;
    #[pymodule_export]
    use crate::trainer::{Trainer, finish_all};

    /// The version of the package.
    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
