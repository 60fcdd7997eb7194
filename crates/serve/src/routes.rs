//! What is asked for at which path.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_blocking;

use crate::answer::Answer;
use crate::ask::{Ask, find, ids, model};
use crate::body;
use crate::desk::{Event, Order};
use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::mailbox::{Bell, mailbox};
use crate::metrics::Metrics;
use crate::model::{EOS, Served};
use crate::uri;
use crate::watch::Watch;

/// Paths that are counted by their name, and whether they are open to all.
const PATHS: [(&str, bool); 11] = [
    ("/", true),
    ("/health", true),
    ("/openapi.json", true),
    ("/metrics", false),
    ("/v1/models", false),
    ("/v1/completions", false),
    ("/v1/chat/completions", false),
    ("/tokenize", false),
    ("/detokenize", false),
    ("/tokenizer_info", false),
    ("/runs", false),
];

/// What all requests share.
pub struct Shared {
    pub served: Arc<Vec<Served>>,
    pub metrics: Arc<Metrics>,
    pub orders: UnboundedSender<Order>,
    pub bell: Arc<Bell<Event>>,
    pub queue: Arc<Semaphore>,
    /// Room for long bodies.
    pub room: Arc<Semaphore>,
    pub key: Option<String>,
    pub runs: Option<Arc<dyn Watch>>,
    pub cors: Option<HeaderValue>,
    /// What `/openapi.json` answers.
    pub openapi: String,
    /// Only names of this machine may be asked for: it listens to no other.
    pub loopback: bool,
    pub draining: AtomicBool,
    pub next: AtomicU64,
    pub started: u64,
}

type Answered = Result<Response, ApiError>;

pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(one_model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/runs", get(runs))
        .route("/runs/{name}", get(one_run))
        .fallback(async |request: Request| {
            let path = request.uri().path();
            ApiError::new(
                StatusCode::NOT_FOUND,
                None,
                format!("there is no {path} here; /openapi.json lists what there is"),
            )
        })
        .method_not_allowed_fallback(async |request: Request| {
            let (method, path) = (request.method(), request.uri().path());
            let message = format!("{path} cannot be asked for with {method}; /openapi.json says how");
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, None, message)
        })
        .layer(from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

/// Who may ask, and what every answer carries.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let known = PATHS.iter().find(|known| known.0 == path);
    let below = |start: &str| path.starts_with(start);
    let route = match known {
        Some(known) => known.0,
        None if below("/v1/models/") => "/v1/models/{id}",
        None if below("/runs/") => "/runs/{name}",
        None => "other",
    };
    let mut response = match admitted(&shared, &request, known.is_some_and(|known| known.1)) {
        Err(error) => error.into_response(),
        Ok(()) if request.method() == Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => next.run(request).await,
    };
    shared.metrics.request(route, response.status().as_u16());
    let id = format!("req-{:016x}", shared.next.fetch_add(1, Relaxed));
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if let Some(origin) = &shared.cors {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, *"));
        let exposed = HeaderValue::from_static("x-request-id, x-flashlm-ignored, retry-after");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

fn admitted(shared: &Shared, request: &Request, open: bool) -> Result<(), ApiError> {
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    // Clients of HTTP/1.0 need not say it; a browser always does.
    let unsaid = request.version() == Version::HTTP_10 && !request.headers().contains_key(header::HOST);
    if shared.loopback && !unsaid && !text(header::HOST).is_some_and(is_own) {
        let message = "this server listens to its own machine alone: ask for localhost, 127.0.0.1 or [::1]";
        return Err(ApiError::new(StatusCode::FORBIDDEN, Some("wrong_host"), message));
    }
    if shared.draining.load(Relaxed) {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, Some("draining"), "the server is stopping"));
    }
    let preflight = shared.cors.is_some() && request.method() == Method::OPTIONS;
    if let Some(key) = shared.key.as_ref().filter(|_| !open && !preflight) {
        let (scheme, given) = text(header::AUTHORIZATION).and_then(|value| value.split_once(' ')).unwrap_or_default();
        let given = if scheme.eq_ignore_ascii_case("bearer") { given } else { "" };
        if !bool::from(given.as_bytes().ct_eq(key.as_bytes())) {
            let message = "the key is missing or wrong; send the header `Authorization: Bearer KEY`";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message));
        }
    }
    if request.method() == Method::OPTIONS && !preflight {
        return Err(ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            None,
            "other origins may not ask; `--cors ORIGIN` lets one",
        ));
    }
    Ok(())
}

/// Whether a Host header names this machine.
fn is_own(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn answer(value: &Value) -> Response {
    json_text(value.to_string())
}

fn json_text(text: impl IntoResponse) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
    (headers, include_str!("page.html")).into_response()
}

async fn openapi(State(shared): State<Arc<Shared>>) -> Response {
    json_text(shared.openapi.clone())
}

async fn health() -> Response {
    answer(&json!({"status": "ok"}))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.text()).into_response()
}

fn described(shared: &Shared, served: &Served) -> Value {
    json!({"id": served.name, "object": "model", "created": shared.started, "owned_by": "flashlm"})
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let all: Vec<Value> = shared.served.iter().map(|served| described(&shared, served)).collect();
    answer(&json!({"object": "list", "data": all}))
}

async fn one_model(State(shared): State<Arc<Shared>>, id: Result<Path<String>, PathRejection>) -> Answered {
    let Path(id) = id.map_err(|_| ApiError::bad("model", "model: the name in the path is not UTF-8".into()))?;
    Ok(answer(&described(&shared, &shared.served[find(&id, &shared.served)?])))
}

async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> Answered {
    let (named, served) = (uri::value(request.uri(), "model")?, shared.served.clone());
    let body = body::read(request, &shared.room).await?;
    let work = move |bytes: &[u8]| {
        let mut fields = Fields::parse(bytes)?;
        let served = &served[model(&mut fields, named, &served)?];
        let text = match fields.text("prompt")? {
            Some(text) => Some(text),
            None => fields.text("content")?,
        };
        let text = text.ok_or_else(|| ApiError::bad("prompt", "prompt: expected a string, found nothing".into()))?;
        let mut tokens = served.encode(&text);
        if fields.flag("add_special_tokens", false)? {
            tokens.insert(0, served.tokenizer().eos());
        }
        Ok(json!({"tokens": tokens, "count": tokens.len()}).to_string())
    };
    Ok(json_text(of_body(body, work).await?))
}

async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> Answered {
    let (named, served) = (uri::value(request.uri(), "model")?, shared.served.clone());
    let body = body::read(request, &shared.room).await?;
    let work = move |bytes: &[u8]| {
        let mut fields = Fields::parse(bytes)?;
        let served = &served[model(&mut fields, named, &served)?];
        let value = fields.get("tokens").unwrap_or(&Value::Null);
        let list = value.as_array().ok_or_else(|| wrong("tokens", "a list of token ids", value))?;
        let text = served.text(&ids("tokens", list, served.vocab_size())?);
        Ok(json!({"prompt": text, "content": text}).to_string())
    };
    Ok(json_text(of_body(body, work).await?))
}

/// What is made of a body: of a long one, which takes a while, not on the thread of all connections.
async fn of_body<T: Send + 'static>(
    body: body::Whole,
    work: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if !body.is_long() {
        return work(&body.bytes);
    }
    let lost = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, None, "reading the body has failed");
    // Its room is free once it was read.
    spawn_blocking(move || (work(&body.bytes), body.place).0).await.map_err(lost)?
}

async fn tokenizer_info(State(shared): State<Arc<Shared>>, uri: Uri) -> Answered {
    let named = uri::value(&uri, "model")?;
    let model = &shared.served[model(&mut Fields::default(), named, &shared.served)?];
    Ok(answer(&json!({
        "eos_token": EOS, "bos_token": null, "pad_token": null, "chat_template": null,
        "kind": model.tokenizer().kind(), "vocab_size": model.vocab_size(), "eos_token_id": model.tokenizer().eos(),
    })))
}

async fn runs(State(shared): State<Arc<Shared>>) -> Answered {
    let list = match shared.runs.clone() {
        Some(runs) => read(move || runs.list()).await?,
        None => json!([]),
    };
    Ok(answer(&json!({"data": list})))
}

/// Rows of a run's log after the mark in `?after=`.
async fn one_run(State(shared): State<Arc<Shared>>, name: Result<Path<String>, PathRejection>, uri: Uri) -> Answered {
    let Path(name) = name.map_err(|_| ApiError::bad("run", "run: the name in the path is not UTF-8".into()))?;
    let after = uri::value(&uri, "after")?.unwrap_or_default();
    let asked: String = name.chars().take(80).collect();
    let missing = || {
        let message = format!("no run is called {asked:?} here; /runs lists those there are");
        ApiError { param: Some("run".into()), ..ApiError::new(StatusCode::NOT_FOUND, Some("run_not_found"), message) }
    };
    let runs = shared.runs.clone().ok_or_else(missing)?;
    let rows = read(move || runs.rows(&name, &after)).await?.ok_or_else(missing)?;
    let unread = |error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, None, error);
    Ok(answer(&rows.map_err(unread)?))
}

/// What comes from a disk, which may be slow: not on the thread of all connections.
async fn read<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let lost = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, None, "reading the runs has failed");
    spawn_blocking(what).await.map_err(lost)
}

async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Answered {
    write(shared, request, false).await
}

async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Answered {
    write(shared, request, true).await
}

/// Sends a request to the desk and answers as its texts come. The receiver goes with the answer: where the client leaves, the desk
/// finds the other end closed.
async fn write(shared: Arc<Shared>, request: Request, chat: bool) -> Answered {
    let came = Instant::now();
    let named = uri::value(request.uri(), "model")?;
    let lost = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, None, "the engine has stopped");
    let (body, served) = (body::read(request, &shared.room).await?, shared.served.clone());
    let long = body.is_long();
    let body::Whole { bytes, place } = body;
    // A long prompt takes a while to split into tokens: not on the thread of all connections.
    let mut ask = if long {
        spawn_blocking(move || Ask::read(&bytes, named, &served, chat)).await.map_err(|_| lost())??
    } else {
        Ask::read(&bytes, named, &served, chat)?
    };
    let full = |_| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, Some("queue_full"), "the queue is full; ask again in a second")
    };
    let permit = shared.queue.clone().try_acquire_owned().map_err(full)?;
    let texts = ask.texts();
    let least = 3 * texts;
    // Who waits for all of it is woken seldom, for many letters at once.
    let more = if ask.stream { 64 } else { 512 };
    let (events, mut told) = mailbox(&shared.bell, 2 * least + more, ask.stream);
    let order = Order { jobs: std::mem::take(&mut ask.jobs), events, least, permit, came };
    shared.orders.send(order).map_err(|_| lost())?;
    let ignored = ask.ignored.as_ref().and_then(|names| HeaderValue::from_str(names).ok());
    let (streamed, usage) = (ask.stream, ask.usage);
    let mut answer = Answer::new(ask, shared.served.clone(), shared.next.fetch_add(1, Relaxed));
    let mut response = if streamed {
        let events = stream::unfold(Some((answer, told, place)), move |state| async move {
            let (mut answer, mut told, place) = state?;
            let mut text = String::new();
            // What is there already goes out as one piece.
            let mut event = told.next().await;
            loop {
                let taken = match event {
                    None => Err(lost()),
                    Some(event) if answer.takes_long(&event) => {
                        let work = move || (answer.tell(event, &mut text), answer, text);
                        let taken;
                        (taken, answer, text) = spawn_blocking(work).await.ok()?;
                        taken
                    }
                    Some(event) => answer.tell(event, &mut text),
                };
                if let Err(error) = taken {
                    let _ = write!(text, "data: {}\n\n", error.json());
                    return Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), None));
                }
                if answer.is_done() {
                    if usage {
                        let _ = write!(text, "data: {}\n\n", answer.usage_chunk());
                    }
                    text += "data: [DONE]\n\n";
                    return Some((Ok(Bytes::from(text)), None));
                }
                match told.there() {
                    Some(next) => event = Some(next),
                    None => return Some((Ok(Bytes::from(text)), Some((answer, told, place)))),
                }
            }
        });
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        (headers, Body::from_stream(events)).into_response()
    } else {
        while !answer.is_done() {
            let event = told.next().await.ok_or_else(lost)?;
            if matches!(event, Event::Read { .. }) && answer.takes_long(&event) {
                let work = move || (answer.take(event), answer);
                let taken;
                (taken, answer) = spawn_blocking(work).await.map_err(|_| lost())?;
                taken?;
            } else {
                answer.take(event)?;
            }
        }
        let whole = if answer.is_long() {
            spawn_blocking(move || answer.whole().to_string()).await.map_err(|_| lost())?
        } else {
            answer.whole().to_string()
        };
        drop(place);
        json_text(whole)
    };
    if let Some(ignored) = ignored {
        response.headers_mut().insert("x-flashlm-ignored", ignored);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        for own in ["localhost", "LocalHost:8080", "127.0.0.1:1", "[::1]", "[::1]:8080"] {
            assert!(is_own(own), "{own}");
        }
        for other in
            ["", "example.com", "localhost.example.com", "127.0.0.1.example.com:80", "[::2]", "localhost:80:example"]
        {
            assert!(!is_own(other), "{other}");
        }
    }
}
