//! Deliberate errors in kernels, for testing that the check finds them.

use std::cell::RefCell;

use braidinfer_gpu::{Gpu, SourceEdit};

thread_local! {
    /// Errors in the decoders that this thread loads, each in one layer, or everywhere.
    static PLANTED: RefCell<Vec<(Option<usize>, SourceEdit)>> = const { RefCell::new(Vec::new()) };
}

/// Plants errors in the decoders that `load` loads on this thread, each in one layer, or everywhere.
pub(crate) fn with<T>(edits: impl IntoIterator<Item = (Option<usize>, SourceEdit)>, load: impl FnOnce() -> T) -> T {
    PLANTED.replace(edits.into_iter().collect());
    let loaded = load();
    PLANTED.take();
    loaded
}

/// Called before the kernels of a layer are compiled, or those of the ends.
pub(super) fn spoil(gpu: &mut Gpu, layer: Option<usize>) {
    let here = |planted: &Option<usize>| planted.is_none() || *planted == layer;
    let edits =
        PLANTED.with_borrow(|all| all.iter().filter(|(planted, _)| here(planted)).map(|(_, edit)| *edit).collect());
    gpu.edit_sources(edits);
}
