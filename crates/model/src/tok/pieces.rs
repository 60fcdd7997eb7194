//! How often each piece of a text comes: the pieces one after the other in one buffer, and a table of their numbers, open
//! addressing, some 20 bytes a piece besides its own.
//!
//! A piece is cut after `MAX_TOKEN` bytes, for no token is longer: a run of a million spaces is pieces like others.

use super::error::MAX_TOKEN;
use super::hash::Short;
use super::split::split;
use std::hash::Hasher;

/// Different pieces that are kept, in bytes; those that come after count no more.
const MAX_BYTES: usize = 1 << 30;

#[derive(Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    counts: Vec<u32>,
    /// Number of a piece plus 1, or 0; a power of two of them, at most two thirds taken.
    table: Vec<u32>,
}

impl Pieces {
    /// Counts the pieces of a text.
    pub fn add(&mut self, text: &str) {
        for mut piece in split(text) {
            while !piece.is_empty() {
                let (part, rest) = piece.split_at(piece.floor_char_boundary(MAX_TOKEN));
                self.count(part.as_bytes());
                piece = rest;
            }
        }
    }

    fn count(&mut self, piece: &[u8]) {
        if self.counts.len() >= self.table.len() / 3 * 2 {
            self.grow();
        }
        let mut place = self.home(piece);
        while let Some(number) = self.table[place].checked_sub(1) {
            if self.get(number as usize) == piece {
                let count = &mut self.counts[number as usize];
                *count = count.saturating_add(1);
                return;
            }
            place = (place + 1) & (self.table.len() - 1);
        }
        if self.bytes.len() + piece.len() <= MAX_BYTES {
            self.bytes.extend_from_slice(piece);
            self.ends.push(self.bytes.len() as u32);
            self.counts.push(1);
            self.table[place] = self.counts.len() as u32;
        }
    }

    /// Where the search for a piece starts.
    fn home(&self, piece: &[u8]) -> usize {
        let mut hash = Short::default();
        hash.write(piece);
        hash.write_usize(piece.len());
        hash.finish() as usize & (self.table.len() - 1)
    }

    fn grow(&mut self) {
        self.table = vec![0; (self.table.len() * 2).max(1 << 12)];
        for number in 0..self.counts.len() {
            let mut place = self.home(self.get(number));
            while self.table[place] != 0 {
                place = (place + 1) & (self.table.len() - 1);
            }
            self.table[place] = number as u32 + 1;
        }
    }

    fn get(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..self.ends[number] as usize]
    }

    /// Bytes of all pieces, and how many pieces.
    pub fn size(&self) -> (usize, usize) {
        (self.bytes.len(), self.counts.len())
    }

    /// Each piece with its count, the most frequent first.
    pub fn by_count(&mut self) -> impl Iterator<Item = (&[u8], u32)> {
        self.table = Vec::new();
        let mut order: Vec<u32> = (0..self.counts.len() as u32).collect();
        order.sort_unstable_by_key(|&number| std::cmp::Reverse(self.counts[number as usize]));
        order.into_iter().map(|number| (self.get(number as usize), self.counts[number as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tok::testing::{Random, odd_texts, random_text};
    use std::collections::HashMap;

    #[test]
    fn counts_are_those_of_a_hash_map() {
        let mut r = Random(5);
        let (mut pieces, mut expected) = (Pieces::default(), HashMap::new());
        for text in odd_texts().into_iter().chain((0..3000).map(|_| random_text(&mut r))) {
            pieces.add(&text);
            for piece in split(&text) {
                *expected.entry(piece.as_bytes().to_vec()).or_insert(0) += 1;
            }
        }
        let (bytes, len) = pieces.size();
        assert_eq!((bytes, len), (expected.keys().map(Vec::len).sum(), expected.len()));
        assert!(pieces.by_count().map(|(_, count)| count).is_sorted_by(|a, b| a >= b));
        assert_eq!(
            pieces.by_count().map(|(piece, count)| (piece.to_vec(), count)).collect::<HashMap<_, _>>(),
            expected
        );
    }

    #[test]
    fn a_long_run_is_cut_between_characters() {
        let mut pieces = Pieces::default();
        pieces.add(&("你".repeat(1000) + " "));
        let found: Vec<(usize, u32)> = pieces.by_count().map(|(piece, count)| (piece.len(), count)).collect();
        assert_eq!(found, [(1023, 2), (954, 1), (1, 1)]);
    }
}
