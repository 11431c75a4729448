//! The models that are on this machine, by name: they are read where they lie.

mod aliases;
mod folder;
mod ollama;
mod removal;

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use braidinfer_hub::{Settings, cached_models};

pub use self::aliases::Aliases;
pub use self::removal::Removal;
use crate::{Error, Result};

/// The variable with folders of models.
const FOLDERS: &str = "BRAIDINFER_MODELS";

/// Who put a model where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A folder of models.
    Folder,
    /// The cache of the Hugging Face Hub.
    Hub,
    /// Ollama.
    Ollama,
    /// LM Studio.
    LmStudio,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "folder",
            Self::Hub => "Hugging Face cache",
            Self::Ollama => "Ollama",
            Self::LmStudio => "LM Studio",
        })
    }
}

/// A model that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalModel {
    /// What it is called.
    pub name: String,
    /// Who put it there.
    pub place: Place,
    /// Its directory, or its GGUF file; of a split file, the first part.
    pub path: PathBuf,
    /// Size of its weights in bytes.
    pub bytes: u64,
}

/// Where models are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Folders of models.
    pub folders: Vec<PathBuf>,
    /// The cache of the Hugging Face Hub.
    pub hub: Option<PathBuf>,
    /// Folders with Ollama's manifests and blobs.
    pub ollama: Vec<PathBuf>,
    /// Folders of LM Studio.
    pub lm_studio: Vec<PathBuf>,
}

impl Places {
    /// The places on this machine: the folders in `BRAIDINFER_MODELS`, which are separated as those of `PATH` are; the Hub's
    /// cache ([`Settings::from_env`]); what Ollama (`OLLAMA_MODELS`) and LM Studio use by themselves. Those that do not exist
    /// have no models.
    pub fn from_env() -> Self {
        let set = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let home = env::home_dir();
        let at_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let own_ollama = [at_home(".ollama/models"), Some(PathBuf::from("/usr/share/ollama/.ollama/models"))];
        Self {
            folders: set(FOLDERS).map(|folders| env::split_paths(&folders).collect()).unwrap_or_default(),
            hub: Settings::from_env().ok().map(|settings| settings.cache),
            ollama: match set("OLLAMA_MODELS") {
                Some(folder) => vec![folder.into()],
                None => own_ollama.into_iter().flatten().collect(),
            },
            lm_studio: [".lmstudio/models", ".cache/lm-studio/models"].into_iter().filter_map(at_home).collect(),
        }
    }

    /// All models in these places, by name, each once. What cannot be read is left out.
    pub fn models(&self) -> Vec<LocalModel> {
        let cached = self.hub.iter().flat_map(|cache| cached_models(cache)).map(|model| LocalModel {
            name: model.id.to_string(),
            place: Place::Hub,
            path: model.path,
            bytes: model.bytes,
        });
        let in_folders = self.folders.iter().flat_map(|root| folder::models(root, Place::Folder));
        let of_ollama = self.ollama.iter().flat_map(|root| ollama::models(root));
        let of_lm_studio = self.lm_studio.iter().flat_map(|root| folder::models(root, Place::LmStudio));
        let mut models: Vec<LocalModel> = in_folders.chain(cached).chain(of_ollama).chain(of_lm_studio).collect();
        models.sort_by(|a, b| (&a.name, a.place, &a.path).cmp(&(&b.name, b.place, &b.path)));
        // Links and overlapping places lead to one model by several paths.
        let mut seen = BTreeSet::new();
        models.retain(|model| {
            let path = fs::canonicalize(&model.path).unwrap_or_else(|_| model.path.clone());
            seen.insert((model.name.clone(), path))
        });
        models
    }

    /// Folders that were named and cannot be looked into, for messages.
    pub fn missing_folders(&self) -> Vec<&Path> {
        self.folders.iter().map(PathBuf::as_path).filter(|folder| fs::read_dir(folder).is_err()).collect()
    }

    /// The model with this name, if there is one. Upper and lower case are the same where that leaves one model; Ollama's tag
    /// `latest` may be left out.
    ///
    /// Fails if several models have the name.
    pub fn find(&self, name: &str) -> Result<Option<LocalModel>> {
        let models = self.models();
        let tagged = format!("{name}:latest");
        let is_called: [&dyn Fn(&LocalModel) -> bool; 4] = [
            &|model| model.name == name,
            &|model| model.place == Place::Ollama && model.name == tagged,
            &|model| model.name.eq_ignore_ascii_case(name),
            &|model| model.place == Place::Ollama && model.name.eq_ignore_ascii_case(&tagged),
        ];
        for is_called in is_called {
            let found: Vec<&LocalModel> = models.iter().filter(|model| is_called(model)).collect();
            match &found[..] {
                [] => {}
                [only] => return Ok(Some((*only).clone())),
                several => {
                    let paths: Vec<String> = several.iter().map(|model| model.path.display().to_string()).collect();
                    let found = format!("several: {}", paths.join(", "));
                    return Err(Error::bad_request("model", format!("one model called `{name}`, or a path"), found));
                }
            }
        }
        Ok(None)
    }

    /// Names of models that resemble a name that none has, at most three.
    pub fn similar(&self, name: &str) -> Vec<String> {
        let simple = |name: &str| name.to_ascii_lowercase().replace(['-', '_', '.', ' '], "");
        let wanted = simple(name);
        let names = self.models().into_iter().map(|model| model.name);
        let mut similar: Vec<String> =
            names.filter(|own| !wanted.is_empty() && simple(own).contains(&wanted)).collect();
        similar.dedup();
        similar.truncate(3);
        similar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, bytes: usize) {
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("folders can be made");
        fs::write(path, vec![b'x'; bytes]).expect("files can be written");
    }

    /// Models in all places of a folder.
    fn places(root: &Path) -> Places {
        let folder = root.join("folder");
        write(&folder.join("Small-Q4_0.gguf"), 4);
        write(&folder.join("deep/split-00001-of-00002.gguf"), 5);
        write(&folder.join("deep/split-00002-of-00002.gguf"), 6);
        write(&folder.join("deep/mmproj-x.gguf"), 1);
        write(&folder.join("whole/config.json"), 1);
        write(&folder.join("whole/model.safetensors"), 7);
        write(&folder.join("no-model/config.json"), 1);
        let ollama = root.join("ollama");
        let digest = "ab".repeat(32);
        write(&ollama.join(format!("blobs/sha256-{digest}")), 8);
        let manifest = |layers: &str| format!("{{\"layers\": [{layers}]}}");
        let layer = |kind: &str, digest: &str| {
            format!(
                "{{\"mediaType\": \"application/vnd.ollama.image.{kind}\", \"digest\": \"sha256:{digest}\", \"size\": 8}}"
            )
        };
        for (path, contents) in [
            ("registry.ollama.ai/library/small/latest", manifest(&layer("model", &digest))),
            ("registry.ollama.ai/someone/other/1b", manifest(&layer("model", &digest))),
            ("hf.co/org/name/Q4_0", manifest(&layer("model", &digest))),
            (
                "registry.ollama.ai/library/adapted/latest",
                manifest(&[layer("model", &digest), layer("adapter", &digest)].join(",")),
            ),
            ("registry.ollama.ai/library/gone/latest", manifest(&layer("model", &"cd".repeat(32)))),
            ("registry.ollama.ai/library/evil/latest", manifest(&layer("model", "../../../etc/passwd"))),
            ("registry.ollama.ai/library/broken/latest", "no JSON".to_owned()),
        ] {
            let path = ollama.join("manifests").join(path);
            fs::create_dir_all(path.parent().expect("it is in a folder")).expect("folders can be made");
            fs::write(path, contents).expect("files can be written");
        }
        let lm_studio = root.join("lm-studio");
        write(&lm_studio.join("someone/Small-GGUF/small-q4_0.gguf"), 9);
        let hub = root.join("hub");
        let commit = "0a".repeat(20);
        let snapshot = |repo: &str| hub.join(repo).join("snapshots").join(&commit);
        for file in ["a-Q4_0.gguf", "a-Q8_0.gguf"] {
            write(&snapshot("models--org--files").join(file), 10);
        }
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            write(&snapshot("models--org--whole").join(file), 11);
        }
        write(&snapshot("models--org--half").join("config.json"), 1);
        for repo in ["models--org--files", "models--org--whole", "models--org--half"] {
            fs::create_dir_all(hub.join(repo).join("refs")).expect("folders can be made");
            fs::write(hub.join(repo).join("refs/main"), &commit).expect("files can be written");
        }
        Places { folders: vec![folder], hub: Some(hub), ollama: vec![ollama], lm_studio: vec![lm_studio] }
    }

    #[test]
    fn models_are_found_where_programs_put_them() {
        let root = tempfile::tempdir().expect("a folder");
        let models = places(root.path()).models();
        let found: Vec<_> = models.iter().map(|model| (model.name.as_str(), model.place, model.bytes)).collect();
        let expected = [
            ("Small-Q4_0", Place::Folder, 4),
            ("hf.co/org/name:Q4_0", Place::Ollama, 8),
            ("org/files:Q4_0", Place::Hub, 10),
            ("org/files:Q8_0", Place::Hub, 10),
            ("org/whole", Place::Hub, 11),
            ("small-q4_0", Place::LmStudio, 9),
            ("small:latest", Place::Ollama, 8),
            ("someone/other:1b", Place::Ollama, 8),
            ("split", Place::Folder, 11),
            ("whole", Place::Folder, 7),
        ];
        assert_eq!(found, expected);
        assert!(models.iter().all(|model| model.path.exists()));
    }

    #[cfg(unix)]
    #[test]
    fn a_model_that_links_lead_to_is_one_model() {
        let root = tempfile::tempdir().expect("a folder");
        let mut places = places(root.path());
        let folder = places.folders[0].clone();
        std::os::unix::fs::symlink(".", folder.join("loop")).expect("links can be made");
        places.folders.push(folder);
        let names: Vec<String> = places.models().into_iter().map(|model| model.name).collect();
        assert_eq!(names.iter().filter(|name| *name == "whole").count(), 1, "{names:?}");
        assert!(places.find("whole").is_ok_and(|found| found.is_some()));
        places.folders.push("/no/such/folder".into());
        assert_eq!(places.missing_folders(), [Path::new("/no/such/folder")]);
    }

    #[test]
    fn what_is_removed_is_the_model_and_nothing_else() {
        let root = tempfile::tempdir().expect("a folder");
        let places = places(root.path());
        let names = |places: &Places| places.models().into_iter().map(|model| model.name).collect::<Vec<_>>();
        let before = names(&places);
        let found = |name: &str| places.find(name).expect("it is one").expect("it is there");
        for (name, bytes) in [("Small-Q4_0", 4), ("split", 11), ("whole", 8), ("org/whole", 33)] {
            let removal = found(name).removal().expect("it can be listed");
            assert_eq!(removal.bytes, bytes, "{name}");
            removal.delete().expect("it can be deleted");
            assert!(places.find(name).expect("none is called so").is_none_or(|other| other.name != name), "{name}");
        }
        assert!(!root.path().join("folder/whole").exists(), "nothing is left in it");
        assert!(
            root.path().join("folder/deep/mmproj-x.gguf").exists()
                && !root.path().join("hub/models--org--whole").exists()
        );
        // One of two files of a repository, and then the other.
        found("org/files:Q4_0").removal().and_then(|removal| removal.delete()).expect("it can be deleted");
        let files = root.path().join("hub/models--org--files");
        assert!(files.is_dir(), "the other one is in there");
        found("org/files").removal().and_then(|removal| removal.delete()).expect("it can be deleted");
        assert!(!files.exists());
        // What belongs to other programs is left to them.
        for (name, says) in [("small:latest", "ollama rm small:latest"), ("small-q4_0", "LM Studio")] {
            let error = found(name).removal().expect_err("it is another program's").to_string();
            assert!(error.contains(says), "{error}");
        }
        let left: Vec<&String> = before.iter().filter(|name| name.contains(':') && !name.starts_with("org/")).collect();
        assert!(left.iter().all(|name| names(&places).contains(name)), "{left:?}");
        // A folder of folders is not emptied of what lies below it.
        let nested = root.path().join("folder/outer/inner");
        write(&nested.join("inner.gguf"), 1);
        let outer = root.path().join("folder/outer");
        let others = ["beside.gguf", "notes.txt", "adapter_model.safetensors", "adapter_config.json"];
        for file in others.iter().chain(&["config.json", "model.safetensors"]) {
            write(&outer.join(file), 1);
        }
        let left = found("outer").removal().expect("it can be listed").left;
        // The folder below it, too.
        assert_eq!(left.len(), others.len() + 1, "{left:?}");
        found("outer").removal().and_then(|removal| removal.delete()).expect("it can be deleted");
        assert!(nested.join("inner.gguf").exists() && others.iter().all(|file| outer.join(file).exists()));
        assert!(!outer.join("config.json").exists());
    }

    #[cfg(unix)]
    #[test]
    fn of_a_linked_model_only_the_link_is_removed() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().expect("a folder");
        let (elsewhere, folder) = (root.path().join("elsewhere"), root.path().join("folder"));
        for file in ["whole/config.json", "whole/model.safetensors", "file.gguf"] {
            write(&elsewhere.join(file), 5);
        }
        fs::create_dir(&folder).expect("folders can be made");
        symlink("../elsewhere/whole", folder.join("m")).expect("links can be made");
        symlink("../elsewhere/file.gguf", folder.join("f.gguf")).expect("links can be made");
        let places = Places { folders: vec![folder.clone()], ..Places::default() };
        for name in ["m", "f"] {
            let removal = places.find(name).expect("one").expect("it is there").removal().expect("listed");
            assert!(removal.bytes == 0 && removal.files.len() == 1 && removal.linked.is_some(), "{name}: {removal:?}");
            removal.delete().expect("it can be deleted");
        }
        assert!(fs::read_dir(&folder).expect("it is there").next().is_none());
        assert!(elsewhere.join("whole/config.json").exists() && elsewhere.join("file.gguf").exists());
    }

    #[test]
    fn gguf_files_beside_safetensors_in_the_cache_are_models_of_their_own() {
        let root = tempfile::tempdir().expect("a folder");
        let repository = root.path().join("models--org--both");
        let snapshot = repository.join("snapshots").join("0a".repeat(20));
        for (file, bytes) in
            [("config.json", 1), ("model.safetensors", 7), ("both-Q4_0.gguf", 4), ("both-Q8_0.gguf", 8)]
        {
            write(&snapshot.join(file), bytes);
        }
        fs::create_dir_all(repository.join("refs")).expect("folders can be made");
        fs::write(repository.join("refs/main"), "0a".repeat(20)).expect("files can be written");
        let places = Places { hub: Some(root.path().to_owned()), ..Places::default() };
        let names = || places.models().into_iter().map(|model| model.name).collect::<Vec<_>>();
        assert_eq!(names(), ["org/both", "org/both:Q4_0", "org/both:Q8_0"]);
        let remove = |name: &str| {
            let found = places.find(name).expect("it is one").expect("it is there");
            let removal = found.removal().expect("it can be listed");
            removal.delete().expect("it can be deleted");
            removal.bytes
        };
        let stray = root.path().join("models--org--stray");
        for (file, bytes) in [("stray-Q4_0.gguf", 4), ("lora.safetensors", 7)] {
            write(&stray.join("snapshots").join("0a".repeat(20)).join(file), bytes);
        }
        fs::create_dir_all(stray.join("refs")).expect("folders can be made");
        fs::write(stray.join("refs/main"), "0a".repeat(20)).expect("files can be written");
        assert_eq!(names()[3..], ["org/stray"], "without settings there is no model in safetensors");
        fs::remove_dir_all(stray).expect("it can be removed");
        assert_eq!(remove("org/both:Q4_0"), 4);
        assert_eq!(names(), ["org/both", "org/both:Q8_0"]);
        assert_eq!(remove("org/both"), 8);
        // The only one that is left needs no quantization in its name.
        assert_eq!(names(), ["org/both"]);
        assert_eq!(remove("org/both"), 8);
        assert!(!repository.exists());
    }

    #[cfg(unix)]
    #[test]
    fn blobs_of_other_snapshots_stay() {
        let root = tempfile::tempdir().expect("a folder");
        let repository = root.path().join("models--org--files");
        let commits = ["0a", "0b"].map(|part| part.repeat(20));
        write(&repository.join("blobs/one"), 10);
        write(&repository.join("blobs/two"), 20);
        for commit in &commits {
            let snapshot = repository.join("snapshots").join(commit);
            fs::create_dir_all(&snapshot).expect("folders can be made");
            for (name, blob) in [("a-Q4_0.gguf", "one"), ("a-Q8_0.gguf", "two")] {
                if name.contains("Q4") || *commit == commits[0] {
                    let target = format!("../../blobs/{blob}");
                    std::os::unix::fs::symlink(target, snapshot.join(name)).expect("links can be made");
                }
            }
        }
        fs::create_dir_all(repository.join("refs")).expect("folders can be made");
        fs::write(repository.join("refs/main"), &commits[0]).expect("files can be written");
        let places = Places { hub: Some(root.path().to_owned()), ..Places::default() };
        let removal = |name: &str| places.find(name).expect("one").expect("it is there").removal().expect("listed");
        let shared = removal("org/files:Q4_0");
        assert_eq!(shared.files.len(), 1, "another snapshot needs the blob: {shared:?}");
        let own = removal("org/files:Q8_0");
        assert_eq!((own.files.len(), own.bytes), (2, 20), "{own:?}");
        own.delete().expect("it can be deleted");
        assert!(repository.join("blobs/one").exists() && !repository.join("blobs/two").exists());
        // What a link leads to elsewhere is somebody else's; two links to one file are one file.
        write(&root.path().join("mine.gguf"), 3);
        let snapshot = repository.join("snapshots").join(&commits[0]);
        std::os::unix::fs::symlink(root.path().join("mine.gguf"), snapshot.join("b-Q5_0.gguf"))
            .expect("links can be made");
        removal("org/files:Q5_0").delete().expect("it can be deleted");
        assert!(root.path().join("mine.gguf").exists());
        write(&repository.join("blobs/config"), 5);
        write(&repository.join("blobs/weights"), 50);
        for (commit, files) in commits.iter().zip([2, 1]) {
            for (name, blob) in [("config.json", "config"), ("model.safetensors", "weights")].into_iter().take(files) {
                let link = repository.join("snapshots").join(commit).join(name);
                std::os::unix::fs::symlink(format!("../../blobs/{blob}"), link).expect("links can be made");
            }
        }
        let whole = removal("org/files");
        assert_eq!(whole.bytes, 55, "{whole:?}");
        whole.delete().expect("it can be deleted");
        assert!(!repository.join("blobs/weights").exists() && repository.join("blobs/one").exists());
    }

    #[test]
    fn names_are_found_exactly_or_where_only_one_model_has_them() {
        let root = tempfile::tempdir().expect("a folder");
        let places = places(root.path());
        let place =
            |name| places.find(name).map(|found| found.map(|model| model.place)).map_err(|error| error.to_string());
        assert_eq!(place("Small-Q4_0"), Ok(Some(Place::Folder)));
        assert_eq!(place("small-q4_0"), Ok(Some(Place::LmStudio)));
        assert_eq!(place("small"), Ok(Some(Place::Ollama)));
        assert_eq!(place("ORG/WHOLE"), Ok(Some(Place::Hub)));
        assert_eq!(place("nothing"), Ok(None));
        assert_eq!(place(""), Ok(None));
        let several = place("SMALL-Q4_0").expect_err("two have it");
        assert!(several.contains("one model called `SMALL-Q4_0`") && several.contains("lm-studio"), "{several}");
        assert_eq!(places.similar("small q4"), ["Small-Q4_0", "small-q4_0"]);
        assert!(places.similar("").is_empty());
    }
}
