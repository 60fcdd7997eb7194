//! A text that is being written, piece by piece.

use std::slice::from_mut;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use flashlm_kernels::Token;
use flashlm_model::{Engine, Finish, PackedModel};
use pyo3::prelude::*;

use crate::asked::Asked;
use crate::engines::{Engines, feed};
use crate::error::{Failure, Result};
use crate::tokenizer::no_pickle;
use crate::wait::wait;

/// A text at work: the engine and what it has written.
struct Writing {
    engine: Engine,
    generation: flashlm_model::Generation,
}

impl Writing {
    /// Reads the prompt, up to its last token; `stop` ends that early.
    fn begin(
        model: &Arc<PackedModel>,
        engines: &Engines,
        prompt: &str,
        asked: Asked,
        stop: &AtomicBool,
    ) -> Result<Self> {
        let Asked { settings, limit, stop: strings } = asked;
        let mut generation = flashlm_model::Generation::new(model, settings, limit, &strings)?;
        let mut engine = engines.take()?;
        let mut ids = vec![model.tokenizer().eos()];
        model.tokenizer().encode(prompt, &mut ids);
        let (mut state, before) = (model.new_state(), &ids[..ids.len() - 1]);
        if feed(&mut engine, &mut state, before, || !stop.load(Relaxed)) {
            generation.resume(state, &ids[1..]);
        }
        Ok(Writing { engine, generation })
    }

    /// One more token.
    fn advance(&mut self) -> Result<()> {
        Ok(self.engine.advance(from_mut(&mut self.generation))?)
    }
}

/// The whole text.
pub fn complete(
    py: Python,
    model: &Arc<PackedModel>,
    engines: &Arc<Engines>,
    prompt: &str,
    asked: Asked,
) -> Result<String> {
    let (model, engines, prompt) = (model.clone(), engines.clone(), prompt.to_string());
    wait(py, move |stop| {
        let mut writing = Writing::begin(&model, &engines, &prompt, asked, stop)?;
        let mut text = String::new();
        while writing.generation.finish().is_none() && !stop.load(Relaxed) {
            writing.advance()?;
            text += writing.generation.text();
        }
        engines.give(writing.engine);
        Ok(text)
    })
}

/// An iterator over the pieces of a text, each whole characters, often a word. It belongs to one thread at a time.
#[pyclass(frozen, module = "flashlm")]
pub struct Generation {
    engines: Arc<Engines>,
    own: Mutex<Own>,
}

struct Own {
    /// None once it has ended.
    writing: Option<Writing>,
    text: String,
    ids: Vec<Token>,
    finish: Option<&'static str>,
}

impl Generation {
    /// One that has read its prompt.
    pub fn begin(
        py: Python,
        model: &Arc<PackedModel>,
        engines: &Arc<Engines>,
        prompt: &str,
        asked: Asked,
    ) -> Result<Self> {
        let (own, shared, prompt) = (model.clone(), engines.clone(), prompt.to_string());
        let writing = wait(py, move |stop| Writing::begin(&own, &shared, &prompt, asked, stop))?;
        let own = Own { writing: Some(writing), text: String::new(), ids: Vec::new(), finish: None };
        Ok(Generation { engines: engines.clone(), own: Mutex::new(own) })
    }

    fn own<T>(&self, of: impl FnOnce(&mut Own) -> Result<T>) -> Result<T> {
        match self.own.try_lock() {
            Ok(mut own) => of(&mut own),
            Err(_) => Err(Failure::stream("another thread is at this text: let each thread generate its own")),
        }
    }
}

#[pymethods]
impl Generation {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python) -> Result<Option<String>> {
        self.own(|own| {
            loop {
                py.check_signals()?;
                let Some(mut writing) = own.writing.take() else { return Ok(None) };
                let (advanced, writing) = py.detach(move || (writing.advance(), writing));
                advanced.inspect_err(|_| own.finish = Some("failed"))?;
                let piece = writing.generation.text().to_string();
                own.text += &piece;
                own.ids.extend(writing.generation.chosen());
                own.finish = writing.generation.finish().map(name);
                match own.finish {
                    Some(_) => self.engines.give(writing.engine),
                    None => own.writing = Some(writing),
                }
                if !piece.is_empty() {
                    return Ok(Some(piece));
                }
            }
        })
    }

    /// The text so far, without the prompt.
    #[getter]
    fn text(&self) -> Result<String> {
        self.own(|own| Ok(own.text.clone()))
    }

    /// The ids so far, those of EOS and of a stop string among them.
    #[getter]
    fn tokens(&self) -> Result<Vec<Token>> {
        self.own(|own| Ok(own.ids.clone()))
    }

    /// Why it ended: `"eos"` (the model ended the text), `"length"` (`tokens` are written), `"stop"` (it reached a stop string),
    /// `"failed"`; None until then.
    #[getter]
    fn finish(&self) -> Result<Option<&'static str>> {
        self.own(|own| Ok(own.finish))
    }

    fn __reduce__(&self) -> Result<()> {
        Err(no_pickle("a Generation", "its text can"))
    }
}

fn name(finish: Finish) -> &'static str {
    match finish {
        Finish::Eos => "eos",
        Finish::Length => "length",
        Finish::Stop => "stop",
        Finish::Failed => "failed",
    }
}
