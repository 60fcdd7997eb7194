//! What is left of each thread's part of a region. A thread takes pieces from the front of its own part; when that is empty, from the
//! end of the largest part that is left. So a thread stays with neighbouring memory, and none waits while there is work to take.
//!
//! A part is one word, and whoever exchanges it for a smaller one has the piece. It does not matter when a thread has looked at a
//! word: what it gets is a piece of the region that runs.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Most units of a region.
pub(super) const MOST: usize = u32::MAX as usize;

/// How much a thread takes at once.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Piece {
    /// One unit.
    One,
    /// Half of what is left of its own part, a quarter of another's.
    Half,
    /// One unit, and nothing of other parts.
    Own,
}

/// One part, alone on its cache lines: the first unit in the upper half of the word, the end in the lower.
#[repr(align(128))]
struct Part(AtomicU64);

fn word(units: Range<usize>) -> u64 {
    (units.start as u64) << 32 | units.end as u64
}

fn range(word: u64) -> Range<usize> {
    (word >> 32) as usize..(word & u64::from(u32::MAX)) as usize
}

impl Part {
    fn left(&self) -> usize {
        range(self.0.load(Ordering::Relaxed)).len()
    }

    /// Takes `piece(left)` units, at least one: from the end, or from the front.
    fn take(&self, end: bool, piece: impl Fn(usize) -> usize) -> Option<Range<usize>> {
        let split = |word| {
            let part = range(word);
            let at = if end { part.end - piece(part.len()) } else { part.start + piece(part.len()) };
            let (front, back) = (part.start..at, at..part.end);
            if end { (back, front) } else { (front, back) }
        };
        let rest = |part| (!range(part).is_empty()).then(|| word(split(part).1));
        // Who takes a piece sees what was written before it was dealt out.
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, rest).ok().map(|part| split(part).0)
    }
}

/// The parts of all threads.
pub(super) struct Shares {
    parts: Vec<Part>,
    piece: AtomicU8,
}

impl Shares {
    pub fn new(threads: usize) -> Self {
        Shares { parts: (0..threads).map(|_| Part(AtomicU64::new(0))).collect(), piece: AtomicU8::new(0) }
    }

    /// Gives each of the first `threads` one contiguous part of `0..units`.
    ///
    /// # Panics
    /// Beyond [`MOST`] units.
    pub fn deal(&self, units: usize, threads: usize, piece: Piece) {
        assert!(units <= MOST, "{units} units of work in one region");
        self.piece.store(piece as u8, Ordering::Relaxed);
        // `units * id / threads`, which could be more than fits.
        let first = |id: usize| units / threads * id + units % threads * id / threads;
        for (id, part) in self.parts[..threads].iter().enumerate() {
            part.0.store(word(first(id)..first(id + 1)), Ordering::Release);
        }
    }

    /// The next piece for thread `id`; `None` once all are taken.
    pub fn next(&self, id: usize) -> Option<Range<usize>> {
        // Of the region that runs, or of the one before: then pieces are of another size.
        let piece = self.piece.load(Ordering::Relaxed);
        let halves = piece == Piece::Half as u8;
        let some = |left: usize| if halves { left.div_ceil(2) } else { 1 };
        if let Some(own) = self.parts[id].take(false, some) {
            return Some(own);
        }
        if piece == Piece::Own as u8 {
            return None;
        }
        loop {
            let largest = self.parts.iter().max_by_key(|part| part.left()).filter(|part| part.left() > 0)?;
            let taken = largest.take(true, |left| some(left).div_ceil(2));
            if taken.is_some() {
                return taken;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_gets_everything_once_its_own_first() {
        for (units, threads) in [(0, 2), (1, 2), (7, 3), (100, 4), (5, 8)] {
            for piece in [Piece::One, Piece::Half, Piece::Own] {
                for id in 0..threads {
                    let shares = Shares::new(threads);
                    shares.deal(units, threads, piece);
                    let own = range(shares.parts[id].0.load(Ordering::Relaxed));
                    let mut all: Vec<usize> = std::iter::from_fn(|| shares.next(id)).flatten().collect();
                    assert_eq!(all[..own.len()], own.clone().collect::<Vec<_>>(), "its own part in order");
                    all.sort_unstable();
                    let want = if let Piece::Own = piece { own } else { 0..units };
                    assert_eq!(all, want.collect::<Vec<_>>(), "{units} units, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn what_is_stolen_comes_from_the_end_of_the_largest_part() {
        let shares = Shares::new(3);
        shares.deal(30, 3, Piece::Half);
        assert_eq!(shares.next(1), Some(10..15));
        shares.piece.store(Piece::One as u8, Ordering::Relaxed);
        (0..10).for_each(|i| assert_eq!(shares.next(0), Some(i..i + 1)));
        assert_eq!(shares.next(0), Some(29..30));
        shares.piece.store(Piece::Half as u8, Ordering::Relaxed);
        assert_eq!(shares.next(0), Some(26..29));
    }
}
