//! What reads prompts and writes the texts of one model: the packed runtime, which takes all texts a token further together, or a float
//! model of another program, which takes one after another. The bits of a text are the same either way, whoever else is asking.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flashlm_kernels::{Exec, Token};
use flashlm_model::peer::{PeerText, Sequence};
use flashlm_model::sample::{SampleError, Settings};
use flashlm_model::{Engine, Finish, Generation, Peer, Scored, SequenceState};

use crate::model::Weights;

/// Rows that an engine works on at once, per thread.
const ROWS: usize = 64;

/// What a model keeps of the tokens that it was fed.
#[derive(Clone)]
pub enum State {
    Packed(SequenceState),
    Float(Sequence),
}

impl State {
    /// Its size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            State::Packed(state) => state.bytes(),
            State::Float(sequence) => sequence.bytes(),
        }
    }
}

/// How a text is to be written.
#[derive(Clone)]
pub struct Manner {
    pub settings: Settings,
    pub limit: usize,
    pub stop: Vec<String>,
    /// Tell log-probabilities of what is chosen, and how many likeliest.
    pub top: Option<usize>,
}

/// What the last token added to a text.
pub struct Told<'a> {
    pub token: Option<Token>,
    pub scored: Option<&'a Scored>,
    pub text: &'a str,
    pub finish: Option<Finish>,
}

/// The working memory of a model and its texts, which are numbered as they came.
pub enum Runtime {
    Packed { engine: Box<Engine>, texts: Vec<Generation> },
    Float { peer: Arc<Peer>, cx: Exec, texts: Vec<PeerText> },
}

impl Runtime {
    pub fn new(weights: &Weights, cx: Exec) -> Runtime {
        match weights {
            Weights::Packed(model) => {
                Runtime::Packed { engine: Engine::new(model.clone(), cx, ROWS).into(), texts: Vec::new() }
            }
            Weights::Float(peer) => Runtime::Float { peer: peer.clone(), cx, texts: Vec::new() },
        }
    }

    /// That of no tokens yet.
    pub fn state(&self) -> State {
        match self {
            Runtime::Packed { engine, .. } => State::Packed(engine.model().new_state()),
            Runtime::Float { peer, .. } => State::Float(peer.sequence()),
        }
    }

    /// Whether it is a float model: slow, and its states grow with their tokens.
    pub fn is_float(&self) -> bool {
        matches!(self, Runtime::Float { .. })
    }

    /// Tokens of one prompt before it is the next one's turn.
    pub fn turn(&self) -> usize {
        if self.is_float() { 16 } else { 64 }
    }

    pub fn feed(&mut self, state: &mut State, tokens: &[Token]) {
        match (self, state) {
            (Runtime::Packed { engine, .. }, State::Packed(state)) => engine.feed(state, tokens),
            (Runtime::Float { cx, .. }, State::Float(sequence)) => sequence.read(cx, tokens),
            _ => unreachable!("a state is of the model that made it"),
        }
    }

    /// Feeds the tokens and appends, after each, `ln p(target)` and the `top` likeliest.
    pub fn score(&mut self, state: &mut State, tokens: &[Token], targets: &[Token], top: usize, out: &mut Vec<Scored>) {
        match (self, state) {
            (Runtime::Packed { engine, .. }, State::Packed(state)) => engine.score(state, tokens, targets, top, out),
            (Runtime::Float { cx, .. }, State::Float(sequence)) => sequence.score(cx, tokens, targets, top, out),
            _ => unreachable!("a state is of the model that made it"),
        }
    }

    /// Begins a text where `state` is, to which all of the prompt but its last token were fed; `prompt` without the EOS that begins a
    /// document.
    pub fn begin(&mut self, state: State, prompt: &[Token], manner: Manner) -> Result<(), SampleError> {
        let Manner { settings, limit, stop, top } = manner;
        match (self, state) {
            (Runtime::Packed { engine, texts }, State::Packed(state)) => {
                let mut text = Generation::new(engine.model(), settings, limit, &stop)?;
                text.resume(state, prompt);
                top.into_iter().for_each(|top| text.tell_log_probs(top));
                texts.push(text);
            }
            (Runtime::Float { texts, .. }, State::Float(sequence)) => {
                let mut text = PeerText::resume(sequence, prompt, settings, limit, &stop)?;
                top.into_iter().for_each(|top| text.tell_log_probs(top));
                texts.push(text);
            }
            _ => unreachable!("a state is of the model that made it"),
        }
        Ok(())
    }

    pub fn swap(&mut self, a: usize, b: usize) {
        match self {
            Runtime::Packed { texts, .. } => texts.swap(a, b),
            Runtime::Float { texts, .. } => texts.swap(a, b),
        }
    }

    /// Ends a text; the last one takes its number.
    pub fn swap_remove(&mut self, at: usize) {
        match self {
            Runtime::Packed { texts, .. } => drop(texts.swap_remove(at)),
            Runtime::Float { texts, .. } => drop(texts.swap_remove(at)),
        }
    }

    /// Puts the first `by` of the first `n` texts behind the others of them.
    pub fn rotate(&mut self, n: usize, by: usize) {
        match self {
            Runtime::Packed { texts, .. } => texts[..n].rotate_left(by),
            Runtime::Float { texts, .. } => texts[..n].rotate_left(by),
        }
    }

    /// Takes the first `n` texts a token further, or as many of them, one at least, as a float model can in `time`; says how many. Where
    /// some fail, the others have advanced.
    pub fn advance(&mut self, n: usize, time: Duration) -> (usize, Result<(), SampleError>) {
        match self {
            Runtime::Packed { engine, texts } => (n, engine.advance(&mut texts[..n])),
            Runtime::Float { cx, texts, .. } => {
                let (start, mut done, mut all) = (Instant::now(), 0, Ok(()));
                while done < n && (done == 0 || start.elapsed() < time) {
                    all = all.and(texts[done].advance(cx));
                    done += 1;
                }
                (done, all)
            }
        }
    }

    /// What the last token of a text was.
    pub fn told(&self, at: usize) -> Told<'_> {
        match self {
            Runtime::Packed { texts, .. } => {
                let text = &texts[at];
                let (token, scored) = (text.chosen(), text.scored());
                Told { token, scored, text: text.text(), finish: text.finish() }
            }
            Runtime::Float { texts, .. } => {
                let text = &texts[at];
                let (token, scored) = (text.chosen(), text.scored());
                Told { token, scored, text: text.text(), finish: text.finish() }
            }
        }
    }
}
