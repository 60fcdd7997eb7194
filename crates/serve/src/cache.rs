//! States of prompts that were read, so that the next one that begins the same is read from there on.
//!
//! ```text
//! an entry: tokens[..m + 1], the state after tokens[..m], and where they were scored ln p of tokens[1..m + 1] and the likeliest there
//! kept at:  m = 16, 32, 64, .. (but of a float model, whose states grow with m); where it parts from a known one; before its last token
//! ```
//!
//! A prompt that was read shows what the next may share with it; so the second that begins the same finds at least half of that, and the
//! third all. The least recently used go where there are more than `room` bytes or [`MOST`] of them.

use flashlm_kernels::Token;
use flashlm_model::Scored;

use crate::runtime::State;

/// Memory of what is kept for one model, in bytes.
const ROOM: usize = 64 << 20;
/// Most entries, each of which is compared with a prompt.
const MOST: usize = 1024;
/// Fewest tokens that are worth an entry.
const LEAST: usize = 16;

/// Log-probabilities of tokens, with so many of the likeliest beside each.
#[derive(Clone)]
pub struct Scores {
    pub top: usize,
    pub each: Vec<Scored>,
}

struct Entry {
    tokens: Vec<Token>,
    state: State,
    scores: Option<Scores>,
    bytes: usize,
    used: u64,
}

/// A known beginning of a prompt.
pub struct Known {
    pub state: State,
    /// Tokens that were fed to it.
    pub fed: usize,
    pub scores: Vec<Scored>,
}

pub struct Cache {
    entries: Vec<Entry>,
    room: usize,
    pub bytes: usize,
    clock: u64,
}

impl Cache {
    pub fn new() -> Cache {
        Cache { entries: Vec::new(), room: ROOM, bytes: 0, clock: 0 }
    }

    /// The longest known beginning of `tokens`, with scores of `top` likeliest where they are asked for, and how many tokens the prompt
    /// shares with any that is known.
    pub fn find(&mut self, tokens: &[Token], top: Option<usize>) -> (Option<Known>, usize) {
        let (mut best, mut shared): (Option<&mut Entry>, _) = (None, 0);
        for entry in &mut self.entries {
            let same = entry.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            shared = shared.max(same);
            let enough = top.is_none_or(|top| entry.scores.as_ref().is_some_and(|scores| scores.top >= top));
            let longer = best.as_ref().is_none_or(|best| best.tokens.len() < entry.tokens.len());
            if same == entry.tokens.len() && enough && longer {
                best = Some(entry);
            }
        }
        self.clock += 1;
        let known = best.map(|entry| {
            entry.used = self.clock;
            let mut scores = Vec::new();
            if let (Some(top), Some(known)) = (top, &entry.scores) {
                let fewer = |scored: &Scored| {
                    let likeliest = &scored.top[..top.min(scored.top.len())];
                    Scored { log_prob: scored.log_prob, top: likeliest.to_vec() }
                };
                scores = known.each.iter().map(fewer).collect();
            }
            Known { state: entry.state.clone(), fed: entry.tokens.len() - 1, scores }
        });
        (known, shared)
    }

    /// The next place after `fed` tokens at which a state is to be kept, of a prompt that shares `shared` tokens with a known one; of a
    /// state that grows with its tokens only where they part.
    pub fn place(fed: usize, shared: usize, grows: bool) -> usize {
        let power = if grows { usize::MAX } else { LEAST.max((fed + 1).next_power_of_two()) };
        let parting = shared.saturating_sub(1);
        if parting >= fed + LEAST / 2 { power.min(parting) } else { power }
    }

    /// Keeps the state after all of `tokens` but the last.
    pub fn keep(&mut self, tokens: &[Token], state: &State, scores: Option<Scores>) {
        let told = scores.as_ref().map_or(0, |scores| {
            scores.each.iter().map(|scored| size_of_val(scored) + size_of_val(&scored.top[..])).sum()
        });
        let bytes = state.bytes() + size_of_val(tokens) + told;
        if tokens.len() < 2 || bytes > self.room {
            return;
        }
        self.clock += 1;
        let top = |scores: &Option<Scores>| scores.as_ref().map(|scores| scores.top);
        if let Some(at) = self.entries.iter().position(|entry| entry.tokens == tokens) {
            let entry = &mut self.entries[at];
            entry.used = self.clock;
            if top(&entry.scores) >= top(&scores) {
                return;
            }
            self.remove(at);
        }
        self.bytes += bytes;
        self.entries.push(Entry { tokens: tokens.to_vec(), state: state.clone(), scores, bytes, used: self.clock });
        while self.bytes > self.room || self.entries.len() > MOST {
            let Some(oldest) = (0..self.entries.len()).min_by_key(|&at| self.entries[at].used) else { return };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, at: usize) {
        self.bytes -= self.entries.swap_remove(at).bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashlm_model::PackedModel;
    use std::path::Path;

    fn state() -> State {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/conv.safetensors");
        State::Packed(PackedModel::open(&path).unwrap().new_state())
    }

    #[test]
    fn the_longest_beginning_is_found_and_the_least_used_goes() {
        let (state, mut cache) = (state(), Cache::new());
        let found = |cache: &mut Cache, tokens: &[Token]| {
            let (known, shared) = cache.find(tokens, None);
            (known.map(|known| known.fed), shared)
        };
        let prompt: Vec<Token> = (0..40).collect();
        cache.room = 2 * (state.bytes() + 100);
        cache.keep(&prompt[..10], &state, None);
        cache.keep(&prompt[..30], &state, None);
        assert_eq!(found(&mut cache, &prompt), (Some(29), 30));
        assert_eq!(found(&mut cache, &prompt[..30]), (Some(29), 30));
        assert_eq!(found(&mut cache, &prompt[..29]), (Some(9), 29));
        assert_eq!(found(&mut cache, &[&prompt[..20], &[7, 7]].concat()), (Some(9), 20));
        assert_eq!(found(&mut cache, &[2, 1]), (None, 0));
        cache.keep(&[7; 12], &state, None);
        assert_eq!(found(&mut cache, &prompt), (Some(9), 10), "the one of thirty was used least recently");
        assert_eq!(found(&mut cache, &[7; 20]), (Some(11), 12));
        assert_eq!(cache.bytes, 2 * state.bytes() + 2 * 22);
    }

    #[test]
    fn scores_are_found_where_they_tell_enough() {
        let (state, mut cache) = (state(), Cache::new());
        let prompt: Vec<Token> = (0..40).collect();
        let scores = |top: usize| {
            let each = (1..20)
                .map(|i| Scored { log_prob: f64::from(-i), top: (0..top as Token).map(|t| (t, -0.5)).collect() });
            Some(Scores { top, each: each.collect() })
        };
        let found = |cache: &mut Cache, top| cache.find(&prompt, top).0.map(|known| known.scores);
        cache.keep(&prompt[..20], &state, None);
        assert_eq!(found(&mut cache, Some(0)), None);
        cache.keep(&prompt[..20], &state, scores(3));
        // One that tells less replaces none.
        cache.keep(&prompt[..20], &state, scores(1));
        cache.keep(&prompt[..20], &state, None);
        assert_eq!(cache.entries.len(), 1);
        assert_eq!(found(&mut cache, Some(4)), None);
        assert_eq!(found(&mut cache, Some(2)), scores(2).map(|scores| scores.each));
        assert_eq!(found(&mut cache, None), Some(Vec::new()));
    }

    #[test]
    fn states_are_kept_at_powers_of_two_and_where_prompts_part() {
        let places = |fed: usize, shared| {
            let mut all = vec![Cache::place(0, shared, false)];
            while all[all.len() - 1] < fed {
                all.push(Cache::place(all[all.len() - 1], shared, false));
            }
            all
        };
        assert_eq!(places(100, 0), [16, 32, 64, 128]);
        assert_eq!(places(100, 41), [16, 32, 40, 64, 128]);
        // Not where the next is near.
        assert_eq!(places(100, 38), [16, 32, 64, 128]);
        assert_eq!(places(10, 11), [10]);
        let grows = [0, 32, 33, 40].map(|fed| Cache::place(fed, 41, true));
        assert_eq!(grows, [40, 40, usize::MAX, usize::MAX]);
    }
}
