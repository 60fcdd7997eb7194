//! Many texts at once, and texts as JSON: every prompt is gone on with `samples` times. The text of each depends on its prompt
//! and its seed alone, not on the others.

use flashlm_kernels::Token;
use flashlm_model::{Finish, Generation};
use serde_json::{Value, json};

use super::writer::{ROWS, Writer};
use crate::common::out;
use crate::scored::{log_probs, tokens};

/// Which texts are to be written.
pub struct Jobs {
    /// What they begin with.
    pub prompts: Vec<String>,
    /// Texts of each prompt.
    pub samples: usize,
    /// Whether they are printed as lines of JSON.
    pub json: bool,
}

/// A text on its way.
struct Job<'a> {
    prompt: &'a str,
    index: usize,
    sample: usize,
    text: String,
    tokens: Vec<Token>,
}

/// Writes all texts and prints them in order, as many at a time as the engine takes.
pub fn run(writer: &mut Writer, jobs: &Jobs) -> anyhow::Result<()> {
    let prompts = jobs.prompts.iter().enumerate();
    let all = prompts.flat_map(|(index, prompt)| (0..jobs.samples).map(move |sample| (index, prompt, sample)));
    let mut all: Vec<Job> = all
        .map(|(index, prompt, sample)| Job { prompt, index, sample, text: String::new(), tokens: Vec::new() })
        .collect();
    let mut first = true;
    for group in all.chunks_mut(ROWS) {
        let begin = |job: &Job| {
            let mut generation = writer.begin(job.sample)?;
            writer.note_unknown(job.prompt);
            generation.push(job.prompt);
            Ok(generation)
        };
        let mut generations: Vec<Generation> = group.iter().map(begin).collect::<anyhow::Result<_>>()?;
        while generations.iter().any(|generation| generation.finish().is_none()) {
            writer.engine.advance(&mut generations)?;
            for (job, generation) in group.iter_mut().zip(&generations) {
                job.tokens.extend(generation.chosen());
                job.text += generation.text();
            }
        }
        for (job, generation) in group.iter().zip(&generations) {
            let finish = generation.finish();
            if jobs.json {
                out!("{}", as_json(writer, job, finish));
                continue;
            }
            if !std::mem::take(&mut first) {
                out!("<|endoftext|>");
            }
            out!("{}{}", job.prompt, job.text);
        }
    }
    Ok(())
}

/// Why a text ended.
pub fn name(finish: Option<Finish>) -> &'static str {
    match finish {
        Some(Finish::Eos) => "eos",
        Some(Finish::Length) => "length",
        Some(Finish::Stop) => "stop",
        Some(Finish::Failed) | None => "failed",
    }
}

/// One text with all that a program may want to know; the log-probabilities are the model's own, before temperature, penalties and
/// biases.
fn as_json(writer: &mut Writer, job: &Job, finish: Option<Finish>) -> Value {
    let tokenizer = writer.model.tokenizer();
    let mut given = vec![tokenizer.eos()];
    tokenizer.encode(job.prompt, &mut given);
    let prompt_tokens = given.len() - 1;
    let log_probs = log_probs(&mut writer.engine, &given, &job.tokens);
    json!({
        "prompt_index": job.index,
        "sample": job.sample,
        "seed": writer.settings.seed.wrapping_add(job.sample as u64),
        "prompt": job.prompt,
        "text": job.text,
        "finish": name(finish),
        "prompt_tokens": prompt_tokens,
        "logprob": log_probs.iter().sum::<f64>(),
        "tokens": tokens(writer.model.tokenizer(), &job.tokens, &log_probs),
    })
}
