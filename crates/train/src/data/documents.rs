//! Windows over the documents of a text in another order every epoch: `data.shuffle = "documents"`.
//!
//! An epoch is all documents one after the other in the order of [`Order`], cut into `ceil(N / T)` windows of `T` of the `N`
//! tokens (the last one of what is left), which are visited as they lie. Each is predicted from the token before it on, the
//! first one from `EOS`, with which every document ends: every token is a target once per epoch, and what a window sees
//! of its neighbours is new in every epoch.
//!
//! Window `n` is a pure function of (seed, n): where the windows of an epoch start is found by going through the lengths of its
//! documents in order, once per epoch, and kept, 8 bytes a window. The order itself is not stored.

use std::cell::RefCell;

use super::cache::TokenCache;
use super::order::Order;
use flashlm_kernels::Token;

/// All windows of one text.
#[derive(Clone, Debug)]
pub(super) struct Documents {
    order: Order,
    seq_len: usize,
    tokens: usize,
    epoch: RefCell<Epoch>,
}

/// The starts of an epoch's windows.
#[derive(Clone, Debug, Default)]
struct Epoch {
    /// `None` before the first.
    number: Option<u64>,
    /// The place of a document in the order of the epoch, and a token of it.
    starts: Vec<(u32, u32)>,
}

/// Tokens that follow each other in the order of an epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    cache: &'a TokenCache,
    order: Order,
    /// The first document: its place in the order of the whole run, and how many of its tokens come before these.
    place: u64,
    skipped: usize,
    /// Number of tokens.
    pub len: usize,
}

impl Documents {
    /// Over the documents of a cache; none where there is no document.
    pub fn new(cache: &TokenCache, seq_len: usize, seed: u64) -> Option<Documents> {
        let order = Order::new(cache.stories() as u64, seed)?;
        Some(Documents { order, seq_len, tokens: cache.tokens().len(), epoch: RefCell::default() })
    }

    /// Windows in an epoch.
    pub fn per_epoch(&self) -> u64 {
        self.tokens.div_ceil(self.seq_len) as u64
    }

    /// The n-th window of the run: the token before it, and its own.
    pub fn window<'a>(&self, cache: &'a TokenCache, n: u64) -> (Token, Run<'a>) {
        let (number, i) = (n / self.per_epoch(), (n % self.per_epoch()) as usize);
        let mut epoch = self.epoch.borrow_mut();
        if epoch.number != Some(number) {
            self.find_starts(cache, number, &mut epoch.starts);
            epoch.number = Some(number);
        }
        let (place, skipped) = epoch.starts[i];
        let (place, skipped) = (number * self.order.count() + u64::from(place), skipped as usize);
        let len = self.seq_len.min(self.tokens - i * self.seq_len);
        let run = Run { cache, order: self.order, place, skipped, len };
        let before = skipped.checked_sub(1).map_or(cache.eos(), |before| run.document(place)[before]);
        (before, run)
    }

    fn find_starts(&self, cache: &TokenCache, number: u64, starts: &mut Vec<(u32, u32)>) {
        starts.clear();
        starts.reserve(self.per_epoch() as usize);
        // Tokens of the next document before the next window.
        let mut skipped = 0;
        for place in 0..self.order.count() {
            let len = cache.story_len(self.order.at(number * self.order.count() + place) as usize);
            while skipped < len {
                starts.push((place as u32, skipped as u32));
                skipped += self.seq_len;
            }
            skipped -= len;
        }
    }
}

impl<'a> Run<'a> {
    fn document(&self, place: u64) -> &'a [Token] {
        self.cache.story(self.order.at(place) as usize)
    }

    /// The tokens, a piece for each document.
    pub fn pieces(self) -> impl Iterator<Item = &'a [Token]> {
        let (mut place, mut skipped, mut left) = (self.place, self.skipped, self.len);
        std::iter::from_fn(move || {
            let piece = &self.document((left > 0).then_some(place)?)[skipped..];
            let piece = &piece[..left.min(piece.len())];
            (place, skipped, left) = (place + 1, 0, left - piece.len());
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::split::Split;
    use crate::data::testing::{Folder, open_or_build, source};

    /// A cache of documents of these lengths, told apart by their letters.
    fn cache(folder: &Folder, lengths: &[usize]) -> TokenCache {
        let story = |(i, len): (usize, &usize)| char::from(b'!' + i as u8).to_string().repeat(*len);
        let stories: Vec<String> = lengths.iter().enumerate().map(story).collect();
        let stories: Vec<&str> = stories.iter().map(String::as_str).collect();
        let text = source(folder, "a.txt", &stories);
        open_or_build(&folder.path().join("a.tok"), &text, Split::All, 1).0
    }

    fn tokens(run: Run) -> Vec<Token> {
        run.pieces().flatten().copied().collect()
    }

    #[test]
    fn an_epoch_is_all_documents_in_its_order() {
        let folder = Folder::new();
        for lengths in [&[1][..], &[4, 1], &[7, 2, 1, 1, 30, 5, 12, 3, 3, 8]] {
            let text = cache(&folder, lengths);
            let (n, count) = (text.tokens().len(), text.stories() as u64);
            assert_eq!(n, lengths.iter().sum::<usize>() + lengths.len());
            for seq_len in [1, 2, 3, 7, 16, n, n + 5, 256] {
                let windows = Documents::new(&text, seq_len, 9).unwrap();
                assert_eq!(windows.per_epoch() as usize, n.div_ceil(seq_len));
                for epoch in 0..20 {
                    let order = (0..count).map(|i| windows.order.at(epoch * count + i) as usize);
                    let whole: Vec<Token> = order.flat_map(|i| text.story(i).to_vec()).collect();
                    let (mut all, mut before) = (Vec::new(), text.eos());
                    for i in 0..windows.per_epoch() {
                        let (first, run) = windows.window(&text, epoch * windows.per_epoch() + i);
                        let own = tokens(run);
                        assert!(own.len() == run.len && (1..=seq_len).contains(&run.len));
                        assert_eq!(first, before, "{lengths:?} {seq_len}, window {i} of epoch {epoch}");
                        before = own[own.len() - 1];
                        all.extend(own);
                    }
                    assert_eq!(all, whole, "{lengths:?} {seq_len}, epoch {epoch}");
                    let (mut all, mut text) = (all, text.tokens().to_vec());
                    all.sort_unstable();
                    text.sort_unstable();
                    assert_eq!(all, text, "every token once");
                }
            }
        }
    }

    /// What a resumed run needs: no window depends on those that were asked for before it.
    #[test]
    fn a_window_follows_from_its_number_and_the_seed() {
        let folder = Folder::new();
        let text = cache(&folder, &[7, 2, 1, 1, 30, 5, 12, 3, 3, 8]);
        let of = |seed| Documents::new(&text, 11, seed).unwrap();
        let window = |windows: &Documents, n| (windows.window(&text, n).0, tokens(windows.window(&text, n).1));
        let (in_turn, anyhow, other) = (of(1), of(1), of(2));
        let total = 10 * in_turn.per_epoch();
        let all: Vec<_> = (0..total).map(|n| window(&in_turn, n)).collect();
        for n in (0..total).map(|n| n * 37 % total) {
            assert_eq!(window(&anyhow, n), all[n as usize]);
            assert_eq!(window(&of(1), n), all[n as usize]);
        }
        let epochs: Vec<_> = all.chunks(in_turn.per_epoch() as usize).collect();
        assert!(epochs.windows(2).all(|two| two[0] != two[1]));
        assert!((0..total).any(|n| window(&other, n) != all[n as usize]));
    }
}
