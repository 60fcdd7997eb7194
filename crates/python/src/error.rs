//! The library's errors as exceptions of Python, in the same words; `flashlm/errors.py` defines the exceptions.

use std::fmt::Display;

use flashlm_model::io::IoError;
use flashlm_model::pack::PackError;
use flashlm_model::sample::SampleError;
use flashlm_train::atomic::AtomicError;
use flashlm_train::config::SettingsError;
use flashlm_train::data::DataError;
use flashlm_train::eval::bpb::EvalError;
use flashlm_train::load::LoadError;
use flashlm_train::run_folder::RunError;
use flashlm_train::trainer::TrainError;
use flashlm_train::what::Unwanted;
use pyo3::PyErr;

mod classes {
    pyo3::import_exception!(flashlm.errors, Error);
    pyo3::import_exception!(flashlm.errors, DataError);
    pyo3::import_exception!(flashlm.errors, ModelError);
    pyo3::import_exception!(flashlm.errors, SettingsError);
    pyo3::import_exception!(flashlm.errors, StreamError);
    pyo3::import_exception!(flashlm.errors, TrainingError);
}

/// A result whose error becomes an exception.
pub type Result<T> = std::result::Result<T, Failure>;

/// Which exception an error becomes.
#[derive(Clone, Copy)]
enum Kind {
    Data,
    Model,
    Settings,
    Stream,
    Training,
    Other,
}

/// An error on its way to Python.
pub struct Failure(PyErr);

impl Failure {
    /// A value that is out of its bounds.
    pub fn setting(text: impl Display) -> Failure {
        Failure::new(Kind::Settings, text)
    }

    /// A stream or an iteration that is closed or busy, or bytes that are no stream's.
    pub fn stream(text: impl Display) -> Failure {
        Failure::new(Kind::Stream, text)
    }

    /// A run that cannot begin or go on.
    pub fn training(text: impl Display) -> Failure {
        Failure::new(Kind::Training, text)
    }

    /// The error of a command, without the help of the command line.
    pub fn in_short(error: anyhow::Error) -> Failure {
        match flashlm::told(&error).strip_prefix("error: ") {
            Some(rest) => Failure::setting(rest.split("\n\n").next().unwrap_or(rest).trim()),
            None => error.into(),
        }
    }

    fn new(kind: Kind, text: impl Display) -> Failure {
        let text = text.to_string();
        Failure(match kind {
            Kind::Data => classes::DataError::new_err(text),
            Kind::Model => classes::ModelError::new_err(text),
            Kind::Settings => classes::SettingsError::new_err(text),
            Kind::Stream => classes::StreamError::new_err(text),
            Kind::Training => classes::TrainingError::new_err(text),
            Kind::Other => classes::Error::new_err(text),
        })
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Failure {
        Failure(error)
    }
}

impl From<Failure> for PyErr {
    fn from(Failure(error): Failure) -> PyErr {
        error
    }
}

macro_rules! becomes {
    ($($error:ty => $kind:ident),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::new(Kind::$kind, error)
            }
        })*
    };
}

becomes!(AtomicError => Other, IoError => Model, LoadError => Model, PackError => Model, DataError => Data, EvalError => Data);
becomes!(RunError => Training);

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Failure {
        match error {
            SampleError::NotFinite { .. } => Failure::new(Kind::Model, error),
            _ => Failure::setting(error),
        }
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Failure {
        Failure::new(of_training(&error), error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        let kind = error.chain().find_map(|cause| {
            Some(match cause {
                _ if cause.is::<TrainError>() => of_training(cause.downcast_ref()?),
                _ if cause.is::<DataError>() || cause.is::<EvalError>() => Kind::Data,
                _ if cause.is::<LoadError>() || cause.is::<PackError>() || cause.is::<Unwanted>() => Kind::Model,
                _ if cause.is::<SettingsError>() => Kind::Settings,
                _ if cause.is::<RunError>() => Kind::Training,
                _ if cause.is::<AtomicError>() || cause.is::<IoError>() => Kind::Other,
                _ => return None,
            })
        });
        // What is refused before anything is tried is told in words alone.
        Failure::new(kind.unwrap_or(Kind::Settings), flashlm::told(&error))
    }
}

fn of_training(error: &TrainError) -> Kind {
    match error {
        TrainError::Conflict(_) | TrainError::TooLarge(_) | TrainError::OtherModel(_) | TrainError::ValidIsTrain => {
            Kind::Settings
        }
        TrainError::Settings(_) | TrainError::Config(_) => Kind::Settings,
        TrainError::NoValidation { .. } | TrainError::NothingHeldOut { .. } | TrainError::NotHere { .. } => Kind::Data,
        TrainError::Data(_) | TrainError::Eval(_) => Kind::Data,
        TrainError::Load(_) | TrainError::Model(_) | TrainError::Pack(_) | TrainError::Unwanted(_) => Kind::Model,
        _ => Kind::Training,
    }
}
