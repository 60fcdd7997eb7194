//! Tokens and their log-probabilities, `ln p(token | all before it)`: the model's own, before temperature, penalties and biases.

use flashlm_kernels::Token;
use flashlm_model::{Engine, PackedModel};
use serde_json::{Value, json};

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
pub fn tokens(model: &PackedModel, tokens: &[Token], log_probs: &[f64]) -> Vec<Value> {
    let text = |token: Token| String::from_utf8_lossy(model.tokenizer().token_bytes(token)).into_owned();
    let all = tokens.iter().zip(log_probs);
    all.map(|(&token, log_prob)| json!({"id": token, "text": text(token), "logprob": log_prob})).collect()
}
