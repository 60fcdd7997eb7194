//! The seam of a family: its sizes, its head, and normed rows of tokens.

use flashlm_kernels::{Exec, Token};

use super::layer::{Cache, Linear};

/// What every family has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) vocab: usize,
    pub(super) dim: usize,
    pub(super) blocks: usize,
    /// Heads of keys and values.
    pub(super) kv: usize,
    /// Most tokens of a sequence.
    pub(super) context: usize,
}

/// One architecture.
pub(super) trait Family: Send + Sync {
    fn sizes(&self) -> Sizes;

    /// From normed rows to logits.
    fn head(&self) -> &Linear;

    /// The normed rows `[n, dim]` of tokens at the positions from `first` on, after those in the cache.
    fn forward(&self, cx: &Exec, tokens: &[Token], first: usize, cache: &mut Cache) -> Vec<f32>;
}
