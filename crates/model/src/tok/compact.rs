//! A tokenizer in few bytes, for the packed model: a tenth of its JSON.
//!
//! ```text
//! "F" | declared size: u32 | base id of id 4, 5, ..: u16 each                    frequency
//! "B" | left and right of the merge that makes id 257, 258, ..: u16 each         bpe with the ids that training here gives
//! anything else: the JSON of formats.md                                          bytes, and bpe with other ids
//! ```
//!
//! All numbers are little-endian.

use super::bpe::Bpe;
use super::error::TokError;
use super::frequency::Frequency;
use super::tokenizer::{Kind, Tokenizer};

const FREQUENCY: u8 = b'F';
const BPE: u8 = b'B';
/// Largest vocabulary that is made up.
const MADE_UP: usize = 50_000;

impl Tokenizer {
    /// The same vocabulary as [`to_json`](Self::to_json) in few bytes.
    pub fn to_compact(&self) -> Vec<u8> {
        let numbers = |numbers: &[u16]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        match &self.0 {
            Kind::Frequency(t) => {
                let (declared, bases) = t.parts();
                [&[FREQUENCY], &declared.to_le_bytes()[..], &numbers(bases)].concat()
            }
            Kind::Bpe(t) => match t.own_merges() {
                Some(merges) => [&[BPE], &numbers(merges.as_flattened())[..]].concat(),
                None => self.to_json(),
            },
            _ => self.to_json(),
        }
    }

    /// A vocabulary of a kind and size, of whatever tokens: to measure with.
    pub fn made_up(kind: &str, size: usize) -> Result<Self, TokError> {
        let too_large = |kind| Err(TokError::Invalid { kind, what: format!("{size} tokens are too many to make up") });
        match kind {
            "frequency" if size > MADE_UP => too_large("frequency"),
            "bpe" if size > MADE_UP => too_large("bpe"),
            "frequency" => {
                let bases = (0..size.saturating_sub(4) as u16).collect();
                Frequency::from_parts(size as u32, bases).map(|t| Self(Kind::Frequency(t)))
            }
            "bpe" => {
                let merges: Vec<_> = (0..size.saturating_sub(257) as u16).map(|i| [1 + i / 256, 1 + i % 256]).collect();
                Bpe::from_merges(&merges).map(|t| Self(Kind::Bpe(t)))
            }
            _ => Ok(Self::bytes()),
        }
    }

    /// Reads what [`to_compact`](Self::to_compact) wrote.
    pub fn from_compact(bytes: &[u8]) -> Result<Self, TokError> {
        let numbers = |kind, bytes: &[u8]| match bytes.as_chunks() {
            (numbers, []) => Ok(numbers.iter().map(|n| u16::from_le_bytes(*n)).collect::<Vec<u16>>()),
            (_, rest) => {
                let what = format!("bytes left over after the last number: {}; expected none", rest.len());
                Err(TokError::Invalid { kind, what })
            }
        };
        match bytes.split_first() {
            Some((&FREQUENCY, rest)) => {
                let Some((declared, bases)) = rest.split_first_chunk() else {
                    let what = "cut off before its size".into();
                    return Err(TokError::Invalid { kind: "frequency", what });
                };
                let bases = numbers("frequency", bases)?;
                Frequency::from_parts(u32::from_le_bytes(*declared), bases).map(|t| Self(Kind::Frequency(t)))
            }
            Some((&BPE, rest)) => {
                let ids = numbers("bpe", rest)?;
                let (merges, []) = ids.as_chunks() else {
                    let what = "half a merge at the end; expected pairs of ids".into();
                    return Err(TokError::Invalid { kind: "bpe", what });
                };
                Bpe::from_merges(merges).map(|t| Self(Kind::Bpe(t)))
            }
            _ => Self::from_json(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Tokenizer> {
        let names = ["Ada", "Ben", "the cat", "a bird", "the old king", "my sister"];
        let own = names.map(|a| names.map(|b| format!("One day {a} met {b}, and {b} sang to {a} until night.")));
        let texts = || own.as_flattened().iter().map(String::as_str);
        vec![
            Tokenizer::bytes(),
            Tokenizer::train_frequency(texts(), 60).unwrap(),
            Tokenizer::train_bpe(texts(), 400).unwrap(),
        ]
    }

    #[test]
    fn is_the_same_vocabulary_in_fewer_bytes() {
        for tokenizer in all() {
            let bytes = tokenizer.to_compact();
            let again = Tokenizer::from_compact(&bytes).unwrap();
            assert_eq!(again.to_json(), tokenizer.to_json(), "{}", tokenizer.kind());
            assert!(tokenizer.kind() == "bytes" || bytes.len() * 4 < tokenizer.to_json().len());
        }
    }

    #[test]
    fn other_ids_keep_their_json() {
        let json = String::from_utf8(all().pop().unwrap().to_json()).unwrap();
        // Ids 1 and 2 change places: a vocabulary that training here does not give.
        let other = json.replace("\"!\":1,\"\\\"\":2,", "\"!\":2,\"\\\"\":1,");
        assert_ne!(other, json);
        let other = Tokenizer::from_json(other.as_bytes()).unwrap();
        assert_eq!(Tokenizer::from_compact(&other.to_compact()).unwrap().to_json(), other.to_json());
    }

    #[test]
    fn bad_bytes_are_refused() {
        let merges = |merges: &[[u16; 2]]| {
            let numbers = merges.as_flattened().iter().flat_map(|n| n.to_le_bytes());
            [BPE].into_iter().chain(numbers).collect::<Vec<u8>>()
        };
        // The longest token doubles with each merge.
        let bomb: Vec<[u16; 2]> = (0..200).map(|i| [256 + i; 2]).collect();
        let tests: [(Vec<u8>, &str); 8] = [
            (vec![], "JSON"),
            (b"F\0\0".to_vec(), "cut off"),
            (b"F\x0a\0\0\0\x01".to_vec(), "last number"),
            (b"F\x0a\0\0\0\x01\0\x01\0".to_vec(), "twice"),
            (b"F\x02\0\0\0\x01\0\x02\0".to_vec(), "vocab_size"),
            (b"B\x01\0".to_vec(), "half a merge"),
            (merges(&[[1, 300]]), "merge 0 does not join two earlier tokens"),
            (merges(&bomb), "longer"),
        ];
        for (bytes, expected) in tests {
            let error = Tokenizer::from_compact(&bytes).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn any_bytes_are_an_answer_or_an_error() {
        for tokenizer in all() {
            let whole = tokenizer.to_compact();
            let mut r = crate::tok::testing::Random(5);
            for _ in 0..200 {
                let mut bytes = whole.clone();
                bytes.truncate(1 + r.below(bytes.len()));
                let at = r.below(bytes.len());
                bytes[at] ^= 1 << r.below(8);
                let _ = Tokenizer::from_compact(&bytes);
            }
        }
    }
}
