//! GPT-2's 50,257 tokens as constants of the program: nothing is parsed or allocated to use them, and pages that nobody looks at
//! stay on the disk. The build script writes them from the ranks that come with `tiktoken-rs` (r50k).
//!
//! ```text
//! end of each token: u32 | table of ids: u16 a place (slot.rs) | bytes of all tokens
//! ```

mod slot;

use std::sync::LazyLock;

use super::merge::{Ranks, Scratch, merge};
pub(super) use slot::TOKENS;
use slot::{EMPTY, SLOTS, first};

static DATA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gpt2.bin"));
const TABLE: usize = 4 * TOKENS;
const BYTES: usize = TABLE + 2 * SLOTS;

/// The bytes of a token; none beyond the last.
pub(super) fn token(id: u16) -> &'static [u8] {
    let end = |id: usize| DATA[4 * id..].first_chunk().map_or(0, |end| u32::from_le_bytes(*end) as usize);
    match usize::from(id) {
        0 => &DATA[BYTES..][..end(0)],
        id if id < TOKENS => &DATA[BYTES..][end(id - 1)..end(id)],
        _ => &[],
    }
}

/// The token with these bytes, `<|endoftext|>` left out.
pub(super) fn find(bytes: &[u8]) -> Option<u16> {
    let start = first(bytes);
    let ids = (0..SLOTS).map(|i| {
        let at = TABLE + 2 * ((start + i) % SLOTS);
        u16::from_le_bytes([DATA[at], DATA[at + 1]])
    });
    ids.take_while(|&id| id != EMPTY).find(|&id| token(id) == bytes)
}

/// What merging needs, and few texts do: most pieces are a token.
struct Merges {
    byte_ids: [u16; 256],
    /// Of every two tokens that make a third: an id is also its rank.
    ranks: Ranks,
}

static MERGES: LazyLock<Merges> = LazyLock::new(|| {
    let byte_ids = std::array::from_fn(|byte| find(&[byte as u8]).unwrap_or_default());
    let mut ranks = Ranks::default();
    for both in 0..TOKENS as u16 - 1 {
        let bytes = token(both);
        for (left, right) in (1..bytes.len()).map(|middle| bytes.split_at(middle)) {
            if let (Some(left), Some(right)) = (find(left), find(right)) {
                ranks.insert(left, right, u32::from(both), both);
            }
        }
    }
    Merges { byte_ids, ranks }
});

/// Appends the tokens of a piece of text. Our own merging: the regex of `tiktoken-rs` takes most of its time, and panics on a
/// whitespace run of about a million characters.
pub(super) fn encode(piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u16>) {
    match find(piece) {
        Some(id) => out.push(id),
        None => merge(piece, &MERGES.byte_ids, &MERGES.ranks, scratch, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiktoken_rs::r50k_base_singleton;

    #[test]
    fn tokens_are_those_of_tiktoken_and_found_by_their_bytes() {
        let bpe = r50k_base_singleton();
        for id in 0..TOKENS as u16 {
            assert_eq!(token(id), bpe.decode_bytes(&[u32::from(id)]).unwrap(), "{id}");
            let found = find(token(id));
            assert_eq!(found, if usize::from(id) == TOKENS - 1 { None } else { Some(id) });
        }
        assert_eq!(token(TOKENS as u16), b"");
        for absent in [&b""[..], b"no such token", &[0xff, 0xfe, 0xfd]] {
            assert_eq!(find(absent), None);
        }
    }
}
