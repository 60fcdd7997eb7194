//! A request for text, checked: the fields of `/v1/completions` and `/v1/chat/completions` as jobs for the desk.

use std::hash::{BuildHasher, RandomState};

use axum::http::StatusCode;
use flashlm_kernels::Token;
use flashlm_model::sample::{SampleError, Settings, StopStrings};
use serde_json::Value;

use crate::desk::Job;
use crate::error::ApiError;
use crate::fields::{Fields, whole, wrong};
use crate::model::Served;
use crate::runtime::Manner;

/// Most texts of one request, tried ones included.
const MAX_TEXTS: u64 = 1024;
/// Most texts of one prompt.
const MAX_N: u64 = 128;
/// Most tokens of one text.
const MAX_TOKENS: u64 = 1 << 20;
/// Most alternatives of a token.
const MAX_TOP: u64 = 20;
/// Most log-probabilities in one answer.
const MAX_LISTED: u64 = 1 << 20;
/// Most tokens in one answer that is no stream.
const MAX_HELD: u64 = 1 << 26;

/// One prompt.
pub struct Prompt {
    /// Its tokens, as they came: without what is told to the model first.
    pub tokens: Vec<Token>,
    pub text: String,
}

/// What is asked for.
pub struct Ask {
    pub chat: bool,
    pub model: usize,
    pub prompts: Vec<Prompt>,
    /// Texts of each prompt that are answered, and that are tried.
    pub n: usize,
    pub best_of: usize,
    pub echo: bool,
    pub logprobs: Option<usize>,
    pub ids: bool,
    pub stream: bool,
    pub usage: bool,
    pub jobs: Vec<Job>,
    pub ignored: Option<String>,
}

impl Ask {
    /// `named`: the model in the address.
    pub fn read(body: &[u8], named: Option<String>, served: &[Served], chat: bool) -> Result<Ask, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields, named, served)?;
        let own = &served[model];
        let prompts = if chat { vec![messages(&mut fields, own)?] } else { prompts(&mut fields, own)? };
        let n = fields.whole("n", 1, 1, MAX_N)?;
        let best_of = if chat { n } else { fields.whole("best_of", n, 1, MAX_N)? };
        let stream = fields.flag("stream", false)?;
        if best_of < n || (stream && best_of > n) {
            return Err(ApiError::bad(
                "best_of",
                format!("best_of: expected at least n = {n}, and no more than n where stream is true, found {best_of}"),
            ));
        }
        if prompts.len() as u64 * best_of > MAX_TEXTS {
            return Err(ApiError::bad(
                "n",
                format!(
                    "n: {} prompts with {best_of} texts each are more than {MAX_TEXTS} texts; ask for fewer at once",
                    prompts.len()
                ),
            ));
        }
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::bad(
                "suffix",
                "suffix: the models here write from left to right and cannot fill in; leave it out".into(),
            ));
        }
        let usage = match fields.get("stream_options") {
            None => false,
            Some(Value::Object(options)) => match options.get("include_usage") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(usage)) => *usage,
                Some(other) => return Err(wrong("stream_options", "true or false as include_usage", other)),
            },
            Some(other) => return Err(wrong("stream_options", "an object", other)),
        };
        let logprobs = match chat {
            true => {
                let top = fields.whole("top_logprobs", 0, 0, MAX_TOP)?;
                fields.flag("logprobs", false)?.then_some(top as usize)
            }
            false => match fields.get("logprobs") {
                None | Some(Value::Bool(false)) => None,
                Some(_) => Some(fields.whole("logprobs", 0, 0, MAX_TOP)? as usize),
            },
        };
        let echo = !chat && fields.flag("echo", false)?;
        let limit = match chat {
            true => {
                let older = fields.whole("max_tokens", 512, 0, MAX_TOKENS)?;
                fields.whole("max_completion_tokens", older, 0, MAX_TOKENS)?
            }
            false => fields.whole("max_tokens", 16, 0, MAX_TOKENS)?,
        };
        // All of it is held until the last text has ended, or of a stream what the prompts say.
        let told = if stream { 0 } else { prompts.len() as u64 * limit };
        let echoed: u64 = if echo { prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum() } else { 0 };
        let ids = fields.flag("return_token_ids", false)?;
        let (name, top) =
            if logprobs.is_some() { ("logprobs", logprobs) } else { ("return_token_ids", ids.then_some(0)) };
        if let Some(top) = top
            && (told + echoed) * best_of * (1 + top as u64) > MAX_LISTED
        {
            let message = format!(
                "{name}: up to {} tokens with {top} alternatives each are too many for one answer; ask for fewer tokens at once",
                (told + echoed) * best_of
            );
            return Err(ApiError::bad(name, message));
        }
        if told * best_of > MAX_HELD {
            let message = format!(
                "max_tokens: up to {} tokens are too many for one answer; ask for fewer than {MAX_HELD} at once, or with `stream`",
                told * best_of
            );
            return Err(ApiError::bad("max_tokens", message));
        }
        let tell = fields.flag("add_special_tokens", true)?;
        let settings = settings(&mut fields)?;
        let stop = stops(&mut fields)?;
        StopStrings::new(stop.clone()).map_err(|error| of_field(error, "stop"))?;
        own.check(settings.clone()).map_err(|error| of_field(error, "logit_bias"))?;
        for known in ["user", "store", "metadata"] {
            fields.get(known);
        }
        let eos = own.tokenizer().eos();
        let top = logprobs.or((best_of > n).then_some(0));
        let manner = Manner { settings, limit: limit as usize, stop, top };
        let job = |(i, prompt): (usize, &Prompt)| {
            // A document begins with one EOS, whoever says it.
            let told = prompt.tokens.is_empty() || (tell && prompt.tokens[0] != eos);
            let start: &[Token] = if told { &[eos] } else { &[] };
            Job {
                model,
                tokens: [start, &prompt.tokens].concat(),
                begins: told || prompt.tokens[0] == eos,
                told,
                score: logprobs.filter(|_| echo),
                manner: manner.clone(),
                texts: best_of as usize,
                first: i * best_of as usize,
            }
        };
        let jobs = prompts.iter().enumerate().map(job).collect();
        let (n, best_of, ignored) = (n as usize, best_of as usize, fields.ignored());
        Ok(Ask { chat, model, prompts, n, best_of, echo, logprobs, ids, stream, usage, jobs, ignored })
    }

    /// Texts that the desk writes.
    pub fn texts(&self) -> usize {
        self.prompts.len() * self.best_of
    }
}

/// The model that the body names, or the address; the first where neither does.
pub fn model(fields: &mut Fields, named: Option<String>, served: &[Served]) -> Result<usize, ApiError> {
    match (fields.text("model")?, named) {
        (Some(body), Some(address)) if body != address => {
            let [body, address] = [body, address].map(|name| name.chars().take(80).collect::<String>());
            let message = format!("model: the body asks for {body:?} and the address for {address:?}; leave one out");
            Err(ApiError::bad("model", message))
        }
        (body, address) => body.or(address).map_or_else(|| first(served), |name| find(&name, served)),
    }
}

/// The model that answers where none is named.
fn first(served: &[Served]) -> Result<usize, ApiError> {
    if served.is_empty() { find("", served) } else { Ok(0) }
}

pub fn find(name: &str, served: &[Served]) -> Result<usize, ApiError> {
    served.iter().position(|served| served.name == name).ok_or_else(|| {
        let names: Vec<&str> = served.iter().map(|served| served.name.as_str()).collect();
        let asked: String = name.chars().take(80).collect();
        let message = match names.is_empty() {
            true => {
                "no model is served here, only runs are watched; name one too: flashlm serve MODEL --run DIR".into()
            }
            false => format!("no model is called {asked:?} here; there is {}", names.join(", ")),
        };
        ApiError {
            param: Some("model".into()),
            ..ApiError::new(StatusCode::NOT_FOUND, Some("model_not_found"), message)
        }
    })
}

/// A list of token ids.
pub fn ids(key: &'static str, values: &[Value], vocab: usize) -> Result<Vec<Token>, ApiError> {
    let id = |value: &Value| {
        let id = whole(value).filter(|&id| id < vocab as u64);
        id.map(|id| id as Token).ok_or_else(|| wrong(key, &format!("token ids below {vocab}"), value))
    };
    values.iter().map(id).collect()
}

fn prompts(fields: &mut Fields, served: &Served) -> Result<Vec<Prompt>, ApiError> {
    const SHAPE: &str = "a string, a list of strings, a list of token ids, or a list of such lists";
    let (tokenizer, vocab) = (served.tokenizer(), served.vocab_size());
    let of_text = |text: &str| {
        let mut tokens = Vec::new();
        tokenizer.encode(text, &mut tokens);
        Prompt { tokens, text: text.into() }
    };
    let of_ids = |values: &[Value]| {
        let tokens = ids("prompt", values, vocab)?;
        let text = served.text(&tokens);
        Ok(Prompt { tokens, text })
    };
    match fields.get("prompt") {
        None => Ok(vec![of_text("")]),
        Some(Value::String(text)) => Ok(vec![of_text(text)]),
        Some(Value::Array(list)) => match list.first() {
            None => Err(ApiError::bad("prompt", format!("prompt: the list is empty; expected {SHAPE}"))),
            Some(Value::Number(_)) => Ok(vec![of_ids(list)?]),
            Some(_) if list.len() as u64 > MAX_TEXTS => {
                Err(ApiError::bad("prompt", format!("prompt: {} prompts are more than {MAX_TEXTS}", list.len())))
            }
            Some(_) => list
                .iter()
                .map(|prompt| match prompt {
                    Value::String(text) => Ok(of_text(text)),
                    Value::Array(list) => of_ids(list),
                    other => Err(wrong("prompt", SHAPE, other)),
                })
                .collect(),
        },
        Some(other) => Err(wrong("prompt", SHAPE, other)),
    }
}

/// The contents of all messages, joined: the model goes on.
fn messages(fields: &mut Fields, served: &Served) -> Result<Prompt, ApiError> {
    const SHAPE: &str = "a list of messages, each an object whose content is a string or a list of parts of type text";
    let value = fields.get("messages").unwrap_or(&Value::Null);
    let refused = || wrong("messages", SHAPE, value);
    let mut text = String::new();
    for message in value.as_array().filter(|list| !list.is_empty()).ok_or_else(refused)? {
        match message.get("content") {
            Some(Value::String(content)) => text += content,
            Some(Value::Array(parts)) => {
                for part in parts {
                    text += part.get("text").and_then(Value::as_str).ok_or_else(refused)?;
                }
            }
            Some(Value::Null) => {}
            _ => return Err(refused()),
        }
    }
    let mut tokens = Vec::new();
    served.tokenizer().encode(&text, &mut tokens);
    Ok(Prompt { tokens, text })
}

fn settings(fields: &mut Fields) -> Result<Settings, ApiError> {
    let plain = Settings::default();
    let seed = match fields.get("seed") {
        None => RandomState::new().hash_one(0),
        Some(value) => {
            let seed = value.as_u64().or(value.as_i64().map(|seed| seed as u64));
            seed.ok_or_else(|| wrong("seed", "a whole number of 64 bits", value))?
        }
    };
    let bias = |(id, bias): (&String, &Value)| {
        let id = id.parse::<Token>().ok().filter(|token| token.to_string() == *id);
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        id.zip(bias).map(|(id, bias)| (id, bias as f32))
    };
    const BIAS: &str = "an object of at most 1024 token ids and numbers from -100 to 100";
    let logit_bias = match fields.get("logit_bias") {
        None => Vec::new(),
        Some(value) => {
            let all = value
                .as_object()
                .filter(|map| map.len() <= 1024)
                .and_then(|map| map.iter().map(bias).collect::<Option<Vec<_>>>());
            all.ok_or_else(|| wrong("logit_bias", BIAS, value))?
        }
    };
    Ok(Settings {
        temperature: fields.number("temperature", 1.0, 0.0, 100.0)? as f32,
        top_k: fields.whole("top_k", 0, 0, 1 << 16)? as usize,
        top_p: fields.number("top_p", 1.0, 1e-6, 1.0)? as f32,
        min_p: fields.number("min_p", 0.0, 0.0, 1.0)? as f32,
        repeat_penalty: fields.number("repetition_penalty", 1.0, 1.0, 100.0)? as f32,
        presence_penalty: fields.number("presence_penalty", 0.0, -2.0, 2.0)? as f32,
        frequency_penalty: fields.number("frequency_penalty", 0.0, -2.0, 2.0)? as f32,
        logit_bias,
        seed,
        ..plain
    })
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    const SHAPE: &str = "a string or a list of at most 16 strings of 1 to 256 bytes";
    let own = |value: &Value| value.as_str().map(String::from);
    match fields.get("stop") {
        None => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop.clone()]),
        Some(value) => {
            let all = value.as_array().and_then(|list| list.iter().map(own).collect());
            all.ok_or_else(|| wrong("stop", SHAPE, value))
        }
    }
}

fn of_field(error: SampleError, key: &str) -> ApiError {
    let (text, own) = (error.to_string(), format!("{key}: "));
    ApiError::bad(key, if text.starts_with(&own) { text } else { own + &text })
}
