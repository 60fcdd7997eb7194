//! A model of another program with its tokenizer, and the running of it.
//!
//! A sequence keeps keys and values of at most `context` tokens. Where it gets longer, it starts again from the last half of them: a
//! token then sees at least half a context before it, and positions stay those that the model was trained with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flashlm_kernels::ops::exact_log_sum_exp;
use flashlm_kernels::{Exec, Token};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::error::PeerError;
use super::family::{Family, Sizes};
use super::gpt_neo::{self, GptNeo};
use super::layer::Cache;
use super::llama::{self, Llama};
use super::llama2c;
use crate::codes::format::digest;
use crate::infer::Scored;
use crate::infer::written::mute;
use crate::io::safetensors::TensorFile;
use crate::io::torch::TorchFile;
use crate::io::{map_limited, read_limited};
use crate::tok::{MAX_FILE, Tokenizer};

/// Longest file of llama2.c.
const MAX_BIN: u64 = 8 << 30;
/// Longest `config.json`.
const MAX_CONFIG: u64 = 1 << 20;
/// Tokens that are worked through at once.
const ROWS: usize = 256;
/// The settings in a model folder.
pub const CONFIG: &str = "config.json";

/// A float model of another program.
pub struct Peer {
    family: Box<dyn Family>,
    kind: &'static str,
    path: PathBuf,
    tokenizer: Option<Tokenizer>,
    /// Tokens of no text; none without a tokenizer.
    pub(super) mute: Vec<Token>,
    parameters: usize,
    file_bytes: u64,
    digest: String,
}

/// Which architecture a folder's config names.
#[derive(Deserialize)]
struct Probe {
    model_type: String,
}

/// The architecture that a `config.json` names.
pub fn model_type(config: &Path) -> Option<String> {
    let bytes = read_limited(config, MAX_CONFIG).ok()?;
    serde_json::from_slice::<Probe>(&bytes).ok().map(|probe| probe.model_type.chars().take(40).collect())
}

/// The architectures whose folders can be run.
pub const TYPES: [&str; 2] = ["llama", "gpt_neo"];

impl Peer {
    /// A folder with `config.json` and weights, or a file of llama2.c; with its tokenizer.
    pub fn open(cx: &Exec, path: &Path) -> Result<Peer, PeerError> {
        let mut peer = Self::weights(cx, path)?;
        let tokenizer = peer.find_tokenizer()?;
        peer.digest = digest(&peer.digest, &tokenizer.hash().to_le_bytes());
        peer.mute = mute(&tokenizer, peer.vocab_size());
        peer.tokenizer = Some(tokenizer);
        Ok(peer)
    }

    /// The same without a tokenizer.
    pub fn weights(cx: &Exec, path: &Path) -> Result<Peer, PeerError> {
        let new = |family: Box<dyn Family>, kind, parameters, (digest, file_bytes): (String, usize)| Peer {
            family,
            kind,
            path: path.to_owned(),
            tokenizer: None,
            mute: Vec::new(),
            parameters,
            file_bytes: file_bytes as u64,
            digest,
        };
        if !path.is_dir() {
            let bytes = map_limited(path, MAX_BIN)?;
            let (config, file) = llama2c::read(&bytes, path)?;
            let parameters = numbers(&file, config.tie_word_embeddings)?;
            let about = (digest("llama2.c", &bytes), bytes.len());
            return Ok(new(Box::new(Llama::read(cx, &config, path, &file)?), "Llama (llama2.c)", parameters, about));
        }
        let at = path.join(CONFIG);
        let json = read_limited(&at, MAX_CONFIG)?;
        let bad = |e: serde_json::Error| PeerError::Json { path: at.clone(), found: e.to_string() };
        let found: Probe = serde_json::from_slice(&json).map_err(bad)?;
        let (file, length) = tensors(path)?;
        let about = (digest(&String::from_utf8_lossy(&json), file.data()), length);
        match found.model_type.as_str() {
            "llama" => {
                let config: llama::Config = serde_json::from_slice(&json).map_err(bad)?;
                let parameters = numbers(&file, config.tie_word_embeddings)?;
                Ok(new(Box::new(Llama::read(cx, &config, &at, &file)?), "Llama", parameters, about))
            }
            "gpt_neo" => {
                let config: gpt_neo::Config = serde_json::from_slice(&json).map_err(bad)?;
                let parameters = numbers(&file, config.is_tied())?;
                Ok(new(Box::new(GptNeo::read(cx, &config, &at, &file)?), "GPT-Neo", parameters, about))
            }
            kind => Err(super::config::other(&at, "model_type", &TYPES.join(" or "), kind)),
        }
    }

    /// The tokenizer beside the weights: `tokenizer.json`, or of llama2.c `tokenizer.bin` or `tok512.bin`, 512 its pieces. A GPT-Neo
    /// of 50,257 tokens has GPT-2's.
    fn find_tokenizer(&self) -> Result<Tokenizer, PeerError> {
        let folder = if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(Path::new("")) };
        let vocab = self.vocab_size();
        let read = |path: PathBuf, scored: bool| {
            let bytes = read_limited(&path, MAX_FILE as u64)?;
            let tokenizer = if scored { Tokenizer::scored(bytes, vocab) } else { Tokenizer::from_json(&bytes) };
            let tokenizer = tokenizer.map_err(|source| PeerError::Tokenizer { path: path.clone(), source })?;
            match tokenizer.vocab_size() {
                found if found > vocab => Err(PeerError::Vocabulary { path, expected: vocab, found }),
                _ => Ok(tokenizer),
            }
        };
        let json = folder.join("tokenizer.json");
        if self.path.is_dir() && json.exists() {
            return read(json, false);
        }
        for name in ["tokenizer.bin".to_string(), format!("tok{vocab}.bin")] {
            if folder.join(&name).exists() {
                return read(folder.join(name), true);
            }
        }
        let pieces = folder.join("tokenizer.model");
        if self.path.is_dir() && pieces.exists() {
            return Err(PeerError::SentencePiece { path: pieces });
        }
        let gpt2 = Tokenizer::gpt2();
        if self.kind == "GPT-Neo" && vocab == gpt2.vocab_size() {
            return Ok(gpt2);
        }
        let expected = if self.path.is_dir() { "tokenizer.json or tokenizer.bin" } else { "tokenizer.bin" };
        Err(PeerError::NoTokenizer { path: folder.to_owned(), expected })
    }

    /// As in "Llama".
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokenizer, where one was asked for.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Tokens of its vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.family.sizes().vocab
    }

    /// Most tokens that it sees at once.
    pub fn context(&self) -> usize {
        self.family.sizes().context
    }

    /// Width and number of blocks.
    pub fn shape(&self) -> (usize, usize) {
        (self.family.sizes().dim, self.family.sizes().blocks)
    }

    /// Numbers in its file, a tied head counted once.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Bytes of the weights on disk.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// XXH3-64 of its settings, numbers and tokenizer, as 16 hexadecimal digits: what tells one model from another.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// A sequence of no tokens yet.
    pub fn sequence(self: &Arc<Self>) -> Sequence {
        let Sizes { blocks, kv, .. } = self.family.sizes();
        Sequence { peer: self.clone(), cache: Cache::new(blocks, kv) }
    }
}

/// Numbers of all tensors that were trained; a tied head is the embedding once more.
fn numbers(file: &TensorFile, tied: bool) -> Result<usize, PeerError> {
    let trained = |name: &&String| !(is_buffer(name) || tied && *name == "lm_head.weight");
    let count = |name: &String| Ok(file.shape(name)?.iter().fold(1usize, |all, &n| all.saturating_mul(n)));
    file.names().iter().filter(trained).map(count).sum()
}

/// Whether a tensor is the mask of an attention or the speeds of rotary positions, which older files hold beside the weights.
fn is_buffer(name: &str) -> bool {
    [".attn.attention.bias", ".attn.attention.masked_bias", ".rotary_emb.inv_freq"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// The weights in a folder and the bytes of their file; the buffers of attention masks are left out.
fn tensors(folder: &Path) -> Result<(TensorFile, usize), PeerError> {
    let (safe, torch) = (folder.join("model.safetensors"), folder.join("pytorch_model.bin"));
    if safe.exists() {
        let file = TensorFile::open(&safe)?;
        let length = file.file_bytes();
        return Ok((file, length));
    }
    if !torch.exists() {
        for name in ["model.safetensors.index.json", "pytorch_model.bin.index.json"] {
            if folder.join(name).exists() {
                return Err(PeerError::Sharded { path: folder.join(name) });
            }
        }
        return Err(PeerError::NoWeights { path: folder.to_owned() });
    }
    let file = TorchFile::open(&torch)?;
    // A tied head is the embedding once more.
    let root = file.root();
    let is_embedding = |name: &str| {
        let tables = ["transformer.wte.weight", "model.embed_tokens.weight"];
        root.get(name).is_some_and(|head| tables.iter().any(|table| head.is_of(root.get(table))))
    };
    let wanted = |name: &str| !is_buffer(name) && (name != "lm_head.weight" || !is_embedding(name));
    let tensors = file.root().to_tensors(wanted, &BTreeMap::new())?;
    Ok((tensors, file.file_bytes()))
}

/// The tokens of one text, and what the blocks keep of them. Numbers are the same bits however the tokens come, at once or in pieces.
#[derive(Clone)]
pub struct Sequence {
    peer: Arc<Peer>,
    cache: Cache,
}

impl Sequence {
    /// The model.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// What it keeps, in bytes.
    pub fn bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Appends tokens, which must be of the vocabulary.
    pub fn read(&mut self, cx: &Exec, tokens: &[Token]) {
        self.parts(cx, tokens, |_, _| {});
    }

    /// Appends tokens, which must be of the vocabulary; `see` gets the logits `[n, V]` of each part of them, in order.
    pub fn feed(&mut self, cx: &Exec, tokens: &[Token], mut see: impl FnMut(Vec<f32>)) {
        self.parts(cx, tokens, |peer, rows| see(peer.family.head().of(cx, rows)));
    }

    /// The same with the normed rows.
    fn parts(&mut self, cx: &Exec, tokens: &[Token], mut see: impl FnMut(&Peer, &[f32])) {
        let context = self.peer.context();
        let mut rest = tokens;
        while !rest.is_empty() {
            if self.cache.tokens.len() == context {
                let again = self.cache.tokens.split_off(context - context / 2);
                self.cache.clear();
                again.chunks(ROWS).for_each(|part| drop(self.rows(cx, part)));
            }
            let (part, after) = rest.split_at(rest.len().min(ROWS).min(context - self.cache.tokens.len()));
            let rows = self.rows(cx, part);
            see(&self.peer, &rows);
            rest = after;
        }
    }

    fn rows(&mut self, cx: &Exec, tokens: &[Token]) -> Vec<f32> {
        let first = self.cache.tokens.len();
        self.cache.tokens.extend_from_slice(tokens);
        self.peer.family.forward(cx, tokens, first, &mut self.cache)
    }

    /// Appends to `out` `ln p` of each target after the token beside it.
    pub fn log_probs(&mut self, cx: &Exec, tokens: &[Token], targets: &[Token], out: &mut Vec<f64>) {
        self.after_each(cx, tokens, targets, |z, sum, target| out.push(f64::from(z[usize::from(target)]) - sum));
    }

    /// The same with the `top` likeliest tokens at each place.
    pub fn score(&mut self, cx: &Exec, tokens: &[Token], targets: &[Token], top: usize, out: &mut Vec<Scored>) {
        self.after_each(cx, tokens, targets, |z, sum, target| {
            let mut scored = Scored::default();
            scored.set(z, sum, target, top);
            out.push(scored);
        });
    }

    /// Appends the tokens and tells, after each, the logits, their `ln sum exp` and the target.
    fn after_each(&mut self, cx: &Exec, tokens: &[Token], targets: &[Token], mut told: impl FnMut(&[f32], f64, Token)) {
        let (v, mut targets) = (self.peer.vocab_size(), targets.iter());
        self.feed(cx, tokens, |logits| {
            for (z, &target) in logits.chunks_exact(v).zip(&mut targets) {
                told(z, exact_log_sum_exp(cx, z), target);
            }
        });
    }
}
