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

use flashlm_kernels::tile::Parts;
use flashlm_kernels::{Exec, Token};

use super::engine::Engine;
use super::model::PackedModel;
use super::stream::Stream;
use crate::sample::{MAX_PIECE, SampleError, Sampler, Settings, StopStrings};
use crate::tok::StreamDecoder;

/// Writers whose logits are made, and then read, at once: few enough to stay in the cache, enough for the table to be worth its way.
const CHOICES: usize = 32;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the story.
    Eos,
    /// All tokens asked for are there.
    Length,
    /// A stop string came.
    Stop,
    /// No token could be chosen; [`Engine::advance`] has said why.
    Failed,
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
    failure: Option<SampleError>,
}

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
            raw: String::with_capacity(MAX_PIECE),
            text: String::with_capacity(2 * MAX_PIECE),
            tokens: 0,
            limit,
            finish: None,
            failure: None,
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

    /// Allows `more` tokens from here on, and the text to go on where it had ended, unless it had failed.
    pub fn go_on(&mut self, more: usize) {
        self.limit = self.tokens.saturating_add(more);
        self.finish = self.finish.filter(|finish| *finish == Finish::Failed);
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
    fn choose(&mut self, cx: &Exec, logits: &mut [f32]) -> Result<(), SampleError> {
        let token =
            self.sampler.sample(cx, logits, &self.recent).inspect_err(|_| self.finish = Some(Finish::Failed))?;
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
    /// Logits that are no numbers, or settings that leave no token to draw: that writer has failed, and the others have gone on.
    pub fn advance(&mut self, writers: &mut [Writer]) -> Result<(), SampleError> {
        for writer in &mut *writers {
            writer.text.clear();
            if writer.finish.is_none() && writer.tokens >= writer.limit {
                writer.end(Finish::Length);
            }
        }
        let going = |writer: &Writer| writer.finish.is_none();
        let mut all = Ok(());
        for writers in writers.chunk_by_mut(|a, b| going(a) == going(b)) {
            if going(&writers[0]) {
                all = all.and(self.advance_all(writers));
            }
        }
        all
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
        let (rows, threads, v) = (self.rows(), self.cx.pool().threads(), self.model().config().vocab_size);
        self.room(CHOICES.min(writers.len()) * threads);
        let mut logits = std::mem::take(&mut self.logits);
        for (writers, tokens) in writers.chunks_mut(rows).zip(tokens.chunks(rows)) {
            let each = logits.len() / threads;
            self.decode(writers, tokens, Parts(&mut logits, each), |mut last, writers, z| {
                for (i, writers) in writers.chunks_mut(CHOICES).enumerate() {
                    let z = &mut z[..writers.len() * v];
                    last.head(z, i * CHOICES..i * CHOICES + writers.len());
                    for (writer, z) in writers.iter_mut().zip(z.chunks_exact_mut(v)) {
                        writer.failure = writer.choose(last.cx, z).err();
                    }
                }
            });
        }
        (self.logits, self.tokens) = (logits, tokens);
        let failures = writers.iter_mut().map(|writer| writer.failure.take());
        // Each is taken, and the first told.
        failures.fold(None, Option::or).map_or(Ok(()), Err)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::testing::{EOS, Noise, isas, shapes};
    use crate::tok::Tokenizer;

    const WORDS: &str = "The cat sat on the mat. \"Écoute,\" said the bird to the cat, \"the mat is mine!\"";

    fn noise() -> Noise {
        Noise::new(shapes().remove(0).1)
    }

    fn engine(noise: &Noise) -> Engine {
        noise.engine(isas()[0], 2, 16)
    }

    fn greedy() -> Settings {
        Settings { temperature: 0.0, ..Settings::default() }
    }

    fn writer(noise: &Noise, prompt: &str, settings: &Settings, limit: usize, stop: &[&str]) -> Writer {
        let stop: Vec<String> = stop.iter().map(|stop| stop.to_string()).collect();
        let mut writer = Writer::new(&noise.model, settings.clone(), limit, &stop).unwrap();
        writer.read(prompt);
        writer
    }

    fn rest(engine: &mut Engine, writer: &mut Writer) -> (String, Finish) {
        let mut text = String::new();
        let finish = engine.write(writer, |piece| {
            assert!(!piece.is_empty());
            text += piece;
        });
        (text, finish.unwrap())
    }

    /// At most `n` tokens, each chosen from logits that a fresh stream makes of all tokens so far.
    fn recompute(
        noise: &Noise,
        prompt: &str,
        n: usize,
        mut choose: impl FnMut(&mut [f32], &[Token]) -> Token,
    ) -> Vec<Token> {
        let (mut engine, tokenizer) = (engine(noise), noise.model.tokenizer());
        let mut tokens = vec![tokenizer.eos()];
        tokenizer.encode(prompt, &mut tokens);
        let start = tokens.len();
        while tokens.len() < start + n && !tokens[start..].contains(&tokenizer.eos()) {
            let logits = engine.prefill(&mut noise.model.stream(), &tokens);
            // EOS in front is the start of the story, not a token to avoid.
            tokens.push(choose(logits, &tokens[1..]));
        }
        tokens.split_off(start)
    }

    fn text(noise: &Noise, tokens: &[Token]) -> String {
        String::from_utf8_lossy(&noise.model.tokenizer().decode(tokens)).into_owned()
    }

    #[test]
    fn greedy_is_the_argmax_of_a_full_recompute() {
        for (name, config) in shapes() {
            let noise = Noise::new(config);
            let expected = recompute(&noise, "Hi there", 40, |z, _| {
                let best = z.iter().copied().reduce(f32::max).unwrap();
                z.iter().position(|x| *x == best).unwrap() as Token
            });
            let mut writer = writer(&noise, "Hi there", &greedy(), 40, &[]);
            let (written, finish) = rest(&mut engine(&noise), &mut writer);
            assert_eq!(written, text(&noise, &expected), "{name}");
            let eos = expected.ends_with(&[EOS]);
            assert_eq!(finish, if eos { Finish::Eos } else { Finish::Length });
            assert_eq!(writer.tokens(), expected.len());
        }
    }

    #[test]
    fn draws_and_penalties_are_those_of_a_full_recompute_up_to_eos() {
        let noise = noise();
        let cx = flashlm_kernels::Exec::new(isas()[0], 1);
        let mut ended = 0;
        for seed in 0..6 {
            let settings = Settings {
                top_k: 100,
                repeat_penalty: 1.3,
                frequency_penalty: 0.4,
                repeat_window: 8,
                logit_bias: vec![(65, 1.0)],
                seed,
                ..Settings::default()
            };
            let mut sampler = Sampler::new(settings.clone(), 257, &[]).unwrap();
            let expected = recompute(&noise, "", 120, |z, recent| sampler.sample(&cx, z, recent).unwrap());
            let mut writer = writer(&noise, "", &settings, 120, &[]);
            let (written, finish) = rest(&mut engine(&noise), &mut writer);
            assert_eq!(written, text(&noise, &expected), "seed {seed}");
            assert_eq!(writer.tokens(), expected.len());
            let eos = expected.ends_with(&[EOS]);
            assert_eq!(finish, if eos { Finish::Eos } else { Finish::Length }, "seed {seed}");
            ended += usize::from(eos);
        }
        assert!((1..6).contains(&ended), "both ends must occur, EOS came {ended} times");
    }

    #[test]
    fn the_seed_decides() {
        let noise = noise();
        let run = |seed| {
            let settings = Settings { seed, ..Settings::default() };
            rest(&mut engine(&noise), &mut writer(&noise, "x", &settings, 40, &[])).0
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn a_stop_string_cuts_the_same_text_off() {
        let tokenizer = Tokenizer::train_bpe([WORDS].into_iter(), 300).unwrap();
        let noise = Noise::with(shapes().remove(0).1, &tokenizer, |_, _| {});
        let settings = Settings { seed: 3, logit_bias: vec![(0, -100.0)], ..Settings::default() };
        let run = |stop: &[&str]| {
            let mut writer = writer(&noise, "The", &settings, 80, stop);
            let (text, finish) = rest(&mut engine(&noise), &mut writer);
            (text, finish, writer.tokens())
        };
        let (whole, finish, tokens) = run(&[]);
        assert_eq!((finish, tokens), (Finish::Length, 80));
        // Characters from the middle, which cross the ends of tokens.
        let from = whole.char_indices().nth(30).unwrap().0;
        let to = whole.char_indices().nth(36).unwrap().0;
        let stop = &whole[from..to];
        let (text, finish, tokens) = run(&["never in here", stop]);
        assert_eq!(text, whole[..whole.find(stop).unwrap()]);
        assert_eq!(finish, Finish::Stop);
        assert!(tokens < 80);
        // A beginning of a stop string at the very end is text after all.
        let tail = whole.chars().last().unwrap().to_string() + "\u{1}never";
        assert_eq!(run(&[&tail]).0, whole);
    }

    #[test]
    fn tokens_without_text_are_never_drawn() {
        // PAD, UNK and BOS, far likelier than others.
        let tokenizer = Tokenizer::train_frequency([WORDS].into_iter(), 30).unwrap();
        let noise = Noise::with(shapes().remove(0).1, &tokenizer, |_, _| {});
        let eos = tokenizer.eos();
        let settings = Settings { logit_bias: vec![(0, 50.0), (1, 50.0), (2, 50.0)], ..Settings::default() };
        let mut sampler = Sampler::new(settings.clone(), tokenizer.vocab_size(), &[0, 1, 2]).unwrap();
        let cx = flashlm_kernels::Exec::new(isas()[0], 1);
        let expected = recompute(&noise, "The", 200, |z, recent| sampler.sample(&cx, z, recent).unwrap());
        assert!(expected.iter().all(|id| *id >= eos));
        let mut writer = writer(&noise, "The", &settings, 200, &[]);
        let (written, _) = rest(&mut engine(&noise), &mut writer);
        assert_eq!((written, writer.tokens()), (text(&noise, &expected), expected.len()));
    }

    #[test]
    fn writers_end_one_by_one_and_do_not_change_each_other() {
        let noise = noise();
        let settings = |seed| Settings { seed, logit_bias: vec![(EOS, 2.0)], ..Settings::default() };
        let prompts = ["", "a", "A longer beginning. ", "É", "bb"];
        let make = |i: usize| {
            let stop: &[&str] = if i % 4 == 1 { &["e", "\u{fffd}"] } else { &[] };
            writer(&noise, prompts[i % 5], &settings(i as u64), [0, 30, 50, 20][i % 4], stop)
        };
        let alone: Vec<_> = (0..20).map(|i| rest(&mut engine(&noise), &mut make(i))).collect();
        for finish in [Finish::Eos, Finish::Length, Finish::Stop] {
            assert!(alone.iter().any(|alone| alone.1 == finish), "{finish:?}");
        }
        for isa in isas() {
            let mut engine = noise.engine(isa, 2, 5);
            let mut writers: Vec<Writer> = (0..20).map(make).collect();
            let mut texts = vec![String::new(); 20];
            let mut rounds = 0;
            while writers.iter().any(|writer| writer.finish().is_none()) {
                engine.advance(&mut writers).unwrap();
                texts.iter_mut().zip(&writers).for_each(|(text, writer)| *text += writer.text());
                rounds += 1;
            }
            engine.advance(&mut writers).unwrap();
            assert!(rounds <= 51 && writers.iter().all(|writer| writer.text().is_empty()), "none goes on");
            for ((text, writer), alone) in texts.into_iter().zip(&writers).zip(&alone) {
                assert_eq!((text, writer.finish().unwrap()), *alone);
            }
        }
    }

    #[test]
    fn a_story_in_turns_is_the_story_at_once() {
        for (name, config) in shapes() {
            let noise = Noise::new(config);
            let settings = Settings { logit_bias: vec![(EOS, -100.0)], ..greedy() };
            let mut engine = engine(&noise);
            let (mut turns, mut whole) =
                (writer(&noise, "One ", &settings, 7, &[]), writer(&noise, "One ", &settings, 21, &[]));
            rest(&mut engine, &mut turns);
            for _ in 0..2 {
                turns.go_on(7);
                rest(&mut engine, &mut turns);
            }
            rest(&mut engine, &mut whole);
            assert_eq!(turns.recent, whole.recent, "{name}");
            // What was written and what is read then are one story, and the next token is that after both as a prompt.
            assert_eq!((turns.read("then"), turns.read(" she")), (4, 4));
            turns.go_on(20);
            let story = [&[EOS], &turns.recent[..]].concat();
            assert!(
                story.starts_with(&[EOS, 79, 110, 101, 32]) && story.ends_with(b"then she".map(Token::from).as_slice())
            );
            assert_eq!(story.len(), 1 + 4 + 21 + 8);
            let mut stream = noise.model.stream();
            let logits = engine.prefill(&mut stream, &story).to_vec();
            let best = logits[..256].iter().copied().reduce(f32::max).unwrap();
            engine.advance(std::slice::from_mut(&mut turns)).unwrap();
            assert_eq!(turns.pending.len(), 1);
            assert!(logits[usize::from(turns.pending[0])] == best, "{name}");
            assert!(turns.stream.save() == stream.save(), "{name}");
        }
    }

    #[test]
    fn nothing_asked_for_is_nothing_and_an_ended_story_can_go_on() {
        let noise = noise();
        let mut engine = engine(&noise);
        let mut none = writer(&noise, "a", &greedy(), 0, &[]);
        assert_eq!(rest(&mut engine, &mut none), (String::new(), Finish::Length));
        let settings = Settings { logit_bias: vec![(EOS, 100.0)], ..greedy() };
        let mut ends = writer(&noise, "a", &settings, 5, &[]);
        for tokens in 1..4 {
            assert_eq!(rest(&mut engine, &mut ends), (String::new(), Finish::Eos));
            assert_eq!(ends.tokens(), tokens);
            ends.go_on(5);
        }
    }

    /// Finite weights can make products that are not, here of one token's row after some texts: those writers fail, and no others.
    #[test]
    fn a_writer_without_numbers_fails_alone() {
        let good = noise();
        let dim = good.config.dim;
        let noise = Noise::with(good.config.clone(), good.model.tokenizer(), |name, w| {
            if name == "embedding.weight" {
                w[7 * dim..8 * dim].iter_mut().zip([3e38, -3e38].iter().cycle()).for_each(|(w, huge)| *w = *huge);
            }
        });
        let settings = Settings { seed: 5, ..Settings::default() };
        let prompts: Vec<String> = ('!'..'a').map(String::from).collect();
        let make = || prompts.iter().map(|prompt| writer(&noise, prompt, &settings, 2, &[])).collect::<Vec<Writer>>();
        let mut engine = engine(&noise);
        let alone = make().into_iter().map(|mut writer| {
            let mut text = String::new();
            let error = engine.write(&mut writer, |piece| text += piece).err();
            assert_eq!(error.is_some(), writer.finish() == Some(Finish::Failed));
            assert!(error.is_none_or(|error| error.to_string().contains("the logit of token 7 is inf")));
            (text, writer.finish(), writer.tokens())
        });
        let alone: Vec<_> = alone.collect();
        for finish in [Finish::Failed, Finish::Length] {
            assert!(alone.iter().any(|alone| alone.1 == Some(finish)), "{finish:?}");
        }
        let (mut together, mut texts, mut errors) = (make(), vec![String::new(); prompts.len()], 0);
        for _ in 0..3 {
            errors += usize::from(engine.advance(&mut together).is_err());
            texts.iter_mut().zip(&together).for_each(|(text, writer)| *text += writer.text());
        }
        assert!((1..=2).contains(&errors), "{errors}");
        for ((text, writer), alone) in texts.into_iter().zip(&mut together).zip(alone) {
            assert_eq!((text, writer.finish(), writer.tokens()), alone);
            writer.go_on(3);
            assert_eq!(writer.finish().is_some(), alone.1 == Some(Finish::Failed));
        }
    }

    #[test]
    fn bad_settings_are_refused() {
        let noise = noise();
        let error = |settings, stop: &[String]| Writer::new(&noise.model, settings, 5, stop).err().unwrap().to_string();
        assert!(error(Settings { temperature: -1.0, ..greedy() }, &[]).contains("temperature"));
        assert!(error(Settings { logit_bias: vec![(257, 1.0)], ..greedy() }, &[]).contains("token"));
        assert!(error(greedy(), &[String::new()]).contains("stop"));
    }
}
