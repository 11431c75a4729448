//! Memory mapping of files: the only place in this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use memmap2::{Mmap, UncheckedAdvice};

use crate::{ModelError, Result};

/// A mapped file that can also be read with system calls: if a file was truncated, accessing its map kills the process,
/// while reading it returns an error.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
    /// In a mutex, because reading moves the file position.
    file: Mutex<File>,
    state: FileState,
}

/// File metadata that changes when the file is written to.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    len: u64,
    /// `None` if the system does not provide it.
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
    /// Reads a range of bytes from the file; `path` is for errors.
    ///
    /// Fails if the file was written to since it was mapped. If the file was replaced, this still reads the old one.
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

    /// Tells the system that the pages that are completely inside `range` will not be read again soon, so that a tensor
    /// that was copied does not occupy memory twice.
    pub(crate) fn release(&self, range: Range<usize>) {
        let page = 4096;
        let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
        if start >= end {
            return;
        }
        // SAFETY: the map is of a file and read-only, so dropped pages hold no changes and are read again from the file
        // if touched; the range lies inside the map.
        let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        // Only advice: if the system ignores it, the memory is used a little longer.
        drop(advised);
    }
}

/// Maps `path` read-only.
///
/// An empty file cannot be mapped on every system and holds no model, so it is refused as malformed.
pub(crate) fn map_file(path: &Path) -> Result<MappedFile> {
    let io_error = |source| ModelError::Io { path: path.display().to_string(), source };
    // Checked before opening the file: opening a pipe would block until there is a writer.
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
    // SAFETY: the map is read-only and private to this process. As in every engine that maps its weights, the user must
    // not truncate or rewrite a checkpoint while it is being loaded. A running model does not access the map: its
    // weights were copied at load, and later checks of its answers read from the file.
    let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
    Ok(MappedFile { map, file: Mutex::new(file), state })
}
