//! Sources of model files: a directory, a GGUF file, or memory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::file::FileBytes;
use crate::format::gguf::Gguf;
use crate::look;
use crate::{ModelError, Result};

/// A model's files, addressed by their Hugging Face file names, or a GGUF file that replaces all of them.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A directory with files as on the Hugging Face Hub.
    Directory(PathBuf),
    /// Files compiled into the program, as `(file name, contents)`.
    Embedded {
        /// Used instead of a path in messages.
        label: &'static str,
        /// The files.
        files: &'static [(&'static str, &'static [u8])],
    },
    /// Files in memory, by name.
    Memory {
        /// Used instead of a path in messages.
        label: String,
        /// The files.
        files: Arc<BTreeMap<String, Arc<[u8]>>>,
    },
    /// A GGUF model.
    Gguf(Arc<Gguf>),
}

/// Most bytes of a file that is read whole: settings, tokenizers and templates. The largest ones have some tens of megabytes.
const MOST_READ: u64 = 512 << 20;

/// Some editors write it at the beginning of UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

impl ModelSource {
    /// Opens a model directory or a GGUF file. Fails if there is neither at `path`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let found = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                look::check_directory(&path)?;
                return Ok(Self::Directory(path));
            }
            Ok(_) if has_extension(&path, "gguf") || look::is_gguf(&path) => {
                look::check_file(&path)?;
                let gguf = Gguf::open(&path)?;
                look::check_gguf(&gguf)?;
                return Ok(Self::Gguf(Arc::new(gguf)));
            }
            Ok(_) if has_extension(&path, "safetensors") => {
                "weights without their settings: name their directory".to_owned()
            }
            Ok(_) => {
                look::check_file(&path)?;
                "a file of another kind".to_owned()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => "nothing at this path".to_owned(),
            Err(source) => return Err(ModelError::Io { path: path.display().to_string(), source }),
        };
        let expected = "a model directory or a GGUF file".into();
        Err(ModelError::Missing { path: path.display().to_string(), expected, found })
    }

    /// The GGUF model, if this is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match self {
            Self::Gguf(gguf) => Some(gguf),
            _ => None,
        }
    }

    /// Names of the GGUF files in a directory, for an error message.
    pub(crate) fn gguf_files(&self) -> Vec<String> {
        let Self::Directory(path) = self else { return Vec::new() };
        let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = entries.filter(|path| has_extension(path, "gguf"));
        let mut names: Vec<String> =
            files.filter_map(|path| Some(path.file_name()?.to_string_lossy().into())).collect();
        names.sort();
        names
    }

    /// The path of `file`, for messages.
    pub fn path_of(&self, file: &str) -> String {
        match self {
            Self::Directory(dir) => dir.join(file).display().to_string(),
            Self::Embedded { label, .. } => format!("{label}/{file}"),
            Self::Memory { label, .. } => format!("{label}/{file}"),
            // All parts of a GGUF model are in one file.
            Self::Gguf(gguf) => gguf.metadata().path().to_owned(),
        }
    }

    /// The path or label of the model, for messages.
    pub fn label(&self) -> String {
        match self {
            Self::Directory(dir) => dir.display().to_string(),
            Self::Embedded { label, .. } => (*label).to_owned(),
            Self::Memory { label, .. } => label.clone(),
            Self::Gguf(gguf) => gguf.metadata().path().to_owned(),
        }
    }

    /// The whole contents of `file` but for a byte order mark, or `None` if the model has no such file.
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>> {
        let contents = match self {
            Self::Directory(dir) => read_optional(&dir.join(file))?,
            _ => match self.in_memory(file) {
                Some(bytes) => Some(bytes.read(0..bytes.len())?.into_owned()),
                None => None,
            },
        };
        Ok(contents.map(|bytes| match bytes.strip_prefix(BYTE_ORDER_MARK) {
            Some(text) => text.to_owned(),
            None => bytes,
        }))
    }

    /// The names of the files in a folder of the model, in order; none if it has no such folder.
    pub fn names_in(&self, folder: &str) -> Vec<String> {
        match self {
            Self::Directory(dir) => look::names_in(&dir.join(folder)),
            Self::Embedded { .. } | Self::Memory { .. } | Self::Gguf(_) => Vec::new(),
        }
    }

    /// What a directory has instead of a tokenizer that is read, and what to do, in words for a message; `None` if it has one
    /// or nothing of the kind.
    pub fn other_tokenizer(&self) -> Option<String> {
        match self {
            Self::Directory(dir) => look::other_tokenizer(dir),
            Self::Embedded { .. } | Self::Memory { .. } | Self::Gguf(_) => None,
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

    /// Opens `file`, or `None` if the model has no such file.
    pub(crate) fn open_file(&self, file: &str) -> Result<Option<FileBytes>> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(file);
                if !is_there(&path)? {
                    return Ok(None);
                }
                FileBytes::open(&path).map(Some)
            }
            _ => Ok(self.in_memory(file)),
        }
    }

    fn in_memory(&self, file: &str) -> Option<FileBytes> {
        match self {
            Self::Embedded { files, .. } => {
                files.iter().find(|(name, _)| *name == file).map(|(_, bytes)| FileBytes::Static(bytes))
            }
            Self::Memory { files, .. } => files.get(file).map(|bytes| FileBytes::Shared(Arc::clone(bytes))),
            Self::Directory(_) | Self::Gguf(_) => None,
        }
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Whether anything exists at `path`, including a dangling link, as a broken download may leave.
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
    let malformed = |expected: String, found: String| {
        Err(ModelError::Malformed { path: path.display().to_string(), expected, found })
    };
    // Reading a device or pipe may never end.
    if !fs::metadata(path).map_err(io_error)?.is_file() {
        return malformed("a plain file".into(), "something else".into());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(MOST_READ + 1).read_to_end(&mut bytes)).map_err(io_error)?;
    if bytes.len() as u64 > MOST_READ {
        return malformed(format!("at most {} MiB", MOST_READ >> 20), "a larger file".into());
    }
    Ok(Some(bytes))
}
