//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A temporary file that is renamed when it is complete, and deleted if dropped before.
pub(crate) struct PartialFile {
    file: tempfile::NamedTempFile,
    destination: PathBuf,
    overwrite: bool,
}

impl PartialFile {
    /// Begins a file whose name ends in `.gguf`; fails if there is one already, unless `overwrite`.
    pub(crate) fn create(destination: &Path, overwrite: bool) -> Result<Self> {
        let error = |source| Error::File { path: destination.display().to_string(), source };
        if !destination.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Err(Error::bad_request("destination", "a name that ends in .gguf", destination.display()));
        }
        let there = match fs::symlink_metadata(destination) {
            Ok(metadata) => Some(metadata),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => None,
            Err(fault) => return Err(error(fault)),
        };
        if there.as_ref().is_some_and(|metadata| !metadata.is_file()) {
            let found = format!("{}, which is something else", destination.display());
            return Err(Error::bad_request("destination", "a plain file or nothing there", found));
        }
        if !overwrite && there.is_some() {
            return Err(Error::AlreadyThere { path: destination.display().to_string() });
        }
        let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".braidinfer-").suffix(".partial");
        // Made here, a file has the user's usual permissions, and an error does not name it, which nobody asked for.
        let file = builder.make_in(folder, |path| File::create_new(path)).map_err(error)?;
        if let Some(there) = there {
            file.as_file().set_permissions(there.permissions()).map_err(error)?;
        }
        Ok(Self { file, destination: destination.to_owned(), overwrite })
    }

    /// Fails if the file is one of those that it is made from, of which nothing would be left.
    pub(crate) fn keep_apart<'a>(&self, read: impl IntoIterator<Item = &'a Path>) -> Result<()> {
        // If there is nothing yet, it is none of them.
        let Ok(destination) = fs::canonicalize(&self.destination) else { return Ok(()) };
        let same = read.into_iter().find(|path| fs::canonicalize(path).is_ok_and(|path| path == destination));
        let expected = "another file than it is made from";
        same.map_or(Ok(()), |path| Err(Error::bad_request("destination", expected, path.display())))
    }

    /// What to write to.
    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// An error about the file that was asked for.
    pub(crate) fn error(&self, source: io::Error) -> Error {
        Error::File { path: self.destination.display().to_string(), source }
    }

    /// Renames the file, with the permissions of the file that it replaces, and returns its size.
    pub(crate) fn keep(self) -> Result<u64> {
        let Self { file, destination, overwrite } = self;
        let error = |source| Error::File { path: destination.display().to_string(), source };
        file.as_file().sync_all().map_err(error)?;
        let kept = if overwrite { file.persist(&destination) } else { file.persist_noclobber(&destination) };
        let kept = kept.map_err(|fault| error(fault.error))?;
        Ok(kept.metadata().map_err(error)?.len())
    }
}
