//! The header of a token cache, in bytes.

use super::stale::{Stale, VERSION};
use crate::data::filter::Dropped;
use crate::data::split::Split;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

pub(crate) const MAGIC: [u8; 8] = *b"FLMTOKS\0";
/// Length of the header in bytes.
pub(in crate::data) const HEADER: usize = 192;
/// Where the hash of what is before it lies in the header.
const HASH: usize = HEADER - 8;

/// What a cache must have been made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expect {
    /// [`Tokenizer::hash`](flashlm_model::tok::Tokenizer::hash).
    pub tokenizer: u64,
    /// [`Source::fingerprint`](crate::data::source::Source::fingerprint).
    pub source: u64,
    /// The side of the split.
    pub split: Split,
}

/// The fixed part of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::data) struct Header {
    pub expect: Expect,
    pub vocab_size: u32,
    pub eos: u16,
    pub stories: u64,
    pub tokens: u64,
    pub bytes: u64,
    pub unk: u64,
    pub repaired: u64,
    pub dropped: Dropped,
    pub read: u64,
    pub read_bytes: u64,
    pub duplicates: u64,
    pub payload_hash: u64,
}

impl Header {
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| out[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(HEADER as u32).to_le_bytes());
        put(16, &self.expect.tokenizer.to_le_bytes());
        put(24, &self.expect.source.to_le_bytes());
        let (side, of) = self.expect.split.to_parts();
        put(32, &side.to_le_bytes());
        put(36, &self.vocab_size.to_le_bytes());
        put(40, &of.to_le_bytes());
        put(48, &self.stories.to_le_bytes());
        put(56, &self.tokens.to_le_bytes());
        put(64, &self.bytes.to_le_bytes());
        put(72, &self.unk.to_le_bytes());
        put(80, &self.repaired.to_le_bytes());
        put(88, &self.eos.to_le_bytes());
        let Dropped { score, short, long, hard } = self.dropped;
        for (i, count) in [score, short, long, hard].into_iter().enumerate() {
            put(92 + 4 * i, &u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        }
        put(112, &self.read.to_le_bytes());
        put(120, &self.read_bytes.to_le_bytes());
        put(128, &self.duplicates.to_le_bytes());
        put(176, &self.payload_hash.to_le_bytes());
        let hash = xxh3_64(&out[..HASH]);
        out[HASH..].copy_from_slice(&hash.to_le_bytes());
        out
    }

    pub fn from_bytes(file: &[u8]) -> Result<Header, Stale> {
        let damaged = |what: &str| Stale::Damaged(what.to_string());
        let short = || Stale::Damaged(format!("{} bytes, fewer than the {HEADER} of the header: cut off", file.len()));
        let version = file.get(8..12).map(|v| u32::from_le_bytes([v[0], v[1], v[2], v[3]])).ok_or_else(short)?;
        if file[..8] != MAGIC {
            return Err(damaged("it does not start like a token cache"));
        }
        // Before the rest of the header, which another version may have elsewhere.
        if version != VERSION {
            return Err(Stale::Version(version));
        }
        let (bytes, _) = file.split_first_chunk::<HEADER>().ok_or_else(short)?;
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if u64_at(HASH) != xxh3_64(&bytes[..HASH]) {
            return Err(damaged("the checksum of the header does not match"));
        }
        let unknown = || Stale::Damaged(format!("unknown split {}", u32_at(32)));
        let split = Split::from_parts((u32_at(32), u64_at(40))).ok_or_else(unknown)?;
        Ok(Header {
            expect: Expect { tokenizer: u64_at(16), source: u64_at(24), split },
            vocab_size: u32_at(36),
            eos: u16::from_le_bytes([bytes[88], bytes[89]]),
            stories: u64_at(48),
            tokens: u64_at(56),
            bytes: u64_at(64),
            unk: u64_at(72),
            repaired: u64_at(80),
            dropped: Dropped {
                score: u32_at(92).into(),
                short: u32_at(96).into(),
                long: u32_at(100).into(),
                hard: u32_at(104).into(),
            },
            read: u64_at(112),
            read_bytes: u64_at(120),
            duplicates: u64_at(128),
            payload_hash: u64_at(176),
        })
    }

    /// Where tokens and offsets lie in a file of `len` bytes; an error unless they fill it exactly.
    pub fn layout(&self, len: usize) -> Result<(Range<usize>, Range<usize>), Stale> {
        let layout = || {
            let tokens = usize::try_from(self.tokens).ok()?.checked_mul(2)?.checked_add(HEADER)?;
            let start = tokens.checked_next_multiple_of(8)?;
            let offsets = usize::try_from(self.stories).ok()?.checked_add(1)?.checked_mul(8)?;
            Some((HEADER..tokens, start..start.checked_add(offsets)?))
        };
        match layout() {
            Some((tokens, offsets)) if offsets.end == len => Ok((tokens, offsets)),
            Some((_, offsets)) => Err(Stale::Damaged(format!("{len} bytes, expected {}", offsets.end))),
            None => Err(Stale::Damaged("the header's counts are impossible".to_string())),
        }
    }
}
