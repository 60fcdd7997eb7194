//! A text that a model of another program writes: as `infer/generation.rs`, one sequence at a time.

use std::sync::Arc;

use flashlm_kernels::{Exec, Token};

use super::model::{Peer, Sequence};
use crate::infer::Finish;
use crate::infer::written::{Written, mute};
use crate::sample::{SampleError, Sampler, Settings};
use crate::tok::Tokenizer;

/// One text being written.
pub struct PeerText {
    sequence: Sequence,
    /// Tokens not yet fed to the model.
    pending: Vec<Token>,
    sampler: Sampler,
    written: Written,
    recent: Vec<Token>,
    window: usize,
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
        let mut pending = vec![tokenizer.eos()];
        tokenizer.encode(prompt, &mut pending);
        Ok(PeerText {
            sequence: peer.sequence(),
            recent: pending[1..].to_vec(),
            pending,
            window: settings.repeat_window,
            sampler: Sampler::new(settings, vocab, &mute(tokenizer, vocab))?,
            written: Written::new(limit, stop)?,
        })
    }

    /// The text that the last call of [`advance`](Self::advance) added.
    pub fn text(&self) -> &str {
        &self.written.text
    }

    /// The token that the last call of [`advance`](Self::advance) chose.
    pub fn chosen(&self) -> Option<Token> {
        self.pending.last().copied()
    }

    /// Tokens written so far, a final EOS included.
    pub fn tokens(&self) -> usize {
        self.written.tokens
    }

    /// Why it ended; `None` until then.
    pub fn finish(&self) -> Option<Finish> {
        self.written.finish
    }

    /// Takes the text one token further.
    ///
    /// # Errors
    /// Logits that are not numbers, or settings that leave no token to choose.
    pub fn advance(&mut self, cx: &Exec) -> Result<(), SampleError> {
        if !self.written.goes_on() {
            return Ok(());
        }
        let (vocab, mut last) = (self.sequence.peer().vocab_size(), Vec::new());
        let pending = std::mem::take(&mut self.pending);
        self.sequence.feed(cx, &pending, |logits| last = logits[logits.len() - vocab..].to_vec());
        let from = self.recent.len().saturating_sub(self.window);
        let chosen = self.sampler.sample(cx, &mut last, &self.recent[from..]);
        let token = chosen.inspect_err(|_| self.written.finish = Some(Finish::Failed))?;
        self.pending.push(token);
        let peer = self.sequence.peer().clone();
        let tokenizer = tokenizer(&peer);
        if token == tokenizer.eos() {
            self.written.take(None);
            return Ok(());
        }
        let mut bytes = tokenizer.token_bytes(token);
        if self.recent.is_empty() && tokenizer.adds_space() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.written.take(Some(bytes));
        self.recent.push(token);
        Ok(())
    }
}

/// That of a model which was opened with one, as one that writes must be.
fn tokenizer(peer: &Peer) -> &Tokenizer {
    peer.tokenizer().expect("a model that is to write is opened with its tokenizer")
}
