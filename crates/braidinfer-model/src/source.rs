//! Where a model's files come from: a directory on disk, or bytes embedded in the program.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::mmap::{map_file, release};
use crate::{ModelError, Result};

/// A set of model files addressed by their Hugging Face file names.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A directory in Hub layout.
    Directory(PathBuf),
    /// Files compiled into the program, as `(file name, contents)`.
    Embedded {
        /// Shown where a path would be.
        label: &'static str,
        /// The files.
        files: &'static [(&'static str, &'static [u8])],
    },
}

/// The bytes of one file: mapped, or part of the program.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl FileBytes {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }

    /// Lets go of memory that only caches this part of a file.
    pub(crate) fn release(&self, range: Range<usize>) {
        if let Self::Mapped(map) = self {
            release(map, range);
        }
    }
}

impl ModelSource {
    /// A model directory; an error if it does not exist or is not a directory.
    pub fn directory(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let found = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return Ok(Self::Directory(path)),
            Ok(_) => "a file".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "nothing at this path".to_owned(),
            Err(source) => return Err(ModelError::Io { path: path.display().to_string(), source }),
        };
        Err(ModelError::Missing { path: path.display().to_string(), expected: "a model directory".into(), found })
    }

    /// How to name `file` of this model in a message.
    pub fn path_of(&self, file: &str) -> String {
        match self {
            Self::Directory(dir) => dir.join(file).display().to_string(),
            Self::Embedded { label, .. } => format!("{label}/{file}"),
        }
    }

    /// How to name the model itself in a message.
    pub fn label(&self) -> String {
        match self {
            Self::Directory(dir) => dir.display().to_string(),
            Self::Embedded { label, .. } => (*label).to_owned(),
        }
    }

    /// The whole contents of `file`, or `None` if the model has no such file.
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Directory(dir) => read_optional(&dir.join(file)),
            Self::Embedded { .. } => Ok(self.embedded(file).map(<[u8]>::to_vec)),
        }
    }

    /// The contents of `file` as UTF-8 text, or `None` if the model has no such file.
    pub fn read_text(&self, file: &str) -> Result<Option<String>> {
        let Some(bytes) = self.read(file)? else { return Ok(None) };
        String::from_utf8(bytes).map(Some).map_err(|error| ModelError::Malformed {
            path: self.path_of(file),
            expected: "UTF-8 text".into(),
            found: format!("an invalid byte at offset {}", error.utf8_error().valid_up_to()),
        })
    }

    /// Maps `file`, or `None` if the model has no such file.
    pub(crate) fn map(&self, file: &str) -> Result<Option<FileBytes>> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(file);
                if !is_there(&path)? {
                    return Ok(None);
                }
                map_file(&path).map(|map| Some(FileBytes::Mapped(map)))
            }
            Self::Embedded { .. } => Ok(self.embedded(file).map(FileBytes::Static)),
        }
    }

    fn embedded(&self, file: &str) -> Option<&'static [u8]> {
        match self {
            Self::Embedded { files, .. } => files.iter().find(|(name, _)| *name == file).map(|(_, bytes)| *bytes),
            Self::Directory(_) => None,
        }
    }
}

/// Whether there is anything at `path`. A link to nothing, as a broken download leaves it, is there and cannot be read.
fn is_there(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ModelError::Io { path: path.display().to_string(), source }),
    }
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    if !is_there(path)? {
        return Ok(None);
    }
    let io_error = |source| ModelError::Io { path: path.display().to_string(), source };
    // Devices and pipes may never end.
    if !fs::metadata(path).map_err(io_error)?.is_file() {
        let (expected, found) = ("a plain file".into(), "something else".into());
        return Err(ModelError::Malformed { path: path.display().to_string(), expected, found });
    }
    fs::read(path).map(Some).map_err(io_error)
}
