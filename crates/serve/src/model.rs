//! A model that is served: its name, its weights, and a name for each of its tokens.

use std::collections::HashSet;
use std::sync::Arc;

use flashlm_kernels::Token;
use flashlm_model::sample::{SampleError, Sampler, Settings};
use flashlm_model::tok::Tokenizer;
use flashlm_model::{PackedModel, Peer};

/// How EOS is written where tokens are named.
pub const EOS: &str = "<|endoftext|>";

/// The weights of a model that is served.
pub enum Weights {
    /// Of FlashLM, packed.
    Packed(Arc<PackedModel>),
    /// Of another program, in float.
    Float(Arc<Peer>),
}

/// A model that is served.
pub struct Served {
    pub(crate) name: String,
    pub(crate) weights: Weights,
    /// No two are the same: clients make keys of them.
    pub(crate) names: Vec<String>,
}

impl Served {
    /// `name` is what clients call it. A model of another program must have been opened with its tokenizer.
    ///
    /// # Panics
    /// If it was opened without.
    pub fn new(name: String, weights: Weights) -> Served {
        let mut served = Served { name, weights, names: Vec::new() };
        let (tokenizer, mut names, mut seen) = (served.tokenizer(), Vec::new(), HashSet::new());
        for id in (0..=Token::MAX).take(served.vocab_size()) {
            let bytes = tokenizer.token_bytes(id);
            let mut name = match std::str::from_utf8(bytes) {
                _ if id == tokenizer.eos() => EOS.to_string(),
                _ if Some(id) == tokenizer.unk() => "<unk>".into(),
                Ok("") => format!("<special_{id}>"),
                Ok(text) => text.into(),
                Err(_) => format!("bytes:{}", bytes.iter().map(|b| format!("\\x{b:02x}")).collect::<String>()),
            };
            while !seen.insert(name.clone()) {
                name += &format!("#{id}");
            }
            names.push(name);
        }
        served.names = names;
        served
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        match &self.weights {
            Weights::Packed(model) => model.tokenizer(),
            Weights::Float(peer) => peer.tokenizer().expect("a model that is served is opened with its tokenizer"),
        }
    }

    pub(crate) fn vocab_size(&self) -> usize {
        match &self.weights {
            Weights::Packed(model) => model.config().vocab_size,
            Weights::Float(peer) => peer.vocab_size(),
        }
    }

    /// What tells one model from another.
    pub(crate) fn digest(&self) -> &str {
        match &self.weights {
            Weights::Packed(model) => model.digest(),
            Weights::Float(peer) => peer.digest(),
        }
    }

    /// Whether texts can be written with these settings.
    pub(crate) fn check(&self, settings: Settings) -> Result<(), SampleError> {
        Sampler::new(settings, self.vocab_size(), &[]).map(drop)
    }

    /// The text of tokens that begin a document.
    pub(crate) fn text(&self, tokens: &[Token]) -> String {
        let before = std::iter::once(None).chain(tokens.iter().copied().map(Some));
        let bytes = before.zip(tokens).flat_map(|(before, &token)| self.bytes_after(before, token));
        String::from_utf8_lossy(&bytes.copied().collect::<Vec<u8>>()).into_owned()
    }

    /// What a token stands for after another, or after none: the space that some tokenizers put in front of a text is no part of it.
    pub(crate) fn bytes_after(&self, before: Option<Token>, token: Token) -> &[u8] {
        let tokenizer = self.tokenizer();
        let bytes = tokenizer.token_bytes(token);
        let begins = before.is_none_or(|before| before == tokenizer.eos());
        let inner = bytes.strip_prefix(b" ").filter(|_| begins && tokenizer.adds_space());
        inner.unwrap_or(bytes)
    }

    /// The tokens of a text in which EOS may be written by its name.
    pub(crate) fn encode(&self, text: &str) -> Vec<Token> {
        let (tokenizer, mut tokens) = (self.tokenizer(), Vec::new());
        for (i, part) in text.split(EOS).enumerate() {
            if i > 0 {
                tokens.push(tokenizer.eos());
            }
            tokenizer.encode(part, &mut tokens);
        }
        tokens
    }
}
