//! Files that are written whole before they take their name.

use std::fs::File;
use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

/// A file beside `path`, which is removed unless it takes its name.
pub fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".braidinfer-").suffix(".partial");
    // Made here, it has the user's usual permissions, and an error does not name it, which nobody asked for.
    builder.make_in(folder, |path| File::create_new(path))
}
