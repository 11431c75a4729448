//! Waiting for something that another thread or program does. Tests of other crates include this file, too.

use std::thread;
use std::time::{Duration, Instant};

/// A deadline that even a busy machine meets, so that missing it means that the condition never holds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Polls a condition until it holds or the deadline has passed. Returns whether it holds.
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
