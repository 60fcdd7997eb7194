//! States of prompts that were read, so that the next one that begins the same is read from there on.
//!
//! A state is of constant size; the least recently used go where there are more than `room` bytes. A prefix is found by a running hash
//! of its tokens and compared token by token.

use std::collections::HashMap;

use flashlm_kernels::Token;
use flashlm_model::SequenceState;

/// Memory of the states of one model, in bytes.
const ROOM: usize = 64 << 20;

struct Entry {
    tokens: Vec<Token>,
    state: SequenceState,
    used: u64,
}

pub struct Cache {
    entries: HashMap<u64, Entry>,
    room: usize,
    pub bytes: usize,
    clock: u64,
}

fn next(hash: u64, token: Token) -> u64 {
    (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

impl Cache {
    pub fn new() -> Cache {
        Cache { entries: HashMap::new(), room: ROOM, bytes: 0, clock: 0 }
    }

    /// The state after the longest known beginning of `tokens`, and its length.
    pub fn find(&mut self, tokens: &[Token]) -> Option<(SequenceState, usize)> {
        let (mut hash, mut best) = (0, None);
        for (i, &token) in tokens.iter().enumerate() {
            hash = next(hash, token);
            if self.entries.get(&hash).is_some_and(|entry| entry.tokens == tokens[..=i]) {
                best = Some(hash);
            }
        }
        self.clock += 1;
        let entry = self.entries.get_mut(&best?)?;
        entry.used = self.clock;
        Some((entry.state.clone(), entry.tokens.len()))
    }

    /// Keeps the state after `tokens`.
    pub fn keep(&mut self, tokens: &[Token], state: &SequenceState) {
        let size = |tokens: &[Token], state: &SequenceState| state.bytes() + size_of_val(tokens);
        let bytes = size(tokens, state);
        if tokens.is_empty() || bytes > self.room {
            return;
        }
        self.clock += 1;
        let hash = tokens.iter().fold(0, |hash, &token| next(hash, token));
        let entry = Entry { tokens: tokens.to_vec(), state: state.clone(), used: self.clock };
        if let Some(old) = self.entries.insert(hash, entry) {
            self.bytes -= size(&old.tokens, &old.state);
        }
        self.bytes += bytes;
        while self.bytes > self.room {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(hash, _)| *hash);
            let Some(gone) = oldest.and_then(|hash| self.entries.remove(&hash)) else { return };
            self.bytes -= size(&gone.tokens, &gone.state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashlm_model::PackedModel;
    use std::path::Path;

    #[test]
    fn the_longest_beginning_is_found_and_the_least_used_goes() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/conv.safetensors");
        let state = PackedModel::open(&path).unwrap().new_state();
        let mut cache = Cache::new();
        let found = |cache: &mut Cache, tokens: &[Token]| cache.find(tokens).map(|found| found.1);
        cache.room = 2 * (state.bytes() + 20);
        cache.keep(&[1, 2], &state);
        cache.keep(&[1, 2, 3, 4], &state);
        assert_eq!(found(&mut cache, &[1, 2, 3, 4, 5]), Some(4));
        assert_eq!(found(&mut cache, &[1, 2, 3]), Some(2));
        assert_eq!(found(&mut cache, &[2, 1]), None);
        cache.keep(&[7], &state);
        assert_eq!(found(&mut cache, &[1, 2, 3, 4]), Some(2), "the one of four was used least recently");
        assert_eq!(found(&mut cache, &[7, 7]), Some(1));
        assert_eq!(cache.bytes, 2 * state.bytes() + 6);
    }
}
