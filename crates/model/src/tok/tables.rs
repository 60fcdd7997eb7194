//! A tokenizer as tables for programs that have none of our data: `export/c/text.c` reads them.
//!
//! ```text
//! kind: u32, 0 bytes, 1 bpe, 2 frequency | EOS: u32
//! bytes      the 256 bytes
//! others     end of each token's bytes: u32 | their bytes | twice (letters, numbers) the ranges of the class, their number and [first, last]: u32
//!   bpe         id of each byte: u16 | merges, their number: u32, then in the order of [right, left] as one u32 each: [right, left, result, rank]: u16
//!   frequency   GPT-2's tokens in the order of their bytes: number, bytes in all: u32 | id of each: u16 | own id of each: u16 |
//!               of each the bytes shared with the one before, the number of the rest: u8, the rest
//! ```
//!
//! All numbers are little-endian.

use super::tokenizer::{Kind, Tokenizer};
use super::{gpt2, split};

impl Tokenizer {
    /// The tables.
    pub(crate) fn to_tables(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let number = |all: &mut Vec<u8>, n: usize| all.extend((n as u32).to_le_bytes());
        let short = |all: &mut Vec<u8>, n: u16| all.extend(n.to_le_bytes());
        number(
            &mut all,
            ["bytes", "bpe", "frequency"].iter().position(|kind| *kind == self.kind()).unwrap_or_default(),
        );
        number(&mut all, self.eos().into());
        let ids = || 0..self.vocab_size() as u16;
        if let Kind::Bytes = &self.0 {
            all.extend(0..=u8::MAX);
            return all;
        }
        let mut end = 0;
        for id in ids() {
            end += self.token_bytes(id).len();
            number(&mut all, end);
        }
        ids().for_each(|id| all.extend(self.token_bytes(id)));
        for ranges in split::ranges() {
            number(&mut all, ranges.len());
            for &(first, last) in ranges {
                number(&mut all, first as usize);
                number(&mut all, last as usize);
            }
        }
        match &self.0 {
            Kind::Bpe(t) => {
                let (byte_ids, mut merges) = t.tables();
                byte_ids.iter().for_each(|&id| short(&mut all, id));
                merges.sort_unstable();
                number(&mut all, merges.len());
                merges.iter().for_each(|[left, right, both, rank]| {
                    [right, left, both, rank].into_iter().for_each(|&n| short(&mut all, n));
                });
            }
            Kind::Frequency(t) => {
                let mut bases: Vec<u16> = (0..gpt2::TOKENS as u16 - 1).collect();
                bases.sort_unstable_by_key(|&base| gpt2::token(base));
                number(&mut all, bases.len());
                number(&mut all, bases.iter().map(|&base| gpt2::token(base).len()).sum());
                bases.iter().for_each(|&base| short(&mut all, base));
                bases.iter().for_each(|&base| short(&mut all, t.id_of(base)));
                let mut before: &[u8] = &[];
                for token in bases.into_iter().map(gpt2::token) {
                    let shared = before.iter().zip(token).take_while(|(a, b)| a == b).count();
                    all.extend([shared as u8, (token.len() - shared) as u8]);
                    all.extend(&token[shared..]);
                    before = token;
                }
            }
            // Bytes have returned; the others are vocabularies of float models, which are not exported.
            Kind::Bytes | Kind::Gpt2 | Kind::Scored(_) => {}
        }
        all
    }
}
