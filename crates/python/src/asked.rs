//! Keyword arguments of generation, each checked by its name.

use std::fmt::Display;

use flashlm_kernels::Token;
use flashlm_model::PackedModel;
use flashlm_model::sample::{MAX_STOPS, Settings, StopStrings};
use flashlm_train::similar::edit_distance;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::error::{Failure, Result};

/// Tokens of a text where no number is given.
const LIMIT: usize = 200;
/// The seed where none is given.
const SEED: u64 = 42;

const SAMPLING: [&str; 9] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
];
const TEXT: [&str; 2] = ["tokens", "stop"];

/// How a text is to be written.
pub struct Asked {
    /// How tokens are chosen.
    pub settings: Settings,
    /// Most tokens.
    pub limit: usize,
    /// Strings before which it ends.
    pub stop: Vec<String>,
}

impl Asked {
    /// The arguments of `function`, which writes whole texts.
    pub fn of(function: &str, model: &PackedModel, given: Option<&Bound<PyDict>>) -> Result<Asked> {
        let known: Vec<&str> = SAMPLING.into_iter().chain(TEXT).collect();
        let asked = Asked::read(function, &known, model, given)?;
        StopStrings::new(asked.stop.clone())?;
        Ok(asked)
    }

    /// The arguments of a stream: how its tokens are chosen.
    pub fn of_stream(model: &PackedModel, given: Option<&Bound<PyDict>>) -> Result<Settings> {
        Ok(Asked::read("stream", &SAMPLING, model, given)?.settings)
    }

    fn read(function: &str, known: &[&str], model: &PackedModel, given: Option<&Bound<PyDict>>) -> Result<Asked> {
        let settings = Settings { seed: SEED, ..Settings::writing() };
        let mut asked = Asked { settings, limit: LIMIT, stop: Vec::new() };
        let settings = &mut asked.settings;
        for (key, value) in given.into_iter().flatten() {
            let key: String = key.extract()?;
            let name = key.as_str();
            if !known.contains(&name) {
                return Err(unknown(function, name, known));
            }
            match name {
                "tokens" => asked.limit = whole(name, &value)?,
                "stop" => asked.stop = texts(name, &value)?,
                "temperature" => settings.temperature = number(name, &value)?,
                "top_k" => settings.top_k = whole(name, &value)?,
                "top_p" => settings.top_p = number(name, &value)?,
                "min_p" => settings.min_p = number(name, &value)?,
                "repeat_penalty" => settings.repeat_penalty = number(name, &value)?,
                "presence_penalty" => settings.presence_penalty = number(name, &value)?,
                "frequency_penalty" => settings.frequency_penalty = number(name, &value)?,
                "logit_bias" => settings.logit_bias = biases(model, &value)?,
                _ => settings.seed = whole(name, &value)?,
            }
        }
        settings.check()?;
        Ok(asked)
    }
}

/// A keyword that there is not.
pub fn unknown(function: &str, name: &str, known: &[&str]) -> Failure {
    let near = known.iter().map(|other| (edit_distance(name, other), *other)).min();
    let tip = match near {
        Some((distance, other)) if 3 * distance <= name.chars().count().max(3) => format!("; did you mean {other}?"),
        _ => format!("; it takes {}", known.join(", ")),
    };
    PyTypeError::new_err(format!("{function}() has no argument {name:?}{tip}")).into()
}

/// The error of an argument of another type.
pub fn wrong(name: &str, expected: impl Display, value: &Bound<PyAny>) -> Failure {
    let found = value.get_type().name().map_or("something else".into(), |name| name.to_string());
    PyTypeError::new_err(format!("{name}: expected {expected}, found {found}")).into()
}

/// A whole number that is not negative.
pub fn whole<'py, T>(name: &str, value: &Bound<'py, PyAny>) -> Result<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    let py = value.py();
    value.extract::<T>().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(py) {
            Failure::setting(format!("{name}: expected a whole number from 0 to {}, found {value}", u64::MAX))
        } else {
            wrong(name, "a whole number", value)
        }
    })
}

/// A number.
pub fn number(name: &str, value: &Bound<PyAny>) -> Result<f32> {
    value.extract::<f64>().map(|x| x as f32).map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            Failure::setting(format!("{name}: expected a number, found one too large for any"))
        } else {
            wrong(name, "a number", value)
        }
    })
}

/// One text or several.
fn texts(name: &str, value: &Bound<PyAny>) -> Result<Vec<String>> {
    if value.is_instance_of::<PyString>() {
        return Ok(vec![value.extract()?]);
    }
    let text = |text: PyResult<Bound<PyAny>>| {
        value.py().check_signals()?;
        let text = text?;
        if text.is_instance_of::<PyString>() { Ok(text.extract()?) } else { Err(wrong(name, "texts", &text)) }
    };
    let all = value.try_iter().map_err(|_| wrong(name, "a text, or several", value))?;
    // One too many is enough to be refused, also of an iterable without end.
    all.take(MAX_STOPS + 1).map(text).collect()
}

/// What is added to the logits of tokens, which are given by id or by text.
fn biases(model: &PackedModel, value: &Bound<PyAny>) -> Result<Vec<(Token, f32)>> {
    let expected = "a dict of tokens, by id or by text, and numbers";
    let given = value.cast::<PyDict>().map_err(|_| wrong("logit_bias", expected, value))?;
    let bias = |(token, bias): (Bound<PyAny>, Bound<PyAny>)| {
        let bias = number("logit_bias", &bias)?;
        if !token.is_instance_of::<PyString>() {
            let id: u64 = whole("logit_bias", &token)?;
            let known = Token::try_from(id).ok().filter(|&id| usize::from(id) < model.config().vocab_size);
            return Ok((
                known.ok_or_else(|| Failure::setting(format!("logit_bias: token {id} is not in the vocabulary")))?,
                bias,
            ));
        }
        let (text, mut ids): (String, _) = (token.extract()?, Vec::new());
        model.tokenizer().encode(&text, &mut ids);
        match ids[..] {
            [id] if Some(id) != model.tokenizer().unk() => Ok((id, bias)),
            _ => {
                let n = ids.len();
                Err(Failure::setting(format!(
                    "logit_bias: {text:?} is {n} tokens in this vocabulary; give a single token, or its id"
                )))
            }
        }
    };
    // As they are now: a number may run code that changes them.
    given.iter().collect::<Vec<_>>().into_iter().map(bias).collect()
}
