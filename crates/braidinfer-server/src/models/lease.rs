//! Leases: what holds a model loaded.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use braidinfer::LoadedAdapter;
use braidinfer::compat::CompatReport;
use tokio::sync::Notify;

use super::Served;
use crate::http::ApiError;

/// A model that stays loaded as long as there is a lease of it. Clones are leases, too.
#[derive(Clone)]
pub struct Lease {
    // Dropped first: when the last lease has ended, nobody but the owner of the model has it.
    served: Arc<Served>,
    _use: Use,
    /// Index of the adapter that was asked for.
    adapter: Option<u32>,
}

impl Lease {
    pub fn new(served: &Arc<Served>, uses: &Arc<Uses>) -> Self {
        Self { _use: Use::begin(uses), served: Arc::clone(served), adapter: None }
    }

    /// The same with the adapter of this name, if it is that of one.
    pub fn by_name(self, asked: Option<&str>) -> Self {
        let named = |adapter: &LoadedAdapter| Some(adapter.name.as_str()) == asked;
        let adapter = self.served.adapters.iter().position(named).map(|index| index as u32);
        Self { adapter, ..self }
    }

    /// Index of the adapter to compute with; `None` for the model alone.
    pub fn adapter(&self) -> Option<u32> {
        self.adapter
    }

    /// What the model is called, or the adapter that was asked for.
    pub fn name(&self) -> &str {
        self.loaded_adapter().map_or(&self.served.name, |adapter| &adapter.name)
    }

    /// The verdict on the model, or on it with the adapter that was asked for.
    pub fn verdict(&self) -> Option<&CompatReport> {
        match self.loaded_adapter() {
            Some(adapter) => adapter.compat.as_ref(),
            None => self.served.compat.as_ref(),
        }
    }

    fn loaded_adapter(&self) -> Option<&LoadedAdapter> {
        self.served.adapters.get(self.adapter? as usize)
    }

    /// Runs work that may take long on a blocking thread, so that it does not delay other requests.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Served) -> braidinfer::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let lease = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&lease)).await;
        Ok(done.map_err(|error| ApiError::internal(format!("the request could not be read: {error}")))??)
    }
}

impl Deref for Lease {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

/// The leases of a model.
pub struct Uses {
    count: AtomicUsize,
    /// When the last lease began or ended.
    last: Mutex<Instant>,
    none: Notify,
}

impl Default for Uses {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), last: Mutex::new(Instant::now()), none: Notify::new() }
    }
}

impl Uses {
    /// Number of leases.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// When the last lease began or ended.
    pub fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is no lease. New ones must not be given meanwhile.
    pub async fn ended(&self) {
        loop {
            let none = self.none.notified();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }

    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

struct Use(Arc<Uses>);

impl Use {
    fn begin(uses: &Arc<Uses>) -> Self {
        uses.count.fetch_add(1, Ordering::AcqRel);
        uses.touch();
        Self(Arc::clone(uses))
    }
}

impl Clone for Use {
    fn clone(&self) -> Self {
        Self::begin(&self.0)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.touch();
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}
