//! Tokens and their log-probabilities, `ln p(token | all before it)`: the model's own, before temperature, penalties and biases.

use std::sync::Arc;

use flashlm_kernels::{Exec, Token};
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Engine, Peer};
use serde_json::{Value, json};

/// What gives them.
pub enum Judge {
    /// A model that runs packed.
    Packed(Box<Engine>),
    /// One of another program.
    Float(Arc<Peer>, Exec),
}

impl Judge {
    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Judge::Packed(engine) => engine.model().tokenizer(),
            Judge::Float(peer, _) => peer.tokenizer().expect("a model that scores is opened with its tokenizer"),
        }
    }

    /// Of each of `tokens` after `given`, which begins with EOS.
    pub fn log_probs(&mut self, given: &[Token], tokens: &[Token]) -> Vec<f64> {
        match self {
            Judge::Packed(engine) => log_probs(engine, given, tokens),
            Judge::Float(peer, cx) => of_peer(peer, cx, given, tokens),
        }
    }
}

/// The same of a model of another program.
pub fn of_peer(peer: &Arc<Peer>, cx: &Exec, given: &[Token], tokens: &[Token]) -> Vec<f64> {
    let all = [given, tokens].concat();
    let mut out = Vec::with_capacity(all.len());
    peer.sequence().log_probs(cx, &all[..all.len() - 1], &all[1..], &mut out);
    out.split_off(given.len() - 1)
}

/// Of each of `tokens` after `given`, which begins with EOS.
pub fn log_probs(engine: &mut Engine, given: &[Token], tokens: &[Token]) -> Vec<f64> {
    let (mut state, mut out) = (engine.model().new_state(), Vec::with_capacity(tokens.len()));
    let all = [given, tokens].concat();
    // The last token is only a target; of what is given, only the last has one.
    engine.feed(&mut state, &all[..given.len() - 1]);
    let inputs = &all[given.len() - 1..];
    engine.log_probs(&mut state, &inputs[..tokens.len()], tokens, &mut out);
    out
}

/// As JSON: number, text and log-probability of each. Bytes that are no whole character are shown as U+FFFD.
pub fn tokens(tokenizer: &Tokenizer, tokens: &[Token], log_probs: &[f64]) -> Vec<Value> {
    let text = |token: Token| String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned();
    let all = tokens.iter().zip(log_probs);
    all.map(|(&token, log_prob)| json!({"id": token, "text": text(token), "logprob": log_prob})).collect()
}
