//! FlashLM v4's vocabulary: the most frequent of GPT-2's 50,257 byte-level BPE ids.
//!
//! The base ids of the documents are counted (the original's: of the first 50,000); the `vocab_size - 4` most frequent get ids
//! 4, 5, .. in falling
//! frequency, ties in first-seen order. PAD 0, UNK 1, BOS 2, EOS 3. Any other base id encodes to UNK and decoding drops ids
//! below 4, so this tokenizer is **lossy**.
//!
//! File, as Python's `json.dump` writes it: `{"vocab_size": V, "id_to_base": {"4": base, ..}, "base_to_id": {"base": 4, ..}}`.
//! `V` is the size asked for; a text with fewer base ids leaves the end of the range without tokens.
//! `<|endoftext|>` in a text is plain text.

use super::error::TokError;
use super::gpt2::{self, TOKENS as BASES};
use super::json::{Pairs, parse};
use super::merge::Scratch;
use super::words::Words;
use serde::Deserialize;
use std::fmt::Write;

const KIND: &str = "frequency";
const SPECIALS: usize = 4;
const NO_BASE: u16 = u16::MAX;

pub(super) const UNK: u16 = 1;
pub(super) const EOS: u16 = 3;

pub(super) struct Frequency {
    /// `vocab_size` of the file.
    declared: usize,
    /// Base id of id `4 + i`.
    bases: Vec<u16>,
    /// Id of each base id, or UNK.
    ids: Vec<u16>,
}

#[derive(Deserialize)]
struct File {
    vocab_size: u64,
    id_to_base: Pairs,
    base_to_id: Pairs,
}

fn invalid(what: String) -> TokError {
    TokError::Invalid { kind: KIND, what }
}

/// The base ids of documents, counted.
pub(super) struct Counter {
    vocab_size: usize,
    counts: Vec<u64>,
    /// Ids that came, in the order of their first time.
    bases: Vec<u16>,
    words: Words,
    scratch: Scratch,
    ids: Vec<u16>,
}

impl Counter {
    pub(super) fn new(vocab_size: usize) -> Result<Self, TokError> {
        TokError::check_vocab_size(KIND, vocab_size, SPECIALS + 1..=SPECIALS + BASES)?;
        let (words, scratch) = (Words::new(), Scratch::default());
        Ok(Self { vocab_size, counts: vec![0; BASES], bases: Vec::new(), words, scratch, ids: Vec::new() })
    }

    pub(super) fn add(&mut self, story: &str) {
        let Self { counts, bases, words, scratch, ids, .. } = self;
        ids.clear();
        words.encode(story, ids, |piece, out| gpt2::encode(piece, scratch, out));
        for &base in &*ids {
            let count = &mut counts[usize::from(base)];
            if *count == 0 {
                bases.push(base);
            }
            *count += 1;
        }
    }

    pub(super) fn finish(self) -> Result<Frequency, TokError> {
        let Self { vocab_size, counts, mut bases, .. } = self;
        if bases.is_empty() {
            return Err(TokError::NoText { kind: KIND });
        }
        bases.sort_by_key(|&base| std::cmp::Reverse(counts[usize::from(base)]));
        bases.truncate(vocab_size - SPECIALS);
        Ok(Frequency::new(vocab_size, bases))
    }
}

impl Frequency {
    fn new(declared: usize, bases: Vec<u16>) -> Self {
        let mut ids = vec![UNK; BASES];
        for (id, &base) in (SPECIALS as u16..).zip(&bases) {
            ids[usize::from(base)] = id;
        }
        Self { declared, bases, ids }
    }

    pub(super) fn from_json(json: &[u8]) -> Result<Self, TokError> {
        Self::from_file(parse(KIND, json)?)
    }

    fn from_file(file: File) -> Result<Self, TokError> {
        let n = file.id_to_base.len;
        if n == 0 {
            return Err(invalid("id_to_base has no entries".into()));
        }
        if n != file.base_to_id.len {
            let m = file.base_to_id.len;
            let what = format!("id_to_base has {n} entries and base_to_id {m}; expected equally many");
            return Err(invalid(what));
        }
        let declared = usize::try_from(file.vocab_size).ok().filter(|v| (SPECIALS + n..=SPECIALS + BASES).contains(v));
        let Some(declared) = declared else {
            let (v, low, high) = (file.vocab_size, SPECIALS + n, SPECIALS + BASES);
            let what = format!("vocab_size is {v}; with {n} ids expected {low} to {high}");
            return Err(invalid(what));
        };
        let mut bases = vec![NO_BASE; n];
        let mut used = vec![false; BASES];
        for (id, base) in &file.id_to_base.list {
            let place =
                (id.parse::<usize>().ok()).and_then(|id| id.checked_sub(SPECIALS)).and_then(|i| bases.get_mut(i));
            let Some(place) = place else {
                let last = SPECIALS + n - 1;
                let what = format!("id_to_base: id {id:?}; expected 4 to {last} without gaps");
                return Err(invalid(what));
            };
            let Some(used) = usize::try_from(*base).ok().and_then(|b| used.get_mut(b)) else {
                let what = format!("id_to_base: id {id} has base {base}; expected 0 to {}", BASES - 1);
                return Err(invalid(what));
            };
            if *place != NO_BASE || std::mem::replace(used, true) {
                let what = format!("id_to_base: id {id} or its base {base} is given twice");
                return Err(invalid(what));
            }
            *place = *base as u16;
        }
        let new = Self::new(declared, bases);
        let mut seen = vec![false; n];
        for (base, id) in &file.base_to_id.list {
            let known = base.parse::<usize>().ok().and_then(|b| new.ids.get(b));
            let seen = known
                .filter(|&&k| k != UNK && u64::from(k) == *id)
                .and_then(|&k| seen.get_mut(usize::from(k) - SPECIALS));
            if seen.is_none_or(|s| std::mem::replace(s, true)) {
                let what = format!("base_to_id: {base:?} -> {id} is not the inverse of id_to_base, or is given twice");
                return Err(invalid(what));
            }
        }
        Ok(new)
    }

    /// The size asked for, and the base id of id 4, 5, ...
    pub(super) fn parts(&self) -> (u32, &[u16]) {
        (self.declared as u32, &self.bases)
    }

    pub(super) fn from_parts(declared: u32, bases: Vec<u16>) -> Result<Self, TokError> {
        let with_ids = || (SPECIALS as u64..).zip(&bases);
        let file = File {
            vocab_size: declared.into(),
            id_to_base: with_ids().map(|(id, base)| (id.to_string(), u64::from(*base))).collect(),
            base_to_id: with_ids().map(|(id, base)| (base.to_string(), id)).collect(),
        };
        Self::from_file(file)
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let with_ids = || (SPECIALS..).zip(&self.bases);
        let mut json = format!("{{\"vocab_size\": {}, \"id_to_base\": {{", self.declared);
        for (i, (id, base)) in with_ids().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let _ = write!(json, "{comma}\"{id}\": {base}");
        }
        json += "}, \"base_to_id\": {";
        for (i, (id, base)) in with_ids().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let _ = write!(json, "{comma}\"{base}\": {id}");
        }
        json += "}}";
        json.into_bytes()
    }

    pub(super) fn vocab_size(&self) -> usize {
        SPECIALS + self.bases.len()
    }

    /// The id of a base id, or UNK.
    pub(super) fn id_of(&self, base: u16) -> u16 {
        self.ids[usize::from(base)]
    }

    /// That of every base id.
    pub(super) fn ids(&self) -> &[u16] {
        &self.ids
    }

    pub(super) fn unk_bases(&self) -> usize {
        BASES - self.bases.len()
    }

    /// Appends the ids of one piece.
    pub(super) fn encode_piece(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u16>) {
        let before = out.len();
        gpt2::encode(piece, scratch, out);
        for id in &mut out[before..] {
            *id = self.ids[usize::from(*id)];
        }
    }

    pub(super) fn token_bytes(&self, id: u16) -> &[u8] {
        let base = usize::from(id).checked_sub(SPECIALS).and_then(|i| self.bases.get(i));
        base.map_or(&[], |&base| gpt2::token(base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tok::{
        Tokenizer,
        split::split,
        testing::{Random, odd_texts, random_text, shared, stories},
    };
    use tiktoken_rs::r50k_base_singleton;

    fn encode(t: &Tokenizer, text: &str) -> Vec<u16> {
        let mut ids = Vec::new();
        t.encode(text, &mut ids);
        ids
    }

    fn bases(text: &str) -> Vec<u16> {
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        split(text).for_each(|piece| gpt2::encode(piece.as_bytes(), &mut scratch, &mut ids));
        ids
    }

    /// Long pieces of few letters, where the order of merges matters most.
    #[test]
    fn merging_is_tiktokens() {
        let mut r = Random(9);
        for _ in 0..3000 {
            let letters = &["aeinrst", "ab", "xqz7", "éü", "\u{301}\u{200d}😀", "thing"][r.below(6)];
            let letters: Vec<char> = letters.chars().collect();
            let text: String = (0..1 + r.below(90)).map(|_| letters[r.below(letters.len())]).collect();
            let ids: Vec<u32> = bases(&text).into_iter().map(u32::from).collect();
            assert_eq!(ids, r50k_base_singleton().encode_ordinary(&text), "{text:?}");
        }
    }

    /// GPT-2: "Hello" 15496, " world" 995, "!" 0. First seen: Hello, world; "!" is the most frequent.
    #[test]
    fn order_ties_and_file_by_hand() {
        let t = Tokenizer::train_frequency(["Hello world!", "!"].into_iter(), 10).unwrap();
        assert_eq!(
            String::from_utf8(t.to_json()).unwrap(),
            "{\"vocab_size\": 10, \"id_to_base\": {\"4\": 0, \"5\": 15496, \"6\": 995}, \
             \"base_to_id\": {\"0\": 4, \"15496\": 5, \"995\": 6}}"
        );
        assert_eq!((t.vocab_size(), t.eos(), t.unk(), t.unk_bases()), (7, 3, Some(1), 50_254));
        assert_eq!(encode(&t, "Hello world world?"), [5, 6, 6, 1]);
        assert_eq!(t.decode(&[0, 1, 2, 3, 5, 6, 7, 65535]), b"Hello world");
        assert_eq!(t.token_bytes(6), b" world");
        let t = Tokenizer::train_frequency(["Hello world!", "!"].into_iter(), 6).unwrap();
        assert_eq!(encode(&t, "Hello world!"), [5, 1, 4]);
    }

    #[test]
    fn pieces_give_what_tiktoken_gives_for_the_whole() {
        let mut r = Random(3);
        let texts = odd_texts().into_iter().chain((0..2000).map(|_| random_text(&mut r)));
        for text in texts {
            let ids: Vec<u32> = bases(&text).into_iter().map(u32::from).collect();
            assert_eq!(ids, r50k_base_singleton().encode_ordinary(&text), "{text:?}");
        }
    }

    /// tiktoken's own `encode_ordinary` panics on this text.
    #[test]
    fn long_whitespace_before_a_word() {
        let text = "\n".repeat(2_000_000) + "x";
        let t = Tokenizer::train_frequency([text.as_str()].into_iter(), 100).unwrap();
        assert_eq!(t.decode(&encode(&t, &text)), text.as_bytes());
    }

    #[test]
    fn decode_of_encode_drops_the_unknown_only() {
        let trained = "Once upon a time, there was a little girl. 你好 😀\n\n";
        let t = Tokenizer::train_frequency([trained].into_iter(), 1000).unwrap();
        let mut r = Random(4);
        let mut unks = 0;
        for _ in 0..500 {
            let text = trained.to_owned() + &random_text(&mut r);
            let ids = encode(&t, &text);
            let mut kept = Vec::new();
            for (&id, base) in ids.iter().zip(r50k_base_singleton().encode_ordinary(&text)) {
                if id == UNK {
                    unks += 1;
                } else {
                    kept.extend(r50k_base_singleton().decode_bytes(&[base]).unwrap());
                }
            }
            assert_eq!(t.decode(&ids), kept);
        }
        assert!(unks > 500);
    }

    #[test]
    fn sizes_out_of_range_name_the_range() {
        for size in [0, 4, 50_262, 70_000] {
            let e = Tokenizer::train_frequency(["a"].into_iter(), size).unwrap_err();
            assert!(e.to_string().contains("5 to 50261"), "{e}");
        }
        assert!(Tokenizer::train_frequency(["a"].into_iter(), 50_261).is_ok());
        assert!(matches!(Tokenizer::train_frequency([].into_iter(), 100), Err(TokError::NoText { .. })));
    }

    #[test]
    fn wrong_files_are_refused() {
        let good = r#"{"base_to_id": {"7": 5, "9": 4}, "id_to_base": {"5": 7, "4": 9}, "vocab_size": 6}"#;
        assert!(Tokenizer::from_json(good.as_bytes()).is_ok());
        for (from, to, says) in [
            (r#""vocab_size": 6"#, r#""vocab_size": 5"#, "expected 6 to 50261"),
            (r#""vocab_size": 6"#, r#""vocab_size": 50262"#, "expected 6 to 50261"),
            (r#""vocab_size": 6"#, r#""vocab_size": -1"#, "not valid"),
            (r#", "vocab_size": 6"#, "", "vocab_size"),
            (r#""5": 7"#, r#""6": 7"#, "without gaps"),
            (r#""5": 7"#, r#""3": 7"#, "without gaps"),
            (r#""5": 7"#, r#""x": 7"#, "without gaps"),
            (r#""5": 7"#, r#""4": 7"#, "twice"),
            (r#""5": 7"#, r#""5": 9"#, "twice"),
            (r#""5": 7"#, r#""5": 50257"#, "expected 0 to 50256"),
            (r#""7": 5"#, r#""7": 4"#, "inverse"),
            (r#""7": 5"#, r#""8": 1"#, "inverse"),
            (r#""7": 5"#, r#""9": 4"#, "twice"),
            (r#""7": 5, "#, "", "equally many"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            let e = Tokenizer::from_json(bad.as_bytes()).unwrap_err().to_string();
            assert!(e.contains(says), "{bad}: {e}");
        }
    }

    #[test]
    fn original_file_is_rebuilt_byte_for_byte() {
        let Some(dir) = shared() else { return };
        let text = std::fs::read_to_string(dir.join("data/tinystories/train.txt")).unwrap();
        let original = std::fs::read(dir.join("fixtures/tokenizer/frequency_tokenizer.json")).unwrap();
        let built = Tokenizer::train_frequency(stories(&text).take(5000), 10_000).unwrap();
        assert!(built.to_json() == original);
        assert!(Tokenizer::from_json(&original).unwrap().to_json() == original);
    }

    #[test]
    fn original_cases() {
        let Some(dir) = shared() else { return };
        #[derive(Deserialize)]
        struct Case {
            text: String,
            gpt2: Vec<u16>,
            frequency: Vec<u16>,
            decoded: String,
        }
        let dir = dir.join("fixtures/tokenizer");
        let t = Tokenizer::load(&dir.join("frequency_tokenizer.json")).unwrap();
        let cases = std::fs::read(dir.join("cases.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
        assert!(!cases.is_empty());
        for c in cases {
            assert_eq!(bases(&c.text), c.gpt2, "{:?}", c.text);
            assert_eq!(encode(&t, &c.text), c.frequency, "{:?}", c.text);
            let decoded = t.decode(&c.frequency);
            assert_eq!(String::from_utf8_lossy(&decoded), c.decoded, "{:?}", c.text);
        }
    }
}
