//! Writes a report to a file atomically.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::temporary_file;

/// Fails if the file cannot be written; called before the measurements.
pub fn check(path: &Path) -> anyhow::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            bail!("{}: expected a plain file or nothing there, found something else", path.display())
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| shown(path)),
        _ => temporary_file::beside(&target(path)).map(|_| ()).with_context(|| shown(path)),
    }
}

/// Writes `value` as one line of JSON, replacing an existing file.
pub fn write(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let text = format!("{}\n", serde_json::to_string(value)?);
    let target = target(path);
    let written = temporary_file::beside(&target).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file.persist(&target)?)
    });
    written.map(|_| ()).with_context(|| shown(path))
}

/// The target of a symbolic link: the link stays, and its target is replaced.
fn target(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
