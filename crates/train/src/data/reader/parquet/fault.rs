//! What can be wrong with a Parquet file.

use crate::data::DataError;
use std::io;
use std::path::Path;

/// What can be wrong with a file, before it is known which.
pub(super) enum Fault {
    Io(io::Error),
    Damaged(String),
    Unsupported(String),
}

impl Fault {
    pub fn damaged(what: impl Into<String>) -> Fault {
        Fault::Damaged(what.into())
    }

    pub fn short() -> Fault {
        Fault::damaged("a page ends too early")
    }

    /// The error for the file.
    pub fn told(self, path: &Path) -> DataError {
        let damaged = |what| format!("damaged or cut off: {what}; fetch or write it again");
        let reason = match self {
            Fault::Io(e) if e.raw_os_error().is_some() => return DataError::io("read", path, e),
            Fault::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => damaged("it ends too early".to_string()),
            Fault::Io(e) => damaged(e.to_string()),
            Fault::Damaged(what) => damaged(what),
            Fault::Unsupported(what) => what,
        };
        DataError::Parquet { path: path.to_path_buf(), reason }
    }
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Fault {
        Fault::Io(e)
    }
}
