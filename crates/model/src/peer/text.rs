//! A text that a model of another program writes: as `infer/generation.rs`, one sequence at a time.

use std::sync::Arc;

use flashlm_kernels::{Exec, Token};

use super::model::{Peer, Sequence};
use crate::infer::Finish;
use crate::sample::{SampleError, Sampler, Settings, StopStrings};
use crate::tok::{StreamDecoder, Tokenizer};

/// One text being written.
pub struct PeerText {
    sequence: Sequence,
    /// Tokens not yet fed to the model.
    pending: Vec<Token>,
    sampler: Sampler,
    decoder: StreamDecoder,
    stops: StopStrings,
    recent: Vec<Token>,
    window: usize,
    text: String,
    tokens: usize,
    limit: usize,
    finish: Option<Finish>,
}

impl PeerText {
    /// A text of at most `limit` tokens that goes on from `prompt` and ends before any of the strings `stop`.
    ///
    /// # Errors
    /// Settings, biases or stop strings out of their bounds.
    pub fn new(
        peer: &Arc<Peer>,
        prompt: &str,
        settings: Settings,
        limit: usize,
        stop: &[String],
    ) -> Result<PeerText, SampleError> {
        let (tokenizer, vocab) = (tokenizer(peer), peer.vocab_size());
        let eos = tokenizer.eos();
        let mute = |id: &Token| *id != eos && tokenizer.token_bytes(*id).is_empty();
        let bans: Vec<Token> = (0..=Token::MAX).take(vocab).filter(mute).collect();
        let mut pending = vec![eos];
        tokenizer.encode(prompt, &mut pending);
        Ok(PeerText {
            sequence: peer.sequence(),
            recent: pending[1..].to_vec(),
            pending,
            window: settings.repeat_window,
            sampler: Sampler::new(settings, vocab, &bans)?,
            decoder: StreamDecoder::new(),
            stops: StopStrings::new(stop.to_vec())?,
            text: String::new(),
            tokens: 0,
            limit,
            finish: None,
        })
    }

    /// The text that the last call of [`advance`](Self::advance) added.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Tokens written so far, a final EOS included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Why it ended; `None` until then.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Takes the text one token further.
    ///
    /// # Errors
    /// Logits that are not numbers, or settings that leave no token to choose.
    pub fn advance(&mut self, cx: &Exec) -> Result<(), SampleError> {
        self.text.clear();
        if self.finish.is_some() {
            return Ok(());
        }
        if self.tokens == self.limit {
            self.end(Finish::Length);
            return Ok(());
        }
        let (vocab, mut last) = (self.sequence.peer().vocab_size(), Vec::new());
        let pending = std::mem::take(&mut self.pending);
        self.sequence.feed(cx, &pending, |logits| last = logits[logits.len() - vocab..].to_vec());
        let from = self.recent.len().saturating_sub(self.window);
        let chosen = self.sampler.sample(cx, &mut last, &self.recent[from..]);
        let token = chosen.inspect_err(|_| self.finish = Some(Finish::Failed))?;
        self.tokens += 1;
        self.pending.push(token);
        let peer = self.sequence.peer().clone();
        let tokenizer = tokenizer(&peer);
        if token == tokenizer.eos() {
            self.end(Finish::Eos);
            return Ok(());
        }
        let mut bytes = tokenizer.token_bytes(token);
        if self.recent.is_empty() && tokenizer.adds_space() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        let mut raw = String::new();
        self.decoder.push(bytes, &mut raw);
        self.stops.push(&raw, &mut self.text);
        self.recent.push(token);
        if self.stops.is_complete() {
            self.finish = Some(Finish::Stop);
        } else if self.tokens == self.limit {
            self.end(Finish::Length);
        }
        Ok(())
    }

    /// Ends without a stop string: what was held back is text after all.
    fn end(&mut self, finish: Finish) {
        let mut raw = String::new();
        self.decoder.finish(&mut raw);
        self.stops.push(&raw, &mut self.text);
        self.stops.finish(&mut self.text);
        self.finish = Some(finish);
    }
}

/// That of a model which was opened with one, as one that writes must be.
fn tokenizer(peer: &Peer) -> &Tokenizer {
    peer.tokenizer().expect("a model that is to write is opened with its tokenizer")
}
