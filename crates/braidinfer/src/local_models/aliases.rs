//! Short names that a user gives models.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::cache_folders::settings_folder;
use crate::{Error, Result};

/// The variable that names another folder for settings.
const FOLDER: &str = "BRAIDINFER_CONFIG";
/// Most bytes of the file.
const LARGEST_FILE: u64 = 1 << 20;
const FILE: &str = "aliases.json";

/// The aliases of a user, in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aliases {
    path: PathBuf,
    by_name: BTreeMap<String, String>,
}

impl Aliases {
    /// The aliases in `aliases.json`, in the folder that the environment variable `BRAIDINFER_CONFIG` names, else in `braidinfer`
    /// in the system's folder for settings. `Ok(None)` if the system has no such folder.
    ///
    /// Fails if the file is there and cannot be read.
    pub fn from_env() -> Result<Option<Self>> {
        let is_named = env::var_os(FOLDER).is_some_and(|folder| !folder.is_empty());
        let Some(path) = settings_folder().map(|folder| folder.join(FILE)) else { return Ok(None) };
        match Self::read(&path) {
            // Services often have no folder of their own that they may look into.
            Err(Error::File { source, .. })
                if !is_named
                    && [io::ErrorKind::PermissionDenied, io::ErrorKind::NotADirectory].contains(&source.kind()) =>
            {
                Ok(Some(Self { path, by_name: BTreeMap::new() }))
            }
            read => read.map(Some),
        }
    }

    /// Whether a name has the form of an alias.
    pub fn may_be(name: &str) -> bool {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        let is_word = !name.is_empty() && !name.starts_with(['-', '.']) && name.chars().all(is_plain);
        is_word && !name.ends_with(".gguf")
    }

    /// The aliases in a file, which need not be there.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let by_name = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(file_error(&path, source)),
            Ok(metadata) if metadata.len() > LARGEST_FILE => {
                return Err(damaged(&path, format!("expected at most {LARGEST_FILE} bytes, found {}", metadata.len())));
            }
            Ok(_) => {
                let text = fs::read_to_string(&path).map_err(|source| file_error(&path, source))?;
                let expected = |error| damaged(&path, format!("expected an object of names and models: {error}"));
                serde_json::from_str(&text).map_err(expected)?
            }
        };
        Ok(Self { path, by_name })
    }

    /// What a name stands for.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(String::as_str)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name.iter().map(|(name, model)| (name.as_str(), model.as_str()))
    }

    /// Gives a model a name, and writes the file. The name of a path becomes that of the whole path.
    ///
    /// Fails if the name could be something else, or if the file cannot be written.
    pub fn set(&mut self, name: &str, model: &str) -> Result<()> {
        if !Self::may_be(name) {
            let expected = "letters, digits, `-`, `_` and `.`, which do not end in .gguf";
            return Err(Error::bad_request("alias", expected, format!("`{name}`")));
        }
        let model = match Path::new(model).exists() {
            // Links stay links: what they point to may change.
            true => std::path::absolute(model)
                .map_err(|source| file_error(Path::new(model), source))?
                .to_str()
                .ok_or_else(|| Error::bad_request("model", "a path in UTF-8", model))?
                .to_owned(),
            false => model.to_owned(),
        };
        self.by_name.insert(name.to_owned(), model);
        self.write()
    }

    /// Removes a name, and writes the file; returns whether there was one.
    pub fn remove(&mut self, name: &str) -> Result<bool> {
        let was_there = self.by_name.remove(name).is_some();
        if was_there {
            self.write()?;
        }
        Ok(was_there)
    }

    /// Written beside it first, so that others never see a part.
    fn write(&self) -> Result<()> {
        let write = || {
            let folder = self.path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, &self.by_name)?;
            file.write_all(b"\n")?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().map_err(|source| file_error(&self.path, source))
    }
}

fn file_error(path: &Path, source: io::Error) -> Error {
    Error::File { path: path.display().to_string(), source }
}

fn damaged(path: &Path, message: String) -> Error {
    Error::Text { path: path.display().to_string(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/aliases.json");
        let mut aliases = Aliases::read(&path).expect("it need not be there");
        aliases.set("smol", "org/name:Q4_0").expect("it can be written");
        let here = folder.path().join("here.gguf");
        fs::write(&here, "x").expect("written");
        aliases.set("here", here.to_str().expect("UTF-8")).expect("it can be written");
        let read = Aliases::read(&path).expect("it can be read");
        assert_eq!(read, aliases);
        assert_eq!(read.get("smol"), Some("org/name:Q4_0"));
        assert!(read.get("here").is_some_and(|path| Path::new(path).is_absolute()));
        assert_eq!(read.iter().count(), 2);
        assert!(aliases.remove("smol").expect("written") && !aliases.remove("smol").expect("written"));
        assert_eq!(Aliases::read(&path).expect("it can be read").get("smol"), None);
        for name in ["", "-x", ".", "a b", "a/b", "a:b", "x.gguf"] {
            aliases.set(name, "org/name").expect_err(name);
        }
        fs::write(&path, "[1]").expect("written");
        let error = Aliases::read(&path).expect_err("no object").to_string();
        assert!(error.contains("aliases.json: expected an object of names and models"), "{error}");
    }
}
