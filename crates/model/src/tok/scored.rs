//! The vocabulary of llama2.c, `tokenizer.bin`: SentencePiece's byte pairs, each piece with a score.
//!
//! ```text
//! longest piece: u32 | per id: score f32, length i32, bytes             ids 0 unknown, 1 BOS, 2 EOS, 3.. the 256 bytes, pieces
//! ```
//!
//! A text gets a space in front, each character is a piece or else its bytes, and the neighbours whose piece has the highest score are
//! merged until none make a piece (leftmost first among equals). BOS stands between documents, so it is what other vocabularies
//! call EOS; the space in front of a document is dropped when it is written. Source: karpathy/llama2.c, `run.c`, `tokenizer.py`.

use super::error::{MAX_TOKEN, TokError};
use super::hash::FastMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const KIND: &str = "llama2.c";
/// Between documents.
pub(super) const BOS: u16 = 1;
/// The first of the 256 bytes.
const BYTES: u16 = 3;

/// Pieces with scores.
pub(super) struct Scored {
    pieces: Vec<Box<[u8]>>,
    scores: Vec<f32>,
    ids: FastMap<Box<[u8]>, u16>,
    file: Vec<u8>,
}

/// A score in the order of scores.
#[derive(PartialEq)]
struct Score(f32);

impl Eq for Score {}
impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A piece of the text being merged; linked by position.
struct Symbol {
    id: u16,
    prev: usize,
    next: usize,
    gone: bool,
}

const NONE: usize = usize::MAX;

fn invalid(what: String) -> TokError {
    TokError::Invalid { kind: KIND, what }
}

impl Scored {
    /// Reads a file of `vocab` pieces.
    pub(super) fn read(file: Vec<u8>, vocab: usize) -> Result<Self, TokError> {
        let cut = || invalid(format!("cut off; expected {vocab} pieces, like the model"));
        let least = usize::from(BYTES) + 256;
        if !(least..=super::error::MAX_VOCAB).contains(&vocab) {
            return Err(invalid(format!("{vocab} pieces; expected {least} to {}", super::error::MAX_VOCAB)));
        }
        let (_, mut rest) = file.split_first_chunk::<4>().ok_or_else(cut)?;
        let (mut pieces, mut scores, mut ids) = (Vec::new(), Vec::new(), FastMap::default());
        for id in 0..vocab {
            let (head, after) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
            let [a, b, c, d, length @ ..] = *head;
            let (score, length) = (f32::from_le_bytes([a, b, c, d]), i32::from_le_bytes(length));
            let length = usize::try_from(length).ok().filter(|&n| n <= MAX_TOKEN);
            let length = length.ok_or_else(|| invalid(format!("piece {id}: a length out of 0..={MAX_TOKEN}")))?;
            if score.is_nan() {
                return Err(invalid(format!("piece {id}: its score is not a number")));
            }
            let (piece, after) = after.split_at_checked(length).ok_or_else(cut)?;
            rest = after;
            let id = id as u16;
            ids.entry(piece.into()).or_insert(id);
            let bytes: &[u8] = match id {
                0..BYTES => &[],
                _ if usize::from(id) < least => &[(id - BYTES) as u8],
                _ => piece,
            };
            pieces.push(bytes.into());
            scores.push(score);
        }
        if !rest.is_empty() {
            return Err(invalid(format!("more than {vocab} pieces, the number of the model")));
        }
        Ok(Scored { pieces, scores, ids, file })
    }

    pub(super) fn file(&self) -> &[u8] {
        &self.file
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn token_bytes(&self, id: u16) -> &[u8] {
        self.pieces.get(usize::from(id)).map_or(&[], |piece| piece)
    }

    fn merged(&self, symbols: &[Symbol], left: usize) -> Option<u16> {
        let right = symbols[left].next;
        if right == NONE {
            return None;
        }
        let both = [symbols[left].id, symbols[right].id];
        // A byte is written as <0x0A> in the file, which makes no longer piece.
        if both.iter().any(|&id| id < BYTES + 256) {
            return None;
        }
        self.ids.get(&both.map(|id| self.token_bytes(id)).concat()[..]).copied()
    }

    pub(super) fn encode(&self, text: &str, out: &mut Vec<u16>) {
        if text.is_empty() {
            return;
        }
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len() + 1);
        let mut push = |id| {
            let at = symbols.len();
            symbols.push(Symbol { id, prev: at.checked_sub(1).unwrap_or(NONE), next: at + 1, gone: false });
        };
        let mut buffer = [0; 4];
        for c in std::iter::once(' ').chain(text.chars()) {
            let bytes = c.encode_utf8(&mut buffer).as_bytes();
            match self.ids.get(bytes) {
                Some(&id) => push(id),
                None => bytes.iter().for_each(|&byte| push(BYTES + u16::from(byte))),
            }
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut heap = BinaryHeap::new();
        let propose = |symbols: &[Symbol], heap: &mut BinaryHeap<_>, left: usize| {
            if let Some(id) = self.merged(symbols, left) {
                heap.push((Score(self.scores[usize::from(id)]), Reverse(left), id));
            }
        };
        (0..symbols.len()).for_each(|left| propose(&symbols, &mut heap, left));
        while let Some((_, Reverse(left), id)) = heap.pop() {
            // A merge nearby may have changed the pair since it was proposed.
            if symbols[left].gone || self.merged(&symbols, left) != Some(id) {
                continue;
            }
            let right = symbols[left].next;
            let next = symbols[right].next;
            symbols[right].gone = true;
            (symbols[left].id, symbols[left].next) = (id, next);
            if next != NONE {
                symbols[next].prev = left;
            }
            propose(&symbols, &mut heap, left);
            if symbols[left].prev != NONE {
                propose(&symbols, &mut heap, symbols[left].prev);
            }
        }
        out.extend(symbols.iter().filter(|symbol| !symbol.gone).map(|symbol| symbol.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tok::Tokenizer;

    fn file(extra: &[(&str, f32)]) -> Vec<u8> {
        let mut file = 9u32.to_le_bytes().to_vec();
        let mut add = |piece: &[u8], score: f32| {
            file.extend(score.to_le_bytes());
            file.extend((piece.len() as i32).to_le_bytes());
            file.extend(piece);
        };
        ["<unk>", "<s>", "</s>"].iter().for_each(|piece| add(piece.as_bytes(), 0.0));
        (0..256).for_each(|byte| add(format!("<0x{byte:02X}>").as_bytes(), 0.0));
        extra.iter().for_each(|(piece, score)| add(piece.as_bytes(), *score));
        file
    }

    /// As `run.c` does it: all pairs are looked at again after each merge, the first of the best is merged.
    fn plain(t: &Scored, text: &str) -> Vec<u16> {
        let mut ids = Vec::new();
        for c in format!(" {text}").chars() {
            match t.ids.get(c.to_string().as_bytes()) {
                Some(&id) => ids.push(id),
                None => ids.extend(c.to_string().bytes().map(|byte| BYTES + u16::from(byte))),
            }
        }
        loop {
            let mut best: Option<(f32, usize, u16)> = None;
            for (i, pair) in ids.windows(2).enumerate() {
                if pair.iter().any(|&id| id < BYTES + 256) {
                    continue;
                }
                let joined = [t.token_bytes(pair[0]), t.token_bytes(pair[1])].concat();
                if let Some(&id) = t.ids.get(&joined[..])
                    && best.is_none_or(|(score, ..)| t.scores[usize::from(id)] > score)
                {
                    best = Some((t.scores[usize::from(id)], i, id));
                }
            }
            let Some((_, at, id)) = best else { return ids };
            ids.splice(at..at + 2, [id]);
        }
    }

    #[test]
    fn merging_is_that_of_the_plain_loop() {
        let pieces = [
            (" ", -1.0),
            ("a", -2.0),
            ("b", -3.0),
            ("ab", -0.5),
            ("ba", -0.25),
            ("aba", -4.0),
            (" a", -0.5),
            ("bb", -0.5),
        ];
        let t = Scored::read(file(&pieces), 259 + pieces.len()).unwrap();
        let mut seed = 1u32;
        for length in (0..40).chain([200]) {
            let text: String = (0..length)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ['a', 'b', ' ', '\u{e9}', 'a', 'b'][(seed >> 24) as usize % 6]
                })
                .collect();
            let mut ids = Vec::new();
            t.encode(&text, &mut ids);
            let expected = if text.is_empty() { Vec::new() } else { plain(&t, &text) };
            assert_eq!(ids, expected, "{text:?}");
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| t.token_bytes(id)).copied().collect();
            assert_eq!(bytes, if text.is_empty() { Vec::new() } else { format!(" {text}").into_bytes() });
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let whole = file(&[("a", 0.0)]);
        assert!(Tokenizer::scored(whole.clone(), 260).is_ok());
        for (bytes, vocab, says) in [
            (whole[..whole.len() - 1].to_vec(), 260, "cut off"),
            (whole.clone(), 259, "more than 259"),
            (whole.clone(), 261, "cut off"),
            (whole.clone(), 9, "expected 259 to"),
            ([&[0; 8][..], &[0xff; 4], &whole[12..]].concat(), 260, "length out of"),
            ([&[0xff; 8][..], &whole[8..]].concat(), 260, "not a number"),
        ] {
            let error = Tokenizer::scored(bytes, vocab).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
