//! Bits per byte: `bpb = (nats of all story tokens + UNK charge) / (ln 2 * UTF-8 bytes of the stories)`.
//!
//! Every document starts from EOS with a fresh state and is scored to its last token, however long; the nats of the closing
//! EOS, which has no bytes, enter `bpb_with_eos` only. An UNK stands for any of `unk_bases` base tokens and costs
//! `-ln p(UNK) + ln(unk_bases)`. `loss_per_token` and `perplexity` leave out EOS and that charge.
//!
//! Several documents run in one micro-batch, padded at the end where a causal model does not look. Sums are taken in f64, within a
//! document by token and then by document, so that the figures are bit-equal to those of one document at a time.

use super::Stories;
use crate::data::DataError;
use flashlm_kernels::{Exec, Token};
use flashlm_model::peer::Peer;
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Engine, LanguageModel, Prepared, Shape};
use serde::Serialize;
use std::f64::consts::LN_2;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The context policy of every figure here.
pub const CONTEXT: &str = "each story from EOS with a fresh state, whole story as context";
/// Documents of the published protocol.
pub const PUBLISHED_STORIES: usize = 500;
/// Tokens of each of them.
pub const PUBLISHED_TOKENS: usize = 256;

/// Why the figures of the published protocol are too low.
pub const UNDERSTATED: &str = "understated: the bits of the first 256 tokens of each of the first 500 documents over the characters \
                               of whole documents; what follows those tokens costs nothing, and unknown tokens are not \
                               charged: compare with published tables only";

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Nothing to score.
    #[error(
        "the text to score is empty: expected at least one document; check the data and, for a held-out part, its size"
    )]
    Empty,
    /// Tokens of another vocabulary.
    #[error(
        "expected a tokenizer with {expected} tokens, like the model, found {found}; use the tokenizer the model was trained \
         with"
    )]
    Vocabulary {
        /// Tokens of the model.
        expected: usize,
        /// Tokens of the tokenizer.
        found: usize,
    },
    /// The progress callback asked to stop.
    #[error("stopped before all documents were scored")]
    Stopped,
    /// The text could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// The figures of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Bits per byte of the documents.
    pub bpb: f64,
    /// The same with the nats of each closing EOS.
    pub bpb_with_eos: f64,
    /// Mean nats of a document token, EOS and the charge for UNK left out.
    pub loss_per_token: f64,
    /// `exp(loss_per_token)`.
    pub perplexity: f64,
    /// UTF-8 bytes of a document token.
    pub bytes_per_token: f64,
    /// Document tokens; each document adds one EOS to what was scored.
    pub tokens: u64,
    /// UTF-8 bytes of the documents.
    pub bytes: u64,
    /// Documents.
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
/// [`PUBLISHED_TOKENS`] tokens and divides by the characters of the whole document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Published {
    /// Bits of the scored tokens over characters of the whole documents; UNK is not charged.
    pub understated_bits_per_character: f64,
    /// Mean nats of a scored token.
    pub loss_per_token: f64,
    /// `exp(loss_per_token)`.
    pub perplexity: f64,
    /// Tokens scored; no EOS.
    pub tokens: u64,
    /// Characters of the whole documents.
    pub characters: u64,
    /// Documents.
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
    documents: Vec<Document>,
}

/// What one document adds to the sums.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Document {
    /// Its place among all that were scored, from 0.
    pub index: u64,
    /// UTF-8 bytes.
    pub bytes: u64,
    /// Tokens, its EOS left out.
    pub tokens: u64,
    /// Tokens that are UNK.
    pub unk: u64,
    /// Nats of its tokens, the charge for UNK left out. Added up from the first document to the last, they give the bits of the sum.
    pub nats: f64,
    /// Nats of its EOS.
    pub eos_nats: f64,
    /// Its bits: those of its tokens and the charge for UNK.
    pub bits: f64,
}

impl Sums {
    /// Each document by itself, in the order of the text.
    pub fn documents(self) -> Vec<Document> {
        self.documents
    }

    /// The figures of everything scored.
    pub fn report(&self, tokenizer: &Tokenizer) -> Result<Report, EvalError> {
        if self.tokens == 0 || self.bytes == 0 {
            return Err(EvalError::Empty);
        }
        let unk_bases = tokenizer.unk_bases();
        let charge = charge(self.unk, unk_bases);
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

/// Nats for what is not known of so many UNK: which of its base tokens each stands for.
fn charge(unk: u64, unk_bases: usize) -> f64 {
    if unk > 0 { unk as f64 * (unk_bases.max(1) as f64).ln() } else { 0.0 }
}

/// A model in one of the forms it can run in.
pub trait Scorer {
    /// Tokens of its vocabulary.
    fn vocab_size(&self) -> usize;

    /// Whether its vocabulary may have tokens that the tokenizer lacks.
    fn is_padded(&self) -> bool {
        false
    }

    /// Tokens of several documents that it likes to take at once.
    fn rows(&self) -> usize;

    /// `ln p` of each token of each document, which starts from EOS. At most [`Scorer::rows`] tokens, or one document of any
    /// length.
    fn log_probs(&mut self, stories: &[&[Token]], eos: Token) -> Vec<Vec<f64>>;
}

/// Master weights and float activations, as in training.
pub struct Master<'a> {
    lm: Prepared<'a, f32>,
    /// The part of a target that all tokens share.
    smoothing: f64,
}

impl<'a> Master<'a> {
    /// Prepares `lm`, which may come from a training step.
    pub fn new(cx: &'a Exec, lm: &'a mut dyn LanguageModel<f32>, params: &'a [f32]) -> Self {
        Master { lm: Prepared::new(cx, lm, params), smoothing: 0.0 }
    }

    /// The same with smoothed labels: of its figures the loss per token alone says something.
    pub fn smoothed(self, smoothing: f64) -> Self {
        Master { smoothing, ..self }
    }
}

impl Scorer for Master<'_> {
    fn vocab_size(&self) -> usize {
        self.lm.model().config().vocab_size
    }

    fn rows(&self) -> usize {
        self.lm.model().rows()
    }

    fn log_probs(&mut self, stories: &[&[Token]], eos: Token) -> Vec<Vec<f64>> {
        let (b, t) = (stories.len(), stories.iter().map(|story| story.len()).max().unwrap_or(0));
        if t == 0 {
            return vec![Vec::new(); b];
        }
        let mut inputs = vec![eos; b * t];
        let mut targets = vec![eos; b * t];
        for (i, story) in stories.iter().enumerate().filter(|(_, story)| !story.is_empty()) {
            inputs[i * t + 1..i * t + story.len()].copy_from_slice(&story[..story.len() - 1]);
            targets[i * t..i * t + story.len()].copy_from_slice(story);
        }
        let Master { lm, smoothing } = self;
        let (rows, mut log_probs) = (lm.model().rows(), Vec::with_capacity(b * t));
        if b * t <= rows {
            let shape = Shape { batch: b, seq_len: t };
            lm.smoothed(&mut log_probs, &inputs, &targets, *smoothing, None, shape);
        } else {
            let mut state = lm.model().state(1);
            for (inputs, targets) in inputs.chunks(rows).zip(targets.chunks(rows)) {
                let shape = Shape { batch: 1, seq_len: inputs.len() };
                lm.smoothed(&mut log_probs, inputs, targets, *smoothing, Some(&mut state), shape);
            }
        }
        stories.iter().zip(log_probs.chunks(t)).map(|(story, own)| own[..story.len()].to_vec()).collect()
    }
}

/// Packed weights and int8 activations: the model that a user runs.
impl Scorer for Engine {
    fn vocab_size(&self) -> usize {
        self.model().config().vocab_size
    }

    fn rows(&self) -> usize {
        1
    }

    fn log_probs(&mut self, stories: &[&[Token]], eos: Token) -> Vec<Vec<f64>> {
        let score = |story: &&[Token]| {
            let (mut state, mut out) = (self.model().new_state(), Vec::with_capacity(story.len()));
            if let Some((_, before)) = story.split_last() {
                Engine::log_probs(self, &mut state, &[&[eos], before].concat(), story, &mut out);
            }
            out
        };
        stories.iter().map(score).collect()
    }
}

/// A float model of another program.
pub struct Float {
    peer: Arc<Peer>,
    cx: Exec,
}

impl Float {
    /// Runs `peer` on `cx`.
    pub fn new(peer: Arc<Peer>, cx: Exec) -> Float {
        Float { peer, cx }
    }
}

impl Scorer for Float {
    fn vocab_size(&self) -> usize {
        self.peer.vocab_size()
    }

    fn is_padded(&self) -> bool {
        true
    }

    fn rows(&self) -> usize {
        1
    }

    fn log_probs(&mut self, stories: &[&[Token]], eos: Token) -> Vec<Vec<f64>> {
        let score = |story: &&[Token]| {
            let (mut sequence, mut out) = (self.peer.sequence(), Vec::with_capacity(story.len()));
            if let Some((_, before)) = story.split_last() {
                sequence.log_probs(&self.cx, &[&[eos], before].concat(), story, &mut out);
            }
            out
        };
        stories.iter().map(score).collect()
    }
}

/// Scores all documents. The callback is given the number of tokens scored so far, of `stories.totals().tokens`, and may stop.
pub fn evaluate(
    scorer: &mut dyn Scorer,
    tokenizer: &Tokenizer,
    stories: &Stories,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Report, EvalError> {
    let mut sums = Sums::default();
    score(scorer, tokenizer, stories, &mut sums, progress)?;
    sums.report(tokenizer)
}

/// Scores all documents and adds them to `sums`; otherwise as [`evaluate`].
pub fn score(
    scorer: &mut dyn Scorer,
    tokenizer: &Tokenizer,
    stories: &Stories,
    sums: &mut Sums,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<(), EvalError> {
    let all: Vec<&[Token]> = (0..stories.len()).map(|i| stories.story(i)).collect();
    let first = sums.documents.len();
    score_slices(scorer, tokenizer, &all, sums, progress)?;
    sums.bytes += stories.totals().bytes;
    for (i, document) in sums.documents[first..].iter_mut().enumerate() {
        document.bytes = stories.totals_of(i + 1).bytes - stories.totals_of(i).bytes;
    }
    Ok(())
}

/// The published protocol over the first [`PUBLISHED_STORIES`] of `stories`.
pub fn published(
    scorer: &mut dyn Scorer,
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
    score_slices(scorer, tokenizer, &all, &mut sums, progress)?;
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
    scorer: &mut dyn Scorer,
    tokenizer: &Tokenizer,
    all: &[&[Token]],
    sums: &mut Sums,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<(), EvalError> {
    let (expected, found) = (scorer.vocab_size(), tokenizer.vocab_size());
    let largest = all.iter().flat_map(|story| story.iter()).max();
    let fits = found == expected || (found < expected && scorer.is_padded());
    if !fits || largest.is_some_and(|&t| usize::from(t) >= expected) {
        return Err(EvalError::Vocabulary { expected, found });
    }
    let eos = tokenizer.eos();
    // Neighbours in this order are of similar length, so little is spent on padding.
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|&i| all[i].len());
    let mut scores = vec![Score::default(); all.len()];
    let mut rest = &order[..];
    let mut done = 0;
    while !rest.is_empty() {
        let fits = |n: usize| n * all[rest[n - 1]].len() <= scorer.rows();
        let n = (2..=rest.len()).take_while(|&n| fits(n)).last().unwrap_or(1);
        let (group, after) = rest.split_at(n);
        let stories: Vec<&[Token]> = group.iter().map(|&i| all[i]).collect();
        for (&i, log_probs) in group.iter().zip(scorer.log_probs(&stories, eos)) {
            for (&token, log_prob) in all[i].iter().zip(log_probs) {
                *(if token == eos { &mut scores[i].eos_nats } else { &mut scores[i].nats }) -= log_prob;
            }
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
        let tokens = story.iter().filter(|&&t| t != eos).count() as u64;
        let unk = story.iter().filter(|&&t| Some(t) == tokenizer.unk()).count() as u64;
        sums.tokens += tokens;
        sums.unk += unk;
        let (index, Score { nats, eos_nats }) = (sums.stories, score);
        let bits = (nats + charge(unk, tokenizer.unk_bases())) / LN_2;
        sums.documents.push(Document { index, bytes: 0, tokens, unk, nats, eos_nats, bits });
        sums.stories += 1;
    }
    Ok(())
}

/// Nats of one document.
#[derive(Clone, Copy, Default)]
struct Score {
    nats: f64,
    eos_nats: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::exec_on_all_isas;
    use flashlm_kernels::{Buf, Isa};
    use flashlm_model::{ModelConfig, Precision};

    const TEXTS: [&str; 6] = [
        "Once upon a time there was a little girl. She had a red ball.",
        "The cat sat. The dog ran to the cat and they played all day long in the park, until the sun went down.",
        "One day a boy saw a bird.",
        "One day a boy saw a fox.",
        "The end.",
        "Tom and his mum went to the sea to look for shells, and Tom found a \u{1f41a} \u{2014} the best one of them all.",
    ];

    /// A frequency vocabulary too small for the texts, so that there are UNK.
    fn lossy() -> Tokenizer {
        let tokenizer = Tokenizer::train_frequency(TEXTS.into_iter(), 40).unwrap();
        assert!(tokenizer.vocab_size() == 40 && tokenizer.unk_bases() > 50_000);
        tokenizer
    }

    fn config(tokenizer: &Tokenizer) -> ModelConfig {
        let vocab_size = tokenizer.vocab_size();
        ModelConfig { vocab_size, dim: 24, blocks: 2, ffn_hidden: 40, ..ModelConfig::v4_small() }
    }

    /// A model far from uniform.
    fn model(tokenizer: &Tokenizer, rows: usize) -> (Box<dyn LanguageModel<f32>>, Buf<f32>) {
        let lm = Precision::F32.build(&config(tokenizer), rows, false).unwrap();
        let mut params = lm.layout().init::<f32>(7);
        let table = lm.layout().find("embedding.weight").unwrap().range.clone();
        params[table].iter_mut().for_each(|p| *p *= 15.0);
        (lm, params)
    }

    fn all(tokenizer: &Tokenizer, texts: &[&str]) -> Stories {
        let mut stories = Stories::default();
        texts.iter().for_each(|text| stories.push(tokenizer, text));
        stories
    }

    fn on(_: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn run(cx: &Exec, tokenizer: &Tokenizer, rows: usize, texts: &[&str]) -> Report {
        let (mut lm, params) = model(tokenizer, rows);
        evaluate(&mut Master::new(cx, &mut *lm, &params), tokenizer, &all(tokenizer, texts), &mut on).unwrap()
    }

    #[test]
    fn documents_are_those_scored_alone_and_add_up() {
        let (tokenizer, cx) = (lossy(), Exec::new(Isa::SCALAR, 1));
        let (mut lm, params) = model(&tokenizer, 64);
        let (mut sums, mut scorer) = (Sums::default(), Master::new(&cx, &mut *lm, &params));
        // In two parts, as a source is read.
        for texts in [&TEXTS[..4], &TEXTS[4..]] {
            score(&mut scorer, &tokenizer, &all(&tokenizer, texts), &mut sums, &mut on).unwrap();
        }
        let whole = sums.report(&tokenizer).unwrap();
        let documents = sums.documents();
        for (i, (document, text)) in documents.iter().zip(TEXTS).enumerate() {
            let alone = run(&cx, &tokenizer, 64, &[text]);
            assert_eq!((document.index, document.bytes, document.unk), (i as u64, text.len() as u64, alone.unk));
            assert_eq!(document.tokens, alone.tokens);
            assert!((document.bits / document.bytes as f64 / alone.bpb - 1.0).abs() < 1e-12, "{document:?}");
        }
        let sum = |of: fn(&Document) -> f64| documents.iter().map(of).sum::<f64>();
        assert!((sum(|d| d.bits) / sum(|d| d.bytes as f64) / whole.bpb - 1.0).abs() < 1e-12);
        let nats = sum(|d| d.nats) + charge(whole.unk, whole.unk_bases);
        assert_eq!(nats / (LN_2 * whole.bytes as f64), whole.bpb);
        assert!(whole.unk > 5);
    }

    #[test]
    fn equals_a_plain_loop_over_single_tokens() {
        let tokenizer = lossy();
        exec_on_all_isas(|cx| {
            let (mut lm, params) = model(&tokenizer, 1);
            let mut lm = Prepared::new(cx, &mut *lm, &params);
            let (mut nats, mut eos_nats, mut tokens, mut unk, mut bytes) = (0.0, 0.0, 0, 0, 0);
            for text in TEXTS {
                let mut ids = Vec::new();
                tokenizer.encode(text, &mut ids);
                let mut state = lm.model().state(1);
                let mut logits = vec![0.0f32; tokenizer.vocab_size()];
                let mut nats_of = |before: Token, id: Token| {
                    lm.logits(&mut logits, &[before], Some(&mut state), Shape { batch: 1, seq_len: 1 });
                    let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
                    sum.ln() - f64::from(logits[usize::from(id)])
                };
                let mut before = tokenizer.eos();
                for &id in &ids {
                    nats += nats_of(before, id);
                    before = id;
                }
                eos_nats += nats_of(before, tokenizer.eos());
                tokens += ids.len();
                unk += ids.iter().filter(|&&id| Some(id) == tokenizer.unk()).count();
                bytes += text.len();
            }
            assert!(unk > 5, "{unk} UNK");
            let charge = unk as f64 * (tokenizer.unk_bases() as f64).ln();
            let bits = 2f64.ln() * bytes as f64;
            let report = run(cx, &tokenizer, 64, &TEXTS);
            let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-6 * want, "{got} {want}");
            close(report.bpb, (nats + charge) / bits);
            close(report.bpb_with_eos, (nats + charge + eos_nats) / bits);
            close(report.loss_per_token, nats / tokens as f64);
            close(report.perplexity, (nats / tokens as f64).exp());
            close(report.bytes_per_token, bytes as f64 / tokens as f64);
            assert_eq!((report.tokens, report.bytes, report.stories), (tokens as u64, bytes as u64, 6));
            assert_eq!((report.unk, report.unk_bases), (unk as u64, tokenizer.unk_bases()));
            // Far from the uniform model, or a wrong context would not show.
            assert!((report.loss_per_token - 40f64.ln()).abs() > 0.3, "{report:?}");
        });
    }

    #[test]
    fn batches_pieces_parts_and_threads_give_the_same_bits() {
        let tokenizer = Tokenizer::bytes();
        exec_on_all_isas(|cx| {
            // 1000 rows take all documents together, 1 takes single tokens with carried state.
            let whole = run(cx, &tokenizer, 1000, &TEXTS);
            for rows in [1, 7, 26, 60, 112, 250] {
                assert_eq!(run(cx, &tokenizer, rows, &TEXTS), whole, "{rows} rows on {}", cx.isa().name());
            }
            assert_eq!(run(&Exec::new(cx.isa(), 1), &tokenizer, 300, &TEXTS), whole);
            let (mut lm, params) = model(&tokenizer, 64);
            let mut sums = Sums::default();
            for part in TEXTS.chunks(4) {
                score(&mut Master::new(cx, &mut *lm, &params), &tokenizer, &all(&tokenizer, part), &mut sums, &mut on)
                    .unwrap();
            }
            assert_eq!(sums.report(&tokenizer).unwrap(), whole);
        });
    }

    #[test]
    fn a_model_that_knows_nothing_pays_the_logarithm_of_its_vocabulary() {
        let cx = Exec::new(Isa::SCALAR, 1);
        for tokenizer in [Tokenizer::bytes(), lossy()] {
            let (mut lm, mut params) = model(&tokenizer, 100);
            params.fill(0.0);
            let report =
                evaluate(&mut Master::new(&cx, &mut *lm, &params), &tokenizer, &all(&tokenizer, &TEXTS), &mut on)
                    .unwrap();
            let (v, n) = (tokenizer.vocab_size() as f64, report.tokens as f64);
            let bytes = TEXTS.iter().map(|text| text.len()).sum::<usize>() as f64;
            let charge = report.unk as f64 * (tokenizer.unk_bases().max(1) as f64).log2();
            let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-6 * want, "{got} {want}");
            close(report.bpb, (n * v.log2() + charge) / bytes);
            close(report.bpb_with_eos, ((n + 6.0) * v.log2() + charge) / bytes);
            close(report.perplexity, v);
        }
    }

    #[test]
    fn the_published_protocol_cuts_the_bits_but_not_the_characters() {
        let cx = Exec::new(Isa::SCALAR, 1);
        let tokenizer = Tokenizer::bytes();
        let (mut lm, mut params) = model(&tokenizer, 700);
        params.fill(0.0);
        let long = "\u{e9}".repeat(300);
        let mut texts = vec!["abcd"; PUBLISHED_STORIES - 1];
        texts.insert(1, &long);
        texts.push("not scored any more");
        let stories = all(&tokenizer, &texts);
        let report = published(&mut Master::new(&cx, &mut *lm, &params), &tokenizer, &stories, &mut on).unwrap();
        // 256 of the 600 tokens of the long document over all of its 300 characters.
        let (tokens, characters) = (4 * 499 + 256, 4 * 499 + 300);
        assert_eq!((report.tokens, report.characters, report.stories), (tokens, characters, 500));
        let want = tokens as f64 * 257f64.log2() / characters as f64;
        assert!((report.understated_bits_per_character - want).abs() < 1e-6);
        // With short documents and a real model nothing is cut: the same loss as the full protocol's.
        let (mut lm, params) = model(&tokenizer, 100);
        let stories = all(&tokenizer, &TEXTS);
        let report = published(&mut Master::new(&cx, &mut *lm, &params), &tokenizer, &stories, &mut on).unwrap();
        let full = run(&cx, &tokenizer, 100, &TEXTS);
        assert_eq!((report.loss_per_token, report.perplexity), (full.loss_per_token, full.perplexity));
    }

    #[test]
    fn what_cannot_be_scored_is_an_error() {
        let cx = Exec::new(Isa::SCALAR, 1);
        let tokenizer = Tokenizer::bytes();
        let (mut lm, params) = model(&tokenizer, 100);
        let mut run = |tokenizer: &Tokenizer, texts: &[&str], progress: &mut dyn FnMut(usize) -> ControlFlow<()>| {
            let stories = all(tokenizer, texts);
            let figure = evaluate(&mut Master::new(&cx, &mut *lm, &params), tokenizer, &stories, progress);
            assert_eq!(
                published(&mut Master::new(&cx, &mut *lm, &params), tokenizer, &stories, progress).is_err(),
                figure.is_err()
            );
            figure.map(|report| panic!("{report:?}")).unwrap_err()
        };
        for nothing in [&[][..], &[""], &["", ""]] {
            assert!(matches!(run(&tokenizer, nothing, &mut on), EvalError::Empty));
        }
        let error = run(&lossy(), &TEXTS, &mut on).to_string();
        assert!(error.contains("tokenizer with 257 tokens, like the model, found 40"), "{error}");
        let mut calls = 0;
        let stop = &mut |_| {
            calls += 1;
            ControlFlow::Break(())
        };
        assert!(matches!(run(&tokenizer, &TEXTS, stop), EvalError::Stopped));
        assert_eq!(calls, 2);
    }

    #[test]
    fn progress_ends_at_the_number_of_tokens() {
        let tokenizer = Tokenizer::bytes();
        let (mut lm, params) = model(&tokenizer, 100);
        let stories = all(&tokenizer, &TEXTS);
        let mut seen = vec![0];
        let progress = &mut |done| {
            seen.push(done);
            ControlFlow::Continue(())
        };
        evaluate(&mut Master::new(&Exec::new(Isa::SCALAR, 1), &mut *lm, &params), &tokenizer, &stories, progress)
            .unwrap();
        assert!(seen.is_sorted() && seen.len() > 2);
        assert_eq!(seen.last(), Some(&stories.totals().tokens));
    }
}
