//! Downloads from the Hugging Face Hub, with progress bars.

use std::path::PathBuf;

use braidinfer::hub_settings;
use braidinfer_hub::{Hub, HubId, Progress};
use indicatif::ProgressBar;

use crate::{interrupt, output};

/// Downloads a model into the Hugging Face cache and returns its directory or GGUF file. Files in the cache are not
/// downloaded again.
pub fn fetch(id: &HubId) -> anyhow::Result<PathBuf> {
    interrupt::install()?;
    let hub = Hub::new(hub_settings()?)?;
    Ok(hub.fetch(id, &mut Bars::new())?)
}

/// One progress bar for each file that is downloaded.
pub struct Bars {
    bar: ProgressBar,
}

impl Bars {
    /// Shows nothing until a download starts.
    pub fn new() -> Self {
        Self { bar: ProgressBar::hidden() }
    }
}

impl Progress for Bars {
    fn started(&mut self, file: &str, size: u64, present: u64) {
        if present < size && !output::shows_progress() {
            output::note(format!("fetching {file}, {}", output::size(size)));
        }
        self.bar = output::download_bar(file, size);
        self.bar.set_position(present);
        // The rate must not include bytes of an earlier, resumed download.
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
