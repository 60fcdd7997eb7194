//! Training windows over a token cache.
//!
//! * packed: the `N` tokens are a circle. An epoch cuts it at its own place, a pure function of (seed, epoch), into
//!   `ceil(N / T)` windows of `T` tokens (the last one of what is left), each predicted from the token before it on: every
//!   token is a target once per epoch, and over epochs each sees contexts of every length. Windows cross the ends of documents.
//!   They are visited in the order of `Order`.
//! * packed, by documents: those of `Documents`.
//! * padded: one document per window, from its start, cut after `T` tokens. It has `EOS` before it, as in evaluation, and fewer
//!   than `T` rows where the document is shorter; what lies beyond `T` is not used. In the order of `Order` too.

use super::cache::TokenCache;
use super::documents::{Documents, Run};
use super::order::{Order, mix};
use flashlm_kernels::Token;

/// One sequence of a batch: its targets are to be predicted, from `first` and all of them but the last.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The token before the targets.
    pub first: Token,
    rest: Rest<'a>,
}

/// 1 to `T` tokens.
#[derive(Clone, Copy, Debug)]
enum Rest<'a> {
    /// In two runs where they go on from the end of the text to its start; the second may be empty.
    Text([&'a [Token]; 2]),
    Documents(Run<'a>),
}

impl Window<'_> {
    /// Tokens to be predicted.
    pub fn targets(&self) -> usize {
        match self.rest {
            Rest::Text([a, b]) => a.len() + b.len(),
            Rest::Documents(run) => run.len,
        }
    }

    /// Puts the tokens to be predicted at the end of `all`.
    pub fn append_to(&self, all: &mut Vec<Token>) {
        match self.rest {
            Rest::Text(runs) => runs.iter().for_each(|run| all.extend_from_slice(run)),
            Rest::Documents(run) => run.pieces().for_each(|piece| all.extend_from_slice(piece)),
        }
    }
}

impl<'a> From<&'a [Token]> for Window<'a> {
    /// `T + 1` tokens, at least two.
    fn from(tokens: &'a [Token]) -> Self {
        Window { first: tokens[0], rest: Rest::Text([&tokens[1..], &[]]) }
    }
}

impl<'a> From<&'a Vec<Token>> for Window<'a> {
    fn from(tokens: &'a Vec<Token>) -> Self {
        Window::from(&tokens[..])
    }
}

/// What windows are, and in which order they are visited.
#[derive(Clone, Debug)]
enum Kind {
    Packed(Order),
    Documents(Documents),
    Padded(Order),
}

/// All windows of one text at one sequence length.
#[derive(Clone, Debug)]
pub struct Windows {
    kind: Kind,
    seq_len: usize,
    seed: u64,
    /// Tokens that an epoch trains on.
    trained: u64,
}

impl Windows {
    /// Over a text of so many tokens; none where it has none.
    pub fn packed(tokens: usize, seq_len: usize, seed: u64) -> Option<Windows> {
        let order = Order::new(tokens.div_ceil(seq_len) as u64, seed)?;
        Some(Windows { kind: Kind::Packed(order), seq_len, seed, trained: tokens as u64 })
    }

    /// Over the documents of a cache, one after the other in another order every epoch; none where there is no document.
    pub fn documents(cache: &TokenCache, seq_len: usize, seed: u64) -> Option<Windows> {
        let documents = Documents::new(cache, seq_len, seed)?;
        Some(Windows { kind: Kind::Documents(documents), seq_len, seed, trained: cache.tokens().len() as u64 })
    }

    /// Over the documents of a cache; none where there is no document.
    pub fn padded(cache: &TokenCache, seq_len: usize, seed: u64) -> Option<Windows> {
        let order = Order::new(cache.stories() as u64, seed)?;
        let trained = (0..cache.stories()).map(|i| cache.story_len(i).min(seq_len) as u64).sum();
        Some(Windows { kind: Kind::Padded(order), seq_len, seed, trained })
    }

    /// Windows in an epoch.
    pub fn per_epoch(&self) -> u64 {
        match &self.kind {
            Kind::Packed(order) | Kind::Padded(order) => order.count(),
            Kind::Documents(documents) => documents.per_epoch(),
        }
    }

    /// Tokens that an epoch trains on.
    pub fn trained(&self) -> u64 {
        self.trained
    }

    /// The n-th window of the run in the cache that these windows are of.
    pub fn window<'a>(&self, cache: &'a TokenCache, n: u64) -> Window<'a> {
        match &self.kind {
            Kind::Packed(order) => self.on_circle(cache.tokens(), order.at(n) as usize, n / order.count()),
            Kind::Padded(order) => {
                let story = cache.story(order.at(n) as usize);
                Window { first: cache.eos(), rest: Rest::Text([&story[..story.len().min(self.seq_len)], &[]]) }
            }
            Kind::Documents(documents) => {
                let (first, run) = documents.window(cache, n);
                Window { first, rest: Rest::Documents(run) }
            }
        }
    }

    /// Window `i` of an epoch in the circle of `tokens`.
    fn on_circle<'a>(&self, tokens: &'a [Token], i: usize, epoch: u64) -> Window<'a> {
        let cut = (mix(mix(!self.seed) ^ epoch) % self.trained) as usize;
        // Below 2 N: the last window starts before the place where the circle closes.
        let start = i * self.seq_len;
        let targets = self.seq_len.min(tokens.len() - start);
        let start = (cut + start) % tokens.len();
        let ahead = &tokens[start + 1..];
        let rest = match ahead.split_at_checked(targets) {
            Some((rest, _)) => [rest, &[]],
            None => [ahead, &tokens[..targets - ahead.len()]],
        };
        Window { first: tokens[start], rest: Rest::Text(rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::split::Split;
    use crate::data::testing::{Folder, open_or_build, source};

    fn targets(window: Window) -> Vec<Token> {
        let mut all = Vec::new();
        window.append_to(&mut all);
        all
    }

    /// Tokens that tell their places.
    fn places(n: usize) -> Vec<Token> {
        (0..n as Token).collect()
    }

    #[test]
    fn every_token_is_a_target_once_an_epoch() {
        for (n, seq_len) in [(1, 1), (1, 256), (2, 1), (2, 5), (7, 7), (53, 256), (257, 256), (1000, 7), (1024, 256)] {
            let tokens = places(n);
            let windows = Windows::packed(n, seq_len, 5).unwrap();
            assert_eq!((windows.per_epoch() as usize, windows.trained()), (n.div_ceil(seq_len), n as u64));
            for epoch in 0..50 {
                let mut seen = Vec::new();
                for i in 0..windows.per_epoch() as usize {
                    let window = windows.on_circle(&tokens, i, epoch);
                    let rest = targets(window);
                    assert!((1..=seq_len).contains(&rest.len()) && rest.len() == window.targets());
                    // A run of the circle, by a plain loop.
                    let run = (1..=rest.len()).map(|k| ((usize::from(window.first) + k) % n) as Token);
                    assert!(run.eq(rest.iter().copied()), "{n} {seq_len}");
                    seen.extend(rest);
                }
                seen.sort();
                assert_eq!(seen, tokens, "{n} {seq_len}, epoch {epoch}");
            }
        }
        assert!(Windows::packed(0, 256, 0).is_none());
    }

    /// 290 epochs of a page of 1,000 tokens: at each place, windows start in about as many as at every other.
    #[test]
    fn each_epoch_cuts_elsewhere() {
        let tokens = places(1000);
        let windows = Windows::packed(1000, 250, 1).unwrap();
        let mut started = vec![0; 1000];
        for epoch in 0..2900 {
            for i in 0..4 {
                started[usize::from(windows.on_circle(&tokens, i, epoch).first)] += 1;
            }
        }
        // 11.6 on average, give or take 3.4.
        assert!(started.iter().all(|n| (1..30).contains(n)), "{started:?}");
        let cut = |seed, epoch| Windows::packed(1000, 250, seed).unwrap().on_circle(&tokens, 0, epoch).first;
        assert!((0..9).all(|epoch| cut(1, epoch) == cut(1, epoch)));
        assert!((0..9).any(|epoch| cut(1, epoch) != cut(2, epoch)));
    }

    #[test]
    fn windows_follow_the_order_and_the_cache() {
        let folder = Folder::new();
        let text = source(&folder, "a.txt", &["one story of some length", "two", "three, and that is the last one"]);
        let (cache, _) = open_or_build(&folder.path().join("a.tok"), &text, Split::All, 1);
        let windows = Windows::packed(cache.tokens().len(), 7, 5).unwrap();
        let count = windows.per_epoch();
        for n in 0..3 * count {
            let i = Order::new(count, 5).unwrap().at(n) as usize;
            let (own, want) = (windows.window(&cache, n), windows.on_circle(cache.tokens(), i, n / count));
            assert_eq!((own.first, targets(own)), (want.first, targets(want)));
        }
    }

    #[test]
    fn padded_windows_are_stories_cut_at_the_end() {
        let folder = Folder::new();
        let (cache, _) = open_or_build(
            &folder.path().join("a.tok"),
            &source(&folder, "a.txt", &["abcdef", "g", "hij"]),
            Split::All,
            1,
        );
        let windows = Windows::padded(&cache, 4, 3).unwrap();
        // Tokens with EOS: 7, 2, 4.
        assert_eq!((windows.per_epoch(), windows.trained()), (3, 4 + 2 + 4));
        let eos = cache.eos();
        for epoch in 0..4 {
            let mut all: Vec<Window> = (0..3).map(|i| windows.window(&cache, epoch * 3 + i)).collect();
            all.sort_by_key(|w| targets(*w)[0]);
            assert!(all.iter().all(|w| w.first == eos));
            let rests: Vec<Vec<Token>> = all.iter().map(|w| targets(*w)).collect();
            assert_eq!(rests, [&[97, 98, 99, 100][..], &[103, eos], &[104, 105, 106, eos]]);
        }
    }
}
