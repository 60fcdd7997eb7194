//! A hash map for short keys out of a vocabulary: eight bytes at a time are added and multiplied, the way of FxHash, some five
//! times faster than what the standard library has against attackers.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

pub(super) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Short>>;

#[derive(Clone, Default)]
pub(super) struct Short(u64);

impl Short {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.wrapping_add(word)).wrapping_mul(0xf135_7aea_2e62_a9c5);
    }
}

impl Hasher for Short {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.add(n.into());
    }

    fn write_usize(&mut self, n: usize) {
        self.add(n as u64);
    }

    /// The high bits are the good ones, and the map looks at the low ones.
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}
