//! The cache folder of one repository, in the layout of Python's `huggingface_hub`:
//!
//! ```text
//! models--org--name/refs/main                        the commit of a branch or tag
//! models--org--name/blobs/<etag>                     file contents, by entity tag
//! models--org--name/blobs/<etag>.incomplete          a partial download
//! models--org--name/snapshots/<commit>/<path>        link to a blob, ../../blobs/<etag>
//! .locks/models--org--name/<etag>.lock               held by the process that downloads the blob
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::id::is_commit;
use crate::{HubError, HubId, Progress, Result};

/// The cache folder of one repository, for the revision of an id.
pub(crate) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
    paths: CacheRepo,
    repo: Repo,
}

impl RepoCache {
    pub fn new(cache: &Path, id: &HubId) -> Self {
        let revision = id.revision().unwrap_or("main").to_owned();
        let repo = Repo::with_revision(id.repo().to_owned(), RepoType::Model, revision);
        let name = repo.folder_name();
        Self {
            folder: cache.join(&name),
            locks: cache.join(".locks").join(name),
            paths: Cache::new(cache.to_owned()).repo(repo.clone()),
            repo,
        }
    }

    /// The repository, for `hf-hub`'s API paths.
    pub fn repo(&self) -> &Repo {
        &self.repo
    }

    pub fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(self.repo.revision())
    }

    /// The revision's commit as of the last fetch, or the revision itself if it is a commit.
    pub fn commit(&self) -> Option<String> {
        if is_commit(self.repo.revision()) {
            return Some(self.repo.revision().to_owned());
        }
        let commit = fs::read_to_string(self.reference()).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Records the revision's current commit. Nothing is recorded if the revision is a commit.
    pub fn set_commit(&self, commit: &str) -> Result<()> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference();
        create_parent(&path)?;
        // Written to a temporary file first, so that other programs never see part of a hash.
        let unfinished = beside(&path, &format!(".{}.tmp", unique()));
        fs::write(&unfinished, commit).map_err(HubError::io("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(HubError::io("write", &path))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.paths.pointer_path(commit)
    }

    /// Path of `file` in a snapshot, if it exists. Dangling links do not count.
    pub fn find(&self, commit: &str, file: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit).join(file)).filter(|path| path.is_file())
    }

    /// All existing files of a snapshot, as the Hub would list them.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let mut files = Vec::new();
        collect(&self.snapshot(commit), "", 0, &mut files);
        files.sort();
        files
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.paths.blob_path(etag)
    }

    /// Links the blob into the snapshot. An existing file is not replaced, because another process may be reading it.
    pub fn link(&self, etag: &str, commit: &str, file: &str, progress: &mut dyn Progress) -> Result<()> {
        let (blob, path) = (self.blob(etag), self.snapshot(commit).join(file));
        if path.is_file() {
            return Ok(());
        }
        create_parent(&path)?;
        if fs::symlink_metadata(&path).is_ok() {
            fs::remove_file(&path).map_err(HubError::io("replace", &path))?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        match symlink(&format!("{up}blobs/{etag}"), &path) {
            Ok(()) => Ok(()),
            // Another process has created the link.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_file() => Ok(()),
            Err(_) => duplicate(&blob, &path, progress),
        }
    }

    /// Locks the blob, waiting until no other process downloads it.
    pub fn lock(&self, etag: &str, file: &str, progress: &mut dyn Progress) -> Result<Lock> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        loop {
            let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let lock = lock.map_err(HubError::io("open", &path))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    progress.note(&format!("{file}: waiting for another process that downloads it"));
                    lock.lock().map_err(HubError::io("lock", &path))?;
                }
                Err(TryLockError::Error(error)) => {
                    progress
                        .note(&format!("{file}: no lock on this disk ({error}); if it breaks off, it begins again"));
                    return Ok(Lock { held: None });
                }
            }
            // A lock on a file that was deleted meanwhile excludes nobody.
            if has_name(&lock) {
                return Ok(Lock { held: Some(lock) });
            }
        }
    }

    /// Path to which a blob is downloaded. Without a lock, the name is unique, and the download cannot be resumed.
    pub fn incomplete(&self, etag: &str, lock: &Lock) -> PathBuf {
        let own = if lock.held.is_some() { String::new() } else { format!(".{}", unique()) };
        beside(&self.blob(etag), &format!("{own}.incomplete"))
    }
}

/// Held while a blob is downloaded, and released when dropped.
pub(crate) struct Lock {
    held: Option<File>,
}

#[cfg(unix)]
fn has_name(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

/// On other systems, open files cannot be deleted.
#[cfg(not(unix))]
fn has_name(_: &File) -> bool {
    true
}

/// A suffix that no other running thread or process uses.
fn unique() -> String {
    static USED: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", process::id(), USED.fetch_add(1, Ordering::Relaxed))
}

/// `path` with `suffix` appended to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(crate) fn create_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(HubError::io("create", parent))
}

/// Appends the files below `folder`, with `prefix`. Unreadable entries are skipped.
fn collect(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) {
    const DEEPEST: usize = 8;
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        // Links to folders are not followed, because they could be cyclic.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth < DEEPEST {
                collect(&entry.path(), &format!("{path}/"), depth + 1, files);
            }
        } else if entry.path().is_file() {
            files.push(path);
        }
    }
}

#[cfg(unix)]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target.replace('/', "\\"), link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &str, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Without symbolic links, as usual on Windows: a hard link to the blob, or else a copy.
fn duplicate(blob: &Path, path: &Path, progress: &mut dyn Progress) -> Result<()> {
    if fs::hard_link(blob, path).is_ok() {
        return Ok(());
    }
    let text = format!("{}: no links on this disk, so the file is kept twice", path.display());
    progress.note(&text);
    let unfinished = beside(path, &format!(".{}.tmp", unique()));
    let copied = fs::copy(blob, &unfinished).and_then(|_| fs::rename(&unfinished, path));
    copied.map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        HubError::io("copy to", path)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn cache(folder: &Path, id: &str) -> RepoCache {
        RepoCache::new(folder, &id.parse().expect("an id"))
    }

    #[test]
    fn a_revision_is_kept_as_a_commit() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = cache(folder.path(), "a/b@refs/pr/1");
        assert_eq!(cache.commit(), None);
        cache.set_commit(COMMIT).expect("written");
        assert_eq!(cache.commit().as_deref(), Some(COMMIT));
        let path = folder.path().join("models--a--b/refs/refs/pr/1");
        assert_eq!(fs::read_to_string(&path).expect("a file"), COMMIT);
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("listed").count(), 1);
        fs::write(&path, "../../../etc").expect("written");
        assert_eq!(cache.commit(), None);
    }

    #[test]
    fn without_links_files_are_copied() {
        let folder = tempfile::tempdir().expect("a folder");
        let (blob, path) = (folder.path().join("blob"), folder.path().join("file"));
        fs::write(&blob, "text").expect("written");
        duplicate(&blob, &path, &mut ()).expect("another name");
        assert_eq!(fs::read_to_string(&path).expect("a file"), "text");
        let error = duplicate(&folder.path().join("none"), &folder.path().join("x"), &mut ()).expect_err("no blob");
        assert!(error.to_string().contains("copy to"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 2);
    }

    #[test]
    fn a_dangling_link_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = cache(folder.path(), "a/b");
        cache.link("e1", COMMIT, "sub/file", &mut ()).expect("a link");
        assert_eq!(cache.find(COMMIT, "sub/file"), None);
        assert!(cache.files(COMMIT).is_empty());
        create_parent(&cache.blob("e2")).expect("created");
        fs::write(cache.blob("e2"), "text").expect("written");
        cache.link("e2", COMMIT, "sub/file", &mut ()).expect("a link");
        let path = cache.find(COMMIT, "sub/file").expect("there");
        assert_eq!(fs::read_to_string(path).expect("read"), "text");
        assert_eq!(cache.files(COMMIT), ["sub/file"]);
    }
}
