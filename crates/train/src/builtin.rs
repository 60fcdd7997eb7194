//! The model in the box: a packed model that is part of the program. How it was trained, and on what: `builtin/README.md`.

use flashlm_model::io::IoError;
use flashlm_model::io::safetensors::TensorFile;

/// What it is named by, where no file has that name.
pub const NAME: &str = "builtin";

/// The file, as `flashlm pack` wrote it.
pub static FILE: &[u8] = include_bytes!("../builtin/model.safetensors");

/// It, to be read.
pub fn tensors() -> Result<TensorFile, IoError> {
    TensorFile::from_bytes(FILE.to_vec(), "the built-in model")
}
