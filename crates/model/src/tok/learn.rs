//! The merges of a byte-level BPE, learned from counted pieces: the most frequent adjacent pair becomes a token, the one of the
//! smallest ids among equals, until the vocabulary is full. The same merges as those of the crate `tokenizers` (tests), with
//! work in proportion to the text however long its pieces are:
//!
//! ```text
//! slots   u16: a boundary, then the bytes of a piece, for each piece. A token has its id in its first and last slot, holes
//!         between, so its neighbours are found by their lengths, and a place that was noted is seen to be stale.
//! places  u32: where each pair was when it came to be, one list a candidate; candidates wait in a heap
//! ```
//!
//! Of many different pieces only the pairs that come often are followed; when these are used up, the pairs are counted anew.

use super::error::TokError;
use super::hash::FastMap;
use super::pieces::Pieces;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;

/// The slot between pieces.
const NONE: u16 = u16::MAX;
/// A slot within a token: the id that is no text.
const HOLE: u16 = 0;
/// Counters of pairs by a hash, to tell which cannot come often.
const BUCKETS: usize = 1 << 22;
/// Places merged between two calls of the callback.
const STRIDE: usize = 1 << 16;

/// Which pairs are followed.
#[derive(Clone, Copy)]
struct Limits {
    /// Up to so many tokens and boundaries, all.
    few: usize,
    /// Of more, those that come so often together, and at most so many.
    times: u64,
    pairs: usize,
}

const LIMITS: Limits = Limits { few: 4 << 20, times: 16 << 20, pairs: 1 << 20 };

/// Left id above right id, so that numbers are in the order of pairs.
type Pair = u32;

/// Count as it was, pair, and its list in `places`: start and length.
type Candidate = (u64, Reverse<Pair>, u32, u32);

#[derive(Default)]
struct Known {
    /// Places where the pair is, times the count of the piece, and those where it was merged.
    count: u64,
    /// Lists in the heap.
    lists: u32,
}

/// What a vocabulary is made of.
pub(super) struct Learned {
    /// Bytes of each id.
    pub tokens: Vec<Box<[u8]>>,
    /// Left and right of each merge; one may come twice.
    pub merges: Vec<[u16; 2]>,
}

/// Learns merges until there are `size` tokens, `tokens` among them: the first is no text, then the bytes. The callback hears
/// which share is done, and may stop it by breaking.
pub(super) fn learn(
    pieces: Pieces,
    tokens: Vec<Box<[u8]>>,
    size: usize,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Learned, TokError> {
    learn_within(LIMITS, pieces, tokens, size, progress)
}

fn learn_within(
    limits: Limits,
    pieces: Pieces,
    tokens: Vec<Box<[u8]>>,
    size: usize,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Learned, TokError> {
    let (first, mut done) = (tokens.len(), 0);
    let mut text = Text::new(limits, pieces, &tokens);
    let mut ids: FastMap<Box<[u8]>, u16> = tokens.iter().cloned().zip(0..).skip(1).collect();
    let mut learned = Learned { tokens, merges: Vec::new() };
    text.follow();
    while learned.tokens.len() < size {
        let Some((count, Reverse(pair), start, len)) = text.heap.pop().filter(|top| top.0 >= text.least) else {
            if text.least == 1 {
                break;
            }
            text.follow();
            continue;
        };
        let known = text.known.entry(pair).or_default();
        if known.count != count {
            match known.count {
                0 => known.lists -= 1,
                now => text.heap.push((now, Reverse(pair), start, len)),
            }
            continue;
        }
        known.lists -= 1;
        let others = known.lists > 0;
        let [left, right] = halves(pair);
        let both = [&learned.tokens[usize::from(left)][..], &learned.tokens[usize::from(right)]].concat();
        let id = *ids.entry(both.into()).or_insert_with_key(|both| {
            learned.tokens.push(both.clone());
            text.lens.push(both.len() as u16);
            learned.tokens.len() as u16 - 1
        });
        learned.merges.push([left, right]);
        text.merge(pair, id, start as usize..(start + len) as usize, others);
        done += len as usize + 1;
        if done >= STRIDE {
            done = 0;
            let share = (learned.tokens.len() - first) as f64 / (size - first) as f64;
            if progress(share).is_break() {
                return Err(TokError::Stopped);
            }
        }
    }
    Ok(learned)
}

fn pair(left: u16, right: u16) -> Pair {
    u32::from(left) << 16 | u32::from(right)
}

fn halves(pair: Pair) -> [u16; 2] {
    [(pair >> 16) as u16, pair as u16]
}

/// The pieces as tokens, and the pairs that are followed.
struct Text {
    limits: Limits,
    slots: Vec<u16>,
    /// Bytes of each id.
    lens: Vec<u16>,
    /// First slot and count of the pieces that come equally often.
    counts: Vec<(u32, u32)>,
    known: FastMap<Pair, Known>,
    /// Places where a pair was merged, times the count of the piece.
    merged: FastMap<Pair, u64>,
    heap: BinaryHeap<Candidate>,
    places: Vec<u32>,
    /// Places as they were counted last.
    fresh: usize,
    /// Pairs that come less often are not followed.
    least: u64,
    /// Tokens and boundaries in `slots`.
    live: usize,
    /// Of the merge at work: how often it was made, how often each id stands before it and after it, and the new pairs above
    /// their places.
    done: u64,
    before: Sums,
    after: Sums,
    new: Vec<u64>,
}

impl Text {
    fn new(limits: Limits, mut pieces: Pieces, tokens: &[Box<[u8]>]) -> Self {
        let mut ids = [0; 256];
        for (token, id) in tokens.iter().zip(0..).skip(1) {
            ids[usize::from(token[0])] = id;
        }
        let (bytes, len) = pieces.size();
        let mut slots = Vec::with_capacity(bytes + len + 1);
        let mut counts: Vec<(u32, u32)> = Vec::new();
        for (piece, count) in pieces.by_count() {
            if counts.last().is_none_or(|last| last.1 != count) {
                counts.push((slots.len() as u32, count));
            }
            slots.push(NONE);
            slots.extend(piece.iter().map(|&byte| ids[usize::from(byte)]));
        }
        slots.push(NONE);
        let lens = tokens.iter().map(|token| token.len() as u16).collect();
        Self {
            limits,
            slots,
            lens,
            counts,
            known: FastMap::default(),
            merged: FastMap::default(),
            heap: BinaryHeap::new(),
            places: Vec::new(),
            fresh: 0,
            least: 1,
            live: bytes + len + 1,
            done: 0,
            before: Sums::default(),
            after: Sums::default(),
            new: Vec::new(),
        }
    }

    fn len(&self, id: u16) -> usize {
        usize::from(self.lens[usize::from(id)])
    }

    /// Every pair with its place and the count of its piece, in order.
    fn each(&self, mut f: impl FnMut(Pair, u32, u64)) {
        let mut count = Counts::new(&self.counts);
        let (mut at, mut before) = (1, NONE);
        let mut left = 0;
        while at < self.slots.len() {
            let id = self.slots[at];
            if before != NONE && id != NONE {
                f(pair(before, id), left, count.at(left));
            }
            (left, before) = (at as u32, id);
            at += if id == NONE { 1 } else { self.len(id) };
        }
    }

    /// Counts the pairs anew, and makes candidates of those that come most often.
    fn follow(&mut self) {
        (self.heap, self.known, self.places) = Default::default();
        let few = self.live <= self.limits.few;
        // With other pairs in it, a bucket says how often each comes at most.
        let mut most = vec![0u32; if few { 0 } else { BUCKETS }];
        self.least = 1;
        let bucket = |pair: Pair| (pair.wrapping_mul(0x9e37_79b1) >> 10) as usize;
        if !few {
            self.each(|pair, _, n| {
                let most = &mut most[bucket(pair)];
                *most = most.saturating_add(n as u32);
            });
            let mut sorted = most.clone();
            sorted.sort_unstable_by_key(|&n| Reverse(n));
            let mut sum = 0;
            let enough = |&n: &u32| {
                sum += u64::from(n);
                sum > self.limits.times
            };
            let last = sorted.iter().position(enough).unwrap_or(BUCKETS - 1).min(self.limits.pairs);
            self.least = u64::from(sorted[last]).max(1);
        }
        let least = self.least;
        let often = |pair: Pair| least == 1 || u64::from(most[bucket(pair)]) >= least;
        // Count and number of places, then where their list goes on.
        let mut lists: FastMap<Pair, (u64, u32)> = FastMap::default();
        self.each(|pair, _, n| {
            if often(pair) {
                let list = lists.entry(pair).or_default();
                *list = (list.0 + n, list.1 + 1);
            }
        });
        lists.retain(|_, list| list.0 >= least);
        let mut end = 0;
        for (&pair, list) in &mut lists {
            let count = list.0 + self.merged.get(&pair).unwrap_or(&0);
            self.known.insert(pair, Known { count, lists: 1 });
            self.heap.push((count, Reverse(pair), end, list.1));
            (list.1, end) = (end, end + list.1);
        }
        let mut places = vec![0; end as usize];
        self.each(|pair, place, _| {
            if often(pair)
                && let Some(list) = lists.get_mut(&pair)
            {
                places[list.1 as usize] = place;
                list.1 += 1;
            }
        });
        (self.fresh, self.places) = (places.len(), places);
    }

    /// Makes `id` of the pair at the places of a list; in `whole` pieces, where other places have other lists.
    fn merge(&mut self, from: Pair, id: u16, list: std::ops::Range<usize>, whole: bool) {
        let mut end = 0;
        let counts = std::mem::take(&mut self.counts);
        let mut count = Counts::new(&counts);
        for i in list {
            let place = self.places[i] as usize;
            if !whole {
                self.merge_at(place, from, id, count.at(place as u32));
            } else if place >= end {
                end = self.merge_piece(place, from, id, count.at(place as u32));
            }
        }
        self.counts = counts;
        *self.merged.entry(from).or_default() += std::mem::take(&mut self.done);
        let [left, right] = halves(from);
        let mut changes: FastMap<Pair, i64> = FastMap::default();
        for (before, n) in self.before.drain() {
            *changes.entry(pair(before, left)).or_default() -= n;
            *changes.entry(pair(before, id)).or_default() += n;
        }
        for (after, n) in self.after.drain() {
            *changes.entry(pair(right, after)).or_default() -= n;
            *changes.entry(pair(id, after)).or_default() += n;
        }
        for (pair, by) in changes {
            // What is not followed is counted when its turn comes.
            if self.least == 1 || self.known.contains_key(&pair) || by >= self.least as i64 {
                let known = self
                    .known
                    .entry(pair)
                    .or_insert_with(|| Known { count: self.merged.get(&pair).copied().unwrap_or(0), lists: 0 });
                known.count = known.count.saturating_add_signed(by);
            }
        }
        self.new.sort_unstable();
        for list in self.new.chunk_by(|a, b| a >> 32 == b >> 32) {
            let pair = (list[0] >> 32) as Pair;
            if let Some(known) = self.known.get_mut(&pair).filter(|known| known.count > 0) {
                known.lists += 1;
                self.heap.push((known.count, Reverse(pair), self.places.len() as u32, list.len() as u32));
                self.places.extend(list.iter().map(|&place| place as u32));
            }
        }
        self.new.clear();
        self.new.shrink_to(STRIDE);
        if self.places.len() > self.fresh + 2 * self.limits.few {
            self.follow();
        }
    }

    /// The end of the piece with the place, all of it merged.
    fn merge_piece(&mut self, place: usize, from: Pair, id: u16, count: u64) -> usize {
        let before = self.slots[..place].iter().rposition(|&slot| slot == NONE);
        let mut at = before.map_or(0, |before| before + 1);
        while self.slots[at] != NONE {
            self.merge_at(at, from, id, count);
            at += self.len(self.slots[at]);
        }
        at
    }

    fn merge_at(&mut self, at: usize, from: Pair, id: u16, count: u64) {
        let [left, right] = halves(from);
        let middle = at + self.len(left);
        if self.slots[at] != left || self.slots[middle] != right {
            return;
        }
        let end = middle + self.len(right);
        let (before, after) = (self.slots[at - 1], self.slots[end]);
        if before != NONE {
            self.before.add(before, count);
            self.new.push(u64::from(pair(before, id)) << 32 | (at - self.len(before)) as u64);
        }
        if after != NONE {
            self.after.add(after, count);
            self.new.push(u64::from(pair(id, after)) << 32 | at as u64);
        }
        self.done += count;
        self.live -= 1;
        self.slots[middle - 1] = HOLE;
        self.slots[middle] = HOLE;
        self.slots[at] = id;
        self.slots[end - 1] = id;
    }
}

/// Sums by id.
struct Sums {
    sums: Vec<i64>,
    /// Ids whose sum is not 0.
    ids: Vec<u16>,
}

impl Sums {
    fn add(&mut self, id: u16, n: u64) {
        let sum = &mut self.sums[usize::from(id)];
        if *sum == 0 {
            self.ids.push(id);
        }
        *sum += n as i64;
    }

    /// All sums, which are 0 from then on.
    fn drain(&mut self) -> impl Iterator<Item = (u16, i64)> {
        self.ids.drain(..).map(|id| (id, std::mem::take(&mut self.sums[usize::from(id)])))
    }
}

impl Default for Sums {
    fn default() -> Self {
        Sums { sums: vec![0; usize::from(NONE)], ids: Vec::new() }
    }
}

/// The counts of pieces by place, quick where places rise.
struct Counts<'a> {
    starts: &'a [(u32, u32)],
    at: usize,
}

impl<'a> Counts<'a> {
    fn new(starts: &'a [(u32, u32)]) -> Self {
        Counts { starts, at: 0 }
    }

    fn at(&mut self, place: u32) -> u64 {
        let holds = |i: usize| self.starts[i].0 <= place && self.starts.get(i + 1).is_none_or(|next| place < next.0);
        if !holds(self.at) {
            self.at = self.starts.partition_point(|start| start.0 <= place) - 1;
        }
        self.starts[self.at].1.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tok::testing::Random;
    use crate::tok::{Tokenizer, bpe};
    use std::time::Instant;

    /// Texts whose pairs tie, whose strings come to be in several ways, and whose merges overlap.
    fn texts(r: &mut Random) -> Vec<String> {
        let mut words = |letters: &str, longest: usize, n: usize| {
            let letters: Vec<char> = letters.chars().collect();
            let mut word = || (0..1 + r.below(longest)).map(|_| letters[r.below(letters.len())]).collect::<String>();
            (0..n).map(|_| word()).collect::<Vec<_>>().join(" ")
        };
        vec![
            words("abc", 12, 1000),
            words("ab", 30, 400),
            words("a", 60, 300),
            words("ACGT", 900, 15),
            words("abcdefgh", 9, 2000),
            words("你好吗，👍é", 20, 600),
            words("0123456789+/ \n-", 40, 300),
        ]
    }

    /// To the bit.
    #[test]
    fn merges_are_those_of_the_crate() {
        for text in texts(&mut Random(17)) {
            for size in [300, 2000] {
                let crates = bpe::tests::trained_by_the_crate(&[&text], size);
                let ours = Tokenizer::train_bpe([text.as_str()].into_iter(), size).unwrap();
                assert!(String::from_utf8(ours.to_json()).unwrap() == crates, "{size} of {text:.40}");
            }
        }
    }

    #[test]
    fn few_pairs_at_a_time_give_the_same() {
        let tokens: Vec<Box<[u8]>> = [Box::default()].into_iter().chain((0..=255).map(|b| Box::from([b]))).collect();
        for text in texts(&mut Random(18)) {
            let merges = |limits| {
                let mut pieces = Pieces::default();
                pieces.add(&text);
                learn_within(limits, pieces, tokens.clone(), 1000, &mut |_| ControlFlow::Continue(())).unwrap().merges
            };
            let all = merges(LIMITS);
            assert!(all.len() > 50, "{} of {text:.40}", all.len());
            assert!(merges(Limits { few: 100, times: 2000, pairs: 50 }) == all, "{text:.40}");
        }
    }

    /// A run is some hundred pieces, most of them equal; the crate takes half a minute for each of these.
    #[test]
    fn runs_take_no_longer_than_other_text() {
        for run in [" ", "a", "^", "\n", "7", "ACGT", "你"] {
            let text = run.repeat((1 << 18) / run.len());
            let started = Instant::now();
            let trained = Tokenizer::train_bpe([text.as_str(), "a", "b"].into_iter(), 2000).unwrap();
            assert!(trained.vocab_size() > 265 && started.elapsed().as_secs() < 10, "{run:?}");
            let mut ids = Vec::new();
            trained.encode(&text, &mut ids);
            assert_eq!(trained.decode(&ids), text.as_bytes());
        }
    }
}
