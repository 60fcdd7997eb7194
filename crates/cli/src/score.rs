//! `flashlm score`: what a model thinks of given continuations, as log-probabilities: to rank answers, or to measure surprise.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use flashlm_model::Engine;
use flashlm_train::load::{load_packed, load_peer};
use flashlm_train::units::counted;
use serde_json::{Value, json};

use crate::common::{Hub, exec, model_or_own, out};
use crate::scored::Judge;
use crate::{input, scored};

/// Rows of a text that are worked through at once, per thread.
const ROWS: usize = 64;

/// Score continuations of a prompt: the natural logarithm of the probability of each token, and their sum
///
/// Probabilities are the model's own, as `eval` measures them. Prompt and continuation are split into tokens separately: begin
/// a continuation with its space, as in -c " there was".
#[derive(clap::Args)]
#[command(
    group = clap::ArgGroup::new("scored").required(true),
    after_help = "Examples:\n  flashlm score -p \"Once upon a time\" -c \" there was\" -c \" banana\"\n  flashlm score model.safetensors --input questions.jsonl > scores.jsonl\n\ndocs/json.md describes the JSON."
)]
pub struct Args {
    /// Model: a run folder (its best checkpoint), a checkpoint folder, a packed model, or a .safetensors file beside its
    /// tokenizer.json; a folder of a Llama or GPT-Neo model, a .bin of llama2.c, or a .pt of the original scripts;
    /// hf:OWNER/NAME[@REVISION][:FILE], a model of the hub; builtin: the model in the program [default: checkpoints]
    model: Option<PathBuf>,
    /// Text before the continuations [default: none, the start of a document]
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    prompt: String,
    /// Text to score; repeatable
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, group = "scored")]
    continuation: Vec<String>,
    /// Score many: a file with a JSON object {"prompt": "...", "continuation": "..."} or {"prompt": "...", "continuations":
    /// ["...", "..."]} on each line, `-` for standard input; prints JSON
    #[arg(short, long, value_name = "FILE.jsonl", group = "scored", conflicts_with_all = ["prompt", "continuation"])]
    input: Option<PathBuf>,
    #[command(flatten)]
    hub: Hub,
    /// Print a line of JSON for each continuation
    #[arg(long)]
    json: bool,
    /// Number of threads [default: FLASHLM_THREADS, else all processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Continuations of one prompt.
struct Question {
    prompt: String,
    continuations: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = model_or_own(args.model, args.hub)?;
    let questions = match &args.input {
        None => vec![Question { prompt: args.prompt, continuations: args.continuation }],
        Some(file) => {
            let parse = |(line, value): (usize, Value)| {
                question(&value).ok_or_else(|| {
                    anyhow!(
                        "{}, line {line}: expected {{\"prompt\": \"...\", \"continuation\": \"...\"}} or \"continuations\" with a \
                         list of strings",
                        file.display()
                    )
                })
            };
            input::jsonl(file)?.into_iter().map(parse).collect::<anyhow::Result<_>>()?
        }
    };
    let json = args.json || args.input.is_some();
    if let Some(empty) = questions.iter().flat_map(|q| &q.continuations).position(String::is_empty) {
        bail!("continuation {}: is empty; expected text to score", empty + 1);
    }
    let cx = exec(args.threads)?;
    let mut judge = match load_peer(&cx, &path)? {
        Some(peer) => Judge::Float(peer.into(), cx),
        None => Judge::Packed(Box::new(Engine::new(load_packed(&cx, &path)?.into(), cx, ROWS))),
    };
    for (index, Question { prompt, continuations }) in questions.iter().enumerate() {
        for (choice, continuation) in continuations.iter().enumerate() {
            let mut object = score(&mut judge, prompt, continuation);
            (object["index"], object["choice"]) = (index.into(), choice.into());
            if json {
                out!("{object}");
            } else {
                print(&object);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn question(value: &Value) -> Option<Question> {
    let prompt = value.get("prompt").map_or(Some(""), Value::as_str)?.to_string();
    let texts = |values: &Vec<Value>| values.iter().map(|text| text.as_str().map(String::from)).collect();
    let continuations: Vec<String> = match (value.get("continuation"), value.get("continuations")) {
        (Some(one), None) => vec![one.as_str()?.to_string()],
        (None, Some(many)) => many.as_array().and_then(texts)?,
        _ => return None,
    };
    (!continuations.is_empty()).then_some(Question { prompt, continuations })
}

/// One continuation, scored.
fn score(judge: &mut Judge, prompt: &str, continuation: &str) -> Value {
    let tokenizer = judge.tokenizer();
    let (mut given, mut tokens) = (vec![tokenizer.eos()], Vec::new());
    tokenizer.encode(prompt, &mut given);
    tokenizer.encode(continuation, &mut tokens);
    let unknown = tokens.iter().filter(|id| Some(**id) == tokenizer.unk()).count();
    let log_probs = judge.log_probs(&given, &tokens);
    json!({
        "prompt": prompt,
        "continuation": continuation,
        "logprob": log_probs.iter().sum::<f64>(),
        "bytes": continuation.len(),
        "unknown": unknown,
        "tokens": scored::tokens(judge.tokenizer(), &tokens, &log_probs),
    })
}

fn print(object: &Value) {
    let tokens = object["tokens"].as_array().map_or(&[][..], |tokens| tokens);
    let number = |value: &Value| value["logprob"].as_f64().unwrap_or(f64::NAN);
    out!("{:10.4}  {} in {}", number(object), object["continuation"], counted(tokens.len() as u64, "token"));
    for token in tokens {
        out!("{:10.4}    {}", number(token), token["text"]);
    }
}
