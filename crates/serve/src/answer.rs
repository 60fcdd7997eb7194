//! What a client reads: events of the desk as `text_completion` or `chat.completion`, whole or as chunks of the same shape.
//!
//! A chunk is one token; what the chunks say, joined, is what the whole says.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use flashlm_kernels::Token;
use flashlm_model::tok::StreamDecoder;
use flashlm_model::{Finish, Scored};
use serde_json::{Map, Value, json};

use crate::ask::Ask;
use crate::desk::Event;
use crate::error::ApiError;
use crate::model::Served;

/// From about this many bytes on an answer is long.
const LONG: usize = 256 << 10;
/// JSON has no infinity.
const LEAST: f64 = -9999.0;

/// Tokens with their log-probabilities, in the lists that completions have.
#[derive(Default)]
struct Listed {
    ids: Vec<Token>,
    log_probs: Vec<Option<f64>>,
    tops: Vec<Vec<(Token, f64)>>,
    offsets: Vec<usize>,
    /// The token before each.
    before: Vec<Option<Token>>,
}

/// One text on its way.
struct Text {
    /// Since the last chunk.
    text: String,
    listed: Listed,
    finish: Option<Finish>,
    tokens: usize,
    log_prob: f64,
    decoder: StreamDecoder,
    characters: usize,
    /// The token before the next that is listed.
    last: Option<Token>,
    begun: bool,
}

/// The answer to a request.
pub struct Answer {
    pub ask: Ask,
    served: Arc<Vec<Served>>,
    id: String,
    created: u64,
    fingerprint: String,
    /// What all chunks begin with, up to the text of their choice.
    start: String,
    texts: Vec<Text>,
    scratch: String,
}

impl Answer {
    pub fn new(ask: Ask, served: Arc<Vec<Served>>, id: u64) -> Answer {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let listed = ask.echo && ask.logprobs.is_some();
        let text = |i: usize| Text {
            text: String::new(),
            listed: Listed::default(),
            finish: None,
            tokens: 0,
            log_prob: 0.0,
            decoder: StreamDecoder::new(),
            characters: 0,
            last: ask.prompts[i / ask.best_of].tokens.last().copied().filter(|_| !listed),
            begun: false,
        };
        let texts = (0..ask.texts()).map(text).collect();
        let id = format!("{}-{id:016x}", if ask.chat { "chatcmpl" } else { "cmpl" });
        let fingerprint = format!("flashlm-{}-{}", env!("CARGO_PKG_VERSION"), served[ask.model].digest());
        let (start, scratch) = (String::new(), String::new());
        let mut answer = Answer { ask, served, id, created, fingerprint, start, texts, scratch };
        let mut start = answer.object(answer.kind(true)).to_string();
        start.pop();
        answer.start = start + ",\"choices\":[";
        if answer.ask.echo {
            for i in 0..answer.texts.len() {
                answer.texts[i].text = answer.ask.prompts[i / answer.ask.best_of].text.clone();
            }
        }
        answer
    }

    /// Takes an event; the text of it that may be told now.
    pub fn take(&mut self, event: Event) -> Result<Option<usize>, ApiError> {
        match event {
            Event::Read { first, scores } => {
                for i in first..first + self.ask.best_of {
                    let tokens = self.ask.prompts[i / self.ask.best_of].tokens.clone();
                    for (at, &token) in tokens.iter().enumerate() {
                        let scored = at.checked_sub(1).and_then(|at| scores.get(at));
                        self.list(i, token, scored);
                    }
                }
                Ok(None)
            }
            Event::Token { index, token, scored, text, finish } => {
                if finish == Some(Finish::Failed) {
                    return Err(ApiError::new(StatusCode::BAD_REQUEST, Some("model_failed"), text));
                }
                if let Some(token) = token {
                    self.texts[index].tokens += 1;
                    self.texts[index].log_prob += scored.as_ref().map_or(0.0, |scored| scored.log_prob);
                    if self.ask.logprobs.is_some() || self.ask.ids {
                        self.list(index, token, scored.as_ref());
                    }
                }
                let own = &mut self.texts[index];
                own.text += &text;
                own.finish = finish;
                Ok((finish.is_some() || !own.text.is_empty() || !own.listed.ids.is_empty()).then_some(index))
            }
        }
    }

    fn list(&mut self, index: usize, token: Token, scored: Option<&Scored>) {
        let own = &mut self.texts[index];
        let before = own.last.replace(token);
        let bytes = self.served[self.ask.model].bytes_after(before, token);
        own.listed.before.push(before);
        own.listed.ids.push(token);
        own.listed.log_probs.push(scored.map(|scored| told(scored.log_prob)));
        own.listed.tops.push(scored.map(|scored| scored.top.clone()).unwrap_or_default());
        own.listed.offsets.push(own.characters);
        self.scratch.clear();
        own.decoder.push(bytes, &mut self.scratch);
        own.characters += self.scratch.chars().count();
    }

    /// What a text says since the last call.
    fn choice(&mut self, index: usize, number: usize, chunk: bool) -> Value {
        let own = &mut self.texts[index];
        let text = std::mem::take(&mut own.text);
        let listed = std::mem::take(&mut own.listed);
        let first = !std::mem::replace(&mut own.begun, true);
        let finish = own.finish.map(|finish| if finish == Finish::Length { "length" } else { "stop" });
        let served = &self.served[self.ask.model];
        let mut choice = json!({"index": number, "finish_reason": finish, "logprobs": null});
        if self.ask.logprobs.is_some() {
            choice["logprobs"] =
                if self.ask.chat { chat_log_probs(served, &listed) } else { log_probs(served, &listed) };
        }
        if self.ask.ids {
            choice["token_ids"] = json!(listed.ids);
        }
        match (self.ask.chat, chunk) {
            (false, _) => choice["text"] = text.into(),
            (true, false) => choice["message"] = json!({"role": "assistant", "content": text, "refusal": null}),
            (true, true) if first => choice["delta"] = json!({"role": "assistant", "content": text}),
            (true, true) => choice["delta"] = json!({"content": text}),
        }
        choice
    }

    fn object(&self, kind: &str) -> Value {
        json!({
            "id": self.id, "object": kind, "created": self.created, "model": self.served[self.ask.model].name,
            "system_fingerprint": self.fingerprint,
        })
    }

    fn kind(&self, chunk: bool) -> &'static str {
        match (self.ask.chat, chunk) {
            (false, _) => "text_completion",
            (true, true) => "chat.completion.chunk",
            (true, false) => "chat.completion",
        }
    }

    /// Writes a chunk of one text as an event. Most are a word and nothing more, written without a tree of values.
    fn chunk(&mut self, index: usize, out: &mut String) {
        let own = &mut self.texts[index];
        let plain = self.ask.logprobs.is_none() && !self.ask.ids && own.finish.is_none();
        let _ = if plain && (own.begun || !self.ask.chat) {
            own.begun = true;
            let text = Value::String(std::mem::take(&mut own.text));
            let (key, end) = if self.ask.chat { ("\"delta\":{\"content\":", "}") } else { ("\"text\":", "") };
            write!(
                out,
                "data: {}{{\"finish_reason\":null,\"index\":{index},\"logprobs\":null,{key}{text}{end}}}]}}\n\n",
                self.start
            )
        } else {
            let choice = self.choice(index, index, true);
            write!(out, "data: {}{choice}]}}\n\n", self.start)
        };
    }

    /// The last chunk, where it is asked for.
    pub fn usage_chunk(&self) -> Value {
        let mut object = self.object(self.kind(true));
        object["choices"] = json!([]);
        object["usage"] = self.usage();
        object
    }

    /// Everything; of those that were tried, the likeliest by the mean of their tokens.
    pub fn whole(&mut self) -> Value {
        let mut choices = Vec::new();
        for prompt in 0..self.ask.prompts.len() {
            let mut tried: Vec<usize> = (prompt * self.ask.best_of..(prompt + 1) * self.ask.best_of).collect();
            if self.ask.best_of > self.ask.n {
                let mean = |i: &usize| self.texts[*i].log_prob / self.texts[*i].tokens.max(1) as f64;
                tried.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            }
            for index in tried.into_iter().take(self.ask.n) {
                choices.push(self.choice(index, choices.len(), false));
            }
        }
        let mut object = self.object(self.kind(false));
        object["choices"] = choices.into();
        object["usage"] = self.usage();
        object
    }

    /// Whether it takes a while to put into words.
    pub fn is_long(&self) -> bool {
        self.texts.iter().map(|text| self.length(text)).sum::<usize>() > LONG
    }

    /// About as many bytes as a text takes.
    fn length(&self, text: &Text) -> usize {
        text.text.len() + 64 * text.listed.ids.len() * (2 + self.ask.logprobs.unwrap_or(0))
    }

    /// Whether an event takes a while to take, and to tell as a chunk.
    pub fn takes_long(&self, event: &Event) -> bool {
        match event {
            Event::Read { scores, .. } => 64 * scores.len() * self.ask.best_of > LONG,
            Event::Token { index, .. } => self.length(&self.texts[*index]) > LONG,
        }
    }

    /// Takes an event and writes what may be told of it as a chunk.
    pub fn tell(&mut self, event: Event, out: &mut String) -> Result<(), ApiError> {
        if let Some(index) = self.take(event)? {
            self.chunk(index, out);
        }
        Ok(())
    }

    /// Whether all texts have ended.
    pub fn is_done(&self) -> bool {
        self.texts.iter().all(|text| text.finish.is_some())
    }

    fn usage(&self) -> Value {
        let prompt: usize = self.ask.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let completion: usize = self.texts.iter().map(|text| text.tokens).sum();
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
    }
}

fn told(log_prob: f64) -> f64 {
    // Also where it is no number.
    log_prob.max(LEAST)
}

fn log_probs(served: &Served, listed: &Listed) -> Value {
    let names: Vec<&str> = listed.ids.iter().map(|&id| served.names[usize::from(id)].as_str()).collect();
    let top = |(top, log_prob): (&Vec<(Token, f64)>, &Option<f64>)| {
        let pair = |(id, p): &(Token, f64)| (served.names[usize::from(*id)].clone(), told(*p).into());
        log_prob.map(|_| top.iter().map(pair).collect::<Map<String, Value>>())
    };
    let tops: Vec<_> = listed.tops.iter().zip(&listed.log_probs).map(top).collect();
    json!({"tokens": names, "token_logprobs": listed.log_probs, "top_logprobs": tops, "text_offset": listed.offsets})
}

fn chat_log_probs(served: &Served, listed: &Listed) -> Value {
    let one = |before: Option<Token>, id: Token, log_prob: f64| {
        let bytes = served.bytes_after(before, id);
        json!({"token": served.names[usize::from(id)], "bytes": bytes, "logprob": log_prob})
    };
    let tokens = listed.before.iter().zip(&listed.ids);
    let all = tokens.zip(&listed.log_probs).zip(&listed.tops).map(|(((&before, &id), log_prob), top)| {
        let mut token = one(before, id, log_prob.unwrap_or(LEAST));
        token["top_logprobs"] = top.iter().map(|&(id, p)| one(before, id, told(p))).collect();
        token
    });
    json!({"content": all.collect::<Vec<_>>(), "refusal": null})
}
