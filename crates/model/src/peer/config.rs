//! Bounds of what a `config.json` may ask for; a tensor of each size is then looked for before anything is allocated.

use std::path::Path;

use flashlm_kernels::Token;

use super::error::PeerError;

/// Largest size of an axis, and most blocks or heads.
const MOST: usize = 1 << 20;

/// A size of at least 1 and at most [`MOST`].
pub(super) fn at_most(path: &Path, key: &'static str, value: usize) -> Result<(), PeerError> {
    match value {
        1..=MOST => Ok(()),
        value => Err(other(path, key, &format!("1 to {MOST}"), &value.to_string())),
    }
}

/// A value that is not to be had here.
pub(super) fn other(path: &Path, key: &'static str, expected: &str, found: &str) -> PeerError {
    let found = found.chars().take(60).collect::<String>().escape_debug().to_string();
    PeerError::Config { path: path.to_owned(), key, expected: expected.into(), found }
}

/// Tokens are numbers of 16 bits.
pub(super) fn vocabulary(path: &Path, size: usize) -> Result<(), PeerError> {
    const LARGEST: usize = Token::MAX as usize;
    match size {
        1..=LARGEST => Ok(()),
        size => Err(other(path, "vocab_size", &format!("1 to {LARGEST} tokens"), &size.to_string())),
    }
}
