//! The models that are whole in the cache.

use std::fs;
use std::path::{Path, PathBuf};

use crate::HubId;
use crate::cache::RepoCache;
use crate::gguf_name::GgufSet;
use crate::hub::find_cached;

/// Most repositories that are looked at.
const MOST_REPOSITORIES: usize = 10_000;

/// A whole model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// The id under which it is found: with a quantization where the repository has several GGUF files.
    pub id: HubId,
    /// Its directory, or its GGUF file; of a split file, the first part.
    pub path: PathBuf,
    /// Size of its weights in bytes.
    pub bytes: u64,
}

/// The whole models in the folder `cache`, as of the branch `main` of each repository, in the order of their names. No request is
/// made. What cannot be read is left out.
pub fn cached_models(cache: &Path) -> Vec<CachedModel> {
    let Ok(entries) = fs::read_dir(cache) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut repositories: Vec<String> = names
        .filter_map(|name| Some(name.strip_prefix("models--")?.replace("--", "/")))
        .take(MOST_REPOSITORIES)
        .collect();
    repositories.sort();
    repositories.iter().flat_map(|repository| models_of(cache, repository)).collect()
}

fn models_of(cache: &Path, repository: &str) -> Vec<CachedModel> {
    let Ok(id) = repository.parse::<HubId>() else { return Vec::new() };
    let repo = RepoCache::new(cache, &id);
    let Some(commit) = repo.commit() else { return Vec::new() };
    let snapshot = repo.snapshot(&commit);
    let size = |files: &[String]| {
        files.iter().filter_map(|file| fs::metadata(snapshot.join(file)).ok()).map(|file| file.len()).sum()
    };
    let files = repo.files(&commit);
    let model = |id: HubId, files: &[String]| {
        let found = find_cached(&repo, &id).ok()?;
        Some(CachedModel { id, path: found.path, bytes: size(files) })
    };
    let sets = GgufSet::all(&files);
    let weights: Vec<String> = files.iter().filter(|file| file.ends_with(".safetensors")).cloned().collect();
    // Without a quantization, an id means the safetensors where there are some.
    let directory = (!weights.is_empty()).then(|| model(id.clone(), &weights)).flatten();
    // Safetensors without settings are no model.
    let directory = directory.filter(|found| found.path.is_dir());
    if let ([only], None) = (&sets[..], &directory) {
        return model(id, &only.files).into_iter().collect();
    }
    let of_set = |set: &GgufSet| {
        let is_only = GgufSet::matching(&sets, set.handle()).len() == 1;
        let handle = if is_only { set.handle() } else { set.stem() };
        model(format!("{repository}:{handle}").parse().ok()?, &set.files)
    };
    directory.into_iter().chain(sets.iter().filter_map(of_set)).collect()
}
