//! Byte-pair merging of one piece: it starts as its bytes, and the adjacent pair of least rank is merged, leftmost first among
//! equals, until no pair has a rank.
//!
//! Pairs wait in a heap and symbols are linked by position, so that a piece of n bytes takes O(n log n): a file of one long
//! word is no trap.

use super::hash::FastMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NONE: usize = usize::MAX;

/// One symbol of a piece being merged, in a list linked by position.
struct Symbol {
    id: u16,
    prev: usize,
    /// NONE at the end.
    next: usize,
    merged_away: bool,
}

/// What one piece needs, kept between pieces.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    /// (rank, position, result), smallest first.
    heap: BinaryHeap<Reverse<(u32, usize, u16)>>,
}

/// Rank and result of merging a pair of ids, left and right.
#[derive(Default)]
pub(super) struct Ranks(FastMap<u32, (u32, u16)>);

impl Ranks {
    /// The rank and result that the pair had, if any.
    pub fn insert(&mut self, left: u16, right: u16, rank: u32, both: u16) -> Option<(u32, u16)> {
        self.0.insert(pair(left, right), (rank, both))
    }

    /// The rank and result of the pair, if any.
    pub fn get(&self, left: u16, right: u16) -> Option<(u32, u16)> {
        self.0.get(&pair(left, right)).copied()
    }
}

fn pair(left: u16, right: u16) -> u32 {
    u32::from(left) << 16 | u32::from(right)
}

/// Appends the ids of the piece.
pub(super) fn merge(piece: &[u8], byte_ids: &[u16; 256], ranks: &Ranks, scratch: &mut Scratch, out: &mut Vec<u16>) {
    let Scratch { symbols, heap } = scratch;
    let n = piece.len();
    symbols.clear();
    symbols.extend(piece.iter().enumerate().map(|(i, &b)| Symbol {
        id: byte_ids[usize::from(b)],
        prev: if i == 0 { NONE } else { i - 1 },
        next: if i + 1 == n { NONE } else { i + 1 },
        merged_away: false,
    }));
    let joined = |symbols: &[Symbol], left: usize| match symbols[left].next {
        NONE => None,
        right => ranks.get(symbols[left].id, symbols[right].id),
    };
    let propose = |symbols: &[Symbol], heap: &mut BinaryHeap<_>, left: usize| {
        if let Some((rank, id)) = joined(symbols, left) {
            heap.push(Reverse((rank, left, id)));
        }
    };
    for left in 0..n {
        propose(symbols, heap, left);
    }
    while let Some(Reverse((_, left, id))) = heap.pop() {
        // A merge nearby may have changed the pair since it was proposed.
        if symbols[left].merged_away || joined(symbols, left).is_none_or(|(_, now)| now != id) {
            continue;
        }
        let right = symbols[left].next;
        let next = symbols[right].next;
        symbols[right].merged_away = true;
        symbols[left].id = id;
        symbols[left].next = next;
        if next != NONE {
            symbols[next].prev = left;
        }
        let prev = symbols[left].prev;
        if prev != NONE {
            propose(symbols, heap, prev);
        }
        propose(symbols, heap, left);
    }
    out.extend(symbols.iter().filter(|s| !s.merged_away).map(|s| s.id));
}
