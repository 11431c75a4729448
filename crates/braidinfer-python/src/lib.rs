//! The native part of the Python package `braidinfer`, which `python/braidinfer/` wraps: a model with its engine, streams of
//! tokens, checks, and the command line.

mod check;
mod engine;
mod errors;
mod notices;
mod options;
mod pipeline;
mod program;
mod prompts;
mod sampling;
mod stream;
mod waiting;

use pyo3::pymodule;

/// Native part of the package; `braidinfer` is what to import.
#[pymodule]
mod _braidinfer {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::check::check;
    #[pymodule_export]
    use super::engine::Engine;
    #[pymodule_export]
    use super::errors::ModelError;
    #[pymodule_export]
    use super::pipeline::{Stage, StageWork, pipeline_plan, split_layers};
    #[pymodule_export]
    use super::program::run_program;
    #[pymodule_export]
    use super::sampling::sampling_parameters;
    #[pymodule_export]
    use super::stream::{AnswerOutput, Stream, TokenOutput};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
