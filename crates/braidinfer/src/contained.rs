//! Calls of code that may panic on hostile input: a panic in a library that we do not own is an error value here, and
//! nothing is written to stderr.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

thread_local! {
    /// How many contained calls this thread is inside of.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Where the last contained panic of this thread happened.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `call` and returns its result, or what it panicked with and where.
///
/// The panic hook stays silent meanwhile, on this thread. What `call` was changing when it panicked may be half changed: the
/// caller drops it, or passes only shared references to data that is not changed through them.
pub(crate) fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    silence_inside();
    DEPTH.set(DEPTH.get() + 1);
    let outcome = panic::catch_unwind(AssertUnwindSafe(call));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(|payload| {
        let place = PLACE.take().map_or_else(String::new, |place| format!(" ({place})"));
        format!("{}{place}", message(&*payload))
    })
}

/// Stack for parsers of untrusted text, which recurse. Pages that are not touched cost nothing.
const STACK: usize = 256 << 20;

/// Like [`contained`], on a thread with a large stack.
pub(crate) fn contained_on_large_stack<T: Send>(call: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || contained(call));
        let thread = thread.map_err(|error| format!("there is no thread for it: {error}"))?;
        thread.join().unwrap_or_else(|panic| Err(message(&*panic)))
    })
}

/// Puts a hook before the one that is installed, once: it keeps silent inside of contained calls, and passes on all others.
fn silence_inside() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| match DEPTH.get() {
            0 => before(info),
            _ => PLACE.set(info.location().map(|place| format!("{}:{}", file_name(place.file()), place.line()))),
        }));
    });
}

/// Paths of the machine that a library was built on say nothing to users.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_inside_are_errors_and_results_pass() {
        assert_eq!(contained(|| 1), Ok(1));
        let error = contained(|| -> usize { panic!("no {}", "luck") }).expect_err("it panics");
        assert!(error.starts_with("no luck (contained.rs:"), "{error}");
        let nested = contained(|| contained(|| -> usize { panic!("inner") }).is_err());
        assert_eq!(nested, Ok(true));
        assert_eq!(contained(|| 2), Ok(2), "an earlier panic leaves nothing behind");
    }
}
