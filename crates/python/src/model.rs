//! A loaded model.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use flashlm_kernels::Token;
use flashlm_kernels::cpu::Machine;
use flashlm_model::{Engine, PackedModel, Scored};
use flashlm_train::builtin;
use flashlm_train::eval::Stories;
use flashlm_train::eval::bpb::evaluate;
use flashlm_train::load::load_packed;
use flashlm_train::run::open_model;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::asked::{Asked, whole};
use crate::engines::{Engines, exec};
use crate::error::{Failure, Result};
use crate::generation::{Generation, complete};
use crate::stream::Stream;
use crate::tokenizer::{Tokenizer, no_pickle};
use crate::wait::{between, wait};

/// Rows of a text that are worked through at once, per thread.
const ROWS: usize = 64;
/// Tokens that are scored before it is asked whether to go on.
const PIECE: usize = 1024;

/// A model that runs. Any number of threads may use one at the same time; calls compute without the interpreter's lock.
#[pyclass(frozen, module = "flashlm")]
pub struct Model {
    packed: Arc<PackedModel>,
    engines: Arc<Engines>,
    path: PathBuf,
}

/// Loads a model: a run folder (its best checkpoint), a checkpoint folder, a packed model, or a .safetensors file beside its
/// tokenizer.json, or a name `hf:OWNER/NAME[@REVISION][:FILE]` of the hub; `"builtin"` is the model that is part of the package.
#[pyfunction]
#[pyo3(signature = (model = PathBuf::from(builtin::NAME)), text_signature = "(model='builtin')")]
pub fn load(py: Python, model: PathBuf) -> Result<Model> {
    let path = model.clone();
    let packed = wait(py, move |stop| {
        let path = open_model(&path, false, &|| stop.load(Relaxed), &mut |_| ())?;
        Ok(Arc::new(load_packed(&exec(1)?, &path)?))
    })?;
    Ok(Model { engines: Engines::new(packed.clone()), packed, path: model })
}

/// The number of threads: the argument, else `FLASHLM_THREADS`, else the processors of this process.
fn threads(given: Option<&Bound<PyAny>>) -> Result<usize> {
    let threads: u64 = match (given, std::env::var("FLASHLM_THREADS")) {
        (Some(n), _) if !n.is_none() => whole("threads", n)?,
        (_, Ok(text)) if !text.is_empty() => {
            text.parse().map_err(|_| Failure::setting(format!("FLASHLM_THREADS={text} is not a number of threads")))?
        }
        _ => Machine::detect().cores as u64,
    };
    match threads {
        1..=1024 => Ok(threads as usize),
        _ => Err(Failure::setting(format!("{threads} threads: must be between 1 and 1024"))),
    }
}

#[pymethods]
impl Model {
    /// An iterator over the pieces of a text that goes on from `prompt`: the text that `flashlm generate` writes with the same
    /// settings and seed. The prompt is not repeated.
    #[pyo3(signature = (prompt = "", **settings))]
    fn generate(&self, py: Python, prompt: &str, settings: Option<&Bound<PyDict>>) -> Result<Generation> {
        let asked = Asked::of("generate", &self.packed, settings)?;
        Generation::begin(py, &self.packed, &self.engines, prompt, asked)
    }

    /// The whole text that `generate` would give, without the prompt.
    #[pyo3(signature = (prompt = "", **settings))]
    fn complete(&self, py: Python, prompt: &str, settings: Option<&Bound<PyDict>>) -> Result<String> {
        let asked = Asked::of("complete", &self.packed, settings)?;
        complete(py, &self.packed, &self.engines, prompt, asked)
    }

    /// A sequence to be fed and sampled token by token; the settings and the seed are those of `sample`.
    #[pyo3(signature = (**settings))]
    fn stream(&self, settings: Option<&Bound<PyDict>>) -> Result<Stream> {
        let settings = Asked::of_stream(&self.packed, settings)?;
        Stream::begin(&self.packed, &self.engines, self.packed.sampler(settings)?)
    }

    /// The log-probability of each token of `text` after `prompt`, and the `top` likeliest there, in nats: the model's own, before
    /// temperature and penalties. The two are split into tokens separately: begin `text` with its space.
    #[pyo3(signature = (text, *, prompt = "", top = None, threads = None), text_signature = "($self, text, *, prompt='', top=0, threads=None)")]
    fn score<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        prompt: &str,
        top: Option<&Bound<'py, PyAny>>,
        threads: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyList>> {
        let (cx, top) = (exec(self::threads(threads)?)?, top.map_or(Ok(0), |top| whole::<u64>("top", top))?);
        let top = usize::try_from(top).unwrap_or(usize::MAX).min(self.packed.config().vocab_size);
        let (model, text, prompt) = (self.packed.clone(), text.to_string(), prompt.to_string());
        let (ids, scored) = wait(py, move |stop| {
            let tokenizer = model.tokenizer();
            let mut all = vec![tokenizer.eos()];
            tokenizer.encode(&prompt, &mut all);
            let given = all.len();
            tokenizer.encode(&text, &mut all);
            let mut engine = Engine::new(model.clone(), cx, ROWS);
            let (mut state, mut scored) = (model.new_state(), Vec::with_capacity(all.len() - given));
            crate::engines::feed(&mut engine, &mut state, &all[..given - 1], || !stop.load(Relaxed));
            let pairs = all[given - 1..all.len() - 1].chunks(PIECE).zip(all[given..].chunks(PIECE));
            for (tokens, targets) in pairs.take_while(|_| !stop.load(Relaxed)) {
                engine.score(&mut state, tokens, targets, top, &mut scored);
            }
            Ok((all.split_off(given), scored))
        })?;
        let class = py.import("flashlm.events")?.getattr("ScoredToken")?;
        let own = self.packed.tokenizer();
        let word = |id: Token| String::from_utf8_lossy(own.token_bytes(id)).into_owned();
        let token =
            |(id, scored): (&Token, &Scored)| class.call1((*id, word(*id), scored.log_prob, scored.top.clone()));
        Ok(PyList::new(py, ids.iter().zip(&scored).map(token).collect::<PyResult<Vec<_>>>()?)?)
    }

    /// Bits per byte of texts, each scored whole from a fresh state, every byte counted, as `flashlm eval` tells them. Lower is
    /// better. `texts` is one text or an iterable of them.
    #[pyo3(signature = (texts, *, threads = None))]
    fn bpb<'py>(&self, py: Python<'py>, texts: &Bound<'py, PyAny>, threads: Option<&Bound<'py, PyAny>>) -> Result<f64> {
        let cx = exec(self::threads(threads)?)?;
        let texts: Vec<String> = match texts.cast::<PyString>() {
            Ok(text) => vec![text.to_str()?.to_string()],
            Err(_) => {
                let text = |(n, text): (usize, PyResult<Bound<'py, PyAny>>)| {
                    between(py, n)?;
                    text?.extract::<String>()
                };
                texts.try_iter()?.enumerate().map(text).collect::<PyResult<_>>()?
            }
        };
        let model = self.packed.clone();
        wait(py, move |stop| {
            let mut stories = Stories::default();
            let flow = || if stop.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            texts.iter().take_while(|_| flow().is_continue()).for_each(|text| stories.push(model.tokenizer(), text));
            let mut engine = Engine::new(model.clone(), cx, ROWS);
            Ok(evaluate(&mut engine, model.tokenizer(), &stories, &mut |_| flow())?.bpb)
        })
    }

    /// Its vocabulary.
    #[getter]
    fn tokenizer(&self) -> Tokenizer {
        Tokenizer(self.packed.clone())
    }

    /// What it was loaded from.
    #[getter]
    fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Number of parameters.
    #[getter]
    fn parameters(&self) -> usize {
        self.packed.config().parameters()
    }

    /// Size of the weights in memory, in bytes.
    #[getter]
    fn memory(&self) -> usize {
        self.packed.memory()
    }

    /// Its sizes and switches, as docs/formats.md lists them.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        crate::json::object(py, &serde_json::json!(self.packed.config()))
    }

    fn __repr__(&self) -> String {
        format!("<flashlm.Model {}, {} parameters>", self.path.display(), self.parameters())
    }

    fn __reduce__(&self) -> Result<()> {
        Err(no_pickle("a Model", "load it by its path in the other process, or share it between threads"))
    }
}
