//! Packed weights kept as files: a folder with one file for each model, bounded in size, from which the files that were not used
//! for longest are removed.
//!
//! A file is made under another name, which its maker has locked, and gets its own when it is whole. Readers lock it together
//! with others, so that files in use are not removed. What a killed process leaves is a file that nobody has locked: the next
//! maker goes over it, or removes it. What is in the files is known to the fused kernels alone
//! ([`crate::executor::fused`]); whether it is about the right weights is decided by a [`WeightsKey`].

mod key;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(crate) use self::key::WeightsKey;
use crate::{Error, Result, memory};

/// Of a whole file.
const WHOLE: &str = "packed";
/// Of one that is being made.
const UNFINISHED: &str = "making";

/// Weights that take less are packed faster than anybody notices.
const LEAST_BYTES: u64 = 128 << 20;

/// The files may take this part of what would be free without them, if nothing else is said.
const SHARE_OF_DISK: u64 = 4;

/// How often a file is opened anew because it was removed between opening and locking it.
const ATTEMPTS: usize = 1000;

/// Where fused kernels keep packed weights, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedCache {
    /// The folder. It is made when it is needed, for its owner alone.
    pub folder: PathBuf,
    /// Most bytes of all files together; if `None`, a quarter of what would be free on the disk without them.
    pub most_bytes: Option<u64>,
    /// Weights that take fewer bytes are packed at every start, unless there is too little memory for them.
    pub least_bytes: u64,
}

/// A file of packed weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptWeights {
    /// Its path. The name begins with that of the model's file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was last used, as far as the system knows.
    pub used: Option<SystemTime>,
    /// Whether a process uses it, or is making it.
    pub in_use: bool,
}

impl PackedCache {
    /// A cache in this folder, with the usual bounds.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), most_bytes: None, least_bytes: LEAST_BYTES }
    }

    /// The files in the folder, whole or not, those used last first. None if there is no such folder.
    ///
    /// Fails if the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<KeptWeights>> {
        let failed = |source| Error::File { path: self.folder.display().to_string(), source };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == WHOLE || extension == UNFINISHED) {
                files.extend(KeptWeights::at(path));
            }
        }
        files.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
        Ok(files)
    }

    /// Removes the files in the folder that nobody uses. Returns what was removed.
    ///
    /// Fails if a file cannot be removed.
    pub fn clear(&self) -> Result<Vec<KeptWeights>> {
        let mut removed = Vec::new();
        for file in self.list()? {
            let failed = |source| Error::File { path: file.path.display().to_string(), source };
            if remove_unused(&file.path).map_err(failed)? {
                removed.push(file);
            }
        }
        Ok(removed)
    }

    /// Where the weights called `name` are kept.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{WHOLE}"))
    }

    /// Most bytes that all files may take. Fails if nobody says and the system does not tell how much is free.
    pub(crate) fn bound(&self) -> io::Result<u64> {
        if let Some(most) = self.most_bytes {
            return Ok(most);
        }
        let taken: u64 = self.list().unwrap_or_default().iter().map(|file| file.bytes).sum();
        Ok(free(&self.folder)?.saturating_add(taken) / SHARE_OF_DISK)
    }

    /// Begins to make the file of the weights called `name`. If another process is making it, `None`, or this waits for it to
    /// end, in one way or the other, if `wait`.
    pub(crate) fn begin(&self, name: &str, wait: bool) -> io::Result<Option<Unfinished>> {
        make_private(&self.folder)?;
        let target = self.path(name);
        let path = target.with_extension(UNFINISHED);
        for _ in 0..ATTEMPTS {
            // A link would be followed, and a pipe cannot be written to from its beginning.
            is_plain(&path).map_err(|error| in_the_way(&path, error))?;
            let file = owned(OpenOptions::new().read(true).write(true).create(true)).open(&path)?;
            if wait {
                file.lock()?;
            } else {
                match file.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => return Ok(None),
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
            // The last maker renamed it, or somebody removed it, before it was locked here.
            if is_at(&file, &path) {
                file.set_len(0)?;
                return Ok(Some(Unfinished { file, path, target, published: false }));
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Removes unused files until there is room for `bytes` more: first what killed processes left, then what was not used for
    /// longest. An older file at `replaced` goes, too, or does not count. Fails, in words, if there is no room.
    pub(crate) fn make_room(&self, bytes: u64, replaced: &Path) -> Result<(), String> {
        // If a process uses it, it is gone when that ends.
        let _ = remove_unused(replaced);
        let bound = self.bound().map_err(|error| error.to_string())?;
        let mut files = self.list().map_err(|error| error.to_string())?;
        files.retain(|file| file.path != replaced && file.path != replaced.with_extension(UNFINISHED));
        let unfinished = |file: &KeptWeights| file.path.extension().is_some_and(|extension| extension == UNFINISHED);
        files.sort_by_key(unfinished);
        let mut taken: u64 = files.iter().map(|file| file.bytes).sum();
        let mut staying = Vec::new();
        while let Some(oldest) = files.pop() {
            let fits = taken.saturating_add(bytes) <= bound;
            if fits && !unfinished(&oldest) {
                break;
            }
            if bytes > bound && !unfinished(&oldest) {
                continue;
            }
            match remove_unused(&oldest.path) {
                Ok(true) => taken -= oldest.bytes,
                Ok(false) => staying.push(oldest.not_removed("in use")),
                Err(error) => staying.push(oldest.not_removed(&error.to_string())),
            }
        }
        if taken.saturating_add(bytes) <= bound {
            return Ok(());
        }
        let staying = if staying.is_empty() { String::new() } else { format!("; not removed: {}", staying.join(", ")) };
        Err(self.too_small(bytes, bound) + &staying)
    }

    /// That there is no room, in words.
    pub(crate) fn too_small(&self, bytes: u64, bound: u64) -> String {
        let reason = match self.most_bytes {
            Some(_) => "as asked for",
            None => "a quarter of what would be free on the disk without them",
        };
        let (needed, most) = (memory::size(bytes), memory::size(bound));
        format!("{needed} would be needed, and all files together may take {most} ({reason})")
    }
}

impl KeptWeights {
    /// The file at `path`; `None` if there is no plain file.
    fn at(path: PathBuf) -> Option<Self> {
        let metadata = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let in_use = File::open(&path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        Some(Self { bytes: metadata.len(), used: metadata.modified().ok(), in_use, path })
    }

    /// Its name, its size, and why it was not removed.
    fn not_removed(&self, because: &str) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("{name} ({}, {because})", memory::size(self.bytes))
    }
}

/// A file that is being made, which this process has locked. It is removed with the value unless it was published.
#[derive(Debug)]
pub(crate) struct Unfinished {
    file: File,
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Unfinished {
    /// The file, open for writing.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, in place of an older one. Nobody may write to it any more.
    pub(crate) fn publish(mut self) -> io::Result<()> {
        let mut permissions = self.file.metadata()?.permissions();
        permissions.set_readonly(true);
        self.file.set_permissions(permissions)?;
        fs::rename(&self.path, &self.target)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.published {
            // While it is still locked: nobody else has begun to write to it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens a file to read, locked together with other readers, and notes that it is used now. `None` if there is none.
pub(crate) fn open_used(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..ATTEMPTS {
        let Some(file) = open_plain(path)? else { return Ok(None) };
        // Waits only for those who look at or remove it, and for the end of its making.
        file.lock_shared()?;
        if is_at(&file, path) {
            // Of another owner, or on a file system that cannot be written to: then it seems older than it is.
            let _ = file.set_modified(SystemTime::now());
            return Ok(Some(file));
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Opens a plain file to read. `None` if there is nothing; fails if there is something else.
fn open_plain(path: &Path) -> io::Result<Option<File>> {
    if !is_plain(path)? {
        return Ok(None);
    }
    let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
    File::open(path).map(Some).or_else(gone)
}

/// Whether there is a plain file, which can be opened without waiting; fails if there is something else.
fn is_plain(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(metadata) => {
            let found = format!("expected a plain file, found {}", kind(metadata.file_type()));
            Err(io::Error::new(io::ErrorKind::InvalidInput, found))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is at a path where there is no plain file.
fn kind(found: fs::FileType) -> &'static str {
    if found.is_symlink() {
        return "a link";
    }
    if found.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    if std::os::unix::fs::FileTypeExt::is_fifo(&found) {
        return "a pipe";
    }
    "something else"
}

/// An error about the path at which a file is to be made.
fn in_the_way(path: &Path, error: io::Error) -> io::Error {
    let remedy = if error.kind() == io::ErrorKind::InvalidInput { "; remove it" } else { "" };
    io::Error::new(error.kind(), format!("{}: {error}{remedy}", path.display()))
}

/// Removes the file at `path` if it is still `file`.
pub(crate) fn remove_damaged(file: &File, path: &Path) -> io::Result<()> {
    if is_at(file, path) { remove(path) } else { Ok(()) }
}

/// Removes a file. That it is gone already is no failure.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Removes a file unless a process has locked it. Whether it is gone.
fn remove_unused(path: &Path) -> io::Result<bool> {
    let Some(file) = open_plain(path)? else { return Ok(true) };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // What is there now may be another file, which was just made.
    if !is_at(&file, path) {
        return Ok(true);
    }
    remove(path).map(|()| true)
}

/// Whether `path` names this open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (open, named) = (file.metadata().map(number), fs::symlink_metadata(path).map(number));
    matches!((open, named), (Ok(open), Ok(named)) if open == named)
}

/// Open files cannot be removed or renamed by others.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Files for their owner alone.
fn owned(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Makes a folder for its owner alone.
pub(crate) fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Bytes that this user may still write to the disk of a folder, which need not exist.
#[cfg(unix)]
fn free(folder: &Path) -> io::Result<u64> {
    for folder in folder.ancestors() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        match rustix::fs::statvfs(folder) {
            Ok(disk) => return Ok(disk.f_bavail.saturating_mul(disk.f_frsize)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(not(unix))]
fn free(_: &Path) -> io::Result<u64> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "how much is free on the disk is not known here"))
}
