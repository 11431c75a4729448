//! Errors of the library as exceptions, in the library's words.

use std::io::ErrorKind;

use braidinfer::handle::{RequestError, SubmitError};
use braidinfer::model::ModelError as FileError;
use braidinfer::{Error, Setting};
use pyo3::exceptions::{PyFileNotFoundError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::{PyErr, create_exception};

create_exception!(
    braidinfer,
    ModelError,
    PyRuntimeError,
    "A model that cannot be read, loaded or run; the message names the file, tensor or field."
);

/// The exception for an error. Settings in its advice are keyword arguments.
pub fn exception(error: &Error) -> PyErr {
    let message = match error.advice() {
        Some(advice) => format!("{error}; {}", advice.worded(keyword)),
        None => error.to_string(),
    };
    match error {
        Error::BadRequest { .. } | Error::PromptTooLong { .. } | Error::TooManyAnswers { .. } => {
            PyValueError::new_err(message)
        }
        Error::TooLittleMemory { .. } => PyMemoryError::new_err(message),
        Error::File { .. } => PyOSError::new_err(message),
        // A name that is no path, of a model that cannot be had from the Hub.
        Error::Hub { .. } => PyFileNotFoundError::new_err(message),
        Error::Model(error) if is_missing(error) => PyFileNotFoundError::new_err(message),
        _ => ModelError::new_err(message),
    }
}

/// Whether there is no such file.
fn is_missing(error: &FileError) -> bool {
    match error {
        FileError::Missing { .. } => true,
        FileError::Io { source, .. } => source.kind() == ErrorKind::NotFound,
        _ => false,
    }
}

/// A setting as it is written in Python.
fn keyword(Setting { name, value }: Setting) -> String {
    match value {
        Some("true") => format!("`{name}=True`"),
        Some(value) => format!("`{name}=\"{value}\"`"),
        None => format!("`{name}`"),
    }
}

/// The exception for prompts that were not queued.
pub fn refused(error: SubmitError) -> PyErr {
    match error {
        SubmitError::Refused(error) => exception(&error),
        SubmitError::EngineStopped => ModelError::new_err(error.to_string()),
    }
}

/// The exception for an answer that ended before it was complete.
pub fn ended(error: &RequestError) -> PyErr {
    match error {
        RequestError::Failed(error) => exception(error),
        other => ModelError::new_err(other.to_string()),
    }
}

/// A refused argument, in the words of [`Error::BadRequest`].
pub fn bad_argument(field: &str, expected: impl Into<String>, found: impl ToString) -> PyErr {
    exception(&Error::bad_request(field, expected, found))
}
