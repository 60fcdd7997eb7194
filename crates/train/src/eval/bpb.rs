//! Bits per byte: `bpb = (nats of all story tokens + UNK charge) / (ln 2 * UTF-8 bytes of the stories)`.
//!
//! Every story starts from EOS with a fresh state and is scored to its last token, however long; the nats of the closing
//! EOS, which has no bytes, enter `bpb_with_eos` only. An UNK stands for any of `unk_bases` base tokens and costs
//! `-ln p(UNK) + ln(unk_bases)`. `loss_per_token` and `perplexity` leave out EOS and that charge.
//!
//! Several stories run in one pass, padded at the end where a causal model does not look. Sums are taken in f64, within a
//! story by token and then by story, so that the figures are bit-equal to those of one story at a time.

use super::Stories;
use flashlm_kernels::{Exec, Token};
use flashlm_model::Lm;
use flashlm_model::tok::Tokenizer;
use serde::Serialize;
use std::f64::consts::LN_2;
use std::ops::ControlFlow;

/// The context policy of every figure here.
pub const CONTEXT: &str = "each story from EOS with a fresh state, whole story as context";
/// Stories of the published protocol.
pub const PUBLISHED_STORIES: usize = 500;
/// Tokens of each of them.
pub const PUBLISHED_TOKENS: usize = 256;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Nothing to score.
    #[error("the evaluation set holds no text: expected at least one story; check the data and, for a held-out share, its size")]
    Empty,
    /// Tokens of another vocabulary.
    #[error("expected a tokenizer of {expected} tokens as the model has, found {found}; use the tokenizer the model was trained with")]
    Vocabulary {
        /// Tokens of the model.
        expected: usize,
        /// Tokens of the tokenizer.
        found: usize,
    },
    /// The progress callback asked to stop.
    #[error("stopped before all stories were scored")]
    Stopped,
}

/// The figures of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Bits per byte of the stories.
    pub bpb: f64,
    /// The same with the nats of each closing EOS.
    pub bpb_with_eos: f64,
    /// Mean nats of a story token, EOS and the charge for UNK left out.
    pub loss_per_token: f64,
    /// `exp(loss_per_token)`.
    pub perplexity: f64,
    /// UTF-8 bytes of a story token.
    pub bytes_per_token: f64,
    /// Story tokens; each story adds one EOS to what was scored.
    pub tokens: u64,
    /// UTF-8 bytes of the stories.
    pub bytes: u64,
    /// Stories.
    pub stories: u64,
    /// Tokens that are UNK.
    pub unk: u64,
    /// Base tokens that UNK stands for; 0 if the tokenizer is lossless.
    pub unk_bases: usize,
    /// [`CONTEXT`].
    pub context: &'static str,
    /// `full`: every byte is scored.
    pub protocol: &'static str,
}

/// The figure that published tables of this model family give. Understated: it counts the bits of the first
/// [`PUBLISHED_TOKENS`] tokens and divides by the characters of the whole story.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Published {
    /// Bits of the scored tokens over characters of the whole stories; UNK is not charged.
    pub understated_bits_per_character: f64,
    /// Mean nats of a scored token.
    pub loss_per_token: f64,
    /// `exp(loss_per_token)`.
    pub perplexity: f64,
    /// Tokens scored; no EOS.
    pub tokens: u64,
    /// Characters of the whole stories.
    pub characters: u64,
    /// Stories.
    pub stories: u64,
    /// Scored tokens that are UNK.
    pub unk: u64,
    /// [`CONTEXT`], for the tokens that are scored.
    pub context: &'static str,
    /// `published`.
    pub protocol: &'static str,
}

/// What has been scored so far: a large set can be scored in parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    nats: f64,
    eos_nats: f64,
    tokens: u64,
    stories: u64,
    unk: u64,
    bytes: u64,
}

impl Sums {
    /// The figures of everything scored.
    pub fn report(&self, tokenizer: &Tokenizer) -> Result<Report, EvalError> {
        if self.tokens == 0 || self.bytes == 0 {
            return Err(EvalError::Empty);
        }
        let unk_bases = tokenizer.unk_bases();
        let charge = if self.unk > 0 { self.unk as f64 * (unk_bases.max(1) as f64).ln() } else { 0.0 };
        let bits = LN_2 * self.bytes as f64;
        let loss_per_token = self.nats / self.tokens as f64;
        Ok(Report {
            bpb: (self.nats + charge) / bits,
            bpb_with_eos: (self.nats + charge + self.eos_nats) / bits,
            loss_per_token,
            perplexity: loss_per_token.exp(),
            bytes_per_token: self.bytes as f64 / self.tokens as f64,
            tokens: self.tokens,
            bytes: self.bytes,
            stories: self.stories,
            unk: self.unk,
            unk_bases,
            context: CONTEXT,
            protocol: "full",
        })
    }
}

/// Scores all stories. The callback is given the number of tokens scored so far, of `stories.totals().tokens`, and may stop.
/// `params` are prepared here, so `lm` may come from a training step.
pub fn evaluate(
    cx: &Exec,
    lm: &mut Lm<f32>,
    params: &[f32],
    tokenizer: &Tokenizer,
    stories: &Stories,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Report, EvalError> {
    let mut sums = Sums::default();
    score(cx, lm, params, tokenizer, stories, &mut sums, progress)?;
    sums.report(tokenizer)
}

/// Scores all stories and adds them to `sums`; otherwise as [`evaluate`].
pub fn score(
    cx: &Exec,
    lm: &mut Lm<f32>,
    params: &[f32],
    tokenizer: &Tokenizer,
    stories: &Stories,
    sums: &mut Sums,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<(), EvalError> {
    let all: Vec<&[Token]> = (0..stories.len()).map(|i| stories.story(i)).collect();
    score_slices(cx, lm, params, tokenizer, &all, sums, progress)?;
    sums.bytes += stories.totals().bytes;
    Ok(())
}

/// The published protocol over the first [`PUBLISHED_STORIES`] of `stories`.
pub fn published(
    cx: &Exec,
    lm: &mut Lm<f32>,
    params: &[f32],
    tokenizer: &Tokenizer,
    stories: &Stories,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Published, EvalError> {
    let start = |i| {
        let story = stories.story(i);
        &story[..PUBLISHED_TOKENS.min(story.len() - 1)]
    };
    let all: Vec<&[Token]> = (0..stories.len().min(PUBLISHED_STORIES)).map(start).collect();
    let mut sums = Sums::default();
    score_slices(cx, lm, params, tokenizer, &all, &mut sums, progress)?;
    if sums.tokens == 0 {
        return Err(EvalError::Empty);
    }
    let loss_per_token = sums.nats / sums.tokens as f64;
    let characters = stories.totals_of(PUBLISHED_STORIES).characters;
    Ok(Published {
        understated_bits_per_character: sums.nats / (LN_2 * characters as f64),
        loss_per_token,
        perplexity: loss_per_token.exp(),
        tokens: sums.tokens,
        characters,
        stories: sums.stories,
        unk: sums.unk,
        context: CONTEXT,
        protocol: "published",
    })
}

/// Adds the nats of each slice, which starts from EOS, and counts its tokens.
fn score_slices(
    cx: &Exec,
    lm: &mut Lm<f32>,
    params: &[f32],
    tokenizer: &Tokenizer,
    all: &[&[Token]],
    sums: &mut Sums,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<(), EvalError> {
    let (expected, found) = (lm.config().vocab_size, tokenizer.vocab_size());
    let largest = all.iter().flat_map(|story| story.iter()).max();
    if expected != found || largest.is_some_and(|&t| usize::from(t) >= expected) {
        return Err(EvalError::Vocabulary { expected, found });
    }
    lm.prepare(cx, params);
    let eos = tokenizer.eos();
    // Neighbours in this order are of similar length, so little is spent on padding.
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|&i| all[i].len());
    let mut scores = vec![Score::default(); all.len()];
    let mut rest = &order[..];
    let mut done = 0;
    while !rest.is_empty() {
        let fits = |n: usize| n * all[rest[n - 1]].len() <= lm.rows();
        let n = (2..=rest.len()).take_while(|&n| fits(n)).last().unwrap_or(1);
        let (group, after) = rest.split_at(n);
        let stories: Vec<&[Token]> = group.iter().map(|&i| all[i]).collect();
        for (&i, score) in group.iter().zip(pass(cx, lm, params, &stories, eos)) {
            scores[i] = score;
        }
        rest = after;
        done += stories.iter().map(|story| story.len()).sum::<usize>();
        if progress(done).is_break() {
            return Err(EvalError::Stopped);
        }
    }
    for (story, score) in all.iter().zip(scores) {
        sums.nats += score.nats;
        sums.eos_nats += score.eos_nats;
        sums.tokens += story.iter().filter(|&&t| t != eos).count() as u64;
        sums.unk += story.iter().filter(|&&t| Some(t) == tokenizer.unk()).count() as u64;
        sums.stories += 1;
    }
    Ok(())
}

/// Nats of one story.
#[derive(Clone, Copy, Default)]
struct Score {
    nats: f64,
    eos_nats: f64,
}

/// The scores of stories that fit into one pass together, or of one story of any length.
fn pass(cx: &Exec, lm: &mut Lm<f32>, params: &[f32], stories: &[&[Token]], eos: Token) -> Vec<Score> {
    let (b, t) = (stories.len(), stories.iter().map(|story| story.len()).max().unwrap_or(0));
    if t == 0 {
        return vec![Score::default(); b];
    }
    let mut inputs = vec![eos; b * t];
    let mut targets = vec![eos; b * t];
    for (i, story) in stories.iter().enumerate().filter(|(_, story)| !story.is_empty()) {
        inputs[i * t + 1..i * t + story.len()].copy_from_slice(&story[..story.len() - 1]);
        targets[i * t..i * t + story.len()].copy_from_slice(story);
    }
    let mut log_probs = Vec::with_capacity(b * t);
    if b * t <= lm.rows() {
        lm.log_probs(cx, &mut log_probs, params, &inputs, &targets, None, (b, t));
    } else {
        let mut state = lm.state(1);
        for (inputs, targets) in inputs.chunks(lm.rows()).zip(targets.chunks(lm.rows())) {
            lm.log_probs(cx, &mut log_probs, params, inputs, targets, Some(&mut state), (1, inputs.len()));
        }
    }
    let own = |(i, story): (usize, &&[Token])| {
        let mut score = Score::default();
        for (&token, log_prob) in story.iter().zip(&log_probs[i * t..]) {
            *(if token == eos { &mut score.eos_nats } else { &mut score.nats }) -= log_prob;
        }
        score
    };
    stories.iter().enumerate().map(own).collect()
}
