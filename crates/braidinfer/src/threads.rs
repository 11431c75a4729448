//! The thread pool of one model. Only the fused kernels have a pool of their own.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// Maximum number of threads.
const MAX_THREADS: usize = 512;

/// A pool of threads. Clones share it.
#[derive(Clone)]
pub struct Threads(Arc<rayon::ThreadPool>);

impl Threads {
    /// A pool of `asked` threads, or of as many as this process has cores.
    ///
    /// Fails if the number is out of range, or if the system cannot create the threads.
    pub fn new(asked: Option<usize>) -> Result<Self> {
        let count = match asked {
            None => braidinfer_kernels::default_threads(),
            Some(count) if (1..=MAX_THREADS).contains(&count) => count,
            Some(count) => return Err(Error::bad_request("threads", format!("from 1 to {MAX_THREADS}"), count)),
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|index| format!("compute {index}"));
        let pool = pool.build().map_err(|error| Error::Unsupported(format!("{count} threads: {error}")))?;
        Ok(Self(Arc::new(pool)))
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `work` in the pool, including its parallel iterators, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.install(work)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Threads").field(&self.count()).finish()
    }
}
