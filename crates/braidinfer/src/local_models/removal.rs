//! Deleting a model from where it lies.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::folder::part_of;
use super::{LocalModel, Place};
use crate::{Error, Result};

/// What is deleted with a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removal {
    /// Files, and links to them.
    pub files: Vec<PathBuf>,
    /// A folder with everything in it.
    pub whole_folder: Option<PathBuf>,
    /// A folder that is deleted if nothing else is in it.
    emptied_folder: Option<PathBuf>,
    /// What lies beside them and belongs to no model, or to another one, and stays.
    pub left: Vec<PathBuf>,
    /// What a link that is deleted leads to, which stays.
    pub linked: Option<PathBuf>,
    /// Size of the files in bytes.
    pub bytes: u64,
}

impl LocalModel {
    /// What is to be deleted, so that the model is gone: its GGUF files; of a directory, the weights, settings and tokenizer in it;
    /// of what is a link, only that; in the Hub's cache, what no other model of the repository needs.
    ///
    /// Fails for a model of another program, which would still list it, and if its files cannot be listed.
    pub fn removal(&self) -> Result<Removal> {
        let name = &self.name;
        let left_to = |program: &str, how: &str| {
            let expected = format!("a model in a folder or in the Hub's cache; {program} removes its own ({how})");
            Err(Error::bad_request("model", expected, name))
        };
        match self.place {
            Place::Ollama => left_to("Ollama", &format!("`ollama rm {name}`")),
            Place::LmStudio => left_to("LM Studio", "in its list of models"),
            Place::Folder => self.removal_from_folder(),
            Place::Hub => self.removal_from_cache(),
        }
    }

    fn removal_from_folder(&self) -> Result<Removal> {
        if !self.path.is_dir() {
            let files = parts(&self.path)?;
            let linked = fs::canonicalize(&self.path).ok().filter(|_| self.path.is_symlink());
            let own: Vec<PathBuf> = files.iter().filter(|file| !file.is_symlink()).cloned().collect();
            return Ok(Removal { bytes: size_of(&own), files, linked, ..Removal::default() });
        }
        if self.path.is_symlink() {
            let linked = fs::canonicalize(&self.path).ok();
            return Ok(Removal { files: vec![self.path.clone()], linked, ..Removal::default() });
        }
        let (files, left): (Vec<_>, Vec<_>) =
            entries(&self.path)?.into_iter().partition(|path| path.is_file() && is_of_directory(path));
        let emptied_folder = Some(self.path.clone());
        Ok(Removal { bytes: size_of(&files), files, emptied_folder, left, ..Removal::default() })
    }

    fn removal_from_cache(&self) -> Result<Removal> {
        let is_repository = |folder: &&Path| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("models--") && folder.join("snapshots").is_dir()
        };
        let Some(repository) = self.path.ancestors().find(is_repository) else {
            let expected = "a model in the folder of a repository, models--ORG--NAME";
            return Err(Error::bad_request("model", expected, self.path.display()));
        };
        let all = files_below(&repository.join("snapshots"))?;
        let own = if self.path.is_dir() { without_gguf(all.clone()) } else { parts(&self.path)? };
        let weights: Vec<&PathBuf> = all.iter().filter(|file| is_of_weights(file)).collect();
        if weights.iter().all(|file| own.contains(file)) {
            // Where there can be no links, the files themselves lie among the snapshots.
            let bytes = plain_files(&repository.join("blobs")).map_or_else(|_| size_of(&all), |blobs| size_of(&blobs));
            return Ok(Removal { whole_folder: Some(repository.to_owned()), bytes, ..Removal::default() });
        }
        // What links lead to elsewhere is somebody else's.
        let folder = fs::canonicalize(repository.join("blobs")).ok();
        let is_blob = |blob: &PathBuf| folder.as_ref().is_some_and(|folder| blob.starts_with(folder));
        let blob = |file: &PathBuf| fs::canonicalize(file).ok().filter(is_blob);
        let in_use: BTreeSet<PathBuf> = all.iter().filter(|file| !own.contains(file)).filter_map(blob).collect();
        let blobs: BTreeSet<PathBuf> = own.iter().filter_map(blob).filter(|blob| !in_use.contains(blob)).collect();
        let blobs: Vec<PathBuf> = blobs.into_iter().collect();
        let are_links = own.iter().any(|file| blob(file).is_some());
        let bytes = size_of(if are_links { &blobs } else { &own });
        Ok(Removal { files: own.into_iter().chain(blobs).collect(), bytes, ..Removal::default() })
    }
}

impl Removal {
    /// Deletes it.
    ///
    /// Fails at the first file that cannot be deleted.
    pub fn delete(&self) -> Result<()> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |source: io::Error| Error::File { path, source }
        };
        for file in &self.files {
            remove_file_or_link(file).map_err(failed(file))?;
        }
        if let Some(folder) = &self.whole_folder {
            fs::remove_dir_all(folder).map_err(failed(folder))?;
        }
        if let Some(folder) = self.emptied_folder.as_ref().filter(|folder| is_empty(folder)) {
            fs::remove_dir(folder).map_err(failed(folder))?;
        }
        Ok(())
    }
}

/// Windows has links to folders that are removed as folders are.
fn remove_file_or_link(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| if path.is_symlink() { fs::remove_dir(path) } else { Err(error) })
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn size_of(files: &[PathBuf]) -> u64 {
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> =
        listed.map_err(|source| Error::File { path: folder.display().to_string(), source })?;
    paths.sort();
    Ok(paths)
}

/// The files in a folder, without those in folders below it.
fn plain_files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_file()).collect())
}

/// A GGUF file, or all parts of the model of which it is one.
fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let stem = |path: &Path| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
    let Some(whole) = stem(path).and_then(|stem| Some(part_of(&stem)?.0.to_owned())) else {
        return Ok(vec![path.to_owned()]);
    };
    let is_part = |other: &PathBuf| {
        let other_stem = stem(other).and_then(|stem| Some(part_of(&stem)?.0.to_owned()));
        other.extension() == path.extension() && other_stem.as_ref() == Some(&whole)
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    Ok(entries(folder)?.into_iter().filter(is_part).collect())
}

/// The files in a folder and the folders below it, without following links to folders.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        let is_link = fs::symlink_metadata(&path).is_ok_and(|entry| entry.is_symlink());
        if path.is_dir() && !is_link {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// The files without GGUF files, which are models of their own beside safetensors.
fn without_gguf(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    files.retain(|file| file.extension().is_none_or(|extension| extension != "gguf"));
    files
}

/// Whether a file is part of a model in Hugging Face layout; others, such as adapters, scripts and notes, are somebody else's.
fn is_of_directory(file: &Path) -> bool {
    const STARTS: [&str; 7] = [
        "pytorch_model",
        "config.json",
        "generation_config.json",
        "tokenizer",
        "special_tokens_map.",
        "chat_template.",
        "preprocessor_config.",
    ];
    const NAMES: [&str; 8] = [
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tekken.json",
        "spiece.model",
        "processor_config.json",
        ".gitattributes",
    ];
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let is_adapter = name.starts_with("adapter_");
    (is_weights && !is_adapter) || NAMES.contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}

fn is_of_weights(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "gguf" || extension == "safetensors")
}
