//! `flashlm generate`: text from a model, streamed to stdout as it is written.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use flashlm_model::sample::{Settings, StopStrings};
use flashlm_model::{LanguageModel, Lm};
use flashlm_train::generate::{Finish, generate};
use flashlm_train::load::Model;

use crate::common::{exec, out, say, write_out};

/// Rows of the prompt that are worked through at once.
const ROWS: usize = 64;

/// Let a model write
#[derive(clap::Args)]
pub struct Args {
    /// Run folder, checkpoint folder, or .safetensors file with its tokenizer.json beside it
    model: PathBuf,
    /// What the text begins with; none starts a story
    #[arg(short, long, default_value = "", hide_default_value = true)]
    prompt: String,
    /// Most tokens to write; the model may end its story before
    #[arg(short = 'n', long, default_value_t = 200)]
    tokens: usize,
    /// 0 takes the likeliest token; 1 draws from the model's own distribution; above 1 is wilder
    #[arg(short, long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the K likeliest tokens only; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the fewest tokens that hold this probability; 1 is all
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Draw from tokens at least this likely relative to the likeliest; 0 is all
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Weaken the tokens of the last 64; 1 leaves them alone
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// The same seed gives the same text on the same machine
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// End before this text; can be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Threads [default: FLASHLM_THREADS, or 1: a token of a small model is too little work to share]
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = Settings {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repeat_penalty: args.repeat_penalty,
        seed: args.seed,
        ..Settings::default()
    };
    // Said before a model is loaded for nothing.
    settings.check()?;
    StopStrings::new(args.stop.clone())?;
    let cx = match (args.threads, std::env::var_os("FLASHLM_THREADS")) {
        (None, None) => exec(Some(1))?,
        (flag, _) => exec(flag)?,
    };
    let model = Model::load(&args.model)?;
    let mut prompt = Vec::new();
    model.tokenizer.encode(&args.prompt, &mut prompt);
    if let Some(unk) = model.tokenizer.unk() {
        let unknown = prompt.iter().filter(|id| **id == unk).count();
        if unknown > 0 {
            say!("note: {unknown} of the prompt's {} tokens are not in the model's vocabulary", prompt.len());
        }
    }
    let mut lm = Lm::<f32>::new(&model.config, ROWS.min(prompt.len() + 1), false)?;
    lm.prepare(&cx, &model.params);

    write_out(format_args!("{}", args.prompt), false);
    let mut emit = |piece: &str| {
        write_out(format_args!("{piece}"), false);
        ControlFlow::Continue(())
    };
    let Args { prompt, tokens, stop, .. } = &args;
    let done = generate(&cx, &mut lm, &model.params, &model.tokenizer, prompt, settings, *tokens, stop, &mut emit);
    out!("");
    let done = done.with_context(|| format!("{}", model.path.display()))?;
    let end = match done.finish {
        Finish::Eos => "the story ended",
        Finish::Length => "as many as asked for (-n)",
        Finish::Stop | Finish::Stopped => "at a stop string",
    };
    say!(
        "{} tokens in {:.2} s, {:.0} tokens/s; prompt of {} in {:.2} s; {end}",
        done.tokens,
        done.seconds,
        done.tokens as f64 / done.seconds.max(1e-9),
        done.prompt_tokens,
        done.prompt_seconds
    );
    Ok(ExitCode::SUCCESS)
}
