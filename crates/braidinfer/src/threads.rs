//! The threads of one model, for everything but the fused kernels, which have a pool of their own.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// Most threads that may be asked for.
const MOST: usize = 512;

/// A number of threads, which wait until something is run on them. Clones share them.
#[derive(Clone)]
pub struct Threads(Arc<rayon::ThreadPool>);

impl Threads {
    /// So many threads, or as many as this process has cores for itself.
    ///
    /// Fails on a number that is out of range, or if the system has no room for them.
    pub fn new(asked: Option<usize>) -> Result<Self> {
        let count = match asked {
            None => braidinfer_kernels::default_threads(),
            Some(count) if (1..=MOST).contains(&count) => count,
            Some(count) => return Err(Error::bad_request("threads", format!("from 1 to {MOST}"), count)),
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|index| format!("compute {index}"));
        let pool = pool.build().map_err(|error| Error::Unsupported(format!("{count} threads: {error}")))?;
        Ok(Self(Arc::new(pool)))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `work`, whose parallel iterators use these threads, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.install(work)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Threads").field(&self.count()).finish()
    }
}
