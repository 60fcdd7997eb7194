//! Text to token ids and back, in one of three vocabularies.
//!
//! `frequency` is FlashLM v4's own (lossy: what it does not know becomes UNK), `bpe` is a byte-level BPE trained on the
//! user's text (lossless, a `tokenizer.json`), `bytes` is the 256 bytes (lossless). Each saves to one JSON file and is
//! recognised by its content. Ids are u16. Encoding adds no special tokens and takes all text as plain text, also
//! `<|endoftext|>`; decoding drops special ids. A `Tokenizer` never changes, so threads share one by reference.

mod bpe;
mod bytes;
mod compact;
mod frequency;
mod gpt2;
mod hash;
mod learn;
mod merge;
mod pieces;
mod split;
mod stream;
mod trainer;
mod words;

pub use stream::StreamDecoder;
pub use trainer::Trainer;

use crate::io::{IoError, LFS_POINTER, read_limited};
use bpe::Bpe;
use frequency::Frequency;
use merge::Scratch;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use std::{
    fmt,
    ops::{ControlFlow, RangeInclusive},
    path::{Path, PathBuf},
};
use words::Words;

/// Files above this are refused unread: the largest vocabulary takes about 4 MB.
const MAX_FILE: usize = 64 << 20;
/// Ids are u16 and 65535 stays free.
const MAX_VOCAB: usize = 65_535;
/// Longest token that a list of merges may make; no GPT-2 token is longer either.
pub(crate) const MAX_TOKEN: usize = 1 << 10;

/// What can be wrong with a tokenizer file or a request to train one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokError {
    /// The file could not be read.
    #[error(transparent)]
    Read(#[from] Box<IoError>),
    /// The file was read and is not a tokenizer we can use.
    #[error("tokenizer file {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: Box<TokError>,
    },
    /// Larger than any tokenizer.
    #[error("larger than {limit} bytes, so not a tokenizer file; name the tokenizer's JSON file")]
    TooLarge {
        /// Largest size that is read.
        limit: usize,
    },
    /// What git has in the place of a large file.
    #[error("a git LFS pointer, which stands for a file that is not here: fetch it with `git lfs pull`")]
    LfsPointer,
    /// Not JSON, or not the JSON of this kind.
    #[error("not valid {kind} JSON: {reason}; the file may be cut off or of another format")]
    Json {
        /// Kind of tokenizer expected.
        kind: &'static str,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// JSON, but of no kind that we know.
    #[error(
        "not a tokenizer: expected a FlashLM frequency vocabulary (id_to_base), a byte-level BPE \
         tokenizer.json (model) or {{\"kind\":\"bytes\"}}"
    )]
    UnknownKind,
    /// A tokenizer of another program, of a type that is not ours.
    #[error(
        "model type is {found}; expected BPE, byte-level: choose another tokenizer, or let one be trained \
         (`flashlm data prepare`)"
    )]
    Type {
        /// The type.
        found: String,
    },
    /// Of a known kind, but contradicts itself or uses something we do not support.
    #[error("{kind} tokenizer: {what}")]
    Invalid {
        /// Kind of tokenizer.
        kind: &'static str,
        /// What is wrong, found and expected.
        what: String,
    },
    /// No vocabulary of this size exists.
    #[error("vocabulary size {found} is not possible for a {kind} tokenizer: choose {min} to {max}")]
    VocabSize {
        /// Kind of tokenizer.
        kind: &'static str,
        /// Size asked for.
        found: usize,
        /// Smallest size.
        min: usize,
        /// Largest size.
        max: usize,
    },
    /// The stories held nothing to learn from.
    #[error("no text to train a {kind} tokenizer on: every story is empty, or there is none")]
    NoText {
        /// Kind of tokenizer.
        kind: &'static str,
    },
    /// The callback asked for it.
    #[error("stopped")]
    Stopped,
}

impl TokError {
    fn check_vocab_size(kind: &'static str, found: usize, range: RangeInclusive<usize>) -> Result<(), Self> {
        let (min, max) = range.into_inner();
        if (min..=max).contains(&found) {
            return Ok(());
        }
        Err(Self::VocabSize { kind, found, min, max })
    }
}

/// What tokenizer a JSON text is of, told by its keys alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// FlashLM v4's vocabulary.
    Frequency,
    /// A `tokenizer.json` of byte pairs.
    Bpe,
    /// The 256 bytes.
    Bytes,
    /// A `tokenizer.json` of another type, such as `Unigram`.
    Other(String),
}

impl FileKind {
    /// Reads the keys.
    pub fn of(json: &[u8]) -> Result<Self, TokError> {
        /// The keys that tell the kinds apart.
        #[derive(Deserialize)]
        struct Probe {
            kind: Option<String>,
            id_to_base: Option<IgnoredAny>,
            base_to_id: Option<IgnoredAny>,
            model: Option<Model>,
        }
        /// Older files do not name the type; what only one type has does, whatever its value.
        #[derive(Deserialize)]
        struct Model {
            r#type: Option<String>,
            #[serde(default, deserialize_with = "there")]
            unk_id: bool,
            #[serde(default, deserialize_with = "there")]
            max_input_chars_per_word: bool,
            #[serde(default, deserialize_with = "there")]
            unk_token: bool,
            #[serde(default, deserialize_with = "there")]
            merges: bool,
        }
        fn there<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
            IgnoredAny::deserialize(d).map(|_| true)
        }
        if json.len() > MAX_FILE {
            return Err(TokError::TooLarge { limit: MAX_FILE });
        }
        if json.starts_with(LFS_POINTER) {
            return Err(TokError::LfsPointer);
        }
        let probe: Probe = parse("tokenizer", json)?;
        if probe.kind.is_some_and(|kind| kind == "bytes") {
            return Ok(Self::Bytes);
        }
        if probe.id_to_base.is_some() || probe.base_to_id.is_some() {
            return Ok(Self::Frequency);
        }
        let model = probe.model.ok_or(TokError::UnknownKind)?;
        let by_key = match model {
            Model { unk_id: true, .. } => "Unigram",
            Model { max_input_chars_per_word: true, .. } => "WordPiece",
            Model { merges: false, unk_token: true, .. } => "WordLevel",
            _ => "BPE",
        };
        let found = model.r#type.unwrap_or(by_key.into());
        Ok(if found == "BPE" { Self::Bpe } else { Self::Other(found) })
    }
}

/// A vocabulary and the way from text to its ids and back.
pub struct Tokenizer(Kind);

enum Kind {
    Frequency(Frequency),
    Bpe(Bpe),
    Bytes,
}

impl Tokenizer {
    /// Bytes as ids, EOS 256.
    pub fn bytes() -> Self {
        Self(Kind::Bytes)
    }

    /// FlashLM v4's vocabulary, counted over `stories`: see [`Trainer::frequency`].
    ///
    /// The original takes the first 50,000 stories and strips newlines around each: so should the caller.
    pub fn train_frequency<'a>(stories: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<Self, TokError> {
        Self::train(Trainer::frequency(vocab_size)?, stories)
    }

    /// Byte-level BPE learned from `stories`: see [`Trainer::bpe`].
    pub fn train_bpe<'a>(stories: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<Self, TokError> {
        Self::train(Trainer::bpe(vocab_size)?, stories)
    }

    fn train<'a>(mut trainer: Trainer, stories: impl Iterator<Item = &'a str>) -> Result<Self, TokError> {
        stories.for_each(|story| trainer.add(story));
        trainer.finish(&mut |_| ControlFlow::Continue(()))
    }

    /// Reads a tokenizer file of any kind; at most 64 MiB are read.
    pub fn load(path: &Path) -> Result<Self, TokError> {
        let json = read_limited(path, MAX_FILE as u64).map_err(Box::new)?;
        Self::from_json(&json).map_err(|reason| TokError::File { path: path.into(), reason: reason.into() })
    }

    /// Reads what [`to_json`](Self::to_json) wrote, the original's frequency file, or a byte-level BPE `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokError> {
        match FileKind::of(json)? {
            FileKind::Bytes => Ok(Self::bytes()),
            FileKind::Frequency => Frequency::from_json(json).map(|t| Self(Kind::Frequency(t))),
            FileKind::Bpe => Bpe::from_json(json).map(|t| Self(Kind::Bpe(t))),
            FileKind::Other(found) => Err(TokError::Type { found }),
        }
    }

    /// The file's content; the same vocabulary always gives the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        match &self.0 {
            Kind::Frequency(t) => t.to_json(),
            Kind::Bpe(t) => t.to_json(),
            Kind::Bytes => bytes::JSON.into(),
        }
    }

    /// `"frequency"`, `"bpe"` or `"bytes"`.
    pub fn kind(&self) -> &'static str {
        match &self.0 {
            Kind::Frequency(_) => "frequency",
            Kind::Bpe(_) => "bpe",
            Kind::Bytes => "bytes",
        }
    }

    /// Number of ids, specials included: every id is below it.
    pub fn vocab_size(&self) -> usize {
        match &self.0 {
            Kind::Frequency(t) => t.vocab_size(),
            Kind::Bpe(t) => t.vocab_size(),
            Kind::Bytes => usize::from(bytes::EOS) + 1,
        }
    }

    /// The id between stories.
    pub fn eos(&self) -> u16 {
        match &self.0 {
            Kind::Frequency(_) => frequency::EOS,
            Kind::Bpe(t) => t.eos(),
            Kind::Bytes => bytes::EOS,
        }
    }

    /// The id of everything unknown; only a frequency vocabulary has one.
    pub fn unk(&self) -> Option<u16> {
        match &self.0 {
            Kind::Frequency(_) => Some(frequency::UNK),
            Kind::Bpe(_) | Kind::Bytes => None,
        }
    }

    /// How many of GPT-2's 50,257 base ids become UNK; 0 if lossless. An honest bits-per-byte adds `ln` of it for each UNK.
    pub fn unk_bases(&self) -> usize {
        match &self.0 {
            Kind::Frequency(t) => t.unk_bases(),
            Kind::Bpe(_) | Kind::Bytes => 0,
        }
    }

    /// Appends the ids of `text` to `out`, without special tokens.
    pub fn encode(&self, text: &str, out: &mut Vec<u16>) {
        let mut scratch = Scratch::default();
        let pieces = || split::split(text).map(str::as_bytes);
        match &self.0 {
            Kind::Frequency(t) => pieces().for_each(|piece| t.encode_piece(piece, &mut scratch, out)),
            Kind::Bpe(t) => pieces().for_each(|piece| t.encode_piece(piece, &mut scratch, out)),
            Kind::Bytes => bytes::encode(text, out),
        }
    }

    /// For much text: encodes as [`encode`](Self::encode) does, and remembers words.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder { tokenizer: self, words: Words::new(), scratch: Scratch::default() }
    }

    /// The bytes of `ids`; ids that are special or out of range are dropped. A cut sequence may not be whole UTF-8.
    pub fn decode(&self, ids: &[u16]) -> Vec<u8> {
        let bytes = ids.iter().flat_map(|&id| self.token_bytes(id));
        bytes.copied().collect()
    }

    /// The bytes that `id` stands for; none if special or out of range.
    pub fn token_bytes(&self, id: u16) -> &[u8] {
        match &self.0 {
            Kind::Frequency(t) => t.token_bytes(id),
            Kind::Bpe(t) => t.token_bytes(id),
            Kind::Bytes => bytes::token_bytes(id),
        }
    }

    /// FNV-1a (64 bits) of [`to_json`](Self::to_json), to tell whether tokens were made with this vocabulary.
    pub fn hash(&self) -> u64 {
        let json = self.to_json();
        json.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }
}

/// A tokenizer with a memory of words: a thread has its own.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    words: Words,
    scratch: Scratch,
}

impl Encoder<'_> {
    /// Appends the ids of `text` to `out`, without special tokens.
    pub fn encode(&mut self, text: &str, out: &mut Vec<u16>) {
        let Encoder { tokenizer, words, scratch } = self;
        match &tokenizer.0 {
            Kind::Frequency(t) => words.encode(text, out, |piece, out| t.encode_piece(piece, scratch, out)),
            Kind::Bpe(t) => words.encode(text, out, |piece, out| t.encode_piece(piece, scratch, out)),
            Kind::Bytes => bytes::encode(text, out),
        }
    }
}

/// A place in the text at or after the byte `from`, not its start, where it can be cut in two whose ids, in any vocabulary,
/// are those of the whole; none where no whitespace follows.
pub fn cut(text: &str, from: usize) -> Option<usize> {
    split::cut(text, from)
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({}, {} ids)", self.kind(), self.vocab_size())
    }
}

fn parse<'a, T: Deserialize<'a>>(kind: &'static str, json: &'a [u8]) -> Result<T, TokError> {
    serde_json::from_slice(json).map_err(|e| TokError::Json { kind, reason: e.to_string() })
}

/// A JSON object of integers in file order, doubled keys kept, so that they can be refused; of more than a vocabulary may have
/// only the number.
#[derive(Default)]
struct Pairs {
    list: Vec<(String, u64)>,
    len: usize,
}

impl FromIterator<(String, u64)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(pairs: I) -> Self {
        let list: Vec<(String, u64)> = pairs.into_iter().collect();
        Self { len: list.len(), list }
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Pairs::default();
                while pairs.list.len() < MAX_VOCAB
                    && let Some(pair) = map.next_entry()?
                {
                    pairs.list.push(pair);
                }
                pairs.len = pairs.list.len();
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    pairs.len += 1;
                }
                Ok(pairs)
            }
        }
        d.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod testing {
    use std::path::{Path, PathBuf};

    /// The folder `shared` beside the checkout; None (said on stderr) where there is none.
    pub fn shared() -> Option<PathBuf> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().skip(1);
        let found = match std::env::var_os("FLASHLM_SHARED") {
            Some(dir) => Some(dir.into()),
            None => beside.map(|d| d.join("shared")).find(|d| d.is_dir()),
        };
        if found.is_none() {
            assert!(std::env::var_os("CI").is_none(), "../shared is missing in CI");
            eprintln!("skipped: ../shared is not there");
        }
        found
    }

    pub fn stories(text: &str) -> impl Iterator<Item = &str> {
        text.split("<|endoftext|>").map(|s| s.trim_matches('\n'))
    }

    /// Xorshift.
    pub struct Random(pub u64);

    impl Random {
        pub fn below(&mut self, n: usize) -> usize {
            for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
                self.0 ^= if left { self.0 << shift } else { self.0 >> shift };
            }
            (self.0 >> 16) as usize % n
        }
    }

    /// Up to 40 characters or fragments from those that tokenizers get wrong, and from all of Unicode.
    pub fn random_text(r: &mut Random) -> String {
        const PARTS: [&str; 44] = [
            " ",
            " ",
            "  ",
            "\t",
            "\n",
            "\r\n",
            "\r",
            "\u{b}",
            "\u{85}",
            "\u{a0}",
            "\u{2003}",
            "\u{200b}",
            "\0",
            "\u{1c}",
            "\u{7f}",
            "'s",
            "'t",
            "'re",
            "'VE",
            "'ll",
            "'",
            "’",
            "a",
            "the",
            " girl",
            "Z",
            "é",
            "e\u{301}",
            "ß",
            "ǅ",
            "你",
            "好",
            "ひ",
            "ا",
            "नि",
            "7",
            "٣",
            "Ⅷ",
            "½",
            "!",
            "...",
            "😀",
            "👨\u{200d}👩",
            "<|endoftext|>",
        ];
        let mut text = String::new();
        for _ in 0..r.below(40) {
            if r.below(8) == 0 {
                text.extend(char::from_u32(r.below(0x11_0000) as u32));
            } else {
                text += PARTS[r.below(PARTS.len())];
            }
        }
        text
    }

    pub fn odd_texts() -> Vec<String> {
        let mut texts: Vec<String> = [
            "",
            " ",
            "   ",
            "  leading",
            "trailing  ",
            "\n\n\nx",
            "a\r\n\r\n b\r\n",
            "\u{feff}bom",
            "I'll don't we've 's 'S x's '",
            "<|endoftext|>a<|endoftext|>\n",
            "12345 3.14 ٣٤ Ⅷ½",
            "👨\u{200d}👩\u{200d}👧 🇫🇷 😀😀",
            "你好，世界。 ひらがな 한국어",
            "\0\u{1}\u{1b}[0m\u{7f}\u{80}\u{9f}",
            "“Ça va ?” — naïve e\u{301}\u{301} ǅ",
            "\u{10ffff}\u{e000}\u{fffd}",
        ]
        .map(String::from)
        .into();
        texts.push("ab ".repeat(300) + &"aaaa".repeat(100) + &" ".repeat(100));
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};
    use std::fs;

    fn one_of_each() -> Vec<Tokenizer> {
        let text = "Once upon a time there was a girl. The girl had a red ball and the ball was big. ";
        vec![
            Tokenizer::bytes(),
            Tokenizer::train_frequency([text].into_iter(), 30).unwrap(),
            Tokenizer::train_bpe([text].into_iter(), 300).unwrap(),
        ]
    }

    #[test]
    fn each_kind_is_recognised_and_read_back() {
        fn shared_by_threads<T: Send + Sync>(_: &T) {}
        for t in one_of_each() {
            shared_by_threads(&t);
            let back = Tokenizer::from_json(&t.to_json()).unwrap();
            assert_eq!((back.kind(), back.vocab_size()), (t.kind(), t.vocab_size()));
            assert_eq!((back.to_json(), back.hash()), (t.to_json(), t.hash()));
            let (mut a, mut b) = (Vec::new(), Vec::new());
            t.encode("a red girl, seen", &mut a);
            back.encode("a red girl, seen", &mut b);
            assert_eq!(a, b);
        }
        let kinds: Vec<_> = one_of_each().iter().map(Tokenizer::kind).collect();
        assert_eq!(kinds, ["bytes", "frequency", "bpe"]);
    }

    /// Words that crowd each other out of the table, and texts of all kinds, twice.
    #[test]
    fn an_encoder_gives_what_the_tokenizer_gives() {
        let mut r = Random(21);
        let mut texts: Vec<String> = odd_texts();
        texts.extend((0..2000).map(|_| random_text(&mut r)));
        texts.push((0..300_000u64).map(|i| format!("w{} ", i * i % 99_991)).collect());
        for t in one_of_each() {
            let mut encoder = t.encoder();
            for text in texts.iter().chain(&texts) {
                let (mut plain, mut fast) = (Vec::new(), Vec::new());
                t.encode(text, &mut plain);
                encoder.encode(text, &mut fast);
                assert!(plain == fast, "{} {:?}", t.kind(), &text[..text.len().min(100)]);
            }
        }
    }

    /// Cut files are errors; a changed byte is an error or another tokenizer, but never a panic.
    #[test]
    fn cut_and_changed_files_never_panic() {
        let mut r = Random(5);
        for t in one_of_each() {
            let json = t.to_json();
            for end in 0..json.len() {
                assert!(Tokenizer::from_json(&json[..end]).is_err());
            }
            for i in 0..json.len() {
                let byte = match r.below(3) {
                    0 => b'0' + r.below(10) as u8,
                    1 => r.below(256) as u8,
                    _ => json[i] ^ (1 << r.below(8)),
                };
                let mut changed = json.clone();
                changed[i] = byte;
                let Ok(t) = Tokenizer::from_json(&changed) else {
                    continue;
                };
                let mut ids = Vec::new();
                t.encode("Once upon the girl 😀", &mut ids);
                assert!(ids.iter().all(|&id| usize::from(id) < t.vocab_size()));
                t.decode(&ids);
                assert!(Tokenizer::from_json(&t.to_json()).is_ok());
            }
        }
    }

    #[test]
    fn what_is_no_tokenizer_is_refused() {
        for (bytes, says) in [
            (&b""[..], "not valid tokenizer JSON"),
            (b"\x89PNG\r\n\x1a\n\0\0", "not valid tokenizer JSON"),
            (b"{\"kind\":\"bytes\"", "not valid tokenizer JSON"),
            (b"{\"kind\":\"\xff\"}", "not valid tokenizer JSON"),
            (b"[1, 2]", "not valid tokenizer JSON"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
            (b"{}", "not a tokenizer"),
            (b"{\"kind\":\"words\"}", "not a tokenizer"),
            (b"{\"model\":{\"type\":\"WordLevel\",\"vocab\":{}}}", "type is WordLevel"),
            (b"{\"model\":{\"unk_id\":0,\"vocab\":[[\"a\",-1.5]]}}", "type is Unigram"),
            (b"{\"model\":{\"max_input_chars_per_word\":100,\"vocab\":{}}}", "type is WordPiece"),
        ] {
            let e = Tokenizer::from_json(bytes).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
        let deep = "[".repeat(1 << 20);
        assert!(Tokenizer::from_json(deep.as_bytes()).is_err());
        assert!(Tokenizer::from_json(format!("{{\"model\":{deep}").as_bytes()).is_err());
        let large = vec![b' '; MAX_FILE + 1];
        assert!(matches!(Tokenizer::from_json(&large), Err(TokError::TooLarge { .. })));
    }

    #[test]
    fn load_names_the_file() {
        let path = std::env::temp_dir().join(format!("flashlm-tok-{}.json", std::process::id()));
        let missing = Tokenizer::load(&path).unwrap_err().to_string();
        fs::write(&path, "{").unwrap();
        let cut = Tokenizer::load(&path).unwrap_err().to_string();
        fs::write(&path, Tokenizer::bytes().to_json()).unwrap();
        let good = Tokenizer::load(&path);
        fs::remove_file(&path).unwrap();
        for e in [missing, cut] {
            assert!(e.contains(path.to_str().unwrap()), "{e}");
        }
        assert_eq!(good.unwrap().kind(), "bytes");
        assert!(Tokenizer::load(&std::env::temp_dir()).is_err());
    }

    /// Published FNV-1a vectors are of other texts, so the definition is worked out here for the 16 bytes of the file.
    #[test]
    fn hash_is_fnv1a() {
        let mut h: u64 = 14_695_981_039_346_656_037;
        for b in *b"{\"kind\":\"bytes\"}" {
            h = ((u128::from(h ^ u64::from(b)) * 1_099_511_628_211) % (1 << 64)) as u64;
        }
        assert_eq!(Tokenizer::bytes().hash(), h);
    }
}
