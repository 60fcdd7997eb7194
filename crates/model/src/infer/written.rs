//! What a generation has written: bytes of tokens become whole characters, stop strings are held back, and it ends at some point.

use flashlm_kernels::Token;

use crate::sample::{MAX_PIECE, SampleError, StopStrings};
use crate::tok::{StreamDecoder, Tokenizer};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the document.
    Eos,
    /// The limit of tokens was reached.
    Length,
    /// The text reached a stop string.
    Stop,
    /// No token could be chosen; the error of that step says why.
    Failed,
}

/// The text of one generation so far. A token allocates nothing.
pub(crate) struct Written {
    decoder: StreamDecoder,
    stops: StopStrings,
    /// Characters not yet compared with the stop strings.
    raw: String,
    /// What the last token added.
    pub text: String,
    /// Tokens so far, a final EOS included, and how many there may be.
    pub tokens: usize,
    limit: usize,
    /// Why it ended; none until then.
    pub finish: Option<Finish>,
}

impl Written {
    /// Nothing yet, of at most `limit` tokens, and nothing from any of the strings `stop` on.
    pub fn new(limit: usize, stop: &[String]) -> Result<Written, SampleError> {
        Ok(Written {
            decoder: StreamDecoder::new(),
            stops: StopStrings::new(stop.to_vec())?,
            raw: String::with_capacity(MAX_PIECE),
            text: String::with_capacity(2 * MAX_PIECE),
            tokens: 0,
            limit,
            finish: None,
        })
    }

    /// Before each token: whether there is to be one.
    pub fn goes_on(&mut self) -> bool {
        self.text.clear();
        if self.finish.is_none() && self.tokens >= self.limit {
            self.end(Finish::Length);
        }
        self.finish.is_none()
    }

    /// Takes the bytes of a token that was chosen; none are those of EOS.
    pub fn take(&mut self, bytes: Option<&[u8]>) {
        self.tokens += 1;
        let Some(bytes) = bytes else { return self.end(Finish::Eos) };
        self.raw.clear();
        self.decoder.push(bytes, &mut self.raw);
        self.stops.push(&self.raw, &mut self.text);
        if self.stops.is_complete() {
            self.finish = Some(Finish::Stop);
        } else if self.tokens == self.limit {
            self.end(Finish::Length);
        }
    }

    /// Allows `more` tokens from here on and lets a finished text continue, unless it failed.
    pub fn extend(&mut self, more: usize) {
        self.limit = self.tokens.saturating_add(more);
        self.finish = self.finish.filter(|finish| *finish == Finish::Failed);
        self.stops.restart();
    }

    /// Ends without a stop string: what was held back is text after all.
    fn end(&mut self, finish: Finish) {
        self.raw.clear();
        self.decoder.finish(&mut self.raw);
        self.stops.push(&self.raw, &mut self.text);
        self.stops.finish(&mut self.text);
        self.finish = Some(finish);
    }
}

/// Tokens that stand for no text (PAD, UNK, BOS), and are not sampled; EOS is none of them.
pub(crate) fn mute(tokenizer: &Tokenizer, vocab: usize) -> Vec<Token> {
    let mute = |id: &Token| *id != tokenizer.eos() && tokenizer.token_bytes(*id).is_empty();
    (0..=Token::MAX).take(vocab).filter(mute).collect()
}
