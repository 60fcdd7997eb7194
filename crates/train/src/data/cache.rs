//! The token cache: every document of one side of a source as `u16` tokens, memory-mapped.
//!
//! File, little-endian: header of 192 bytes (field offsets in `Header::to_bytes`), `tokens` x u16 (each document
//! followed by EOS), zeros up to a multiple of 8, `stories + 1` x u64 (the token at which each document starts, and
//! the end). The header carries an XXH3 of itself and one of everything behind it; both are verified at open, as
//! are all lengths, offsets and token ids, so that whatever a `TokenCache` gives can be used as an index.

mod format;
mod stale;

use super::DataError;
use super::filter::Dropped;
use super::source::Source;
use crate::units::{counted, thousands};
use flashlm_kernels::map::{Map, as_u16};
use flashlm_model::tok::Tokenizer;
pub use format::Expect;
pub(crate) use format::MAGIC;
pub(super) use format::{HEADER, Header};
pub use stale::Stale;
use std::env;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// What is looked at before its memory is let go, in bytes or tokens.
const PASS: usize = 16 << 20;

/// The folder for caches: `$FLASHLM_CACHE` if set, else `~/.cache/flashlm`, else `.cache/flashlm` right here.
pub fn default_dir() -> PathBuf {
    match env::var_os("FLASHLM_CACHE").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => env::home_dir().unwrap_or_default().join(".cache").join("flashlm"),
    }
}

/// `<dir>/<name of the source>-<hash>.tok`, the hash being of where the source is, the side of the split, and the kind and
/// size of the tokenizer: a source that has changed keeps its file, which is then rebuilt for that reason.
pub fn cache_path(dir: &Path, source: &Source, tokenizer: &Tokenizer) -> PathBuf {
    let mut hash = Xxh3::new();
    hash.update(source.place().as_bytes());
    hash.update(tokenizer.kind().as_bytes());
    let (side, of) = source.split().to_parts();
    for word in [tokenizer.vocab_size() as u64, side.into(), of] {
        hash.update(&word.to_le_bytes());
    }
    dir.join(format!("{}-{:016x}.tok", source.name(), hash.digest()))
}

/// What the cache of a source must have been made from, as both are now.
pub fn expected(source: &Source, tokenizer: &Tokenizer) -> Result<Expect, DataError> {
    Ok(Expect { tokenizer: tokenizer.hash(), source: source.fingerprint()?, split: source.split() })
}

/// Sizes of a source, all sides of its split together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Documents.
    pub stories: u64,
    /// UTF-8 bytes of those.
    pub bytes: u64,
}

/// An open, verified cache file.
#[derive(Debug)]
pub struct TokenCache {
    map: Map,
    header: Header,
    tokens: Range<usize>,
    offsets: Range<usize>,
}

impl TokenCache {
    /// Opens and verifies the file, which must be made from what is expected.
    pub fn open(path: &Path, expect: &Expect) -> Result<TokenCache, DataError> {
        let stale = |reason| DataError::Cache { path: path.to_path_buf(), reason };
        let map = match Map::open(path) {
            Ok(map) => map,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(stale(Stale::Missing)),
            Err(e) => return Err(DataError::io("open", path, e)),
        };
        TokenCache::verify(map, expect).map_err(stale)
    }

    /// Opens and verifies the file, whatever it was made from.
    pub fn inspect(path: &Path) -> Result<TokenCache, DataError> {
        let map = Map::open(path).map_err(|e| DataError::io("open", path, e))?;
        let made_from = Header::from_bytes(&map).map(|header| header.expect);
        let cache = made_from.and_then(|expect| TokenCache::verify(map, &expect));
        cache.map_err(|reason| DataError::Cache { path: path.to_path_buf(), reason })
    }

    fn verify(map: Map, expect: &Expect) -> Result<TokenCache, Stale> {
        let header = Header::from_bytes(&map)?;
        let (tokens, offsets) = header.layout(map.len())?;
        if header.expect.source != expect.source {
            return Err(Stale::Source);
        }
        if header.expect.tokenizer != expect.tokenizer {
            return Err(Stale::Tokenizer);
        }
        if header.expect.split != expect.split {
            return Err(Stale::Split);
        }
        let mut hash = Xxh3::new();
        for start in (HEADER..map.len()).step_by(PASS) {
            let part = start..map.len().min(start + PASS);
            hash.update(&map[part.clone()]);
            map.release(part);
        }
        if hash.digest() != header.payload_hash {
            return Err(Stale::Damaged("the checksum of the tokens does not match".to_string()));
        }
        let cache = TokenCache { map, header, tokens, offsets };
        // A checksum can be forged; what follows cannot be gone around.
        let damaged = |what: &str| Err(Stale::Damaged(what.to_string()));
        let ids = cache.tokens();
        if cache.header.tokens != ids.len() as u64 {
            return damaged("the tokens are not aligned");
        }
        let release = |tokens: Range<usize>| cache.map.release(HEADER + 2 * tokens.start..HEADER + 2 * tokens.end);
        for (i, part) in ids.chunks(PASS).enumerate() {
            if part.iter().fold(0, |max, id| max.max(*id)) as u32 >= cache.header.vocab_size {
                return damaged("a token is outside the vocabulary");
            }
            release(i * PASS..(i + 1) * PASS);
        }
        let (mut start, mut released) = (0, 0);
        if cache.offset(0) != 0 {
            return damaged("the first document does not start at token 0");
        }
        for i in 0..cache.stories() {
            let end = cache.offset(i + 1);
            if end <= start || end > ids.len() || ids[end - 1] != cache.header.eos {
                return Err(Stale::Damaged(format!("document {i} does not end with EOS at token {end}")));
            }
            start = end;
            if start - released > PASS {
                release(released..start);
                released = start;
            }
        }
        if start != ids.len() {
            return damaged("there are tokens after the last document");
        }
        Ok(cache)
    }

    /// All tokens, each document followed by EOS.
    pub fn tokens(&self) -> &[u16] {
        as_u16(&self.map[self.tokens.clone()]).unwrap_or_default()
    }

    /// The tokens of document `i`, EOS included. Panics if there are not that many.
    pub fn story(&self, i: usize) -> &[u16] {
        assert!(i < self.stories(), "story {i} of {}", self.stories());
        &self.tokens()[self.offset(i)..self.offset(i + 1)]
    }

    /// Tokens of document `i`, EOS included. Panics if there are not that many.
    pub fn story_len(&self, i: usize) -> usize {
        assert!(i < self.stories(), "story {i} of {}", self.stories());
        self.offset(i + 1) - self.offset(i)
    }

    /// The token that ends every document.
    pub fn eos(&self) -> u16 {
        self.header.eos
    }

    /// Number of documents.
    pub fn stories(&self) -> usize {
        self.offsets.len() / 8 - 1
    }

    /// UTF-8 bytes of the documents' text.
    pub fn bytes(&self) -> u64 {
        self.header.bytes
    }

    /// How many tokens are UNK.
    pub fn unk(&self) -> u64 {
        self.header.unk
    }

    /// Mojibake sequences that were repaired in the whole source.
    pub fn repaired(&self) -> u64 {
        self.header.repaired
    }

    /// Documents of the whole source that its filter dropped.
    pub fn dropped(&self) -> Dropped {
        self.header.dropped
    }

    /// Documents of the whole source that its filter kept, and their bytes: of all sides of the split.
    pub fn read(&self) -> Whole {
        Whole { stories: self.header.read, bytes: self.header.read_bytes }
    }

    /// Documents that were left out as those of the validation text.
    pub fn duplicates(&self) -> u64 {
        self.header.duplicates
    }

    /// Size of the vocabulary; every token is below.
    pub fn vocab_size(&self) -> usize {
        self.header.vocab_size as usize
    }

    /// A hash of the tokens and of where documents end: the same for the same text, wherever it lies.
    pub fn content(&self) -> u64 {
        self.header.payload_hash
    }

    /// What the cache was made from.
    pub fn made_from(&self) -> Expect {
        self.header.expect
    }

    fn offset(&self, i: usize) -> usize {
        let at = self.offsets.start + 8 * i;
        u64::from_le_bytes(std::array::from_fn(|j| self.map[at + j])) as usize
    }
}

impl fmt::Display for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = &self.header;
        let per_token = h.bytes as f64 / h.tokens.max(1) as f64;
        let stories = counted(h.stories, "document");
        write!(
            f,
            "{stories}, {} tokens, {} bytes ({per_token:.3} per token)",
            thousands(h.tokens),
            thousands(h.bytes)
        )?;
        if h.unk > 0 {
            let coverage = 100.0 * (1.0 - h.unk as f64 / (h.tokens - h.stories).max(1) as f64);
            write!(f, ", {} UNK (coverage {coverage:.3} %)", h.unk)?;
        }
        if h.dropped.total() > 0 {
            write!(f, ", {} dropped by the filter", counted(h.dropped.total(), "document"))?;
        }
        if h.duplicates > 0 {
            write!(f, ", {} left out because the validation text has them", counted(h.duplicates, "document"))?;
        }
        if h.repaired > 0 {
            write!(f, ", {} repaired", counted(h.repaired, "mojibake sequence"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::build;
    use crate::data::split::Split;
    use crate::data::testing::{Folder, collect, keep_on, large, open_or_build, source};
    use std::fs;
    use xxhash_rust::xxh3::xxh3_64;

    #[test]
    fn holds_every_story_of_its_side_in_order() {
        let folder = Folder::new();
        let (source, tokenizer) = (large(), Tokenizer::bytes());
        let stories = collect(&source);
        let mut sides = 0;
        for split in [Split::All, Split::Train(0.1), Split::Valid(0.1)] {
            let path = folder.path().join("deep/er").join(format!("{}.tok", split.to_parts().0));
            let (cache, reason) = open_or_build(&path, &source, split, 2);
            assert_eq!(reason, Some(Stale::Missing));
            let expected: Vec<&String> = stories.iter().filter(|s| !split.take(s, 0).is_empty()).collect();
            assert!(expected.len() > 100);
            assert_eq!(cache.stories(), expected.len());
            assert_eq!(cache.bytes(), expected.iter().map(|s| s.len() as u64).sum::<u64>());
            for (i, story) in expected.iter().enumerate() {
                let (last, text) = cache.story(i).split_last().unwrap();
                assert_eq!(*last, tokenizer.eos());
                assert_eq!(tokenizer.decode(text), story.as_bytes());
            }
            let joined: Vec<u16> = (0..cache.stories()).flat_map(|i| cache.story(i)).copied().collect();
            assert_eq!(cache.tokens(), joined);
            assert_eq!(cache.tokens().len() as u64, cache.bytes() + expected.len() as u64);
            sides += if split == Split::All { 0 } else { cache.stories() };
        }
        assert_eq!(sides, stories.len());
    }

    #[test]
    fn the_same_stories_in_other_wrapping_give_the_same_tokens() {
        let folder = Folder::new();
        let stories = ["One.\n\nTwo.", "“Three,” she said.", "Itâ€™s four."];
        let plain = source(&folder, "a.txt", &stories);
        let jsonl: String = stories.iter().map(|s| serde_json::json!({"text": s}).to_string() + "\n").collect();
        let zst = folder.file("a.jsonl.zst", zstd::encode_all(jsonl.as_bytes(), 0).unwrap());
        folder.file("set/1.jsonl", &jsonl[..jsonl.find('\n').unwrap()]);
        source(&folder, "set/2.txt", &stories[1..]);
        let tokens = |source: &Source, name: &str| {
            let (cache, _) = open_or_build(&folder.path().join(name), source, Split::All, 2);
            assert_eq!((cache.stories(), cache.repaired()), (3, 1));
            cache.tokens().to_vec()
        };
        let expected = tokens(&plain, "plain.tok");
        assert_eq!(tokens(&Source::parse(zst.to_str().unwrap()).unwrap(), "zst.tok"), expected);
        let set = folder.path().join("set");
        assert_eq!(tokens(&Source::parse(set.to_str().unwrap()).unwrap(), "set.tok"), expected);
    }

    #[test]
    fn reused_until_something_changes_and_then_says_what() {
        let folder = Folder::new();
        let path = folder.path().join("a.tok");
        let one = source(&folder, "a.txt", &["abc", "de"]);
        let reason = |source: &Source, tokenizer: &Tokenizer, split| {
            let source = source.clone().with_split(split);
            let opened = build::open_or_build(&path, &source, tokenizer, 1, &mut keep_on).unwrap();
            opened.built.map(|built| built.reason)
        };
        let bytes = Tokenizer::bytes();
        assert_eq!(reason(&one, &bytes, Split::All), Some(Stale::Missing));
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(reason(&one, &bytes, Split::All), None);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        let two = source(&folder, "a.txt", &["abc", "de", "f"]);
        assert_eq!(reason(&two, &bytes, Split::All).unwrap().to_string(), "the source changed");
        assert_eq!(reason(&two, &bytes, Split::Train(0.0)).unwrap().to_string(), "the split changed");
        assert_eq!(reason(&two, &bytes, Split::Train(1e-9)).unwrap().to_string(), "the split changed");
        let frequency = Tokenizer::train_frequency(["abc de f"].into_iter(), 300).unwrap();
        assert_eq!(reason(&two, &frequency, Split::Train(1e-9)).unwrap().to_string(), "the tokenizer changed");
        let mut file = fs::read(&path).unwrap();
        file[8] = 9;
        fs::write(&path, &file).unwrap();
        assert_eq!(reason(&two, &frequency, Split::All).unwrap().to_string(), "version 9, expected 2");
        fs::write(&path, b"").unwrap();
        let damaged = reason(&two, &frequency, Split::All).unwrap().to_string();
        assert!(damaged.starts_with("the file is damaged: 0 bytes"), "{damaged}");
        assert_eq!(reason(&two, &frequency, Split::All), None);
    }

    #[test]
    fn every_altered_or_missing_byte_is_noticed() {
        let folder = Folder::new();
        let path = folder.path().join("a.tok");
        let source = source(&folder, "a.txt", &["abc", "de"]);
        open_or_build(&path, &source, Split::All, 1);
        let expect = expected(&source, &Tokenizer::bytes()).unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), 192 + 16 + 3 * 8, "4 + 3 tokens, padding, 3 offsets");
        for i in 0..whole.len() {
            let mut altered = whole.clone();
            altered[i] ^= 0x10;
            fs::write(&path, &altered).unwrap();
            let error = TokenCache::open(&path, &expect).unwrap_err();
            assert!(matches!(error, DataError::Cache { reason: Stale::Damaged(_) | Stale::Version(_), .. }), "{i}");
            fs::write(&path, &whole[..i]).unwrap();
            let error = TokenCache::open(&path, &expect).unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains("flashlm data prepare"), "{i}: {error}");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(TokenCache::open(&path, &expect).is_err());
        fs::write(&path, &whole).unwrap();
        assert!(TokenCache::open(&path, &expect).is_ok());
    }

    #[test]
    fn forged_files_with_right_checksums_are_refused() {
        let folder = Folder::new();
        let path = folder.path().join("a.tok");
        let source = source(&folder, "a.txt", &["abc", "de"]);
        let (cache, _) = open_or_build(&path, &source, Split::All, 1);
        let (header, expect) = (cache.header, cache.header.expect);
        let payload = fs::read(&path).unwrap()[HEADER..].to_vec();
        let open = |header: Header, payload: &[u8]| {
            let header = Header { payload_hash: xxh3_64(payload), ..header };
            fs::write(&path, [&header.to_bytes(), payload].concat()).unwrap();
            TokenCache::open(&path, &expect)
        };
        assert!(open(header, &payload).is_ok());
        for big in [u64::MAX, u64::MAX / 2, 1 << 61, 8, 0] {
            assert!(open(Header { tokens: big, ..header }, &payload).is_err());
            assert!(open(Header { stories: big, ..header }, &payload).is_err());
        }
        for (at, byte, word) in [
            (1, 1, "vocabulary"), // 97 becomes 256 + 97
            (7, 0, "document 0"), // the first EOS, 256, becomes 0
            (16, 1, "start at token 0"),
            (24, 0, "document 0"),   // empty
            (24, 9, "document 0"),   // beyond the tokens
            (31, 255, "document 0"), // far beyond
            (32, 6, "document 1"),
        ] {
            let mut payload = payload.clone();
            payload[at] = byte;
            let error = open(header, &payload).unwrap_err().to_string();
            assert!(error.contains(word), "{at}: {error}");
        }
        let one = Header { stories: 1, ..header };
        assert!(open(one, &payload[..32]).unwrap_err().to_string().contains("after the last"));
    }

    #[test]
    fn unknown_tokens_are_counted() {
        let folder = Folder::new();
        let tokenizer = Tokenizer::train_frequency(["aaaa aaaa"].into_iter(), 100).unwrap();
        let source = source(&folder, "a.txt", &["aaaa", "zzzz qqq", "aaaa zzzz"]);
        let path = folder.path().join("a.tok");
        let build::Opened { cache, .. } = build::open_or_build(&path, &source, &tokenizer, 1, &mut keep_on).unwrap();
        let unk = cache.tokens().iter().filter(|id| Some(**id) == tokenizer.unk()).count() as u64;
        assert!(unk > 0);
        assert_eq!(cache.unk(), unk);
    }

    #[test]
    fn paths_name_the_source_and_tell_everything_apart() {
        let folder = Folder::new();
        let (one, two) = (source(&folder, "a.txt", &["x"]), source(&folder, "b/a.txt", &["yy"]));
        let frequency = Tokenizer::train_frequency(["abc"].into_iter(), 300).unwrap();
        let mut paths = Vec::new();
        for source in [&one, &two] {
            for tokenizer in [&Tokenizer::bytes(), &frequency] {
                for split in [Split::All, Split::Train(0.1), Split::Valid(0.1), Split::Valid(0.2)] {
                    paths.push(cache_path(folder.path(), &source.clone().with_split(split), tokenizer));
                }
            }
        }
        let name = paths[0].file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("a-") && name.ends_with(".tok") && name.len() == 2 + 16 + 4, "{name}");
        assert_eq!(paths[0], cache_path(folder.path(), &one, &Tokenizer::bytes()));
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 16);
    }
}
