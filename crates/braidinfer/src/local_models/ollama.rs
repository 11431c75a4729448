//! Models in Ollama's folder: manifests, which name blobs, of which one is a GGUF file.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{LocalModel, Place};

/// Most bytes of a manifest.
const LARGEST_MANIFEST: u64 = 1 << 20;
/// Most entries of a folder that are looked at.
const MOST_ENTRIES: usize = 10_000;
/// Names of models from here are written without it, and without the folder `library`.
const OWN_REGISTRY: &str = "registry.ollama.ai";

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
}

/// The models in Ollama's folder `root`. One that consists of a model and an adapter is left out, since the model alone is
/// another one.
pub fn models(root: &Path) -> Vec<LocalModel> {
    let mut models = Vec::new();
    for registry in entries(&root.join("manifests")) {
        for owner in entries(&registry) {
            for model in entries(&owner) {
                for tag in entries(&model) {
                    models.extend(read(root, [&registry, &owner, &model, &tag]));
                }
            }
        }
    }
    models
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().take(MOST_ENTRIES).map(|entry| entry.path()).collect()
}

fn read(root: &Path, path: [&PathBuf; 4]) -> Option<LocalModel> {
    let mut text = Vec::new();
    fs::File::open(path[3]).ok()?.take(LARGEST_MANIFEST).read_to_end(&mut text).ok()?;
    let Manifest { layers } = serde_json::from_slice(&text).ok()?;
    let is = |layer: &Layer, kind: &str| layer.media_type == format!("application/vnd.ollama.image.{kind}");
    if layers.iter().any(|layer| is(layer, "adapter")) {
        return None;
    }
    let digest = layers.iter().find(|layer| is(layer, "model"))?.digest.strip_prefix("sha256:")?;
    // It becomes a part of a path.
    if digest.is_empty() || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let blob = root.join("blobs").join(format!("sha256-{digest}"));
    let bytes = fs::metadata(&blob).ok()?.len();
    let [registry, owner, model, tag] = path.map(|path| path.file_name().and_then(|name| name.to_str()));
    let (registry, owner, model, tag) = (registry?, owner?, model?, tag?);
    let name = match (registry, owner) {
        (OWN_REGISTRY, "library") => format!("{model}:{tag}"),
        (OWN_REGISTRY, _) => format!("{owner}/{model}:{tag}"),
        _ => format!("{registry}/{owner}/{model}:{tag}"),
    };
    Some(LocalModel { name, place: Place::Ollama, path: blob, bytes })
}
