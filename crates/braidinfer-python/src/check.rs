//! Do fused kernels change a model's answers?

use std::path::PathBuf;

use braidinfer::CheckDepth;
use braidinfer::compat::Thoroughness;
use pyo3::prelude::*;

use crate::engine::LoadCallback;
use crate::errors::ModelError;
use crate::options::{Options, chosen, source};

const DEPTHS: [(&str, CheckDepth); 4] = [
    ("static", CheckDepth::Static),
    ("brief", CheckDepth::Measured(Thoroughness::Brief)),
    ("normal", CheckDepth::Measured(Thoroughness::Normal)),
    ("full", CheckDepth::Measured(Thoroughness::Full)),
];

/// Checks a model and returns the report as JSON, and notes.
#[pyfunction]
pub fn check(
    py: Python<'_>,
    model: Option<PathBuf>,
    options: Options,
    depth: &str,
    progress: Option<Py<PyAny>>,
) -> PyResult<(String, Vec<String>)> {
    let options = options.load_options()?;
    let depth = chosen("depth", depth, &DEPTHS)?;
    let (report, notes) = LoadCallback::new(progress)
        .run(py, move |progress| braidinfer::check(&source(model)?, &options, depth, progress))?;
    let json = serde_json::to_string(&report).map_err(|error| ModelError::new_err(error.to_string()))?;
    Ok((json, notes))
}
