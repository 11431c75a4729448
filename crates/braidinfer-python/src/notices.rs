//! What the engine says while a model runs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use braidinfer::handle::EngineObserver;
use pyo3::prelude::*;

/// Notices of an engine, for threads that call Python: the engine's own never does.
#[derive(Default)]
pub struct Notices(Mutex<Said>);

#[derive(Default)]
struct Said {
    all: Vec<String>,
    /// How many of them were logged.
    logged: usize,
}

impl EngineObserver for Notices {
    fn notice(&self, notice: &str) {
        self.said().all.push(notice.to_owned());
    }
}

impl Notices {
    /// All of them so far.
    pub fn all(&self) -> Vec<String> {
        self.said().all.clone()
    }

    /// Logs what was not logged before, as warnings of the logger `braidinfer`. A logger that fails is reported as Python does
    /// where there is nobody to raise to: outputs that were read are not lost by it.
    pub fn log(&self, py: Python<'_>) {
        for notice in self.unlogged() {
            let logger = py.import("logging").and_then(|logging| logging.call_method1("getLogger", ("braidinfer",)));
            let logged = logger.and_then(|logger| logger.call_method1("warning", (notice,)));
            logged.map_or_else(|error| error.write_unraisable(py, None), drop);
        }
    }

    fn unlogged(&self) -> Vec<String> {
        let mut said = self.said();
        let new = said.all[said.logged..].to_vec();
        said.logged = said.all.len();
        new
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
