//! Training windows over a token cache, in the order of [`Order`].
//!
//! * packed: `count = tokens / (T + 1)` runs of `T + 1` tokens that do not overlap, across the ends of stories; the up to `T`
//!   tokens after the last are not used.
//! * padded: one story a window, from its start, cut after `T` tokens. It has `EOS` before it, as in evaluation, and fewer
//!   than `T` rows where the story is shorter; what lies beyond `T` is not used.

use super::cache::TokenCache;
use super::order::Order;
use flashlm_kernels::Token;

/// What one sequence of a batch is made of: `rest` is to be predicted, from `first` and all of it but the last token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<'a> {
    /// The token before `rest`.
    pub first: Token,
    /// At most `T` tokens.
    pub rest: &'a [Token],
}

impl<'a> From<&'a [Token]> for Window<'a> {
    /// `T + 1` tokens, at least one.
    fn from(tokens: &'a [Token]) -> Self {
        Window { first: tokens[0], rest: &tokens[1..] }
    }
}

impl<'a> From<&'a Vec<Token>> for Window<'a> {
    fn from(tokens: &'a Vec<Token>) -> Self {
        Window::from(&tokens[..])
    }
}

/// All windows of one text at one sequence length.
#[derive(Clone, Debug)]
pub struct Windows {
    order: Order,
    seq_len: usize,
    padded: bool,
    /// Tokens that an epoch trains on.
    trained: u64,
}

impl Windows {
    /// Over a text of so many tokens; none where it does not fill a single window.
    pub fn packed(tokens: usize, seq_len: usize, seed: u64) -> Option<Windows> {
        let order = Order::new((tokens / seq_len.checked_add(1)?) as u64, seed)?;
        Some(Windows { order, seq_len, padded: false, trained: order.count() * seq_len as u64 })
    }

    /// Over the stories of a cache; none where there is no story.
    pub fn padded(cache: &TokenCache, seq_len: usize, seed: u64) -> Option<Windows> {
        let order = Order::new(cache.stories() as u64, seed)?;
        let trained = (0..cache.stories()).map(|i| cache.story_len(i).min(seq_len) as u64).sum();
        Some(Windows { order, seq_len, padded: true, trained })
    }

    /// Windows in an epoch.
    pub fn per_epoch(&self) -> u64 {
        self.order.count()
    }

    /// Tokens that an epoch trains on.
    pub fn trained(&self) -> u64 {
        self.trained
    }

    /// The n-th window of the run in the cache that these windows are of.
    pub fn window<'a>(&self, cache: &'a TokenCache, n: u64) -> Window<'a> {
        let i = self.order.at(n) as usize;
        if self.padded {
            let story = cache.story(i);
            return Window { first: cache.eos(), rest: &story[..story.len().min(self.seq_len)] };
        }
        let len = self.seq_len + 1;
        // Fits: below count, and count windows of len fit in a usize.
        Window::from(&cache.tokens()[i * len..][..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::split::Split;
    use crate::data::testing::{Folder, open_or_build, source};

    #[test]
    fn packed_windows_cover_the_text_once_an_epoch() {
        let folder = Folder::new();
        let text = source(&folder, "a.txt", &["one story of some length", "two", "three, and that is the last one"]);
        let (cache, _) = open_or_build(&folder.path().join("a.tok"), &text, Split::All, 1);
        let tokens = cache.tokens();
        for seq_len in [1, 4, 7, tokens.len() - 1] {
            let windows = Windows::packed(tokens.len(), seq_len, 5).unwrap();
            let count = windows.per_epoch();
            assert_eq!((count as usize, windows.trained()), (tokens.len() / (seq_len + 1), count * seq_len as u64));
            for epoch in 0..3 {
                let mut all: Vec<Vec<Token>> = (0..count)
                    .map(|i| windows.window(&cache, epoch * count + i))
                    .map(|w| [&[w.first], w.rest].concat())
                    .collect();
                all.sort();
                let mut plain: Vec<_> = tokens.chunks_exact(seq_len + 1).map(<[_]>::to_vec).collect();
                plain.sort();
                assert_eq!(all, plain, "{seq_len}, epoch {epoch}");
            }
        }
        for (tokens, seq_len) in [(0, 256), (256, 256), (usize::MAX, usize::MAX)] {
            assert!(Windows::packed(tokens, seq_len, 0).is_none());
        }
        assert!(Windows::packed(257, 256, 0).is_some());
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
            all.sort_by_key(|w| w.rest[0]);
            assert!(all.iter().all(|w| w.first == eos));
            let rests: Vec<&[Token]> = all.iter().map(|w| w.rest).collect();
            assert_eq!(rests, [&[97, 98, 99, 100][..], &[103, eos], &[104, 105, 106, eos]]);
        }
    }
}
