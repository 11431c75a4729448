//! Waiting for something that another thread or program does. Tests of other crates include this file, too.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a busy machine: whoever waits so long waits for what never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until it is so. Says whether it became so in time.
pub fn wait_until(mut is_so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}
