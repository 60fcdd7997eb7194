//! Near duplicates: documents whose sets of shingles (five words in a row) overlap by an estimated 0.8 of their union or more.
//!
//! MinHash (Broder, "On the resemblance and containment of documents", 1997): under each of 64 hash functions the smallest hash of
//! the shingles is kept; two sets agree in it with the probability of their overlap. Only documents that agree in one of 8 bands of
//! 8 such values are compared: of those that overlap by 0.8, three in four, of those by 0.9, all but one in a hundred. A word is a
//! run of letters and digits, in lower case; of scripts that do not separate words, each character is one.

use super::order::mix;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use xxhash_rust::xxh3::xxh3_64;

/// Most documents kept for comparison: some 100 MB.
pub const MAX_STORIES: usize = 200_000;
const HASHES: usize = 64;
const BAND: usize = 8;
const SHINGLE: usize = 5;
/// Least fraction of equal values.
const ALIKE: f64 = 0.8;

/// Smallest hashes of a document.
type Signature = [u32; HASHES];

/// Documents to compare further ones with.
#[derive(Default)]
pub struct NearDuplicates {
    signatures: Vec<Signature>,
    /// For each band, the last document with these values.
    bands: [HashMap<u64, u32>; HASHES / BAND],
    words: Vec<u64>,
}

impl NearDuplicates {
    /// Whether the document is nearly one that came before; it is kept for comparison, if there is room. Documents of fewer than
    /// five words are like none.
    pub fn is_near_duplicate(&mut self, story: &str) -> bool {
        self.words.clear();
        words(story, |word| self.words.push(word));
        if self.words.len() < SHINGLE {
            return false;
        }
        let signature = signature(&self.words);
        let keys: Vec<u64> = (0..HASHES / BAND)
            .map(|band| {
                signature[band * BAND..][..BAND].iter().fold(band as u64, |key, &hash| mix(key ^ u64::from(hash)))
            })
            .collect();
        let alike = |&at: &u32| {
            let equal = self.signatures[at as usize].iter().zip(&signature).filter(|(a, b)| a == b).count();
            equal as f64 >= ALIKE * HASHES as f64
        };
        let found = keys.iter().zip(&self.bands).filter_map(|(key, band)| band.get(key)).any(alike);
        if self.signatures.len() < MAX_STORIES {
            let at = self.signatures.len() as u32;
            for (key, band) in keys.into_iter().zip(&mut self.bands) {
                band.insert(key, at);
            }
            self.signatures.push(signature);
        }
        found
    }

    /// Whether there was no more room.
    pub fn is_full(&self) -> bool {
        self.signatures.len() >= MAX_STORIES
    }
}

/// Thai and Lao, Burmese, Khmer, kana, Han: no spaces between words.
const UNSPACED: [RangeInclusive<u32>; 6] =
    [0x0E00..=0x0EFF, 0x1000..=0x109F, 0x1780..=0x17FF, 0x3040..=0x30FF, 0x3400..=0x9FFF, 0x20000..=0x3FFFF];

/// Hashes of the words of a text.
fn words(text: &str, mut word: impl FnMut(u64)) {
    let mut run = String::new();
    let mut end = |run: &mut String| {
        if !run.is_empty() {
            word(xxh3_64(run.as_bytes()));
            run.clear();
        }
    };
    for c in text.chars() {
        let unspaced = UNSPACED.iter().any(|letters| letters.contains(&(c as u32)));
        if unspaced {
            end(&mut run);
        }
        if c.is_alphanumeric() {
            run.extend(c.to_lowercase());
        }
        if unspaced || !c.is_alphanumeric() {
            end(&mut run);
        }
    }
    end(&mut run);
}

fn signature(words: &[u64]) -> Signature {
    let mut least = [u32::MAX; HASHES];
    for shingle in words.windows(SHINGLE) {
        let hash = shingle.iter().fold(0, |hash, &word| mix(hash ^ word));
        let (a, b) = (hash as u32, (hash >> 32) as u32 | 1);
        for (i, least) in least.iter_mut().enumerate() {
            // Two halves make all functions (Kirsch and Mitzenmacher, "Less hashing, same performance", 2006), mixed once more.
            let hash = a.wrapping_add(b.wrapping_mul(i as u32)).wrapping_mul(0x9E37_79B1);
            *least = (*least).min(hash ^ hash >> 15);
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic;
    use std::collections::HashSet;

    /// The overlap itself, from the sets.
    fn overlap(a: &str, b: &str) -> f64 {
        let set = |text: &str| {
            let mut all = Vec::new();
            words(text, |word| all.push(word));
            all.windows(SHINGLE).map(<[u64]>::to_vec).collect::<HashSet<_>>()
        };
        let (a, b) = (set(a), set(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    #[test]
    fn signatures_agree_by_the_overlap_of_the_sets() {
        let of = |text: &str| {
            let mut all = Vec::new();
            words(text, |word| all.push(word));
            signature(&all)
        };
        let story = synthetic::story(3, 7);
        let all: Vec<&str> = story.split(' ').collect();
        let mut errors = Vec::new();
        for changed in [0, 1, 2, 5, 10, 30] {
            for shift in 0..10 {
                let mut other = all.clone();
                (0..changed).for_each(|i| other[(i * all.len() / changed.max(1) + shift) % all.len()] = "another");
                let other = other.join(" ");
                let (a, b) = (of(&story), of(&other));
                let agree = a.iter().zip(&b).filter(|(a, b)| a == b).count() as f64 / HASHES as f64;
                errors.push(agree - overlap(&story, &other));
            }
        }
        // The standard deviation of one is at most 0.5 / 8.
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        let square = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
        assert!(mean.abs() < 0.03 && square < 0.08, "{mean} {square}");
    }

    #[test]
    fn a_changed_word_is_a_near_double_and_another_story_is_not() {
        let mut near = NearDuplicates::default();
        let stories: Vec<String> = (0..300).map(|i| format!("{i}: {}", synthetic::story(3, i))).collect();
        let new = stories.iter().filter(|story| near.is_near_duplicate(story)).count();
        // Documents of one grammar are alike here and there, by less than 0.8.
        assert!(new <= 3, "{new} of 300");
        let mut near_double =
            |story: &String| near.is_near_duplicate(&story.to_uppercase().replacen(" THE ", " A ", 1));
        let found = stories.iter().filter(|story| near_double(story)).count();
        assert!(found >= 285, "{found} of 300");
        // Every twentieth word another one leaves an overlap of 0.6: some 40 agree in a band, none in four fifths of all values.
        let every_twentieth = |story: &str| {
            let other = |(i, word)| if i % 20 == 10 { "another" } else { word };
            story.split(' ').enumerate().map(other).collect::<Vec<_>>().join(" ")
        };
        let mean = stories.iter().map(|story| overlap(story, &every_twentieth(story))).sum::<f64>() / 300.0;
        assert!((mean - 0.6).abs() < 0.05, "{mean}");
        let found = stories.iter().filter(|story| near.is_near_duplicate(&every_twentieth(story))).count();
        assert!(found <= 6, "{found} of 300");
        assert!(!near.is_near_duplicate("too few words"));
        assert!(!near.is_near_duplicate("too few words"));
    }

    #[test]
    fn characters_are_words_where_words_are_not_separated() {
        let count = |text: &str| {
            let mut n = 0;
            words(text, |_| n += 1);
            n
        };
        assert_eq!(count("The cat, the hat."), 4);
        assert_eq!(count("小猫坐在垫子上。"), 7);
        assert_eq!(count("ein Kätzchen 42"), 3);
    }
}
