//! The one place of this crate with `unsafe`: mapping a file into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::{ModelError, Result};

/// Maps `path` read-only.
///
/// An empty file cannot be mapped on every system and holds no model, so it is refused as malformed.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let io_error = |source| ModelError::Io { path: path.display().to_string(), source };
    let file = File::open(path).map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
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
    // SAFETY: the map is read-only and private to this process. The contract that no one truncates or
    // rewrites a checkpoint while it is being read is the user's, as with every engine that maps its
    // weights; all bytes are copied out during load, and the map is dropped afterwards.
    unsafe { Mmap::map(&file) }.map_err(io_error)
}
