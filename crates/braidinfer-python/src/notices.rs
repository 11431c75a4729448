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

    /// Logs what was not logged before, as warnings of the logger `braidinfer`.
    pub fn log(&self, py: Python<'_>) -> PyResult<()> {
        for notice in self.unlogged() {
            let logger = py.import("logging")?.call_method1("getLogger", ("braidinfer",))?;
            logger.call_method1("warning", (notice,))?;
        }
        Ok(())
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
