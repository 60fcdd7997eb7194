//! `flashlm generate`: text from a model, streamed to stdout as it is written; many texts, or texts as JSON.

mod batch;
mod interactive;
mod peer;
mod writer;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::{anyhow, bail};
use flashlm_kernels::Token;
use flashlm_model::PackedModel;
use flashlm_model::sample::{SampleError, Settings, StopStrings};
use flashlm_train::load::{load_packed, load_peer};
use serde_json::Value;

use crate::common::{Hub, exec, model_or_builtin, out, say, whole, write_out};
use crate::input;
use batch::Jobs;
use peer::Texts;
use writer::Writer;

/// Generate text
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm generate -p \"Once upon a time\" -n 300\n  flashlm generate model.safetensors --greedy -p \"One day\"\n  flashlm generate runs/book --interactive\n  flashlm generate -p - --samples 4 --json < beginning.txt\n  flashlm generate --prompts prompts.jsonl --json > texts.jsonl\n\ndocs/json.md describes the JSON."
)]
pub struct Args {
    /// Model: a run folder (its best checkpoint), a checkpoint folder, a packed model, or a .safetensors file beside its
    /// tokenizer.json; a folder of a Llama or GPT-Neo model, a .bin of llama2.c, or a .pt of the original scripts;
    /// hf:OWNER/NAME[@REVISION][:FILE], a model of the hub; builtin: the model in the program [default: checkpoints, else builtin]
    model: Option<PathBuf>,
    /// Prompt: text to continue, `-` for standard input [default: none, starts a new document]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = PROMPT, conflicts_with_all = ["prompt_file", "prompts"])]
    prompt: Option<String>,
    /// Take the prompt from a file; one line end at its end is left out
    #[arg(long, value_name = "FILE", help_heading = PROMPT, conflicts_with = "prompts")]
    prompt_file: Option<PathBuf>,
    /// Continue many prompts: a file with a JSON object {"prompt": "..."} or a string on each line, `-` for standard input
    #[arg(long, value_name = "FILE.jsonl", help_heading = PROMPT, conflicts_with = "interactive")]
    prompts: Option<PathBuf>,
    /// Texts for each prompt; those after the first have the seeds that follow
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = PROMPT)]
    samples: u32,
    /// Print each text as a line of JSON: text, tokens, log-probabilities, why it ended
    #[arg(long, conflicts_with = "interactive")]
    json: bool,
    /// Maximum number of tokens to generate, per turn with --interactive; the model may end its text earlier
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200, value_parser = whole::<usize>, allow_negative_numbers = true)]
    tokens: usize,
    /// Sampling temperature: 0 always takes the most likely token, 1 samples the model's distribution, higher is more random
    #[arg(short, long, value_name = "T", default_value_t = Settings::writing().temperature, allow_negative_numbers = true, help_heading = SAMPLING)]
    temperature: f32,
    /// Always take the most likely token, same as -t 0
    #[arg(long, conflicts_with = "temperature", help_heading = SAMPLING)]
    greedy: bool,
    /// Top-k sampling: only the K most likely tokens (0 = disabled)
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = SAMPLING)]
    top_k: usize,
    /// Top-p sampling: only the most likely tokens up to a total probability of P (1.0 = disabled)
    #[arg(long, value_name = "P", default_value_t = Settings::writing().top_p, allow_negative_numbers = true, help_heading = SAMPLING)]
    top_p: f32,
    /// Min-p sampling: only tokens at least P times as likely as the most likely one (0.0 = disabled)
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    min_p: f32,
    /// Repeat penalty over the last 64 tokens (1.0 = disabled)
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    repeat_penalty: f32,
    /// Presence penalty over the last 64 tokens, -2 to 2 (0.0 = disabled)
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    presence_penalty: f32,
    /// Frequency penalty over the last 64 tokens, -2 to 2 (0.0 = disabled)
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    frequency_penalty: f32,
    /// Add BIAS, -100 to 100, to the logit of a token given by id (1234=-100) or by text (' cat=3'); repeatable
    #[arg(long, value_name = "TOKEN=BIAS", allow_hyphen_values = true, help_heading = SAMPLING)]
    logit_bias: Vec<String>,
    /// Seed of the random numbers; the same seed gives the same text on any machine
    #[arg(long, value_name = "N", default_value_t = 42, value_parser = whole::<u64>, allow_negative_numbers = true, help_heading = SAMPLING)]
    seed: u64,
    /// Stop before this text; repeatable
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Interactive mode: after each turn, type a line that continues the text; an empty line just continues, /help lists commands
    #[arg(short, long)]
    interactive: bool,
    #[command(flatten)]
    hub: Hub,
    /// Number of threads [default: FLASHLM_THREADS, else 1, the fastest for one token of a small model]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

const PROMPT: &str = "Prompts";
const SAMPLING: &str = "Sampling";

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
    settings.check().map_err(of_flag)?;
    StopStrings::new(args.stop.clone()).map_err(of_flag)?;
    let path = model_or_builtin(args.model.clone(), args.hub)?;
    let prompts = prompts(&args)?;
    let cx = match (args.threads, std::env::var_os("FLASHLM_THREADS")) {
        (None, None) => exec(Some(1))?,
        (flag, _) => exec(flag)?,
    };
    let samples = args.samples as usize;
    if let Some(model) = load_peer(&cx, &path)? {
        if args.interactive || !args.logit_bias.is_empty() {
            bail!(
                "{}: models of other programs write text by text: leave out --interactive and --logit-bias",
                path.display()
            );
        }
        let (prompts, limit, stop, json) = (&prompts[..], args.tokens, &args.stop[..], args.json);
        peer::run(model, &cx, Texts { prompts, samples, settings, limit, stop, json })?;
        return Ok(ExitCode::SUCCESS);
    }
    let model = load_packed(&cx, &path)?;
    settings.logit_bias = args.logit_bias.iter().map(|text| bias(&model, text)).collect::<Result<_, _>>()?;
    let mut writer = Writer::new(model, cx, settings, args.tokens, args.stop);
    match &prompts[..] {
        _ if args.interactive => interactive::run(&mut writer, &prompts[0], &path)?,
        [prompt] if samples == 1 && !args.json => {
            let mut generation = writer.begin(0)?;
            write_out(format_args!("{prompt}"), false);
            let turn = writer.turn(&mut generation, prompt, &AtomicBool::new(false), &path)?;
            out!("");
            say!("{}", turn.told());
        }
        _ => batch::run(&mut writer, &Jobs { prompts, samples, json: args.json })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the texts begin with; one that is empty where nothing is said.
fn prompts(args: &Args) -> anyhow::Result<Vec<String>> {
    if args.interactive && (args.samples > 1 || args.prompt.as_deref() == Some("-")) {
        bail!("--interactive writes one text and reads from the terminal: leave out --samples, and -p -");
    }
    if let Some(path) = &args.prompts {
        let prompt = |(line, value): (usize, Value)| {
            let found = value.get("prompt").unwrap_or(&value).as_str().map(String::from);
            let wrong = || anyhow!("{}, line {line}: expected {{\"prompt\": \"...\"}} or a string", path.display());
            found.ok_or_else(wrong)
        };
        return input::jsonl(path)?.into_iter().map(prompt).collect();
    }
    Ok(vec![match (&args.prompt_file, args.prompt.as_deref()) {
        (Some(path), _) => input::prompt(path)?,
        (None, Some("-")) => input::prompt(Path::new("-"))?,
        (None, prompt) => prompt.unwrap_or_default().to_string(),
    }])
}

/// The error with the name of the flag in the place of the setting's.
fn of_flag(error: SampleError) -> anyhow::Error {
    match error {
        SampleError::Setting { name, expected, found } => {
            anyhow!("--{}: expected {expected}, found {found}", name.replace('_', "-"))
        }
        error => error.into(),
    }
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
