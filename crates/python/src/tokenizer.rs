//! A model's vocabulary.

use std::sync::Arc;

use flashlm_kernels::Token;
use flashlm_model::PackedModel;
use flashlm_model::tok;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::error::{Failure, Result};
use crate::wait::{between, wait};

/// Longest text that is encoded without asking for Ctrl-C on the way, in bytes.
const SHORT: usize = 1 << 16;

/// The vocabulary of a model: text to token ids and back. Threads may share it.
#[pyclass(frozen, module = "flashlm")]
pub struct Tokenizer(pub Arc<PackedModel>);

impl Tokenizer {
    fn own(&self) -> &tok::Tokenizer {
        self.0.tokenizer()
    }
}

#[pymethods]
impl Tokenizer {
    /// The ids of `text`, each below `vocab_size`, without special tokens.
    fn encode(&self, py: Python, text: &str) -> Result<Vec<Token>> {
        encode(py, &self.0, text)
    }

    /// The text of `ids`; special ones are left out, and bytes that are no whole character become U+FFFD.
    fn decode(&self, ids: &Bound<PyAny>) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.own().decode(&tokens(&self.0, ids)?)).into_owned())
    }

    /// The bytes of each token, by id: `vocab_size` of them, empty for special ones.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let all = (0..=Token::MAX).take(self.own().vocab_size());
        PyList::new(py, all.map(|id| PyBytes::new(py, self.own().token_bytes(id))).collect::<Vec<_>>())
    }

    /// Number of ids: every id is below it.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.own().vocab_size()
    }

    /// The id that ends a document, and that a text begins after.
    #[getter]
    fn eos(&self) -> Token {
        self.own().eos()
    }

    /// The id of everything unknown; None where the vocabulary is lossless.
    #[getter]
    fn unk(&self) -> Option<Token> {
        self.own().unk()
    }

    /// `"bpe"`, `"bytes"` or `"frequency"`.
    #[getter]
    fn kind(&self) -> &'static str {
        self.own().kind()
    }

    fn __len__(&self) -> usize {
        self.own().vocab_size()
    }

    fn __repr__(&self) -> String {
        format!("<flashlm.Tokenizer {}, {} tokens>", self.kind(), self.vocab_size())
    }

    fn __reduce__(&self) -> Result<()> {
        Err(no_pickle("a Tokenizer", "load its model in the other process"))
    }
}

/// The ids of a text.
pub fn encode(py: Python, model: &Arc<PackedModel>, text: &str) -> Result<Vec<Token>> {
    let ids = |model: &PackedModel, text: &str| {
        let mut ids = Vec::new();
        model.tokenizer().encode(text, &mut ids);
        ids
    };
    if text.len() <= SHORT {
        return Ok(py.detach(|| ids(model, text)));
    }
    let (model, text) = (model.clone(), text.to_string());
    wait(py, move |_| Ok(ids(&model, &text)))
}

/// Ids of the vocabulary, from any iterable of whole numbers.
pub fn tokens(model: &PackedModel, ids: &Bound<PyAny>) -> Result<Vec<Token>> {
    let size = model.config().vocab_size;
    let token = |(n, id): (usize, PyResult<Bound<PyAny>>)| {
        let id = id?;
        between(ids.py(), n)?;
        let known = id.extract::<Token>().ok().filter(|&id| usize::from(id) < size);
        // `operator.index` refuses what is no whole number, in its own words.
        match known {
            Some(id) => Ok(id),
            None => {
                id.call_method0("__index__").map_err(|_| {
                    Failure::from(pyo3::exceptions::PyTypeError::new_err(format!(
                        "expected token ids, whole numbers below {size}, found {}",
                        id.get_type()
                    )))
                })?;
                Err(Failure::setting(format!("token {id}: expected an id of the vocabulary, 0 to {}", size - 1)))
            }
        }
    };
    ids.try_iter()?.enumerate().map(token).collect()
}

/// Why an object is not pickled.
pub fn no_pickle(what: &str, instead: &str) -> Failure {
    pyo3::exceptions::PyTypeError::new_err(format!("{what} of flashlm cannot be pickled or copied: {instead}")).into()
}
