//! A text that a model of another program writes: as `infer/generation.rs`, one sequence at a time.

use std::sync::Arc;

use flashlm_kernels::ops::exact_log_sum_exp;
use flashlm_kernels::{Exec, Token};

use super::model::{Peer, Sequence};
use crate::infer::written::Written;
use crate::infer::{Finish, Scored};
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
    chosen: Option<Token>,
    /// How many likeliest tokens are told beside the one that is chosen; none where no probabilities are asked for.
    top: Option<usize>,
    scored: Scored,
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
        let tokenizer = tokenizer(peer);
        let (mut pending, mut tokens) = (vec![tokenizer.eos()], Vec::new());
        tokenizer.encode(prompt, &mut tokens);
        pending.extend_from_slice(&tokens);
        PeerText::begin(peer.sequence(), pending, tokens, settings, limit, stop)
    }

    /// The same from where `sequence` is, to which EOS and all of the prompt but its last token were fed; `prompt` without that EOS.
    ///
    /// # Errors
    /// As [`PeerText::new`].
    pub fn resume(
        sequence: Sequence,
        prompt: &[Token],
        settings: Settings,
        limit: usize,
        stop: &[String],
    ) -> Result<PeerText, SampleError> {
        let last = prompt.last().copied().unwrap_or(tokenizer(sequence.peer()).eos());
        PeerText::begin(sequence, vec![last], prompt.to_vec(), settings, limit, stop)
    }

    fn begin(
        sequence: Sequence,
        pending: Vec<Token>,
        recent: Vec<Token>,
        settings: Settings,
        limit: usize,
        stop: &[String],
    ) -> Result<PeerText, SampleError> {
        let peer = sequence.peer();
        let window = settings.repeat_window;
        let sampler = Sampler::new(settings, peer.vocab_size(), &peer.mute)?;
        Ok(PeerText {
            sequence,
            pending,
            recent,
            window,
            sampler,
            written: Written::new(limit, stop)?,
            chosen: None,
            top: None,
            scored: Scored::default(),
        })
    }

    /// Asks for the log-probability of each token that is chosen, and of the `top` likeliest there: [`PeerText::scored`].
    pub fn tell_log_probs(&mut self, top: usize) {
        self.top = Some(top);
    }

    /// Of the token that the last call of [`advance`](Self::advance) chose, where [`PeerText::tell_log_probs`] asked for it.
    pub fn scored(&self) -> Option<&Scored> {
        self.top.and(self.chosen).map(|_| &self.scored)
    }

    /// The text that the last call of [`advance`](Self::advance) added.
    pub fn text(&self) -> &str {
        &self.written.text
    }

    /// The token that the last call of [`advance`](Self::advance) chose.
    pub fn chosen(&self) -> Option<Token> {
        self.chosen
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
        self.chosen = None;
        if !self.written.goes_on() {
            return Ok(());
        }
        let (mut last, fed) = (Vec::new(), self.pending.last().copied());
        if let Some((token, before)) = self.pending.split_last() {
            self.sequence.read(cx, before);
            self.sequence.feed(cx, &[*token], |logits| last = logits);
        }
        let (kept, sum) = match self.top {
            Some(_) => (last.clone(), exact_log_sum_exp(cx, &last)),
            None => (Vec::new(), 0.0),
        };
        let from = self.recent.len().saturating_sub(self.window);
        let chosen = self.sampler.sample(cx, &mut last, &self.recent[from..]);
        let token = chosen.inspect_err(|_| self.written.finish = Some(Finish::Failed))?;
        if let Some(top) = self.top {
            self.scored.set(&kept, sum, token, top);
        }
        self.chosen = Some(token);
        self.pending.clear();
        self.pending.push(token);
        let peer = self.sequence.peer().clone();
        let tokenizer = tokenizer(&peer);
        if token == tokenizer.eos() {
            self.written.take(None);
            return Ok(());
        }
        let mut bytes = tokenizer.token_bytes(token);
        if fed == Some(tokenizer.eos()) && tokenizer.adds_space() {
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
