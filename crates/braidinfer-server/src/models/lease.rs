//! Leases: what holds a model loaded.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::Served;
use crate::http::ApiError;

/// A model that stays loaded as long as there is a lease of it. Clones are leases, too.
#[derive(Clone)]
pub struct Lease {
    // Dropped first: when the last lease has ended, nobody but the owner of the model has it.
    served: Arc<Served>,
    _use: Use,
}

impl Lease {
    pub fn new(served: &Arc<Served>, uses: &Arc<Uses>) -> Self {
        Self { _use: Use::begin(uses), served: Arc::clone(served) }
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
