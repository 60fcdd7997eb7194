//! `flashlm generate`: text from a model, streamed to stdout as it is written.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use flashlm_kernels::Token;
use flashlm_model::sample::{Settings, StopStrings};
use flashlm_model::{Engine, Finish, Generation, PackedModel};
use flashlm_train::load::load_packed;
use flashlm_train::units::counted;

use crate::common::{exec, out, say, write_out};

/// Rows of the prompt that are worked through at once.
const ROWS: usize = 64;

/// Generate text
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm generate checkpoints -p \"Once upon a time\" -n 300\n  flashlm generate model.safetensors --greedy -p \"One day\"\n  flashlm generate checkpoints --interactive"
)]
pub struct Args {
    /// Model: a run folder (its best checkpoint), a checkpoint folder, a packed model, or a .safetensors file beside its
    /// tokenizer.json
    model: PathBuf,
    /// Prompt: text to continue [default: none, starts a new document]
    #[arg(short, long, default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    prompt: String,
    /// Maximum number of tokens to generate, per turn with --interactive; the model may end its text earlier
    #[arg(short = 'n', long, default_value_t = 200)]
    tokens: usize,
    /// Sampling temperature: 0 always takes the most likely token, 1 samples the model's distribution, higher is more random
    #[arg(short, long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f32,
    /// Always take the most likely token, same as -t 0
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// Top-k sampling: only the K most likely tokens (0 = disabled)
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Top-p sampling: only the most likely tokens up to a total probability of P (1.0 = disabled)
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Min-p sampling: only tokens at least P times as likely as the most likely one (0.0 = disabled)
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Repeat penalty over the last 64 tokens (1.0 = disabled)
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Presence penalty over the last 64 tokens, -2 to 2 (0.0 = disabled)
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Frequency penalty over the last 64 tokens, -2 to 2 (0.0 = disabled)
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Add BIAS, -100 to 100, to the logit of a token given by id (1234=-100) or by text (' cat=3'); repeatable
    #[arg(long, value_name = "TOKEN=BIAS", allow_hyphen_values = true)]
    logit_bias: Vec<String>,
    /// Seed of the random numbers; the same seed gives the same text on any machine
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Stop before this text; repeatable
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Interactive mode: after each turn, type a line that continues the text; an empty line just continues
    #[arg(short, long)]
    interactive: bool,
    /// Number of threads [default: FLASHLM_THREADS, else 1, the fastest for one token of a small model]
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut settings = Settings {
        temperature: if args.greedy { 0.0 } else { args.temperature },
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repeat_penalty: args.repeat_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
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
    let model = Arc::new(load_packed(&cx, &args.model)?);
    settings.logit_bias = args.logit_bias.iter().map(|text| bias(&model, text)).collect::<Result<_, _>>()?;
    let mut engine = Engine::new(model.clone(), cx, ROWS);
    let mut generation = Generation::new(&model, settings, args.tokens, &args.stop)?;
    let mut turn = |generation: &mut Generation, text: &str| {
        note_unknown(&model, text);
        let prompt = generation.push(text);
        let (start, before) = (Instant::now(), generation.tokens());
        let finish = engine.generate(generation, |piece| write_out(format_args!("{piece}"), false));
        out!("");
        let finish = finish.with_context(|| format!("{}", args.model.display()))?;
        let (tokens, seconds) = (generation.tokens() - before, start.elapsed().as_secs_f64());
        let end = match finish {
            Finish::Eos => "the model ended the text",
            Finish::Length => "reached the limit (-n)",
            Finish::Stop => "reached a stop string",
            Finish::Failed => "no token could be chosen",
        };
        let speed = (tokens + prompt) as f64 / seconds.max(1e-9);
        say!(
            "{} after a prompt of {prompt} in {seconds:.3} s, {speed:.0} tokens/s; {end}",
            counted(tokens as u64, "token")
        );
        anyhow::Ok(())
    };
    write_out(format_args!("{}", args.prompt), false);
    turn(&mut generation, &args.prompt)?;
    if args.interactive {
        for line in std::io::stdin().lock().lines() {
            let line = line.context("cannot read a line from standard input; it must be UTF-8 text")?;
            generation.extend(args.tokens);
            // A word of its own, as if the document had gone on to say it.
            let text = if line.is_empty() { line } else { format!(" {}", line.trim()) };
            turn(&mut generation, &text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A token and what to add to its logit.
fn bias(model: &PackedModel, text: &str) -> anyhow::Result<(Token, f32)> {
    let wrong = || anyhow!("--logit-bias {text}: expected TOKEN=BIAS, such as 1234=-100 or ' cat=3'");
    let (token, value) = text.rsplit_once('=').ok_or_else(wrong)?;
    let value = value.parse().map_err(|_| wrong())?;
    if let Ok(id) = token.parse() {
        return Ok((id, value));
    }
    let mut ids = Vec::new();
    model.tokenizer().encode(token, &mut ids);
    match ids[..] {
        [id] if Some(id) != model.tokenizer().unk() => Ok((id, value)),
        _ => {
            bail!(
                "--logit-bias {text}: {token:?} is {} tokens in this vocabulary; give a single token, or its id",
                ids.len()
            )
        }
    }
}

fn note_unknown(model: &PackedModel, text: &str) {
    let Some(unk) = model.tokenizer().unk() else { return };
    let mut ids = Vec::new();
    model.tokenizer().encode(text, &mut ids);
    let unknown = ids.iter().filter(|id| **id == unk).count();
    if unknown > 0 {
        say!("note: {unknown} of the prompt's {} tokens are not in the model's vocabulary", ids.len());
    }
}
