//! A source scored by several scorers, read once and in parts: memory is that of a part, whatever the size of the data.

use super::Stories;
use super::bpb::{self, Document, EvalError, PUBLISHED_STORIES, PUBLISHED_TOKENS, Published, Report, Scorer, Sums};
use crate::data::source::{Source, SourceReport};
use flashlm_model::tok::Tokenizer;
use std::ops::ControlFlow;

/// Tokens that are read before they are scored.
const PART: usize = 1 << 20;

/// What the scorers found, in their order.
pub struct Scored<R> {
    /// Of each scorer.
    pub reports: Vec<R>,
    /// Each document as the first scorer found it; none under the published protocol.
    pub documents: Vec<Document>,
    /// What the source gave.
    pub read: SourceReport,
}

/// How far the scoring of a source is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The fraction that is done, 0..=1.
    pub share: f64,
    /// Tokens scored, once for each scorer.
    pub tokens: usize,
}

/// Takes it, and may stop by breaking.
pub type Tell<'a> = &'a mut dyn FnMut(&Progress) -> ControlFlow<()>;

/// Every byte of every document.
pub fn full(
    mut scorers: Vec<&mut dyn Scorer>,
    tokenizer: &Tokenizer,
    source: &Source,
    tell: Tell,
) -> Result<Scored<Report>, EvalError> {
    let mut sums = vec![Sums::default(); scorers.len()];
    let mut stories = Stories::default();
    let times = scorers.len();
    let mut before = Progress { share: 0.0, tokens: 0 };
    let mut score = |stories: &mut Stories, read: f64| {
        let part = stories.totals().tokens;
        for (i, (scorer, sums)) in scorers.iter_mut().zip(&mut sums).enumerate() {
            let done = &mut |tokens| tell(&within(before, i * part + tokens, times * part, read));
            bpb::score(&mut **scorer, tokenizer, stories, sums, done)?;
        }
        before = Progress { share: read, tokens: before.tokens + times * part };
        stories.clear();
        Ok(())
    };
    let mut failed = None;
    let read = source.stories_at(&mut |text, read| {
        stories.push(tokenizer, text);
        if stories.totals().tokens < PART {
            return ControlFlow::Continue(());
        }
        match score(&mut stories, read) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    match failed {
        Some(error) => return Err(error),
        None => score(&mut stories, 1.0)?,
    }
    let reports = sums.iter().map(|sums| sums.report(tokenizer)).collect::<Result<_, EvalError>>()?;
    let documents = sums.into_iter().next().map(Sums::documents).unwrap_or_default();
    Ok(Scored { reports, documents, read })
}

/// The published protocol, and beside it every byte of the documents that it takes.
pub fn published(
    scorers: Vec<&mut dyn Scorer>,
    tokenizer: &Tokenizer,
    source: &Source,
    tell: Tell,
) -> Result<Scored<(Published, Report)>, EvalError> {
    let mut stories = Stories::default();
    let read = source.stories(&mut |text| {
        stories.push(tokenizer, text);
        if stories.len() < PUBLISHED_STORIES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let cut: usize = (0..stories.len()).map(|i| PUBLISHED_TOKENS.min(stories.story(i).len() - 1)).sum();
    let all = cut + stories.totals().tokens;
    let start = Progress { share: 0.0, tokens: 0 };
    let times = scorers.len();
    let report = |(i, scorer): (usize, &mut dyn Scorer)| {
        let mut done = |tokens| tell(&within(start, i * all + tokens, times * all, 1.0));
        let published = bpb::published(scorer, tokenizer, &stories, &mut done)?;
        let whole = bpb::evaluate(scorer, tokenizer, &stories, &mut |tokens| done(cut + tokens))?;
        Ok((published, whole))
    };
    let reports = scorers.into_iter().enumerate().map(report).collect::<Result<_, EvalError>>()?;
    Ok(Scored { reports, documents: Vec::new(), read })
}

/// After `tokens` of `of` of a part that reaches to the fraction `read` of the source.
fn within(before: Progress, tokens: usize, of: usize, read: f64) -> Progress {
    let share = before.share + (read - before.share) * tokens as f64 / of.max(1) as f64;
    Progress { share, tokens: before.tokens + tokens }
}
