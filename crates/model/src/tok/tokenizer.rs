//! A vocabulary of any kind.

use std::fmt;
use std::path::Path;

use super::bpe::Bpe;
use super::error::{MAX_FILE, TokError};
use super::frequency::Frequency;
use super::kind::FileKind;
use super::merge::Scratch;
use super::scored::{self, Scored};
use super::words::Words;
use super::{bytes, frequency, gpt2, split};
use crate::io::read_limited;

/// A vocabulary and the way from text to its ids and back.
pub struct Tokenizer(pub(super) Kind);

pub(super) enum Kind {
    Frequency(Frequency),
    Bpe(Bpe),
    Bytes,
    Gpt2,
    Scored(Scored),
}

impl Tokenizer {
    /// Bytes as ids, EOS 256.
    pub fn bytes() -> Self {
        Self(Kind::Bytes)
    }

    /// GPT-2's 50,257 tokens, those of GPT-Neo too.
    pub fn gpt2() -> Self {
        Self(Kind::Gpt2)
    }

    /// Reads a `tokenizer.bin` of llama2.c, of as many pieces as its model has.
    pub fn scored(file: Vec<u8>, vocab: usize) -> Result<Self, TokError> {
        Scored::read(file, vocab).map(|t| Self(Kind::Scored(t)))
    }

    /// Whether a text is encoded with a space in front, which is dropped where a document begins.
    pub fn adds_space(&self) -> bool {
        matches!(self.0, Kind::Scored(_))
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
            FileKind::Gpt2 => Ok(Self::gpt2()),
            FileKind::Frequency => Frequency::from_json(json).map(|t| Self(Kind::Frequency(t))),
            FileKind::Bpe => Bpe::from_json(json).map(|t| Self(Kind::Bpe(t))),
            FileKind::Other(found) => Err(TokError::Type { found }),
        }
    }

    /// The file's content, or what stands for it; the same vocabulary always gives the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        match &self.0 {
            Kind::Frequency(t) => t.to_json(),
            Kind::Bpe(t) => t.to_json(),
            Kind::Bytes => bytes::JSON.into(),
            Kind::Gpt2 => b"{\"kind\":\"gpt2\"}".into(),
            Kind::Scored(t) => t.file().into(),
        }
    }

    /// The `tokenizer.json` of byte pairs that says how a text is split, and our id of each of its tokens where that is another; none of
    /// vocabularies of float models.
    pub fn to_pairs(&self) -> Option<(Vec<u8>, Vec<u16>)> {
        match &self.0 {
            Kind::Frequency(t) => Some((Bpe::gpt2().ok()?.to_json(), t.ids().to_vec())),
            _ => Some((self.to_bpe_json()?, Vec::new())),
        }
    }

    /// The same ids as a byte-level BPE `tokenizer.json`, which other programs read; only byte-level pairs and bytes have that form.
    pub fn to_bpe_json(&self) -> Option<Vec<u8>> {
        match &self.0 {
            Kind::Frequency(_) | Kind::Gpt2 | Kind::Scored(_) => None,
            Kind::Bpe(t) => Some(t.to_json()),
            Kind::Bytes => Bpe::bytes(bytes::EOS).ok().map(|t| t.to_json()),
        }
    }

    /// `"frequency"`, `"bpe"`, `"bytes"`, `"gpt2"` or `"llama2.c"`.
    pub fn kind(&self) -> &'static str {
        match &self.0 {
            Kind::Frequency(_) => "frequency",
            Kind::Bpe(_) => "bpe",
            Kind::Bytes => "bytes",
            Kind::Gpt2 => "gpt2",
            Kind::Scored(_) => "llama2.c",
        }
    }

    /// Number of ids, specials included: every id is below it.
    pub fn vocab_size(&self) -> usize {
        match &self.0 {
            Kind::Frequency(t) => t.vocab_size(),
            Kind::Bpe(t) => t.vocab_size(),
            Kind::Bytes => usize::from(bytes::EOS) + 1,
            Kind::Gpt2 => gpt2::TOKENS,
            Kind::Scored(t) => t.vocab_size(),
        }
    }

    /// The id between documents.
    pub fn eos(&self) -> u16 {
        match &self.0 {
            Kind::Frequency(_) => frequency::EOS,
            Kind::Bpe(t) => t.eos(),
            Kind::Bytes => bytes::EOS,
            Kind::Gpt2 => gpt2::TOKENS as u16 - 1,
            Kind::Scored(_) => scored::BOS,
        }
    }

    /// The id of everything unknown; only a frequency vocabulary has one.
    pub fn unk(&self) -> Option<u16> {
        match &self.0 {
            Kind::Frequency(_) => Some(frequency::UNK),
            _ => None,
        }
    }

    /// How many of GPT-2's 50,257 base ids become UNK; 0 if lossless. An honest bits-per-byte adds `ln` of it for each UNK.
    pub fn unk_bases(&self) -> usize {
        match &self.0 {
            Kind::Frequency(t) => t.unk_bases(),
            _ => 0,
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
            Kind::Gpt2 => pieces().for_each(|piece| gpt2::encode(piece, &mut scratch, out)),
            Kind::Scored(t) => t.encode(text, out),
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
            // Its last is <|endoftext|>.
            Kind::Gpt2 if usize::from(id) + 1 < gpt2::TOKENS => gpt2::token(id),
            Kind::Gpt2 => &[],
            Kind::Scored(t) => t.token_bytes(id),
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
            Kind::Gpt2 => words.encode(text, out, |piece, out| gpt2::encode(piece, scratch, out)),
            Kind::Scored(t) => t.encode(text, out),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tok::testing::*;
    use std::fs;

    fn one_of_each() -> Vec<Tokenizer> {
        let text = "Once upon a time there was a girl. The girl had a red ball and the ball was big. ";
        vec![
            Tokenizer::bytes(),
            Tokenizer::gpt2(),
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
        assert_eq!(kinds, ["bytes", "gpt2", "frequency", "bpe"]);
    }

    #[test]
    fn bytes_are_byte_pairs_without_pairs() {
        let bytes = Tokenizer::bytes();
        let pairs = Tokenizer::from_json(&bytes.to_bpe_json().unwrap()).unwrap();
        assert_eq!((pairs.kind(), pairs.eos(), pairs.vocab_size()), ("bpe", 256, 257));
        for text in odd_texts() {
            let (mut want, mut got) = (Vec::new(), Vec::new());
            bytes.encode(&text, &mut want);
            pairs.encode(&text, &mut got);
            assert_eq!(got, want);
        }
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
