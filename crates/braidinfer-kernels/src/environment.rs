//! The environment of the process.

#![allow(unsafe_code, reason = "the environment has no owner, and is changed while nobody else can read it")]

use std::env;
use std::ffi::OsStr;
use std::fs;

/// Sets a variable of the environment, for this process and those that it starts, unless it is set. Does nothing where it is not
/// known that this thread is the only one: before a program starts others, on Linux. Returns whether it was set here.
pub fn set_default_variable(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> bool {
    if env::var_os(&name).is_some() || !is_alone() {
        return false;
    }
    // SAFETY: other threads could read the environment meanwhile, and there are none. None starts before this one is done.
    unsafe { env::set_var(name, value) };
    true
}

/// Whether the process has one thread.
fn is_alone() -> bool {
    // There is no such folder on other systems.
    fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_set_beside_other_threads() {
        // Tests run on a thread of their own.
        let name = "BRAIDINFER_TEST_OF_VARIABLES";
        assert!(!set_default_variable(name, "1"));
        assert_eq!(env::var_os(name), None);
    }
}
