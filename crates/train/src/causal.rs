//! Whether a model sees the future, and whether its loss is of the next token.
//!
//! ```text
//! inputs x, targets y fixed;  x' = x but for another token at t
//! causal:   ln p(y[i] | x'[..=i]) = ln p(y[i] | x[..=i])  for every i < t, to the bit;  and some output from t on moves
//! shift:    mean nats of x[i+1] after x[..=i]  below  mean nats of x[i+2] after x[..=i]
//! ```
//!
//! The second is asked of text, where the model knows some: a model whose targets were shifted twice in training gives the token after
//! the next. An untrained one prefers neither.

use flashlm_kernels::{Exec, Token};
use flashlm_model::rng::Rng;
use serde::Serialize;
use std::ops::ControlFlow;

use crate::data::source::Source;
use crate::subject::{Subject, SubjectError};

/// Tokens of the sequence that is changed, and the places that are.
const LENGTH: usize = 160;
const PLACES: [usize; 14] = [1, 2, 3, 5, 8, 15, 16, 31, 63, 64, 65, 100, 128, 159];
/// Stories of the built-in grammar that the second question is asked of.
const STORIES: &str = "synthetic:24";
/// Standard errors by which two means differ.
const CLEAR: f64 = 4.0;
/// A model knows text where it needs less than this part of the nats of one that knows nothing.
const KNOWS: f64 = 0.8;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Causality {
    /// The form of the model.
    pub form: &'static str,
    /// Outputs before a changed token that were compared.
    pub compared: usize,
    /// How many of them moved.
    pub moved: usize,
    /// The first that did: its place, and that of the changed token.
    pub first: Option<(usize, usize)>,
    /// Whether any output at or after a changed token moved: where none does, the model does not look at its text.
    pub looks: bool,
    /// On text; none without a tokenizer.
    pub shift: Option<Shift>,
}

/// Mean nats of the tokens of a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shift {
    /// Of the next token.
    pub next: f64,
    /// Of the one after.
    pub after: f64,
    /// What follows from both.
    pub verdict: Verdict,
}

/// Which token a model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The next one.
    Next,
    /// The one after the next: its targets were shifted twice.
    After,
    /// Neither clearly, as an untrained model.
    Undecided,
}

impl Causality {
    /// Whether the model may be believed.
    pub fn passed(&self) -> bool {
        self.moved == 0
            && (self.looks || self.compared == 0)
            && self.shift.is_none_or(|shift| shift.verdict != Verdict::After)
    }
}

/// Asks both of a model.
pub fn check(cx: &Exec, subject: &Subject) -> Result<Causality, SubjectError> {
    let length = LENGTH.min(subject.context().unwrap_or(LENGTH));
    let texts = match subject.tokenizer() {
        Some(tokenizer) => {
            let mut texts = Vec::new();
            // Made here, not read.
            let source = Source::parse(STORIES).expect("a source of the built-in grammar");
            let read = source.stories(&mut |story| {
                let mut text = vec![tokenizer.eos()];
                tokenizer.encode(story, &mut text);
                texts.push(text);
                ControlFlow::Continue(())
            });
            read.expect("stories of the built-in grammar");
            texts
        }
        None => Vec::new(),
    };
    let vocab = subject.vocab_size();
    let mut outputs = |inputs: &[Token], targets: &[Token]| subject.log_probs(cx, inputs, targets);
    check_of(subject.form(), (vocab, length), &texts, &mut outputs)
}

/// Gives `ln p` of each target after the inputs up to the one beside it.
type Outputs<'a, E> = &'a mut dyn FnMut(&[Token], &[Token]) -> Result<Vec<f64>, E>;

fn check_of<E>(
    form: &'static str,
    (vocab, length): (usize, usize),
    texts: &[Vec<Token>],
    outputs: Outputs<E>,
) -> Result<Causality, E> {
    let mut rng = Rng::new(42);
    // Below the vocabulary, whose tokens are numbers of 16 bits.
    let mut draw = || rng.below(vocab as u64) as Token;
    let inputs: Vec<Token> = (0..length).map(|_| draw()).collect();
    let targets: Vec<Token> = (0..length).map(|_| draw()).collect();
    let plain = outputs(&inputs, &targets)?;
    let mut found = Causality { form, compared: 0, moved: 0, first: None, looks: false, shift: None };
    for t in PLACES.into_iter().filter(|&t| t < length) {
        let mut changed = inputs.clone();
        while changed[t] == inputs[t] && vocab > 1 {
            changed[t] = draw();
        }
        let new = outputs(&changed, &targets)?;
        let moved = |i: usize| new[i].to_bits() != plain[i].to_bits();
        found.compared += t;
        found.moved += (0..t).filter(|&i| moved(i)).count();
        found.first = found.first.or((0..t).find(|&i| moved(i)).map(|i| (i, t)));
        found.looks |= (t..length).any(moved);
    }
    found.shift = shift(vocab, texts, outputs)?;
    Ok(found)
}

fn shift<E>(vocab: usize, texts: &[Vec<Token>], outputs: Outputs<E>) -> Result<Option<Shift>, E> {
    let (mut next, mut after) = (Vec::new(), Vec::new());
    for text in texts.iter().filter(|text| text.len() > 3) {
        let inputs = &text[..text.len() - 2];
        next.extend(outputs(inputs, &text[1..text.len() - 1])?);
        after.extend(outputs(inputs, &text[2..])?);
    }
    if next.len() < 2 {
        return Ok(None);
    }
    let n = next.len() as f64;
    let mean = |values: &[f64]| -values.iter().sum::<f64>() / n;
    let (nats, nats_after) = (mean(&next), mean(&after));
    let apart: Vec<f64> = next.iter().zip(&after).map(|(next, after)| next - after).collect();
    let by = apart.iter().sum::<f64>() / n;
    let error = (apart.iter().map(|x| (x - by).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
    let knows = nats.min(nats_after) < KNOWS * (vocab as f64).ln();
    let verdict = match by {
        by if knows && by > CLEAR * error => Verdict::Next,
        by if knows && by < -CLEAR * error => Verdict::After,
        _ => Verdict::Undecided,
    };
    Ok(Some(Shift { next: nats, after: nats_after, verdict }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const VOCAB: usize = 11;

    /// A model that gives the token which follows `ahead` inputs later nine tenths, where `rule` says which token follows another.
    fn stand_in(inputs: &[Token], targets: &[Token], ahead: usize, rule: fn(Token) -> Token) -> Vec<f64> {
        let of = |(i, &target): (usize, &Token)| {
            let mut likely = inputs[i];
            (0..ahead).for_each(|_| likely = rule(likely));
            if target == likely { 0.9f64.ln() } else { (0.1 / (VOCAB - 1) as f64).ln() }
        };
        targets.iter().enumerate().map(of).collect()
    }

    fn rule(token: Token) -> Token {
        (3 * token + 1) % VOCAB as Token
    }

    fn texts() -> Vec<Vec<Token>> {
        let text = |first: Token| std::iter::successors(Some(first), |&token| Some(rule(token))).take(40).collect();
        (0..VOCAB as Token).map(text).collect()
    }

    fn of(mut outputs: impl FnMut(&[Token], &[Token]) -> Vec<f64>) -> Causality {
        let mut outputs = |inputs: &[Token], targets: &[Token]| Ok::<_, Infallible>(outputs(inputs, targets));
        check_of("stand-in", (VOCAB, LENGTH), &texts(), &mut outputs).unwrap()
    }

    #[test]
    fn a_model_of_the_next_token_passes() {
        let found = of(|inputs, targets| stand_in(inputs, targets, 1, rule));
        assert!(found.passed(), "{found:?}");
        assert_eq!((found.moved, found.compared), (0, PLACES.iter().sum()));
        let shift = found.shift.unwrap();
        assert_eq!(shift.verdict, Verdict::Next);
        assert!((shift.next + 0.9f64.ln()).abs() < 1e-12, "{shift:?}");
    }

    #[test]
    fn one_that_sees_the_next_input_fails_wherever_it_looks() {
        // One input ahead, and the mean of the whole text.
        let ahead = of(|inputs, targets| {
            let later: Vec<Token> = (0..inputs.len()).map(|i| inputs[(i + 1).min(inputs.len() - 1)]).collect();
            stand_in(&later, targets, 0, rule)
        });
        assert!(!ahead.passed() && ahead.moved > 0, "{ahead:?}");
        let (i, t) = ahead.first.unwrap();
        assert_eq!(i + 1, t);
        let mean = of(|inputs, targets| {
            let sum: f64 = inputs.iter().map(|&token| f64::from(token)).sum();
            stand_in(inputs, targets, 1, rule).iter().map(|x| x - 1e-9 * sum).collect()
        });
        assert!(!mean.passed() && mean.moved == mean.compared, "{mean:?}");
        assert_eq!(mean.first, Some((0, 1)));
    }

    #[test]
    fn one_of_the_token_after_the_next_fails() {
        let found = of(|inputs, targets| stand_in(inputs, targets, 2, rule));
        assert_eq!((found.moved, found.shift.unwrap().verdict), (0, Verdict::After));
        assert!(!found.passed());
    }

    #[test]
    fn one_that_knows_nothing_is_no_failure_and_one_that_looks_at_nothing_is() {
        let odd = |inputs: &[Token], targets: &[Token]| -> Vec<f64> {
            inputs.iter().zip(targets).map(|(&x, &y)| -2.4 - 0.01 * f64::from((x * 7 + y * 5) % 3)).collect()
        };
        let found = of(odd);
        assert_eq!(found.shift.unwrap().verdict, Verdict::Undecided);
        assert!(found.passed());
        assert!(!of(|inputs, _| vec![-2.4; inputs.len()]).passed());
    }
}
