//! A model that is served: its name, its weights, and a name for each of its tokens.

use std::collections::HashSet;
use std::sync::Arc;

use flashlm_kernels::Token;
use flashlm_model::PackedModel;

/// How EOS is written where tokens are named.
pub const EOS: &str = "<|endoftext|>";

/// A model that is served.
pub struct Served {
    pub(crate) name: String,
    pub(crate) model: Arc<PackedModel>,
    /// No two are the same: clients make keys of them.
    pub(crate) names: Vec<String>,
}

impl Served {
    /// `name` is what clients call it.
    pub fn new(name: String, model: PackedModel) -> Served {
        let tokenizer = model.tokenizer();
        let (mut names, mut seen) = (Vec::new(), HashSet::new());
        for id in (0..=Token::MAX).take(model.config().vocab_size) {
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
        Served { name, names, model: Arc::new(model) }
    }

    /// The tokens of a text in which EOS may be written by its name.
    pub(crate) fn encode(&self, text: &str) -> Vec<Token> {
        let (tokenizer, mut tokens) = (self.model.tokenizer(), Vec::new());
        for (i, part) in text.split(EOS).enumerate() {
            if i > 0 {
                tokens.push(tokenizer.eos());
            }
            tokenizer.encode(part, &mut tokens);
        }
        tokens
    }
}
