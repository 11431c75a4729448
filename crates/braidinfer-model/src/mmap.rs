//! The one place of this crate with `unsafe`: mapping a file into memory.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::{ModelError, Result};

/// Maps `path` read-only.
///
/// An empty file cannot be mapped on every system and holds no model, so it is refused as malformed.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let io_error = |source| ModelError::Io { path: path.display().to_string(), source };
    // Asked before the file is opened: opening a pipe would wait for a writer.
    let metadata = fs::metadata(path).map_err(io_error)?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(ModelError::Malformed {
            path: path.display().to_string(),
            expected: "a non-empty file".into(),
            found: if metadata.is_file() {
                "an empty file".into()
            } else {
                "something that is not a plain file".into()
            },
        });
    }
    let file = File::open(path).map_err(io_error)?;
    // SAFETY: the map is read-only and private to this process. The contract that no one truncates or
    // rewrites a checkpoint while it is being read is the user's, as with every engine that maps its
    // weights. A running model does not read the map: what it computes with was copied out of it at load.
    unsafe { Mmap::map(&file) }.map_err(io_error)
}

/// Tells the system that the pages wholly inside `range` will not be read again soon, so that a copied tensor
/// does not stay in memory twice.
pub(crate) fn release(map: &Mmap, range: Range<usize>) {
    let page = 4096;
    let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
    if start >= end {
        return;
    }
    // SAFETY: the map is of a file and read-only, so dropped pages hold no changes and are read again from the
    // file if touched; the range lies inside the map.
    let advised = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
    // Advice only: where the system does not take it, memory is used a little longer.
    drop(advised);
}
