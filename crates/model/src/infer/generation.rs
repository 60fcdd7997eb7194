//! Text generation with the packed runtime: prompt in, text out, piece by piece.
//!
//! ```text
//! z = logits after EOS and the prompt
//! repeat: token ~ sample(z);  text += bytes(token);  z = logits after token, the state carried on
//! ```
//!
//! A [`Generation`] is one text with its sequence state, sampler and stop strings. More text can be appended at any time
//! ([`Generation::push`]), so people and model can take turns. [`Engine::advance`] takes any number of generations one token
//! further, together; the text of each does not depend on the others. Pieces of text are whole UTF-8 and never part of a stop
//! string. Tokens that stand for no text (PAD, UNK, BOS) are not sampled; EOS ends the document. After the prompt a token
//! allocates nothing.

use std::sync::Arc;

use flashlm_kernels::ops::exact_log_sum_exp;
use flashlm_kernels::tile::Rows;
use flashlm_kernels::{Exec, Token};

use super::engine::Engine;
use super::model::PackedModel;
use super::scored::Scored;
use super::state::SequenceState;
use super::written::{Finish, Written};
use crate::sample::{SampleError, Sampler, Settings};

/// One text being generated.
pub struct Generation {
    model: Arc<PackedModel>,
    state: SequenceState,
    /// Tokens not yet fed to the model.
    pending: Vec<Token>,
    sampler: Sampler,
    written: Written,
    /// The last tokens of the text, at least as many as penalties look at.
    recent: Vec<Token>,
    window: usize,
    chosen: Option<Token>,
    failure: Option<SampleError>,
    /// How many likeliest tokens are told beside the one that is chosen; none where no probabilities are asked for.
    top: Option<usize>,
    scored: Scored,
    /// Logits before the sampler changes them.
    kept: Vec<f32>,
}

impl Generation {
    /// A text of at most `limit` tokens, not counting the prompt, that ends before any of the strings `stop`.
    ///
    /// # Errors
    /// Settings, biases or stop strings out of their bounds.
    pub fn new(
        model: &Arc<PackedModel>,
        settings: Settings,
        limit: usize,
        stop: &[String],
    ) -> Result<Self, SampleError> {
        let window = settings.repeat_window;
        Ok(Generation {
            state: model.new_state(),
            pending: vec![model.tokenizer().eos()],
            sampler: model.sampler(settings)?,
            written: Written::new(limit, stop)?,
            recent: Vec::with_capacity(2 * window.min(1 << 16) + 64),
            window,
            chosen: None,
            failure: None,
            top: None,
            scored: Scored::default(),
            kept: Vec::new(),
            model: model.clone(),
        })
    }

    /// Appends `text` to the prompt, or to the text generated so far, even after its end; returns the number of its tokens.
    pub fn push(&mut self, text: &str) -> usize {
        let before = self.pending.len();
        self.model.tokenizer().encode(text, &mut self.pending);
        for i in before..self.pending.len() {
            self.push_recent(self.pending[i]);
        }
        self.pending.len() - before
    }

    /// Begins where `state` is, to which EOS and all of the prompt but its last token were fed; `prompt` without that EOS.
    pub fn resume(&mut self, state: SequenceState, prompt: &[Token]) {
        self.state = state;
        prompt[prompt.len().saturating_sub(self.window)..].iter().for_each(|&token| self.push_recent(token));
        if let Some(&last) = prompt.last() {
            self.pending = vec![last];
        }
    }

    /// Asks for the log-probability of each token that is chosen, and of the `top` likeliest there: [`Generation::scored`].
    pub fn tell_log_probs(&mut self, top: usize) {
        self.top = Some(top);
        self.kept = Vec::with_capacity(self.model.config().vocab_size);
        self.scored.top = Vec::with_capacity(top);
    }

    /// Of the token that the last call of [`Engine::advance`] chose, where [`Generation::tell_log_probs`] asked for it.
    pub fn scored(&self) -> Option<&Scored> {
        self.top.and(self.chosen).map(|_| &self.scored)
    }

    /// Allows `more` tokens from here on and lets a finished text continue, unless it failed.
    pub fn extend(&mut self, more: usize) {
        self.written.extend(more);
    }

    /// The text that the last call of [`Engine::advance`] added; often a word, sometimes nothing.
    pub fn text(&self) -> &str {
        &self.written.text
    }

    /// The token that the last call of [`Engine::advance`] chose; EOS and the tokens of a stop string are among them.
    pub fn chosen(&self) -> Option<Token> {
        self.chosen
    }

    /// Why it ended; `None` until then.
    pub fn finish(&self) -> Option<Finish> {
        self.written.finish
    }

    /// Tokens generated so far, a final EOS included.
    pub fn tokens(&self) -> usize {
        self.written.tokens
    }

    fn push_recent(&mut self, token: Token) {
        if self.recent.len() == self.recent.capacity() {
            // At least half of them go, so that this is rare.
            let keep = self.window.min(self.recent.len() / 2);
            self.recent.drain(..self.recent.len() - keep);
        }
        self.recent.push(token);
    }

    /// Draws the next token from `logits`.
    fn choose(&mut self, cx: &Exec, logits: &mut [f32]) -> Result<(), SampleError> {
        if self.top.is_some() {
            self.kept.clear();
            self.kept.extend_from_slice(logits);
        }
        let token = self
            .sampler
            .sample(cx, logits, &self.recent)
            .inspect_err(|_| self.written.finish = Some(Finish::Failed))?;
        if let Some(top) = self.top {
            self.scored.set(&self.kept, exact_log_sum_exp(cx, &self.kept), token, top);
        }
        self.chosen = Some(token);
        self.pending.push(token);
        let tokenizer = self.model.tokenizer();
        let ends = token == tokenizer.eos();
        self.written.take((!ends).then(|| tokenizer.token_bytes(token)));
        if !ends {
            self.push_recent(token);
        }
        Ok(())
    }
}

impl AsMut<SequenceState> for Generation {
    fn as_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }
}

impl Engine {
    /// Takes each generation one token further; their new text is in [`Generation::text`]. Generations that have ended stay as they
    /// are: callers may remove them at any time, and add new ones.
    ///
    /// # Errors
    /// Logits that are not numbers, or settings that leave no token to choose: that generation has failed; the others have
    /// advanced.
    pub fn advance(&mut self, generations: &mut [Generation]) -> Result<(), SampleError> {
        for generation in &mut *generations {
            generation.chosen = None;
            generation.written.goes_on();
        }
        let going = |generation: &Generation| generation.finish().is_none();
        let mut all = Ok(());
        for generations in generations.chunk_by_mut(|a, b| going(a) == going(b)) {
            if going(&generations[0]) {
                all = all.and(self.advance_all(generations));
            }
        }
        all
    }

    fn advance_all(&mut self, generations: &mut [Generation]) -> Result<(), SampleError> {
        let mut tokens = std::mem::take(&mut self.tokens);
        tokens.clear();
        for generation in &mut *generations {
            if let Some((&last, before)) = generation.pending.split_last() {
                self.feed(&mut generation.state, before);
                tokens.push(last);
            }
            generation.pending.clear();
        }
        let (rows, v) = (self.rows(), self.model().config().vocab_size);
        for (generations, tokens) in generations.chunks_mut(rows).zip(tokens.chunks(rows)) {
            self.decode(generations, tokens, Rows::<f32>(&mut [], 0), |mut last, generations, _| {
                let z = last.local.take::<f32>(generations.len() * v);
                last.head(z, generations);
                for (generation, z) in generations.iter_mut().zip(z.chunks_exact_mut(v)) {
                    generation.failure = generation.choose(last.cx, z).err();
                }
            });
        }
        self.tokens = tokens;
        let failures = generations.iter_mut().map(|generation| generation.failure.take());
        // Each is taken, and the first told.
        failures.fold(None, Option::or).map_or(Ok(()), Err)
    }

    /// Generates until the text ends; `emit` receives it piece by piece.
    ///
    /// # Errors
    /// As [`Engine::advance`].
    pub fn generate(&mut self, generation: &mut Generation, mut emit: impl FnMut(&str)) -> Result<Finish, SampleError> {
        loop {
            self.advance(std::slice::from_mut(generation))?;
            if !generation.text().is_empty() {
                emit(generation.text());
            }
            if let Some(finish) = generation.finish() {
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

    fn generation(noise: &Noise, prompt: &str, settings: &Settings, limit: usize, stop: &[&str]) -> Generation {
        let stop: Vec<String> = stop.iter().map(|stop| stop.to_string()).collect();
        let mut generation = Generation::new(&noise.model, settings.clone(), limit, &stop).unwrap();
        generation.push(prompt);
        generation
    }

    fn rest(engine: &mut Engine, generation: &mut Generation) -> (String, Finish) {
        let mut text = String::new();
        let finish = engine.generate(generation, |piece| {
            assert!(!piece.is_empty());
            text += piece;
        });
        (text, finish.unwrap())
    }

    /// At most `n` tokens, each chosen from logits that a fresh state makes of all tokens so far.
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
            let logits = engine.prefill(&mut noise.model.new_state(), &tokens);
            // EOS in front is the start of the document, not a token to avoid.
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
            let mut generation = generation(&noise, "Hi there", &greedy(), 40, &[]);
            let (written, finish) = rest(&mut engine(&noise), &mut generation);
            assert_eq!(written, text(&noise, &expected), "{name}");
            let eos = expected.ends_with(&[EOS]);
            assert_eq!(finish, if eos { Finish::Eos } else { Finish::Length });
            assert_eq!(generation.tokens(), expected.len());
            // Token by token, and none once it has ended.
            let (mut engine, mut chosen) = (engine(&noise), Vec::new());
            let mut again = self::generation(&noise, "Hi there", &greedy(), 40, &[]);
            while again.finish().is_none() {
                engine.advance(std::slice::from_mut(&mut again)).unwrap();
                chosen.extend(again.chosen());
            }
            assert_eq!(chosen, expected, "{name}");
            engine.advance(std::slice::from_mut(&mut again)).unwrap();
            assert_eq!(again.chosen(), None);
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
            let mut generation = generation(&noise, "", &settings, 120, &[]);
            let (written, finish) = rest(&mut engine(&noise), &mut generation);
            assert_eq!(written, text(&noise, &expected), "seed {seed}");
            assert_eq!(generation.tokens(), expected.len());
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
            rest(&mut engine(&noise), &mut generation(&noise, "x", &settings, 40, &[])).0
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
            let mut generation = generation(&noise, "The", &settings, 80, stop);
            let (text, finish) = rest(&mut engine(&noise), &mut generation);
            (text, finish, generation.tokens())
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
        let mut generation = generation(&noise, "The", &settings, 200, &[]);
        let (written, _) = rest(&mut engine(&noise), &mut generation);
        assert_eq!((written, generation.tokens()), (text(&noise, &expected), expected.len()));
    }

    #[test]
    fn generations_end_one_by_one_and_do_not_change_each_other() {
        let noise = noise();
        let settings = |seed| Settings { seed, logit_bias: vec![(EOS, 2.0)], ..Settings::default() };
        let prompts = ["", "a", "A longer beginning. ", "É", "bb"];
        let make = |i: usize| {
            let stop: &[&str] = if i % 4 == 1 { &["e", "\u{fffd}"] } else { &[] };
            generation(&noise, prompts[i % 5], &settings(i as u64), [0, 30, 50, 20][i % 4], stop)
        };
        let alone: Vec<_> = (0..20).map(|i| rest(&mut engine(&noise), &mut make(i))).collect();
        for finish in [Finish::Eos, Finish::Length, Finish::Stop] {
            assert!(alone.iter().any(|alone| alone.1 == finish), "{finish:?}");
        }
        for isa in isas() {
            let mut engine = noise.engine(isa, 2, 5);
            let mut generations: Vec<Generation> = (0..20).map(make).collect();
            let mut texts = vec![String::new(); 20];
            let mut rounds = 0;
            while generations.iter().any(|generation| generation.finish().is_none()) {
                engine.advance(&mut generations).unwrap();
                texts.iter_mut().zip(&generations).for_each(|(text, generation)| *text += generation.text());
                rounds += 1;
            }
            engine.advance(&mut generations).unwrap();
            assert!(rounds <= 51 && generations.iter().all(|generation| generation.text().is_empty()), "none goes on");
            for ((text, generation), alone) in texts.into_iter().zip(&generations).zip(&alone) {
                assert_eq!((text, generation.finish().unwrap()), *alone);
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
                (generation(&noise, "One ", &settings, 7, &[]), generation(&noise, "One ", &settings, 21, &[]));
            rest(&mut engine, &mut turns);
            for _ in 0..2 {
                turns.extend(7);
                rest(&mut engine, &mut turns);
            }
            rest(&mut engine, &mut whole);
            assert_eq!(turns.recent, whole.recent, "{name}");
            // What was written and what is read then are one document, and the next token is that after both as a prompt.
            assert_eq!((turns.push("then"), turns.push(" she")), (4, 4));
            turns.extend(20);
            let story = [&[EOS], &turns.recent[..]].concat();
            assert!(
                story.starts_with(&[EOS, 79, 110, 101, 32]) && story.ends_with(b"then she".map(Token::from).as_slice())
            );
            assert_eq!(story.len(), 1 + 4 + 21 + 8);
            let mut state = noise.model.new_state();
            let logits = engine.prefill(&mut state, &story).to_vec();
            let best = logits[..256].iter().copied().reduce(f32::max).unwrap();
            engine.advance(std::slice::from_mut(&mut turns)).unwrap();
            assert_eq!(turns.pending.len(), 1);
            assert!(logits[usize::from(turns.pending[0])] == best, "{name}");
            assert!(turns.state.save() == state.save(), "{name}");
        }
    }

    #[test]
    fn nothing_asked_for_is_nothing_and_an_ended_story_can_go_on() {
        let noise = noise();
        let mut engine = engine(&noise);
        let mut none = generation(&noise, "a", &greedy(), 0, &[]);
        assert_eq!(rest(&mut engine, &mut none), (String::new(), Finish::Length));
        let settings = Settings { logit_bias: vec![(EOS, 100.0)], ..greedy() };
        let mut ends = generation(&noise, "a", &settings, 5, &[]);
        for tokens in 1..4 {
            assert_eq!(rest(&mut engine, &mut ends), (String::new(), Finish::Eos));
            assert_eq!(ends.tokens(), tokens);
            ends.extend(5);
        }
    }

    #[test]
    fn log_probs_of_drawn_tokens_are_those_of_a_score_and_a_resumed_prompt_is_the_same_text() {
        let noise = noise();
        let settings = Settings {
            temperature: 0.7,
            repeat_penalty: 1.3,
            logit_bias: vec![(EOS, -100.0)],
            seed: 8,
            ..Settings::default()
        };
        let mut prompt = Vec::new();
        noise.model.tokenizer().encode("Hi there", &mut prompt);
        let mut plain = generation(&noise, "Hi there", &settings, 30, &[]);
        let wanted = rest(&mut engine(&noise), &mut plain);
        let mut engine = noise.engine(isas()[0], 1, 3);
        let mut state = noise.model.new_state();
        engine.feed(&mut state, &[&[EOS], &prompt[..7]].concat());
        let mut resumed = Generation::new(&noise.model, settings, 30, &[]).unwrap();
        resumed.resume(state, &prompt);
        resumed.tell_log_probs(3);
        let (mut text, mut chosen, mut scored) = (String::new(), Vec::new(), Vec::new());
        while resumed.finish().is_none() {
            engine.advance(std::slice::from_mut(&mut resumed)).unwrap();
            text += resumed.text();
            chosen.extend(resumed.chosen());
            scored.extend(resumed.scored().cloned());
        }
        assert_eq!((text, resumed.finish().unwrap()), wanted);
        // All positions at once, in pieces of another size.
        let all = [&[EOS], &prompt[..], &chosen[..]].concat();
        let mut out = Vec::new();
        self::engine(&noise).score(&mut noise.model.new_state(), &all[..all.len() - 1], &all[1..], 3, &mut out);
        assert_eq!(out[prompt.len()..], scored);
    }

    /// Finite weights can make products that are not, here of one token's row after some texts: those generations fail, and no
    /// others.
    #[test]
    fn a_generation_without_numbers_fails_alone() {
        let good = noise();
        let dim = good.config.dim;
        let noise = Noise::with(good.config.clone(), good.model.tokenizer(), |name, w| {
            if name == "embedding.weight" {
                w[7 * dim..8 * dim].iter_mut().zip([3e38, -3e38].iter().cycle()).for_each(|(w, huge)| *w = *huge);
            }
        });
        let settings = Settings { seed: 5, ..Settings::default() };
        let prompts: Vec<String> = ('!'..'a').map(String::from).collect();
        let make =
            || prompts.iter().map(|prompt| generation(&noise, prompt, &settings, 2, &[])).collect::<Vec<Generation>>();
        let mut engine = engine(&noise);
        let alone = make().into_iter().map(|mut generation| {
            let mut text = String::new();
            let error = engine.generate(&mut generation, |piece| text += piece).err();
            assert_eq!(error.is_some(), generation.finish() == Some(Finish::Failed));
            assert!(error.is_none_or(|error| error.to_string().contains("the logit of token 7 is inf")));
            (text, generation.finish(), generation.tokens())
        });
        let alone: Vec<_> = alone.collect();
        for finish in [Finish::Failed, Finish::Length] {
            assert!(alone.iter().any(|alone| alone.1 == Some(finish)), "{finish:?}");
        }
        let (mut together, mut texts, mut errors) = (make(), vec![String::new(); prompts.len()], 0);
        for _ in 0..3 {
            errors += usize::from(engine.advance(&mut together).is_err());
            texts.iter_mut().zip(&together).for_each(|(text, generation)| *text += generation.text());
        }
        assert!((1..=2).contains(&errors), "{errors}");
        for ((text, generation), alone) in texts.into_iter().zip(&mut together).zip(alone) {
            assert_eq!((text, generation.finish(), generation.tokens()), alone);
            generation.extend(3);
            assert_eq!(generation.finish().is_some(), alone.1 == Some(Finish::Failed));
        }
    }

    #[test]
    fn bad_settings_are_refused() {
        let noise = noise();
        let error =
            |settings, stop: &[String]| Generation::new(&noise.model, settings, 5, stop).err().unwrap().to_string();
        assert!(error(Settings { temperature: -1.0, ..greedy() }, &[]).contains("temperature"));
        assert!(error(Settings { logit_bias: vec![(257, 1.0)], ..greedy() }, &[]).contains("token"));
        assert!(error(greedy(), &[String::new()]).contains("stop"));
    }
}
