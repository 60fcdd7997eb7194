//! Text from a model, token by token.
//!
//! ```text
//! state = 0;  z = logits after EOS and the prompt
//! repeat: token ~ sample(z);  text += bytes(token);  z = logits after token, the state carried on
//! ```
//!
//! Each token costs the same however long the text is: the layers keep a state instead of the tokens before. Pieces of
//! text are whole UTF-8 and never part of a stop string. Tokens that stand for no text (PAD, UNK, BOS) are not drawn; EOS
//! ends the story.

use flashlm_kernels::{Exec, Token};
use flashlm_model::LanguageModel;
use flashlm_model::sample::{SampleError, Sampler, Settings, StopStrings};
use flashlm_model::tok::{StreamDecoder, Tokenizer};
use std::ops::ControlFlow;
use std::time::Instant;

/// Why no text was written, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A setting out of its range, or logits that are no numbers.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The tokenizer is of another model.
    #[error(
        "the tokenizer has {tokenizer} tokens and the model {model}; use the tokenizer.json the model was trained with"
    )]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Tokens of the model.
        model: usize,
    },
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the story.
    Eos,
    /// All tokens asked for are there.
    Length,
    /// A stop string came.
    Stop,
    /// The receiver of the text asked to stop.
    Stopped,
}

/// What a generation did.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Tokens read before the first was drawn: EOS and the prompt.
    pub prompt_tokens: usize,
    /// Seconds spent on those.
    pub prompt_seconds: f64,
    /// Tokens drawn, a final EOS included.
    pub tokens: usize,
    /// Seconds spent on drawing them, `emit` included.
    pub seconds: f64,
    /// Why the text ended.
    pub finish: Finish,
}

/// Goes on from `prompt` for at most `n` tokens; `emit` is given the text without the prompt, piece by piece, and may end
/// it by breaking. `lm` is prepared with `params`.
pub fn generate(
    cx: &Exec,
    lm: &mut dyn LanguageModel<f32>,
    params: &[f32],
    tokenizer: &Tokenizer,
    prompt: &str,
    settings: Settings,
    n: usize,
    stop: &[String],
    emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let vocab = lm.config().vocab_size;
    if tokenizer.vocab_size() > vocab {
        return Err(GenerateError::Vocabulary { tokenizer: tokenizer.vocab_size(), model: vocab });
    }
    let eos = tokenizer.eos();
    let mute = |id: &Token| *id != eos && tokenizer.token_bytes(*id).is_empty();
    let bans: Vec<Token> = (0..=Token::MAX).take(vocab).filter(mute).collect();
    let mut sampler = Sampler::new(settings, vocab, &bans)?;
    let mut text = Text { decoder: StreamDecoder::new(), stops: StopStrings::new(stop.to_vec())? };

    let mut tokens = vec![eos];
    tokenizer.encode(prompt, &mut tokens);
    let prompt_tokens = tokens.len();
    let mut state = lm.state(1);
    let mut logits = vec![0.0; vocab];
    let started = Instant::now();
    lm.next_logits(cx, &mut logits, params, &tokens, &mut state);
    let prompt_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let finish = loop {
        if tokens.len() - prompt_tokens == n {
            break Finish::Length;
        }
        // EOS in front is the start of the story, not a token the model should avoid.
        let token = sampler.sample(&mut logits, &tokens[1..])?;
        tokens.push(token);
        if token == eos {
            break Finish::Eos;
        }
        let piece = text.push(tokenizer.token_bytes(token));
        if !piece.is_empty() && emit(&piece).is_break() {
            break Finish::Stopped;
        }
        if text.stops.is_complete() {
            break Finish::Stop;
        }
        if tokens.len() - prompt_tokens < n {
            lm.next_logits(cx, &mut logits, params, &[token], &mut state);
        }
    };
    let rest = text.finish();
    if finish != Finish::Stopped && !rest.is_empty() {
        // Nothing follows that a break could prevent.
        let _ = emit(&rest);
    }
    let (tokens, seconds) = (tokens.len() - prompt_tokens, started.elapsed().as_secs_f64());
    Ok(Generated { prompt_tokens, prompt_seconds, tokens, seconds, finish })
}

/// Bytes of tokens on their way to whole characters that belong to no stop string.
struct Text {
    decoder: StreamDecoder,
    stops: StopStrings,
}

impl Text {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.stops.push(&self.decoder.push(bytes))
    }

    /// What was held back; nothing after a stop string.
    fn finish(&mut self) -> String {
        let last = self.stops.push(&self.decoder.finish());
        last + &self.stops.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashlm_kernels::{Buf, Isa};
    use flashlm_model::config::{AttentionConfig, DeltaConfig, QuantConfig, ScaleKind, StatKind};
    use flashlm_model::rng::Rng;
    use flashlm_model::{Lm, ModelConfig, mixer};

    const WORDS: &str = "The cat sat on the mat. \"Écoute,\" said the bird to the cat, \"the mat is mine!\"";

    /// A model whose weights are noise: every token it writes hangs on all those before.
    struct Noise {
        cx: Exec,
        tokenizer: Tokenizer,
        config: ModelConfig,
        params: Buf<f32>,
    }

    impl Noise {
        fn new(tokenizer: Tokenizer, spare: usize) -> Noise {
            Noise::of("conv", tokenizer, spare)
        }

        fn of(mixer: &str, tokenizer: Tokenizer, spare: usize) -> Noise {
            let config = ModelConfig {
                vocab_size: tokenizer.vocab_size() + spare,
                dim: 24,
                blocks: 2,
                ffn_hidden: 40,
                mixer: mixer.into(),
                kernel_size: 4,
                delta: DeltaConfig { heads: 3, ..DeltaConfig::default() },
                attention: AttentionConfig { heads: 3, window: 20, ..AttentionConfig::default() },
                quant: QuantConfig { scale: ScaleKind::Tensor, size: 256, stat: StatKind::Mean, norm: false },
                ..ModelConfig::v4_small()
            };
            let len = Lm::<f32>::new(&config, 1, false).unwrap().layout().len();
            let mut rng = Rng::new(11);
            let params: Vec<f32> = (0..len).map(|_| rng.normal() as f32 * 0.4).collect();
            Noise { cx: Exec::new(Isa::detect().unwrap(), 2), tokenizer, config, params: Buf::from(&params[..]) }
        }

        fn bytes() -> Noise {
            Noise::new(Tokenizer::bytes(), 0)
        }

        fn lm(&self, rows: usize) -> Lm<f32> {
            let mut lm = Lm::new(&self.config, rows, false).unwrap();
            lm.prepare(&self.cx, &self.params);
            lm
        }

        fn run(&self, rows: usize, prompt: &str, settings: &Settings, n: usize, stop: &[&str]) -> (String, Generated) {
            let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
            let mut out = String::new();
            let mut emit = |piece: &str| {
                assert!(!piece.is_empty());
                out += piece;
                ControlFlow::Continue(())
            };
            let Noise { cx, params, tokenizer, .. } = self;
            let lm = &mut self.lm(rows);
            let done = generate(cx, lm, params, tokenizer, prompt, settings.clone(), n, &stop, &mut emit).unwrap();
            (out, done)
        }

        /// The logits after each prefix, from all of its tokens anew and without a state.
        fn recompute(
            &self,
            prompt: &str,
            n: usize,
            mut choose: impl FnMut(&mut [f32], &[Token]) -> Token,
        ) -> Vec<Token> {
            let v = self.config.vocab_size;
            let mut tokens = vec![self.tokenizer.eos()];
            self.tokenizer.encode(prompt, &mut tokens);
            let start = tokens.len();
            let mut lm = self.lm(start + n);
            for _ in 0..n {
                let mut logits = vec![0.0; tokens.len() * v];
                lm.logits(&self.cx, &mut logits, &self.params, &tokens, None, (1, tokens.len()));
                let token = choose(&mut logits[(tokens.len() - 1) * v..], &tokens[1..]);
                tokens.push(token);
                if token == self.tokenizer.eos() {
                    break;
                }
            }
            tokens.split_off(start)
        }

        fn text(&self, tokens: &[Token]) -> String {
            String::from_utf8_lossy(&self.tokenizer.decode(tokens)).into_owned()
        }
    }

    fn greedy() -> Settings {
        Settings { temperature: 0.0, ..Settings::default() }
    }

    #[test]
    fn greedy_is_the_argmax_of_a_full_recompute() {
        let model = Noise::bytes();
        let expected = model.recompute("Hi there", 60, |z, _| {
            let best = z.iter().copied().reduce(f32::max).unwrap();
            z.iter().position(|x| *x == best).unwrap() as Token
        });
        let mut kinds = expected.clone();
        kinds.sort_unstable();
        kinds.dedup();
        assert!(kinds.len() > 8, "a test of one repeated token tests no state: {expected:?}");
        for rows in [1, 3, 64] {
            let (text, done) = model.run(rows, "Hi there", &greedy(), 60, &[]);
            assert_eq!(text, model.text(&expected), "{rows} rows");
            assert_eq!((done.prompt_tokens, done.tokens, done.finish), (9, 60, Finish::Length));
        }
    }

    /// However many rows a pass has room for, every mixer gives the same bits after a prompt and after each token of it.
    #[test]
    fn a_prompt_at_once_is_a_prompt_token_by_token() {
        for &mixer in mixer::NAMES {
            let model = Noise::of(mixer, Tokenizer::bytes(), 0);
            let v = model.config.vocab_size;
            let tokens: Vec<Token> = WORDS.bytes().map(Token::from).collect();
            let run = |rows: usize, piece: usize| {
                let mut lm = model.lm(rows);
                let (mut state, mut logits) = (lm.state(1), vec![f32::NAN; v]);
                for piece in tokens.chunks(piece) {
                    lm.next_logits(&model.cx, &mut logits, &model.params, piece, &mut state);
                }
                (logits, state.values().collect::<Vec<f32>>())
            };
            let whole = run(100, tokens.len());
            assert!(whole.0.iter().all(|z| z.is_finite()));
            for (rows, piece) in [(1, 1), (64, tokens.len()), (7, 33), (100, 1)] {
                assert_eq!(run(rows, piece), whole, "{mixer}: {piece} tokens at a time, room for {rows}");
            }
        }
    }

    #[test]
    fn draws_and_penalties_are_those_of_a_full_recompute_up_to_eos() {
        let model = Noise::bytes();
        let mut ended = 0;
        for seed in 0..6 {
            let settings = Settings { top_k: 100, repeat_penalty: 1.3, repeat_window: 8, seed, ..Settings::default() };
            let mut sampler = Sampler::new(settings.clone(), 257, &[]).unwrap();
            let expected = model.recompute("", 120, |z, recent| sampler.sample(z, recent).unwrap());
            let (text, done) = model.run(64, "", &settings, 120, &[]);
            assert_eq!(text, model.text(&expected), "seed {seed}");
            assert_eq!((done.prompt_tokens, done.tokens), (1, expected.len()));
            let eos = expected.ends_with(&[256]);
            assert_eq!(done.finish, if eos { Finish::Eos } else { Finish::Length }, "seed {seed}");
            ended += usize::from(eos);
        }
        assert!((1..6).contains(&ended), "both ends must occur, EOS came {ended} times");
    }

    #[test]
    fn the_seed_decides() {
        let model = Noise::bytes();
        let run = |seed| model.run(64, "x", &Settings { seed, ..Settings::default() }, 40, &[]).0;
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn a_stop_string_cuts_the_same_text_off() {
        let model = Noise::new(Tokenizer::train_bpe([WORDS].into_iter(), 300).unwrap(), 0);
        let settings = Settings { seed: 3, ..Settings::default() };
        let (whole, _) = model.run(64, "The", &settings, 80, &[]);
        // Characters from the middle, which cross the ends of tokens.
        let from = whole.char_indices().nth(30).unwrap().0;
        let to = whole.char_indices().nth(36).unwrap().0;
        let stop = &whole[from..to];
        let (text, done) = model.run(64, "The", &settings, 80, &["never in here", stop]);
        assert_eq!(text, whole[..whole.find(stop).unwrap()]);
        assert_eq!(done.finish, Finish::Stop);
        assert!(done.tokens < 80);
        // A beginning of a stop string at the very end is text after all.
        let tail = whole.chars().last().unwrap().to_string() + "\u{1}never";
        assert_eq!(model.run(64, "The", &settings, 80, &[&tail]).0, whole);
    }

    #[test]
    fn tokens_without_text_are_never_drawn() {
        // Three ids more in the model than in the vocabulary, besides PAD, UNK and BOS.
        let model = Noise::new(Tokenizer::train_frequency([WORDS].into_iter(), 30).unwrap(), 3);
        let (eos, vocab) = (model.tokenizer.eos(), model.tokenizer.vocab_size() as Token);
        let mut sampler =
            Sampler::new(Settings::default(), usize::from(vocab) + 3, &[0, 1, 2, vocab, vocab + 1, vocab + 2]);
        let sampler = sampler.as_mut().unwrap();
        let expected = model.recompute("The", 200, |z, recent| sampler.sample(z, recent).unwrap());
        assert!(expected.iter().all(|id| *id >= eos && *id < vocab));
        let (text, done) = model.run(64, "The", &Settings::default(), 200, &[]);
        assert_eq!((text, done.tokens), (model.text(&expected), expected.len()));
    }

    #[test]
    fn the_receiver_can_stop_and_nothing_asked_for_is_nothing() {
        let model = Noise::bytes();
        let mut pieces = 0;
        let mut emit = |_: &str| {
            pieces += 1;
            if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let Noise { cx, params, tokenizer, .. } = &model;
        let done = generate(cx, &mut model.lm(8), params, tokenizer, "a", greedy(), 50, &[], &mut emit).unwrap();
        assert_eq!((done.finish, pieces), (Finish::Stopped, 3));
        let (text, done) = model.run(8, "a", &greedy(), 0, &[]);
        assert_eq!((text.as_str(), done.tokens, done.finish), ("", 0, Finish::Length));
    }

    #[test]
    fn bad_settings_and_foreign_tokenizers_are_refused() {
        let model = Noise::bytes();
        let error = |tokenizer: &Tokenizer, settings: Settings, stop: &[String]| {
            let emit = &mut |_: &str| ControlFlow::Continue(());
            let lm = &mut model.lm(8);
            generate(&model.cx, lm, &model.params, tokenizer, "", settings, 5, stop, emit).unwrap_err().to_string()
        };
        let own = &model.tokenizer;
        assert!(error(own, Settings { temperature: -1.0, ..greedy() }, &[]).contains("temperature"));
        assert!(error(own, greedy(), &[String::new()]).contains("stop"));
        let larger = Tokenizer::train_bpe([WORDS].into_iter(), 280).unwrap();
        assert!(error(&larger, greedy(), &[]).contains("280 tokens and the model 257"));
    }
}
