//! The documents of a validation text, which are not trained on.

use super::order::mix;
use std::collections::HashSet;
use xxhash_rust::xxh3::Xxh3;

/// Documents by the XXH3-64 of the words of each: none of them is trained on, however its words are spaced.
#[derive(Debug, Default)]
pub struct HeldOut {
    stories: HashSet<u64>,
    digest: u64,
}

impl HeldOut {
    /// One more document.
    pub fn add(&mut self, story: &str) {
        let hash = key(story);
        if self.stories.insert(hash) {
            self.digest = self.digest.wrapping_add(mix(hash));
        }
    }

    /// Whether the document is one of them, word for word.
    pub fn contains(&self, story: &str) -> bool {
        self.stories.contains(&key(story))
    }

    /// Tells one set from another, whatever the order.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

/// Of the words alone: line ends and blanks differ between copies.
fn key(story: &str) -> u64 {
    let mut hash = Xxh3::new();
    for word in story.split_whitespace() {
        hash.update(word.as_bytes());
        hash.update(b" ");
    }
    hash.digest()
}
