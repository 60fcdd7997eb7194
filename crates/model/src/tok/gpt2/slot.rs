//! Where a token is looked for in the table of GPT-2's tokens; the build script, which fills the table, includes this file.

/// Tokens, `<|endoftext|>` (the last) included.
pub const TOKENS: usize = 50_257;
/// Places of the table: a token is at its own or at one of the next that are not empty.
pub const SLOTS: usize = 1 << 17;
/// An empty place.
pub const EMPTY: u16 = u16::MAX;

/// The first place to look at: FNV-1a.
pub fn first(bytes: &[u8]) -> usize {
    let hash = bytes.iter().fold(0x811c_9dc5u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ hash >> 15) as usize % SLOTS
}
