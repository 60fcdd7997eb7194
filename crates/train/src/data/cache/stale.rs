//! Why a token cache does not serve.

/// Version of the format.
pub(super) const VERSION: u32 = 2;

/// Why a cache file does not serve. `Display` is the reason to show for a rebuild.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// There is no file.
    #[error("there is no token cache yet")]
    Missing,
    /// Written by another version of the format.
    #[error("version {0}, expected {VERSION}")]
    Version(u32),
    /// Made with another tokenizer.
    #[error("the tokenizer changed")]
    Tokenizer,
    /// Made from other data, or the data changed since.
    #[error("the source changed")]
    Source,
    /// Made for another side or held-out fraction.
    #[error("the split changed")]
    Split,
    /// Not as it was written.
    #[error("the file is damaged: {0}")]
    Damaged(String),
}
