//! The one place of this crate with `unsafe`: mapping a file into memory.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use memmap2::{Mmap, UncheckedAdvice};

use crate::{ModelError, Result};

/// A file in memory, which can be read without touching that memory, too: a process that maps a file that gets shorter
/// is killed where it ends, and one that reads it is told.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
    /// Reading moves its position.
    file: Mutex<File>,
    state: FileState,
}

/// What tells that a file was written to.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    len: u64,
    /// `None` where the system does not say.
    modified: Option<SystemTime>,
}

impl FileState {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { len: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl MappedFile {
    /// Some bytes, read from the file; `path` is named where that fails.
    ///
    /// Fails on a file that was written to since it was mapped. One that another file has replaced is the old one here.
    pub(crate) fn read(&self, path: &str, range: Range<usize>) -> Result<Vec<u8>> {
        let io_error = |source| ModelError::Io { path: path.to_owned(), source };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if FileState::of(&file.metadata().map_err(io_error)?) != self.state {
            return Err(ModelError::Malformed {
                path: path.to_owned(),
                expected: "the file that the model was loaded from".into(),
                found: "one that was written to since then".into(),
            });
        }
        let mut bytes = vec![0; range.len()];
        file.seek(SeekFrom::Start(range.start as u64)).map_err(io_error)?;
        file.read_exact(&mut bytes).map_err(io_error)?;
        Ok(bytes)
    }

    /// Tells the system that the pages wholly inside `range` will not be read again soon, so that a copied tensor
    /// does not stay in memory twice.
    pub(crate) fn release(&self, range: Range<usize>) {
        let page = 4096;
        let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
        if start >= end {
            return;
        }
        // SAFETY: the map is of a file and read-only, so dropped pages hold no changes and are read again from the
        // file if touched; the range lies inside the map.
        let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        // Advice only: where the system does not take it, memory is used a little longer.
        drop(advised);
    }
}

/// Maps `path` read-only.
///
/// An empty file cannot be mapped on every system and holds no model, so it is refused as malformed.
pub(crate) fn map_file(path: &Path) -> Result<MappedFile> {
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
    let state = FileState::of(&file.metadata().map_err(io_error)?);
    // SAFETY: the map is read-only and private to this process. The contract that no one truncates or
    // rewrites a checkpoint while it is being loaded is the user's, as with every engine that maps its
    // weights. A running model does not read the map: what it computes with was copied out of it at load, and what it
    // looks up later, to check its answers, it reads from the file.
    let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
    Ok(MappedFile { map, file: Mutex::new(file), state })
}
