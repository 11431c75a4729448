//! Reading files that others may write to meanwhile.
//!
//! Nothing is mapped into memory: accessing a map of a file that was cut short kills the process, while reading it is an
//! error. The system keeps what was read in its page cache either way.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::{ModelError, Result};

/// An open file. Bytes are read at their offsets, from several threads at once.
#[derive(Debug)]
pub(crate) struct ModelFile {
    path: String,
    file: File,
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

impl ModelFile {
    /// Opens the file at `path`. An empty file holds no model, so it is refused as malformed.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let io_error = |source| ModelError::Io { path: label.clone(), source };
        // Checked before opening the file: opening a pipe would block until there is a writer.
        let metadata = fs::metadata(path).map_err(io_error)?;
        if !metadata.is_file() || metadata.len() == 0 {
            let found = if metadata.is_file() { "an empty file" } else { "something that is not a plain file" };
            return Err(ModelError::Malformed {
                path: label,
                expected: "a non-empty file".into(),
                found: found.into(),
            });
        }
        let file = File::open(path).map_err(io_error)?;
        let state = FileState::of(&file.metadata().map_err(io_error)?);
        Ok(Self { path: label, file, state })
    }

    /// Number of bytes when it was opened.
    fn len(&self) -> usize {
        usize::try_from(self.state.len).unwrap_or(usize::MAX)
    }

    /// Fills `out` with the bytes from `start` on.
    ///
    /// Fails if the file was written to since it was opened. If it was replaced, this still reads the old one.
    fn read_into(&self, start: usize, out: &mut [u8]) -> Result<()> {
        let read = read_exact_at(&self.file, out, start as u64);
        // Afterwards, so that what was written while it was read is noticed, too. It is also the better reason if the
        // file ended early.
        self.check_unchanged()?;
        read.map_err(|source| self.io_error(source))
    }

    /// What the system notes about the file, in words that another file, or this one after it was written to, does not have.
    ///
    /// Fails if the file was written to since it was opened.
    fn mark(&self) -> Result<String> {
        self.check_unchanged()?;
        let metadata = self.file.metadata().map_err(|source| self.io_error(source))?;
        Ok(format!("{:?} {:?}", FileState::of(&metadata), changes(&metadata)))
    }

    fn check_unchanged(&self) -> Result<()> {
        let now = FileState::of(&self.file.metadata().map_err(|source| self.io_error(source))?);
        if now == self.state {
            return Ok(());
        }
        let (before, now) = (self.state.len, now.len);
        let sizes = if before == now { String::new() } else { format!(": it has {now} bytes and had {before}") };
        Err(ModelError::Malformed {
            path: self.path.clone(),
            expected: "the file that the model was loaded from".into(),
            found: format!("one that was written to since then{sizes}"),
        })
    }

    fn io_error(&self, source: io::Error) -> ModelError {
        ModelError::Io { path: self.path.clone(), source }
    }
}

/// The file's number and when anything about it changed, which no program can set.
#[cfg(unix)]
fn changes(metadata: &fs::Metadata) -> [i128; 3] {
    use std::os::unix::fs::MetadataExt;
    [metadata.ino().into(), metadata.ctime().into(), metadata.ctime_nsec().into()]
}

/// When the file was made.
#[cfg(windows)]
fn changes(metadata: &fs::Metadata) -> u64 {
    std::os::windows::fs::MetadataExt::creation_time(metadata)
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                out = &mut out[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}

/// The bytes of one file: on the disk, or in memory.
#[derive(Debug)]
pub(crate) enum FileBytes {
    File(ModelFile),
    Static(&'static [u8]),
    Shared(Arc<[u8]>),
}

impl FileBytes {
    /// Opens the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        ModelFile::open(path).map(Self::File)
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::File(file) => file.len(),
            Self::Static(bytes) => bytes.len(),
            Self::Shared(bytes) => bytes.len(),
        }
    }

    /// What the system notes about the file ([`ModelFile::mark`]); `None` of bytes in memory.
    pub(crate) fn mark(&self) -> Result<Option<String>> {
        match self {
            Self::File(file) => file.mark().map(Some),
            Self::Static(_) | Self::Shared(_) => Ok(None),
        }
    }

    /// The bytes of `range`, which must lie in the file. Fails, naming the file, if it was written to since it was opened.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        match self {
            Self::File(file) => {
                let mut bytes = vec![0; range.len()];
                file.read_into(range.start, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
            Self::Static(bytes) => Ok(Cow::Borrowed(&bytes[range])),
            Self::Shared(bytes) => Ok(Cow::Borrowed(&bytes[range])),
        }
    }

    /// Fills `out` with the bytes from `start` on, like [`FileBytes::read`].
    pub(crate) fn read_into(&self, start: usize, out: &mut [u8]) -> Result<()> {
        let bytes: &[u8] = match self {
            Self::File(file) => return file.read_into(start, out),
            Self::Static(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        };
        out.copy_from_slice(&bytes[start..start + out.len()]);
        Ok(())
    }
}
