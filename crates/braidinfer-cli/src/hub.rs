//! Fetching from the Hub, with bars.

use std::path::PathBuf;

use braidinfer_hub::{Hub, HubId, Progress};
use indicatif::ProgressBar;

use crate::{interrupt, output};

/// Brings a model into the Hugging Face cache and returns its directory or GGUF file. What is there is not fetched
/// again.
pub fn fetch(id: &HubId) -> anyhow::Result<PathBuf> {
    interrupt::install()?;
    let hub = Hub::from_env()?;
    Ok(hub.fetch(id, &mut Bars::new())?)
}

/// One bar for each file that is not there yet.
pub struct Bars {
    bar: ProgressBar,
}

impl Bars {
    /// Shows nothing until a file is fetched.
    pub fn new() -> Self {
        Self { bar: ProgressBar::hidden() }
    }
}

impl Progress for Bars {
    fn started(&mut self, file: &str, size: u64, present: u64) {
        if present < size && !output::shows_progress() {
            output::note(format!("fetching {file}, {}", output::size(size as usize)));
        }
        self.bar = output::download_bar(file, size);
        self.bar.set_position(present);
        // The rate is that of this run, not of what an earlier one brought.
        self.bar.reset_eta();
    }

    fn advanced(&mut self, present: u64) {
        self.bar.set_position(present);
    }

    fn finished(&mut self, _file: &str) {
        self.bar.finish_and_clear();
    }

    fn note(&mut self, text: &str) {
        self.bar.suspend(|| output::note(text));
    }
}
