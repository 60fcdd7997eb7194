//! Lossless byte-level BPE, as a Hugging Face `tokenizer.json`.
//!
//! GPT-2's regex splits the text into pieces, each piece starts as its bytes, and the adjacent pair whose merge was learned
//! first is merged until none is left (leftmost first among equals). A new vocabulary has EOS `<|endoftext|>` = 0, the 256
//! bytes = 1..=256 in the order of their printable stand-ins, then one id a merge.
//!
//! Split, training (`learn.rs`) and merging are our own, and equal to those of the crate `tokenizers` (tests): no regex, no
//! lock, no cache to warm. Encode and decode agree with Python `tokenizers` on the saved file, but for one thing: Python turns
//! `<|endoftext|>` inside a text into id 0, we spell it as plain text, as Python does with `encode_special_tokens = True`.

use super::error::{MAX_TOKEN, MAX_VOCAB, TokError};
use super::gpt2;
use super::hash::FastMap;
use super::json::{Pairs, parse};
use super::learn::{Learned, learn};
use super::merge::{Ranks, Scratch, merge};
use super::pieces::Pieces;
use serde::{Deserialize, de::IgnoredAny};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

const KIND: &str = "bpe";
const EOS: &str = "<|endoftext|>";

// ---- Bytes as printable characters ----------------------------------------------------------------------------------

fn char_of(b: u8) -> char {
    let stand_in = match b {
        33..=126 | 161..=172 | 174..=255 => u32::from(b),
        0..=32 => 256 + u32::from(b),
        127..=160 => 289 + u32::from(b - 127),
        173 => 323,
    };
    char::from_u32(stand_in).unwrap_or_default()
}

fn byte_of(c: char) -> Option<u8> {
    let b = match u32::from(c) {
        n @ (33..=126 | 161..=172 | 174..=255) => n,
        n @ 256..=288 => n - 256,
        n @ 289..=322 => n - 289 + 127,
        323 => 173,
        _ => return None,
    };
    u8::try_from(b).ok()
}

/// The stand-ins in the order in which training numbers them.
fn alphabet() -> [char; 256] {
    let mut chars = std::array::from_fn(|b| char_of(b as u8));
    chars.sort_unstable();
    chars
}

// ---- The file -------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct File {
    truncation: Option<IgnoredAny>,
    padding: Option<IgnoredAny>,
    added_tokens: Vec<Added>,
    normalizer: Option<Part>,
    pre_tokenizer: Option<Part>,
    post_processor: Option<Part>,
    decoder: Option<Part>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    special: bool,
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    add_prefix_space: Option<bool>,
    use_regex: Option<bool>,
}

#[derive(Default, Deserialize)]
struct Model {
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    ignore_merges: Option<bool>,
    byte_fallback: Option<bool>,
    vocab: Pairs,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

fn invalid(what: String) -> TokError {
    TokError::Invalid { kind: KIND, what }
}

fn too_many(tokens: usize) -> TokError {
    invalid(format!(
        "{tokens} tokens; expected at most {MAX_VOCAB}, since ids have 16 bits: choose a smaller vocabulary"
    ))
}

/// Refuses every setting that would make the file encode or decode unlike plain byte-level BPE.
fn check(file: &File) -> Result<(), TokError> {
    fn shown<T: ToString>(value: Option<T>) -> String {
        value.map_or("none".into(), |v| v.to_string())
    }
    fn kind(part: &Option<Part>) -> String {
        shown(part.as_ref().map(|p| &p.r#type))
    }
    let (pre, m) = (file.pre_tokenizer.as_ref(), &file.model);
    let spaces = || m.vocab.list.iter().any(|(token, _)| token.starts_with('▁'));
    if m.byte_fallback == Some(true) || spaces() {
        let what = "its tokens are characters, as SentencePiece makes them (`▁` for a space, byte_fallback)";
        return Err(invalid(format!("{what}; expected byte-level BPE, as of GPT-2")));
    }
    if m.vocab.len > MAX_VOCAB {
        return Err(too_many(m.vocab.len));
    }
    let prefix_space = pre.and_then(|p| p.add_prefix_space);
    let use_regex = pre.and_then(|p| p.use_regex);
    let some = |part: &Option<IgnoredAny>| shown(part.as_ref().map(|_| "set"));
    let affix = |affix: &Option<String>| shown(affix.as_ref().filter(|a| !a.is_empty()));
    let rows: [(_, String, &[&str]); 12] = [
        ("truncation", some(&file.truncation), &["none"]),
        ("padding", some(&file.padding), &["none"]),
        ("normalizer", kind(&file.normalizer), &["none"]),
        ("pre_tokenizer", kind(&file.pre_tokenizer), &["ByteLevel"]),
        ("pre_tokenizer add_prefix_space", shown(prefix_space), &["false"]),
        ("pre_tokenizer use_regex", shown(use_regex), &["true", "none"]),
        ("post_processor", kind(&file.post_processor), &["none", "ByteLevel"]),
        ("decoder", kind(&file.decoder), &["ByteLevel"]),
        ("model dropout", shown(m.dropout), &["none", "0"]),
        ("model continuing_subword_prefix", affix(&m.continuing_subword_prefix), &["none"]),
        ("model end_of_word_suffix", affix(&m.end_of_word_suffix), &["none"]),
        ("model ignore_merges", shown(m.ignore_merges), &["false", "none"]),
    ];
    for (what, found, expected) in rows {
        if !expected.contains(&found.as_str()) {
            let expected = expected.join(" or ");
            return Err(invalid(format!("{what} is {found}; expected {expected}")));
        }
    }
    Ok(())
}

// ---- The tokenizer --------------------------------------------------------------------------------------------------

pub(super) struct Bpe {
    eos: u16,
    specials: BTreeMap<u16, String>,
    /// Bytes of each id, empty for a special.
    tokens: Vec<Box<[u8]>>,
    /// Id of each single byte.
    byte_ids: Box<[u16; 256]>,
    /// Left and right of each merge, first learned first.
    merges: Vec<(u16, u16)>,
    /// Rank and result of merging a pair.
    ranks: Ranks,
    /// Pieces that come out as one token: most pieces of ordinary text.
    pieces: FastMap<Box<[u8]>, u16>,
}

impl Bpe {
    /// The vocabulary of counted pieces. The callback hears which share is done, and may stop it by breaking.
    pub(super) fn train(
        pieces: Pieces,
        vocab_size: usize,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, TokError> {
        let name = |bytes: &[u8]| bytes.iter().map(|&b| char_of(b)).collect::<String>();
        let alphabet = alphabet().into_iter().filter_map(byte_of).map(|byte| Box::from([byte]));
        let tokens = [Box::default()].into_iter().chain(alphabet).collect();
        let Learned { tokens, merges } = learn(pieces, tokens, vocab_size, progress)?;
        let mut names: Vec<String> = tokens.iter().map(|token| name(token)).collect();
        names[0] = EOS.into();
        // A pair that came to be again, after all of it was merged, has the rank of its last merge.
        let last: HashMap<[u16; 2], usize> = merges.iter().copied().zip(0..).collect();
        let merges = merges.iter().enumerate().filter(|&(rank, pair)| last[pair] == rank);
        let merges = merges.map(|(_, pair)| pair.map(|id| names[usize::from(id)].clone()));
        let merges = merges.map(|[left, right]| Merge::Pair(left, right)).collect();
        let model = Model { merges, vocab: names.into_iter().zip(0..).collect(), ..Model::default() };
        Self::new(model, BTreeMap::from([(0, EOS.into())]))
    }

    /// No vocabulary has fewer tokens than EOS and the bytes.
    pub(super) fn check_size(vocab_size: usize) -> Result<(), TokError> {
        TokError::check_vocab_size(KIND, vocab_size, 257..=MAX_VOCAB)
    }

    pub(super) fn from_json(json: &[u8]) -> Result<Self, TokError> {
        let file: File = parse(KIND, json)?;
        check(&file)?;
        let mut specials = BTreeMap::new();
        for token in file.added_tokens {
            if !token.special {
                let what = "is not special: it would change how text is split; expected special tokens only";
                return Err(invalid(format!("added token {:?} {what}", token.content)));
            }
            let Some(id) = u16::try_from(token.id).ok().filter(|id| usize::from(*id) < MAX_VOCAB) else {
                let what = format!("added token {:?} has id {}", token.content, token.id);
                return Err(invalid(format!("{what}; expected a vocabulary of at most {MAX_VOCAB} tokens")));
            };
            if let Some(other) = specials.insert(id, token.content) {
                return Err(invalid(format!("added token id {id} is given twice ({other:?})")));
            }
        }
        Self::new(file.model, specials)
    }

    fn new(model: Model, specials: BTreeMap<u16, String>) -> Result<Self, TokError> {
        let mut special_ids = HashMap::new();
        for (&id, content) in &specials {
            if special_ids.insert(content.as_str(), id).is_some() {
                return Err(invalid(format!("added token {content:?} is given twice")));
            }
        }
        let Some(&eos) = special_ids.get(EOS) else {
            return Err(invalid(format!("no special token {EOS:?}, which ends a document")));
        };
        let mut vocab = HashMap::new();
        for (token, id) in &model.vocab.list {
            if vocab.insert(token.as_str(), *id).is_some() {
                return Err(invalid(format!("token {token:?} is given twice")));
            }
        }
        for (content, &id) in &special_ids {
            if vocab.insert(content, id.into()).is_some_and(|v| v != u64::from(id)) {
                return Err(invalid(format!("special token {content:?} has two ids")));
            }
        }
        let n = vocab.len();
        if n > MAX_VOCAB {
            return Err(too_many(n));
        }
        let mut tokens: Vec<Option<Box<[u8]>>> = vec![None; n];
        for (token, &id) in &vocab {
            let place = usize::try_from(id).ok().and_then(|i| tokens.get_mut(i));
            let Some(place @ None) = place else {
                let what = format!("token {token:?} has id {id}; expected 0 to {} once each", n - 1);
                return Err(invalid(what));
            };
            let special = special_ids.contains_key(token);
            let bytes: Option<Box<[u8]>> = match special {
                true => Some(Box::default()),
                false => token.chars().map(byte_of).collect(),
            };
            let Some(bytes) = bytes.filter(|b| special || !b.is_empty()) else {
                return Err(invalid(format!("token {token:?} (id {id}) is not byte-level")));
            };
            *place = Some(bytes);
        }
        // As many places as tokens and none taken twice, so all are taken.
        let tokens: Vec<Box<[u8]>> = tokens.into_iter().flatten().collect();
        let id_of = |token: &str| {
            let id = vocab.get(token).filter(|_| !special_ids.contains_key(token));
            id.map(|&id| id as u16)
        };
        let mut byte_ids = Box::new([0; 256]);
        for b in 0..=255u8 {
            let Some(id) = id_of(char_of(b).encode_utf8(&mut [0; 4])) else {
                let what = "has no token; expected all 256, so that any text can be encoded";
                return Err(invalid(format!("byte {b} {what}")));
            };
            byte_ids[usize::from(b)] = id;
        }
        let mut merges = Vec::with_capacity(model.merges.len());
        let mut ranks = Ranks::default();
        for (rank, merge) in (0..).zip(&model.merges) {
            let parts = match merge {
                Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
                Merge::Joined(both) => both.split_once(' '),
            };
            let ids = parts.and_then(|(l, r)| Some((id_of(l)?, id_of(r)?, id_of(&format!("{l}{r}"))?)));
            let Some((left, right, both)) = ids else {
                let what = format!("merge {rank} does not join two tokens into a third: {parts:?}");
                return Err(invalid(what));
            };
            if ranks.insert(left, right, rank, both).is_some() {
                return Err(invalid(format!("merge {rank} is given twice: {parts:?}")));
            }
            merges.push((left, right));
        }
        let mut new = Self { eos, tokens, byte_ids, merges, ranks, pieces: FastMap::default(), specials };
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        for (token, id) in new.tokens.iter().zip(0..) {
            ids.clear();
            new.merge(token, &mut scratch, &mut ids);
            if ids == [id] {
                new.pieces.insert(token.clone(), id);
            }
        }
        Ok(new)
    }

    /// The form in which the crate itself would write it.
    pub(super) fn to_json(&self) -> Vec<u8> {
        // A JSON string; writing one into memory cannot fail.
        let quoted = |s: &str| serde_json::to_string(s).unwrap_or_default();
        let names = self.tokens.iter().zip(0..).map(|(bytes, id)| match self.specials.get(&id) {
            Some(content) => quoted(content),
            None => quoted(&bytes.iter().map(|&b| char_of(b)).collect::<String>()),
        });
        let names: Vec<String> = names.collect();
        let name = |id: u16| names[usize::from(id)].as_str();
        let rest = r#","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"#;
        let added =
            (self.specials.keys()).map(|&id| format!(r#"{{"id":{id},"content":{}{rest}"special":true}}"#, name(id)));
        let vocab = names.iter().zip(0u16..).map(|(name, id)| format!("{name}:{id}"));
        let merges = (self.merges.iter()).map(|&(l, r)| format!("[{},{}]", name(l), name(r)));
        let json = [
            r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":["#,
            &added.collect::<Vec<_>>().join(","),
            r#"],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false"#,
            r#","trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"#,
            r#""type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#,
            r#","model":{"type":"BPE","dropout":null,"unk_token":null"#,
            r#","continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false"#,
            r#","byte_fallback":false,"ignore_merges":false,"vocab":{"#,
            &vocab.collect::<Vec<_>>().join(","),
            r#"},"merges":["#,
            &merges.collect::<Vec<_>>().join(","),
            "]}}",
        ];
        json.concat().into_bytes()
    }

    /// The merges, where they alone tell the vocabulary: [`Bpe::from_merges`] gives the same.
    pub(super) fn own_merges(&self) -> Option<Vec<[u16; 2]>> {
        let merges: Vec<[u16; 2]> = self.merges.iter().map(|&(l, r)| [l, r]).collect();
        let again = Self::from_merges(&merges).ok()?;
        let same = again.tokens == self.tokens && again.merges == self.merges && again.specials == self.specials;
        same.then_some(merges)
    }

    /// EOS 0, the bytes 1 to 256, then the result of each merge, as training numbers them.
    pub(super) fn from_merges(merges: &[[u16; 2]]) -> Result<Self, TokError> {
        let bytes = alphabet().map(String::from);
        let mut tokens: Vec<String> = [EOS.into()].into_iter().chain(bytes).collect();
        let mut pairs = Vec::with_capacity(merges.len());
        for (rank, ids) in merges.iter().enumerate() {
            let [Some(left), Some(right)] = ids.map(|id| tokens.get(usize::from(id)).filter(|_| id > 0)) else {
                let what = format!("merge {rank} does not join two earlier tokens: {ids:?}");
                return Err(invalid(what));
            };
            if left.len() + right.len() > MAX_TOKEN {
                return Err(invalid(format!("merge {rank} makes a token longer than {MAX_TOKEN} bytes")));
            }
            let both = format!("{left}{right}");
            pairs.push(Merge::Pair(left.clone(), right.clone()));
            tokens.push(both);
        }
        let vocab = tokens.into_iter().zip(0..).collect();
        let model = Model { vocab, merges: pairs, ..Model::default() };
        Self::new(model, BTreeMap::from([(0, EOS.into())]))
    }

    /// Id of each byte; left, right, result and rank of each merge.
    pub(super) fn tables(&self) -> (&[u16; 256], Vec<[u16; 4]>) {
        let merge = |(rank, &(left, right)): (u16, &(u16, u16))| {
            let both = self.ranks.get(left, right).map_or(0, |(_, both)| both);
            [left, right, both, rank]
        };
        (&self.byte_ids, (0..).zip(&self.merges).map(merge).collect())
    }

    /// The bytes as ids 0 to 255, and no merges.
    pub(super) fn bytes(eos: u16) -> Result<Self, TokError> {
        let names = (0..=255).map(|byte| (char_of(byte).to_string(), u64::from(byte)));
        let vocab = names.chain([(EOS.into(), eos.into())]).collect();
        Self::new(Model { vocab, ..Model::default() }, BTreeMap::from([(eos, EOS.into())]))
    }

    /// GPT-2's: a token's merge joins the two that are left of its bytes after all merges before it.
    pub(super) fn gpt2() -> Result<Self, TokError> {
        let name = |bytes: &[u8]| bytes.iter().map(|&b| char_of(b)).collect::<String>();
        let mut ranks: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut model = Model::default();
        let mut vocab = Vec::new();
        for id in 0..gpt2::TOKENS - 1 {
            let bytes = gpt2::token(id as u16);
            let mut parts: Vec<&[u8]> = bytes.chunks(1).collect();
            while parts.len() > 2 {
                let joined = |i: usize| ranks.get(&[parts[i], parts[i + 1]].concat());
                let first = (0..parts.len() - 1).filter_map(|i| Some((joined(i)?, i))).min();
                let Some((_, i)) = first else { break };
                let at = parts[..i].iter().map(|part| part.len()).sum::<usize>();
                let len = parts[i].len() + parts[i + 1].len();
                parts.splice(i..i + 2, [&bytes[at..at + len]]);
            }
            if let [left, right] = parts[..] {
                model.merges.push(Merge::Pair(name(left), name(right)));
            }
            ranks.insert(bytes.to_vec(), id);
            vocab.push((name(bytes), id as u64));
        }
        let eos = gpt2::TOKENS as u16 - 1;
        model.vocab = vocab.into_iter().chain([(EOS.to_owned(), eos.into())]).collect();
        Self::new(model, BTreeMap::from([(eos, EOS.into())]))
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn eos(&self) -> u16 {
        self.eos
    }

    pub(super) fn token_bytes(&self, id: u16) -> &[u8] {
        self.tokens.get(usize::from(id)).map_or(&[], |b| b)
    }

    /// Appends the ids of one piece.
    pub(super) fn encode_piece(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u16>) {
        match self.pieces.get(piece) {
            Some(&id) => out.push(id),
            None => self.merge(piece, scratch, out),
        }
    }

    fn merge(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u16>) {
        merge(piece, &self.byte_ids, &self.ranks, scratch, out);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tok::{
        Tokenizer,
        split::split,
        testing::{Random, odd_texts, random_text, shared, stories},
    };
    use std::collections::HashSet;
    use tokenizers::{
        AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizer, PreTokenizerWrapper,
        TokenizerBuilder,
        models::bpe::{BPE, BpeTrainer},
        pre_tokenizers::byte_level::ByteLevel,
    };

    const TEXT: [&str; 4] = [
        "Once upon a time, there was a little girl. The little girl had a big, big ball.\n\n",
        "The ball was red; the girl wasn't sad... aaaa aaaaaa 你好 你好 😀😀",
        "",
        "<|endoftext|> x<|endoftext|>",
    ];

    fn small() -> Tokenizer {
        Tokenizer::train_bpe(TEXT.into_iter(), 330).unwrap()
    }

    fn encode(t: &Tokenizer, text: &str) -> Vec<u16> {
        let mut ids = Vec::new();
        t.encode(text, &mut ids);
        ids
    }

    /// The crate's own pipeline: its regex, its added-token handling, its training.
    pub fn trained_by_the_crate(stories: &[&str], vocab_size: usize) -> String {
        type Parts =
            TokenizerBuilder<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
        let mut t = Parts::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true).into()))
            .with_post_processor(None)
            .with_decoder(Some(ByteLevel::default().into()))
            .build()
            .unwrap();
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(EOS, true)])
            .build();
        t.train(&mut trainer, stories.iter()).unwrap();
        t.to_string(false).unwrap()
    }

    /// The crate's reading of our file, with special-looking text taken as plain text.
    fn in_the_crate(t: &Tokenizer) -> tokenizers::Tokenizer {
        let mut other = tokenizers::Tokenizer::from_bytes(t.to_json()).unwrap();
        other.set_encode_special_tokens(true);
        other
    }

    fn assert_encodes_alike(ours: &Tokenizer, other: &tokenizers::Tokenizer, text: &str) {
        let ids = encode(ours, text);
        let theirs = other.encode_fast(text, true).unwrap();
        let wide: Vec<u32> = ids.iter().map(|&id| id.into()).collect();
        assert_eq!(wide, theirs.get_ids(), "{text:?}");
        assert_eq!(other.decode(&wide, true).unwrap(), text);
        assert_eq!(ours.decode(&ids), text.as_bytes());
    }

    #[test]
    fn pieces_by_hand() {
        for (text, pieces) in [
            ("I'll  go\n\n now!!", &["I", "'ll", " ", " go", "\n\n", " now", "!!"][..]),
            ("\n\nx", &["\n", "\n", "x"]),
            (" 's 12ab ", &[" '", "s", " 12", "ab", " "]),
            ("a \t", &["a", " \t"]),
            ("\tb\u{a0}c", &["\t", "b", "\u{a0}", "c"]),
            ("", &[]),
        ] {
            assert_eq!(split(text).collect::<Vec<_>>(), pieces);
        }
    }

    /// Every character, alone between letters, digits and spaces, is split as by the crate's regex.
    #[test]
    fn every_character_splits_as_in_the_crate() {
        for start in (0..0x11_0000).step_by(0x800) {
            let mut text = String::new();
            for c in (start..start + 0x800).filter_map(char::from_u32) {
                text.extend(['a', c, 'b', '1', c, '2', '!', c, '!', ' ', c, ' ', ' ', c]);
            }
            let mut theirs = tokenizers::PreTokenizedString::from(text.as_str());
            ByteLevel::new(false, true, true).pre_tokenize(&mut theirs).unwrap();
            let theirs = theirs.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
            let theirs: Vec<&str> = theirs.iter().map(|(s, _, _)| *s).collect();
            let ours = split(&text).map(|p| p.bytes().map(char_of).collect::<String>());
            assert!(ours.eq(theirs), "block {start:x}");
        }
    }

    #[test]
    fn stand_ins_of_bytes() {
        let all: HashSet<char> = (0..=255).map(char_of).collect();
        assert_eq!(all, ByteLevel::alphabet().into_iter().collect());
        assert!((0..=255).all(|b| byte_of(char_of(b)) == Some(b)));
        assert_eq!((char_of(b' '), char_of(b'\n')), ('Ġ', 'Ċ'));
        assert_eq!((byte_of(' '), byte_of('\u{ad}'), byte_of('你')), (None, None, None));
    }

    #[test]
    fn training_equals_the_crate_and_does_not_depend_on_order() {
        for size in [257, 300, 5000] {
            let t = Tokenizer::train_bpe(TEXT.into_iter(), size).unwrap();
            let json = String::from_utf8(t.to_json()).unwrap();
            assert_eq!(json, trained_by_the_crate(&TEXT, size));
            for _ in 0..5 {
                let again = Tokenizer::train_bpe(TEXT.into_iter().rev(), size).unwrap();
                assert_eq!(again.hash(), t.hash());
            }
            assert_eq!((t.eos(), t.unk(), t.unk_bases()), (0, None, 0));
            let expected = 257..=size.min(400);
            assert!(expected.contains(&t.vocab_size()), "{}", t.vocab_size());
        }
    }

    #[test]
    fn encodes_and_decodes_as_the_crate_does() {
        let (ours, mut r) = (small(), Random(11));
        let other = in_the_crate(&ours);
        for text in odd_texts().into_iter().chain(TEXT.map(String::from)) {
            assert_encodes_alike(&ours, &other, &text);
        }
        for _ in 0..2000 {
            assert_encodes_alike(&ours, &other, &random_text(&mut r));
        }
    }

    /// Words of three letters only: merges overlap, and go stale, all the time.
    #[test]
    fn overlapping_merges_as_in_the_crate() {
        let mut r = Random(13);
        let mut words = |n: usize| -> String {
            let mut word = |_| " ".to_owned() + &"abcbaacab"[r.below(4)..][..1 + r.below(5)];
            (0..n).map(|i| word(i).repeat(1 + i % 2) + word(i).trim()).collect()
        };
        let trained = words(300);
        let ours = Tokenizer::train_bpe([trained.as_str()].into_iter(), 500).unwrap();
        let other = in_the_crate(&ours);
        for _ in 0..500 {
            let text = words(8).replace(' ', "") + &words(8);
            assert_encodes_alike(&ours, &other, &text);
        }
    }

    #[test]
    fn endoftext_in_a_text_is_plain_and_the_special_id_is_dropped() {
        let t = small();
        let ids = encode(&t, EOS);
        assert!(!ids.contains(&0) && t.decode(&ids) == EOS.as_bytes());
        assert!(t.decode(&[0, 60_000]).is_empty() && t.token_bytes(0).is_empty());
    }

    #[test]
    fn a_very_long_word_is_no_trap() {
        let (t, text) = (small(), "a".repeat(2_000_000) + &" ".repeat(2_000_000) + "x");
        assert_eq!(t.decode(&encode(&t, &text)), text.as_bytes());
    }

    #[test]
    fn sizes_out_of_range_name_the_range() {
        for size in [0, 256, 65_536, 70_000] {
            let e = Tokenizer::train_bpe(TEXT.into_iter(), size).unwrap_err();
            assert!(e.to_string().contains("257 to 65535"), "{e}");
        }
        let none = Tokenizer::train_bpe([].into_iter(), 1000).unwrap();
        assert_eq!(none.vocab_size(), 257);
    }

    /// 256 bytes, EOS and 65278 two-byte tokens fill all 65535 ids; one more token is one too many.
    #[test]
    fn the_largest_vocabulary() {
        let mut v: serde_json::Value = serde_json::from_slice(&small().to_json()).unwrap();
        let pairs = (0..=255u8).flat_map(|l| (0..=255u8).map(move |r| [l, r].map(char_of)));
        let pairs: Vec<_> = pairs.take(65_535 - 257).collect();
        let names = pairs.iter().map(|[l, r]| format!("{l}{r}"));
        let bytes = (0..=255).map(|b| char_of(b).to_string());
        let all = [EOS.to_owned()].into_iter().chain(bytes).chain(names);
        v["model"]["vocab"] = all.zip(0..).map(|(t, id): (_, u32)| (t, serde_json::Value::from(id))).collect();
        v["model"]["merges"] = pairs.iter().map(|p| p.map(String::from)).collect();
        let t = Tokenizer::from_json(v.to_string().as_bytes()).unwrap();
        assert_eq!(t.vocab_size(), 65_535);
        assert_eq!(encode(&t, "ab"), [257 + 256 * 0x61 + 0x62]);
        assert!(Tokenizer::from_json(&t.to_json()).unwrap().to_json() == t.to_json());
        v["model"]["vocab"]["abc"] = 65_535.into();
        let e = Tokenizer::from_json(v.to_string().as_bytes()).unwrap_err();
        assert!(e.to_string().contains("65536 tokens; expected at most 65535"), "{e}");
    }

    /// Told by what they are, whatever else is in them.
    #[test]
    fn tokenizers_of_other_kinds_are_told_by_their_kind() {
        let many: Vec<String> = (0..70_000).map(|id| format!("\"t{id}\":{id}")).collect();
        let bpe = |rest: &str| format!(r#"{{"added_tokens":[],"model":{{"type":"BPE","merges":[],{rest}}}}}"#);
        for (json, says) in [
            (r#"{"model":{"type":"Unigram","unk_id":0,"vocab":[["a",-1.5]]}}"#.to_string(), "model type is Unigram"),
            (r#"{"model":{"type":"WordPiece","vocab":{"a":0}}}"#.into(), "model type is WordPiece"),
            (r#"{"model":{"type":"WordLevel","vocab":{"a":0}}}"#.into(), "model type is WordLevel"),
            (r#"{"model":{"unk_id":null,"vocab":[["a",-1.5]]}}"#.into(), "model type is Unigram"),
            (
                r#"{"model":{"unk_token":"?","max_input_chars_per_word":9,"vocab":{}}}"#.into(),
                "model type is WordPiece",
            ),
            (r#"{"model":{"unk_token":"?","vocab":{"a":0}}}"#.into(), "model type is WordLevel"),
            (bpe(&format!(r#""vocab":{{{}}}"#, many.join(","))), "70000 tokens; expected at most 65535"),
            (bpe(r#""byte_fallback":true,"vocab":{"a":0}"#), "as SentencePiece makes them"),
            (bpe(r#""vocab":{"▁the":0}"#), "as SentencePiece makes them"),
        ] {
            let e = Tokenizer::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(e.contains(says) && !e.contains("cut off"), "{e}");
        }
    }

    /// The older spelling of merges, a special outside the vocabulary, GPT-2's post-processor.
    #[test]
    fn other_spellings_of_the_same_are_read() {
        let t = small();
        let mut v: serde_json::Value = serde_json::from_slice(&t.to_json()).unwrap();
        for merge in v["model"]["merges"].as_array_mut().unwrap() {
            *merge = format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()).into();
        }
        v["model"]["vocab"].as_object_mut().unwrap().remove(EOS);
        v["model"].as_object_mut().unwrap().remove("type");
        v["post_processor"] = v["decoder"].clone();
        let read = Tokenizer::from_json(v.to_string().as_bytes()).unwrap();
        assert!(read.to_json() == t.to_json());
    }

    #[test]
    fn wrong_files_are_refused() {
        use serde_json::{Value, json};
        let good: Value = serde_json::from_slice(&small().to_json()).unwrap();
        let split = json!({"type": "Split", "pattern": {"String": " "}});
        let special = good["added_tokens"][0].clone();
        let mut plain = special.clone();
        plain["special"] = false.into();
        for (pointer, value, says) in [
            ("/normalizer", json!({"type": "NFC"}), "normalizer is NFC"),
            ("/truncation", json!({"max_length": 9}), "truncation is set"),
            ("/padding", json!({}), "padding is set"),
            ("/pre_tokenizer", Value::Null, "pre_tokenizer is none"),
            ("/pre_tokenizer", split.clone(), "pre_tokenizer is Split"),
            ("/pre_tokenizer/add_prefix_space", true.into(), "add_prefix_space is true"),
            ("/pre_tokenizer/use_regex", false.into(), "use_regex"),
            ("/post_processor", json!({"type": "TemplateProcessing"}), "TemplateProcessing"),
            ("/decoder", json!({"type": "WordPiece"}), "decoder is WordPiece"),
            ("/model/type", "Unigram".into(), "type is Unigram"),
            ("/model/dropout", 0.1.into(), "dropout"),
            ("/model/end_of_word_suffix", "</w>".into(), "suffix"),
            ("/model/ignore_merges", true.into(), "ignore_merges"),
            ("/model/vocab/Ġ", 5.into(), "once each"),
            ("/model/vocab/Ġ", 99_999.into(), "once each"),
            ("/model/vocab/Ġ", (-1).into(), "not valid bpe JSON"),
            ("/model/vocab/<|endoftext|>", 3.into(), "two ids"),
            ("/model/merges/3", json!(["Ġ", "qqq"]), "merge 3"),
            ("/model/merges/3", good["model"]["merges"][2].clone(), "twice"),
            ("/model/merges/3", "nospace".into(), "merge 3"),
            ("/added_tokens", json!([]), "no special token"),
            ("/added_tokens", json!([special, special]), "is given twice"),
            ("/added_tokens", json!([plain]), "not special"),
            ("/added_tokens/0/id", 70_000.into(), "at most 65535 tokens"),
            ("/added_tokens/0/id", 65_535.into(), "at most 65535 tokens"),
            ("/added_tokens/0/id", (-1).into(), "not valid bpe JSON"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let e = Tokenizer::from_json(bad.to_string().as_bytes()).unwrap_err().to_string();
            assert!(e.contains(says), "{pointer}: {e}");
        }
        let text = good.to_string();
        for (from, to, says) in [
            ("\"Ġ\":", "\"!\":", "twice"),
            ("\"Ġ\":", "\"你\":", "not byte-level"),
            ("\"Ġ\":", "\"\":", "not byte-level"),
            ("\"Ġ\":", "\"zqzq\":", "byte 32 has no token"),
        ] {
            let e = Tokenizer::from_json(text.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(e.to_string().contains(says), "{to}: {e}");
        }
    }

    #[test]
    fn real_text_encodes_as_in_the_crate() {
        let Some(dir) = shared() else { return };
        let text = std::fs::read_to_string(dir.join("data/tinystories/train.txt")).unwrap();
        let all: Vec<&str> = stories(&text).take(1500).collect();
        let t = Tokenizer::train_bpe(all.iter().copied(), 2000).unwrap();
        assert_eq!(t.vocab_size(), 2000);
        assert!(String::from_utf8(t.to_json()).unwrap() == trained_by_the_crate(&all, 2000));
        let other = in_the_crate(&t);
        for story in stories(&text).skip(1000).take(1000) {
            assert_encodes_alike(&t, &other, story);
        }
    }
}
