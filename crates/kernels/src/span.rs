//! The rows of one pass: `B` sequences of `T` tokens, and how far back each row may look.

use std::ops::Range;

use crate::size::area;

/// Rows of sequences in which documents may follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// `B`: sequences.
    pub batch: usize,
    /// `T`: rows of each.
    pub len: usize,
    /// For each of the `B*T` rows, how many rows directly before it are of the same document: rows of this micro-batch, and before those
    /// what a state holds. 0 starts a document.
    pub past: &'a [u32],
}

impl Span<'_> {
    /// `B * T`.
    pub fn rows(&self) -> usize {
        area([self.batch, self.len])
    }

    /// The rows of sequence `i` alone.
    pub fn sequence(&self, i: usize) -> Span<'_> {
        Span { batch: 1, len: self.len, past: &self.past[i * self.len..][..self.len] }
    }

    /// Whether rows of one document continue from row `at - 1` to `at` of the same sequence.
    pub fn goes_on(&self, at: usize) -> bool {
        !at.is_multiple_of(self.len) && self.past[at] > 0
    }

    /// The longest run of rows from `rows.start` on that are of one document, at most `most` and not beyond `rows.end`.
    pub fn run(&self, rows: Range<usize>, most: usize) -> Range<usize> {
        let end = rows.end.min(rows.start.saturating_add(most));
        let cut = (rows.start + 1..end).find(|&at| !self.goes_on(at));
        rows.start..cut.unwrap_or(end)
    }
}

/// [`Span::past`] of fresh sequences, each one document.
pub fn whole(batch: usize, len: usize) -> Vec<u32> {
    (0..batch).flat_map(|_| 0..len as u32).collect()
}
