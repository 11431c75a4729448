//! The command line.

use std::ffi::OsString;

use pyo3::prelude::*;

use crate::options::{Worker, worker_program};

/// Runs the command line with these arguments, of which the first is the program's name, and returns its exit code. `worker` is
/// the program, with its arguments, that is started for untrusted input. Takes over the signals of the process, which is to end
/// after it.
#[pyfunction]
pub fn run_program(py: Python<'_>, arguments: Vec<OsString>, worker: Option<Worker>) -> u8 {
    py.detach(|| braidinfer_cli::run_program(arguments, worker.map(worker_program)))
}
