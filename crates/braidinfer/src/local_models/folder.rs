//! Models in a folder and the folders below it.

use std::fs;
use std::path::{Path, PathBuf};

use super::{LocalModel, Place};

/// How many folders deep models are looked for.
const DEPTH: usize = 4;
/// Most files and folders that are looked at.
const MOST_ENTRIES: usize = 100_000;

/// The models below `root`: GGUF files by their names, without the number of a part, and folders with `config.json` and
/// safetensors.
pub fn models(root: &Path, place: Place) -> Vec<LocalModel> {
    let mut search = Search { place, entries: 0, models: Vec::new() };
    search.look_in(root, DEPTH);
    search.models
}

struct Search {
    place: Place,
    /// Files and folders that were looked at.
    entries: usize,
    models: Vec<LocalModel>,
}

impl Search {
    fn look_in(&mut self, folder: &Path, depth: usize) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        let entries = entries.flatten().take(MOST_ENTRIES.saturating_sub(self.entries));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| concerns_models(path)).collect();
        paths.sort();
        self.entries += paths.len();
        let has_extension = |path: &PathBuf, extension| path.extension().is_some_and(|own| own == extension);
        let weights: Vec<&PathBuf> = paths.iter().filter(|path| has_extension(path, "safetensors")).collect();
        if !weights.is_empty() && paths.iter().any(|path| path.ends_with("config.json")) {
            self.add(folder.file_name().and_then(|name| name.to_str()), folder, weights.into_iter());
        }
        for path in paths.iter().filter(|path| has_extension(path, "gguf")) {
            let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            if stem.starts_with("mmproj") || stem.starts_with('.') {
                continue;
            }
            match part_of(stem) {
                None => self.add(Some(stem), path, std::iter::once(path)),
                Some((whole, 1)) => {
                    let is_part = |path: &&PathBuf| {
                        let other = path.file_stem().and_then(|stem| stem.to_str()).and_then(part_of);
                        has_extension(path, "gguf") && other.is_some_and(|(other, _)| other == whole)
                    };
                    self.add(Some(whole), path, paths.iter().filter(is_part));
                }
                Some(_) => {}
            }
        }
        if depth > 0 {
            paths.iter().filter(|path| path.is_dir()).for_each(|path| self.look_in(path, depth - 1));
        }
    }

    fn add<'a>(&mut self, name: Option<&str>, path: &Path, weights: impl Iterator<Item = &'a PathBuf>) {
        let Some(name) = name else { return };
        let bytes = weights.filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum();
        self.models.push(LocalModel { name: name.to_owned(), place: self.place, path: path.to_owned(), bytes });
    }
}

/// Whether a path may be a part of a model, or a folder with some: other files do not count.
fn concerns_models(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_hidden = name.starts_with(['.', '~']);
    let is_part = ["gguf", "safetensors"].iter().any(|kind| path.extension().is_some_and(|own| own == *kind));
    !is_hidden && (is_part || name == "config.json" || path.is_dir())
}

/// The name without `-00001-of-00002`, and the number of the part.
pub(super) fn part_of(stem: &str) -> Option<(&str, usize)> {
    let (rest, _of) = stem.rsplit_once("-of-")?;
    let (whole, part) = rest.rsplit_once('-')?;
    Some((whole, part.parse().ok()?))
}
