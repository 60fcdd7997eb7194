//! Names in a packed model's file, and its digest.

use xxhash_rust::xxh3::Xxh3;

/// What stands under `format` in the metadata.
pub const FORMAT: &str = "flashlm-packed";
pub(crate) const VERSION: &str = "1";
pub(crate) const TOKENIZER: &str = "tokenizer";
/// The rows of the embedding matrix that have 4 bits.
pub(crate) const RARE: &str = "embedding.rare.weight";

/// XXH3-64 of the config's bytes and then of all the data.
pub(crate) fn digest(config: &str, data: &[u8]) -> String {
    let mut hash = Xxh3::new();
    hash.update(config.as_bytes());
    hash.update(data);
    format!("{:016x}", hash.digest())
}
