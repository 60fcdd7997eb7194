//! Writing text with the packed runtime: prompt in, text out, piece by piece.
//!
//! ```text
//! z = logits after EOS and the prompt
//! repeat: token ~ sample(z);  text += bytes(token);  z = logits after token, the state carried on
//! ```
//!
//! A [`Writer`] is one text and all that belongs to it. It can be told more text at any time ([`Writer::read`]), so a story can be
//! written in turns. [`Engine::advance`] takes any number of writers one token further, together: what each writes does not
//! depend on the others. Pieces of text are whole UTF-8 and never part of a stop string. Tokens that stand for no text (PAD,
//! UNK, BOS) are not drawn; EOS ends the story. After the prompt a token allocates nothing.

use std::sync::Arc;

use flashlm_kernels::Token;

use super::{Engine, PackedModel, Stream};
use crate::sample::{SampleError, Sampler, Settings, StopStrings};
use crate::tok::StreamDecoder;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the story.
    Eos,
    /// All tokens asked for are there.
    Length,
    /// A stop string came.
    Stop,
}

/// One text being written.
pub struct Writer {
    model: Arc<PackedModel>,
    stream: Stream,
    /// Tokens that the stream has not been told.
    pending: Vec<Token>,
    sampler: Sampler,
    decoder: StreamDecoder,
    stops: StopStrings,
    /// The last tokens of the text, at least as many as penalties look at.
    recent: Vec<Token>,
    window: usize,
    /// Characters on their way to the stop strings.
    raw: String,
    text: String,
    tokens: usize,
    limit: usize,
    finish: Option<Finish>,
}

/// Bytes that one token's text may take without a further allocation.
const PIECE: usize = 1 << 10;

impl Writer {
    /// A text of at most `limit` tokens, the prompt not counted, that ends before any of `stop`.
    pub fn new(
        model: &Arc<PackedModel>,
        settings: Settings,
        limit: usize,
        stop: &[String],
    ) -> Result<Self, SampleError> {
        let (tokenizer, vocab) = (model.tokenizer(), model.config().vocab_size);
        let eos = tokenizer.eos();
        let mute = |id: &Token| *id != eos && tokenizer.token_bytes(*id).is_empty();
        let bans: Vec<Token> = (0..=Token::MAX).take(vocab).filter(mute).collect();
        let window = settings.repeat_window;
        Ok(Writer {
            stream: model.stream(),
            pending: vec![eos],
            sampler: Sampler::new(settings, vocab, &bans)?,
            decoder: StreamDecoder::new(),
            stops: StopStrings::new(stop.to_vec())?,
            recent: Vec::with_capacity(2 * window.min(1 << 16) + 64),
            window,
            raw: String::with_capacity(PIECE),
            text: String::with_capacity(PIECE),
            tokens: 0,
            limit,
            finish: None,
            model: model.clone(),
        })
    }

    /// Appends `text` to what the model is told before it goes on, also after the end of the story; returns its tokens.
    pub fn read(&mut self, text: &str) -> usize {
        let before = self.pending.len();
        self.model.tokenizer().encode(text, &mut self.pending);
        for i in before..self.pending.len() {
            self.remember(self.pending[i]);
        }
        self.pending.len() - before
    }

    /// Allows `more` tokens from here on, and the text to go on where it had ended.
    pub fn go_on(&mut self, more: usize) {
        self.limit = self.tokens.saturating_add(more);
        self.finish = None;
        self.stops.restart();
    }

    /// The text that the last call of [`Engine::advance`] added; often a word, sometimes nothing.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why it ended; `None` while it goes on.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Tokens drawn so far, a final EOS included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn remember(&mut self, token: Token) {
        if self.recent.len() == self.recent.capacity() {
            // At least half of them go, so that this is rare.
            let keep = self.window.min(self.recent.len() / 2);
            self.recent.drain(..self.recent.len() - keep);
        }
        self.recent.push(token);
    }

    /// Draws the next token from `logits`.
    fn choose(&mut self, cx: &flashlm_kernels::Exec, logits: &mut [f32]) -> Result<(), SampleError> {
        let token = self.sampler.sample(cx, logits, &self.recent)?;
        self.tokens += 1;
        self.pending.push(token);
        let tokenizer = self.model.tokenizer();
        if token == tokenizer.eos() {
            self.end(Finish::Eos);
            return Ok(());
        }
        self.raw.clear();
        self.decoder.push(tokenizer.token_bytes(token), &mut self.raw);
        self.stops.push(&self.raw, &mut self.text);
        self.remember(token);
        if self.stops.is_complete() {
            self.finish = Some(Finish::Stop);
        } else if self.tokens == self.limit {
            self.end(Finish::Length);
        }
        Ok(())
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

impl AsMut<Stream> for Writer {
    fn as_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }
}

impl Engine {
    /// Takes each writer one token further; their new text is in [`Writer::text`]. Writers that have ended stay as they are:
    /// callers take them out when they like, and put new ones in.
    ///
    /// # Errors
    /// Logits that are no numbers, or settings that leave no token to draw.
    pub fn advance(&mut self, writers: &mut [Writer]) -> Result<(), SampleError> {
        for writer in &mut *writers {
            writer.text.clear();
            if writer.finish.is_none() && writer.tokens >= writer.limit {
                writer.end(Finish::Length);
            }
        }
        let going = |writer: &Writer| writer.finish.is_none();
        for writers in writers.chunk_by_mut(|a, b| going(a) == going(b)) {
            if going(&writers[0]) {
                self.advance_all(writers)?;
            }
        }
        Ok(())
    }

    fn advance_all(&mut self, writers: &mut [Writer]) -> Result<(), SampleError> {
        let mut tokens = std::mem::take(&mut self.tokens);
        tokens.clear();
        for writer in &mut *writers {
            if let Some((&last, before)) = writer.pending.split_last() {
                self.feed(&mut writer.stream, before);
                tokens.push(last);
            }
            writer.pending.clear();
        }
        self.step(writers, &tokens);
        self.tokens = tokens;
        let v = self.model.config().vocab_size;
        for (writer, logits) in writers.iter_mut().zip(self.logits.chunks_exact_mut(v)) {
            writer.choose(&self.cx, logits)?;
        }
        Ok(())
    }

    /// Writes to the end of the text; `emit` is given it piece by piece.
    pub fn write(&mut self, writer: &mut Writer, mut emit: impl FnMut(&str)) -> Result<Finish, SampleError> {
        loop {
            self.advance(std::slice::from_mut(writer))?;
            if !writer.text.is_empty() {
                emit(&writer.text);
            }
            if let Some(finish) = writer.finish {
                return Ok(finish);
            }
        }
    }
}
