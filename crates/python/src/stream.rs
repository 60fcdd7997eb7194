//! One sequence, fed and sampled token by token.
//!
//! What `save` returns: a magic line, then little-endian the hash of the vocabulary u64, four words of random numbers u64, the number
//! of logits u32 and of recent tokens u32, the logits f32, the tokens u16, and the state of the sequence.

use std::sync::{Arc, Mutex};

use flashlm_kernels::Token;
use flashlm_model::rng::Rng;
use flashlm_model::sample::Sampler;
use flashlm_model::{Engine, PackedModel, SequenceState};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PyString};
use xxhash_rust::xxh3::xxh3_64;

use crate::engines::Engines;
use crate::error::{Failure, Result};
use crate::tokenizer::{encode, no_pickle, tokens};

const MAGIC: &[u8] = b"flashlm stream 1\n";
/// Tokens that penalties look at.
const RECENT: usize = 64;

/// One sequence of tokens, which begins as a new document does. It belongs to one thread at a time.
///
/// `feed` appends text or ids, `logits` are those after the last token, `sample` draws the next one and does not feed it.
#[pyclass(frozen, module = "flashlm")]
pub struct Stream {
    model: Arc<PackedModel>,
    engines: Arc<Engines>,
    /// None once it is closed.
    own: Mutex<Option<Own>>,
}

struct Own {
    engine: Engine,
    at: At,
    sampler: Sampler,
}

/// Where the sequence is.
#[derive(Clone)]
struct At {
    state: SequenceState,
    logits: Vec<f32>,
    recent: Vec<Token>,
}

impl Stream {
    /// One that has read the end of the document before.
    pub fn begin(model: &Arc<PackedModel>, engines: &Arc<Engines>, sampler: Sampler) -> Result<Stream> {
        let mut engine = engines.take()?;
        let mut state = model.new_state();
        let logits = engine.prefill(&mut state, &[model.tokenizer().eos()]).to_vec();
        let at = At { state, logits, recent: Vec::new() };
        let own = Mutex::new(Some(Own { engine, at, sampler }));
        Ok(Stream { model: model.clone(), engines: engines.clone(), own })
    }

    fn own<T>(&self, of: impl FnOnce(&mut Own) -> Result<T>) -> Result<T> {
        match self.own.try_lock().as_deref_mut() {
            Ok(Some(own)) => of(own),
            Ok(None) => Err(Failure::stream("this stream is closed: model.stream() begins another")),
            Err(_) => Err(Failure::stream("another thread is at this stream: let each thread have its own")),
        }
    }
}

#[pymethods]
impl Stream {
    /// Appends text, or token ids, and returns the number of tokens. Where Ctrl-C interrupts it, the stream stays as it was.
    fn feed(&self, py: Python, text: &Bound<PyAny>) -> Result<usize> {
        let ids = match text.cast::<PyString>() {
            Ok(text) => encode(py, &self.model, text.to_str()?)?,
            Err(_) => tokens(&self.model, text)?,
        };
        let Some((last, before)) = ids.split_last() else { return Ok(0) };
        self.own(|own| {
            let Own { engine, at, .. } = own;
            let rows = engine.rows();
            let saved = (before.len() > rows).then(|| at.clone());
            for piece in before.chunks(rows) {
                py.detach(|| engine.feed(&mut at.state, piece));
                // In a short text, Python itself asks after the call.
                if let Some(saved) = &saved
                    && let Err(error) = py.check_signals()
                {
                    *at = saved.clone();
                    return Err(error.into());
                }
            }
            py.detach(|| {
                at.logits.copy_from_slice(engine.prefill(&mut at.state, &[*last]));
                let eos = self.model.tokenizer().eos();
                at.recent.extend(ids.iter().filter(|&&id| id != eos));
                let old = at.recent.len().saturating_sub(RECENT);
                at.recent.drain(..old);
            });
            Ok(ids.len())
        })
    }

    /// The logits after the last token, before temperature, penalties and biases: f32 `[vocab_size]`, read-only, with the buffer
    /// protocol: `numpy.asarray(stream.logits())` copies nothing.
    fn logits<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        let bytes = self.own(|own| {
            let bytes: Vec<u8> = own.at.logits.iter().flat_map(|x| x.to_le_bytes()).collect();
            Ok(PyBytes::new(py, &bytes))
        })?;
        Ok(PyMemoryView::from(&bytes)?.call_method1("cast", ("f",))?)
    }

    /// Draws the next token by the settings of the stream and returns its id; `eos` of the tokenizer ends the document. The token
    /// is not fed.
    fn sample(&self, py: Python) -> Result<Token> {
        self.own(|own| {
            py.detach(|| {
                let Own { engine, at, sampler } = own;
                Ok(sampler.sample(engine.exec(), &mut at.logits.clone(), &at.recent)?)
            })
        })
    }

    /// All that the next token depends on, as bytes for `restore` of a stream of the same model.
    fn save<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyBytes>> {
        self.own(|own| {
            let At { state, logits, recent } = &own.at;
            let mut all = MAGIC.to_vec();
            all.extend(xxh3_64(self.model.digest().as_bytes()).to_le_bytes());
            own.sampler.rng().state().iter().for_each(|word| all.extend(word.to_le_bytes()));
            [logits.len(), recent.len()].iter().for_each(|&n| all.extend((n as u32).to_le_bytes()));
            logits.iter().for_each(|x| all.extend(x.to_le_bytes()));
            recent.iter().for_each(|id| all.extend(id.to_le_bytes()));
            all.extend(state.save());
            Ok(PyBytes::new(py, &all))
        })
    }

    /// Goes back to where `save` was called, random numbers included; the settings of this stream stay.
    fn restore(&self, saved: &[u8]) -> Result<()> {
        self.own(|own| {
            let read = read(&self.model, saved);
            let (rng, at) = read.ok_or_else(|| {
                Failure::stream("these bytes were not saved by a stream of this model, or are damaged: expected what save() returned")
            })?;
            own.sampler.set_rng(rng);
            own.at = at;
            Ok(())
        })
    }

    /// Frees the working memory; every later call is an error. A `with` block does so at its end.
    fn close(&self) -> Result<()> {
        match self.own.try_lock() {
            Ok(mut own) => own.take().into_iter().for_each(|own| self.engines.give(own.engine)),
            Err(_) => return Err(Failure::stream("another thread is at this stream: let each thread have its own")),
        }
        Ok(())
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<pyo3::types::PyTuple>) -> Result<()> {
        self.close()
    }

    fn __reduce__(&self) -> Result<()> {
        Err(no_pickle("a Stream", "save() gives its state as bytes, and restore() of another stream takes them"))
    }
}

/// What was saved; none where the bytes are damaged or of another model.
fn read(model: &PackedModel, bytes: &[u8]) -> Option<(Rng, At)> {
    let bytes = bytes.strip_prefix(MAGIC)?;
    let (hash, bytes) = bytes.split_first_chunk()?;
    if u64::from_le_bytes(*hash) != xxh3_64(model.digest().as_bytes()) {
        return None;
    }
    let (words, bytes) = bytes.split_first_chunk::<32>()?;
    let mut rng = [0; 4];
    rng.iter_mut().zip(words.as_chunks().0).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
    let (logits, bytes) = bytes.split_first_chunk()?;
    let (recent, bytes) = bytes.split_first_chunk()?;
    let (logits, recent) = (u32::from_le_bytes(*logits) as usize, u32::from_le_bytes(*recent) as usize);
    let vocab = model.config().vocab_size;
    if logits != vocab || recent > RECENT {
        return None;
    }
    let (logits, bytes) = bytes.split_at_checked(4 * logits)?;
    let (recent, state) = bytes.split_at_checked(2 * recent)?;
    let logits = logits.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    let recent: Vec<Token> = recent.as_chunks().0.iter().map(|id| Token::from_le_bytes(*id)).collect();
    if recent.iter().any(|&id| usize::from(id) >= vocab) {
        return None;
    }
    Some((Rng::from_state(rng)?, At { state: model.restore(state)?, logits, recent }))
}
