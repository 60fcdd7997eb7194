//! `flashlm serve`: models over HTTP, for the clients of OpenAI's API and for a browser.

use std::net::{TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use flashlm_kernels::heap;
use flashlm_serve::{Options, Served, Watch, Weights, serve};
use flashlm_train::load::{load_packed, load_peer};
use flashlm_train::log::tail::{Mark, Piece};
use flashlm_train::runs::Runs;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::common::{Hub, exec, model_or_builtin, out, say};
use crate::signals::raised_by;

/// Where the key is, if no flag has it.
const KEY: &str = "FLASHLM_API_KEY";

/// Serve models over HTTP: the API of OpenAI's clients, and a page to write, compare and watch runs with
///
/// Texts are those of `generate` with the same seed, whoever else is asking. SIGTERM and Ctrl-C finish what runs and refuse what is new;
/// a second one ends the process at once.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm serve\n  flashlm serve stories=model.safetensors runs/book --port 9000\n  flashlm serve --run runs\n  flashlm serve --host 0.0.0.0 --api-key \"a long secret\"\n\ndocs/serving.md has the API, docs/security.md what protects it."
)]
pub struct Args {
    /// Models, as `generate` takes them, or NAME=MODEL; clients call them by this name, else by that of the folder or file
    /// [default: checkpoints, else builtin; none with --run]
    models: Vec<PathBuf>,
    /// Address to listen at; one that other machines reach wants a key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen at; 0 takes one that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Key that clients must send [default: FLASHLM_API_KEY, which other users of this machine cannot see; else none]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Texts that are written together, at most
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=4096))]
    parallel: u32,
    /// Requests that may wait; more are told to come again
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=65536))]
    queue: u32,
    /// Tokens of prompts that are read between two tokens of the texts, so that a long prompt stalls nobody
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens_per_tick: u32,
    /// Let pages of this origin ask, such as `https://example.com` [default: none]
    #[arg(long, value_name = "ORIGIN")]
    cors: Option<String>,
    /// Run to watch, or a folder of runs, also while they train; may be given several times. Without MODELS, no model is served
    #[arg(long = "run", value_name = "DIR")]
    runs: Vec<PathBuf>,
    #[command(flatten)]
    hub: Hub,
    /// Number of threads of each model [default: FLASHLM_THREADS, else all processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // The states of texts come and go.
    heap::give_back();
    let api_key = args.api_key.or_else(|| std::env::var(KEY).ok().filter(|key| !key.is_empty()));
    if api_key.as_ref().is_some_and(|key| key.is_empty() || !key.bytes().all(|b| (b' '..=b'~').contains(&b))) {
        bail!("the key is empty or has characters that a header cannot hold; use ASCII letters, digits and signs");
    }
    let at = (args.host.as_str(), args.port);
    let address = at.to_socket_addrs().with_context(|| format!("--host {}: not an address", args.host))?.next();
    let address = address.with_context(|| format!("--host {}: not an address", args.host))?;
    if !address.ip().is_loopback() && api_key.is_none() {
        bail!("--host {}: other machines may reach this address; set a key with --api-key or {KEY}", args.host);
    }
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen at {address}; another program may: choose another --port"))?;
    if let Some(missing) = args.runs.iter().find(|folder| !folder.is_dir()) {
        bail!("--run {}: no such folder; name a run, or a folder that holds runs", missing.display());
    }
    let watched = (!args.runs.is_empty()).then(|| Watched(Runs::new(args.runs)));
    let named = match args.models.is_empty() {
        true if watched.is_some() => Vec::new(),
        true => vec![model_or_builtin(None, args.hub)?],
        false => args.models,
    };
    let (mut served, mut execs, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for path in named {
        let (name, path) = name_of(&path);
        let path = args.hub.located(&path)?;
        if names.contains(&name) {
            bail!("two models are called {name}; name one of them as OTHER={}", path.display());
        }
        let cx = exec(args.threads)?;
        let weights = match load_peer(&cx, &path)? {
            Some(peer) => Weights::Float(peer.into()),
            None => Weights::Packed(load_packed(&cx, &path)?.into()),
        };
        served.push(Served::new(name.clone(), weights));
        execs.push(cx);
        names.push(name);
    }
    if !address.ip().is_loopback() {
        say!("other machines may reach this server, and nothing is encrypted; docs/security.md");
    }
    let mut what = Vec::from_iter((!names.is_empty()).then(|| format!("serving {}", names.join(", "))));
    if let Some(Watched(runs)) = &watched {
        let runs = runs.list().len();
        what.push(format!("watching {runs} run{}", if runs == 1 { "" } else { "s" }));
        if runs == 0 {
            say!("there is no run yet in the folders of --run; one that begins there will be seen");
        }
    }
    out!("{} at http://{}", what.join(", "), listener.local_addr()?);
    let options = Options {
        api_key,
        parallel: args.parallel as usize,
        queue: args.queue as usize,
        prompt_tokens_per_tick: args.prompt_tokens_per_tick as usize,
        cors: args.cors,
        runs: watched.map(|watched| Arc::new(watched) as Arc<dyn Watch>),
    };
    serve(listener, served, execs, options, raised_by(&[SIGTERM, SIGINT])?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs as the server asks for them.
struct Watched(Runs);

impl Watch for Watched {
    fn list(&self) -> Value {
        json!(self.0.list())
    }

    fn rows(&self, name: &str, after: &str) -> Option<Result<Value, String>> {
        // A mark that is none is the beginning.
        let piece = self.0.rows(name, after.parse().unwrap_or(Mark::start()))?;
        let told = |piece: Piece| {
            let Piece { rows, next, anew, more, damaged } = piece;
            json!({"rows": rows, "next": next.to_string(), "anew": anew, "more": more, "damaged": damaged})
        };
        Some(piece.map(told).map_err(|_| format!("the log of {name} cannot be read")))
    }
}

/// What a model is called, and where it is.
fn name_of(given: &Path) -> (String, PathBuf) {
    if let Some((name, path)) = given.to_str().and_then(|text| text.split_once('='))
        && !name.is_empty()
        && !given.exists()
    {
        return (name.into(), path.into());
    }
    // hf:OWNER/NAME@REVISION:FILE
    if let Some(rest) = given.to_str().and_then(|text| text.strip_prefix("hf:")).filter(|_| !given.exists()) {
        let last = rest.rsplit(['/', ':']).next().unwrap_or(rest);
        let last = if rest.contains(':') { last.rsplit_once('.').map_or(last, |(stem, _)| stem) } else { last };
        return (last.split('@').next().unwrap_or(last).into(), given.into());
    }
    let whole = given.canonicalize().unwrap_or_else(|_| given.into());
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    (name.unwrap_or_default().to_string_lossy().into_owned(), given.into())
}
