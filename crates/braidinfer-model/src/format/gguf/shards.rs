//! Models split into numbered files, as by `gguf-split`: `name-00001-of-00003.gguf`. The first file has the metadata.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use crate::{ModelError, Result};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
/// Limit against a long search due to a corrupt count; no published model has nearly as many shards.
const MOST: u64 = 1000;

/// A shard after the first.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    /// Counted from zero.
    number: u64,
    count: u64,
}

impl Shard {
    /// Checks that the file's metadata match this shard.
    pub(super) fn check(&self, metadata: &Metadata) -> Result<()> {
        let (number, count) = (metadata.unsigned(NUMBER)?, count(metadata)?);
        if number != Some(self.number) {
            let found = number.map_or("nothing".into(), |number| number.to_string());
            return Err(metadata.error(NUMBER, self.number.to_string(), found));
        }
        if count != self.count {
            return Err(metadata.error(COUNT, self.count.to_string(), count.to_string()));
        }
        Ok(())
    }
}

/// Number of shards of the model, including this file.
pub(super) fn count(metadata: &Metadata) -> Result<u64> {
    match metadata.unsigned(COUNT)?.unwrap_or(1) {
        0 => Ok(1),
        count if count > MOST => Err(metadata.error(COUNT, format!("at most {MOST} shards"), count.to_string())),
        count => Ok(count),
    }
}

/// The other shards of a model whose first shard is at `path`.
pub(super) fn others(path: &Path, metadata: &Metadata) -> Result<Vec<Shard>> {
    let count = count(metadata)?;
    if count == 1 {
        return Ok(Vec::new());
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.strip_suffix(&suffix(0, count));
    let first = |stem: &str| format!("{stem}{}", suffix(0, count));
    let number = metadata.unsigned(NUMBER)?.unwrap_or(0);
    if number >= count {
        return Err(metadata.error(
            NUMBER,
            format!("a number below {count}, the number of shards"),
            number.to_string(),
        ));
    }
    if number != 0 {
        let first = name.strip_suffix(&suffix(number, count)).map_or("the one numbered 00001".into(), first);
        let expected = format!("the first shard of the model, {first}");
        let found = format!("shard {} of {count}", number + 1);
        return Err(ModelError::Malformed { path: path.display().to_string(), expected, found });
    }
    let stem = stem.ok_or_else(|| ModelError::Malformed {
        path: path.display().to_string(),
        expected: format!("a name that ends with `{}`, since the model has {count} shards", suffix(0, count)),
        found: format!("`{name}`"),
    })?;
    let shard = |number| Shard { path: path.with_file_name(format!("{stem}{}", suffix(number, count))), number, count };
    Ok((1..count).map(shard).collect())
}

/// The end of the file name of shard `number`, counted from zero.
fn suffix(number: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}
