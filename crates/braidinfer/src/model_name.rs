//! From what a user calls a model to its files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use braidinfer_hub::{Hub, HubId, Progress, Settings};
use braidinfer_model::ModelSource;

use crate::local_models::{Aliases, LocalModel, Place, Places};
use crate::memory::available as available_memory;
use crate::{Error, Result};

/// What the name of a model stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelName {
    /// A model directory or a GGUF file. It need not be there.
    Path(PathBuf),
    /// A model that is on this machine.
    Local(LocalModel),
    /// A model of the Hub.
    Hub(HubId),
}

/// Where models of the Hub come from and go to.
#[derive(Debug, Clone, Default)]
pub struct ResolveOptions {
    /// The Hub and its cache; if `None`, as the environment and the memory say ([`hub_settings`]).
    pub hub: Option<Settings>,
}

impl ModelName {
    /// A name that exists as a path is a path. Otherwise it may be an alias ([`Aliases::from_env`]), whose model it is; a Hub id,
    /// `org/name`, `org/name@revision`, `org/name:QUANT` or `org/name@revision:QUANT`; or the name of a model on this machine
    /// ([`Places::from_env`]). Any other is a path, and so is one that ends in `.gguf`.
    ///
    /// Fails with [`Error::Hub`] on what has the shape of a Hub id and is none, if aliases cannot be read, and if several models
    /// have the name.
    pub fn parse(name: &str) -> Result<Self> {
        Self::parse_with(name, &|| Aliases::from_env(), &Places::from_env())
    }

    /// The same for an argument of a program. What is not UTF-8 is a path.
    pub fn parse_argument(argument: &OsStr) -> Result<Self> {
        argument.to_str().map_or_else(|| Ok(Self::Path(argument.into())), Self::parse)
    }

    /// Aliases are only read for a name that may be one.
    fn parse_with(name: &str, aliases: &dyn Fn() -> Result<Option<Aliases>>, places: &Places) -> Result<Self> {
        let is_file = name.ends_with(".gguf") && !name.contains(':');
        // What looks like an id may be a relative path.
        if is_file || Path::new(name).exists() {
            return Ok(Self::Path(name.into()));
        }
        if Aliases::may_be(name)
            && let Some(model) = aliases()?.as_ref().and_then(|aliases| aliases.get(name))
        {
            return Self::parse_with(model, &|| Ok(None), places);
        }
        // Ollama's names of other people's models have the shape of Hub ids.
        let is_id = HubId::looks_like(name);
        if is_id && name.contains(':') {
            let of_ollama = places.find(name)?.filter(|model| model.place == Place::Ollama && model.name == name);
            if let Some(model) = of_ollama {
                return Ok(Self::Local(model));
            }
        }
        if is_id {
            return name.parse().map(Self::Hub).map_err(Error::hub(name));
        }
        let is_path = name.is_empty() || name.starts_with(['.', '/', '~', '\\']);
        let found = if is_path { None } else { places.find(name)? };
        Ok(found.map_or_else(|| Self::Path(name.into()), Self::Local))
    }

    /// The files, which are fetched first if they are those of a Hub id and not in the cache. `progress` is told of that;
    /// `&mut ()` ignores it.
    ///
    /// Fails with [`Error::Hub`] where they cannot be fetched, and with [`Error::Model`] where there is no model.
    pub fn resolve(&self, options: &ResolveOptions, progress: &mut dyn Progress) -> Result<ModelSource> {
        let path = match self {
            Self::Path(path) => path.clone(),
            Self::Local(model) => model.path.clone(),
            Self::Hub(id) => fetch(id, options, progress).map_err(Error::hub(id))?,
        };
        Ok(ModelSource::open(path)?)
    }
}

/// The files of a model: [`ModelName::parse`] and [`ModelName::resolve`] in one.
pub fn resolve(name: &str, options: &ResolveOptions, progress: &mut dyn Progress) -> Result<ModelSource> {
    ModelName::parse(name)?.resolve(options, progress)
}

fn fetch(id: &HubId, options: &ResolveOptions, progress: &mut dyn Progress) -> braidinfer_hub::Result<PathBuf> {
    let settings = options.hub.clone().map_or_else(hub_settings, Ok)?;
    Hub::new(settings)?.fetch(id, progress)
}

/// Settings from the environment, with the memory that there is now for the choice of a quantization.
///
/// Fails on an invalid variable.
pub fn hub_settings() -> braidinfer_hub::Result<Settings> {
    Ok(Settings { memory: Some(available_memory() as u64), ..Settings::from_env()? })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parsed(name: &str) -> ModelName {
        // Not what this machine has.
        ModelName::parse_with(name, &|| Ok(None), &Places::default()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn path(name: &str) -> ModelName {
        ModelName::Path(name.into())
    }

    #[test]
    fn names_of_paths_are_paths_whether_they_exist_or_not() {
        for name in ["model", "./a/b", "../b", "/a/b", "~/a", "a/b/c", "model.gguf", "folder/model.gguf", ""] {
            assert_eq!(parsed(name), path(name));
        }
    }

    #[test]
    fn ids_are_ids_only_where_no_such_path_exists() {
        for name in ["org/name", "org/name@main", "org/name:Q4_K_M", "org/name@v1:Q8_0", "org/name:file.gguf"] {
            assert_eq!(parsed(name), ModelName::Hub(name.parse().expect("an id")));
        }
        // Tests run in the folder of the crate.
        assert_eq!(parsed("src/handle"), path("src/handle"));
    }

    #[test]
    fn aliases_stand_for_models_and_models_on_this_machine_have_names() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("small.gguf"), "x").expect("written");
        let places = Places { folders: vec![folder.path().to_owned()], ..Places::default() };
        let mut aliases = Aliases::read(folder.path().join("aliases.json")).expect("it need not be there");
        let parsed = |name: &str, aliases: &Aliases| {
            ModelName::parse_with(name, &|| Ok(Some(aliases.clone())), &places)
                .unwrap_or_else(|error| panic!("{error}"))
        };
        let local = parsed("small", &aliases);
        assert!(matches!(&local, ModelName::Local(model) if model.path.ends_with("small.gguf")), "{local:?}");
        for (alias, model) in [("s", "small"), ("h", "org/name"), ("t", "s")] {
            aliases.set(alias, model).expect("it can be written");
        }
        assert_eq!(parsed("s", &aliases), local);
        assert_eq!(parsed("h", &aliases), ModelName::Hub("org/name".parse().expect("an id")));
        // Aliases of aliases could go round and round.
        assert_eq!(parsed("t", &aliases), path("s"));
        assert_eq!(parsed("nothing", &aliases), path("nothing"));
        // What cannot be an alias does not need them.
        let unreadable = || Err(Error::Internal("aliases cannot be read".into()));
        for name in ["org/name", "./a", "src/handle", "a.gguf"] {
            ModelName::parse_with(name, &unreadable, &places).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        ModelName::parse_with("nothing", &unreadable, &places).expect_err("it may be one");
    }

    #[test]
    fn what_only_looks_like_an_id_is_refused_by_name() {
        let error = ModelName::parse("org/na me").expect_err("a space").to_string();
        assert!(
            error.starts_with("org/na me: no such file or directory, so taken for a model of the Hub: "),
            "{error}"
        );
        assert!(error.contains("contains ` `"), "{error}");
    }

    #[test]
    fn directories_and_gguf_files_are_opened_without_a_look_at_the_hub() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = folder.path().to_str().expect("UTF-8");
        let found = resolve(name, &ResolveOptions::default(), &mut ()).expect("a folder will do");
        assert!(matches!(found, ModelSource::Directory(path) if path == folder.path()));
        let file = folder.path().join("model.gguf");
        fs::write(&file, "no model").expect("written");
        let error = resolve(file.to_str().expect("UTF-8"), &ResolveOptions::default(), &mut ()).expect_err("no GGUF");
        assert!(matches!(&error, Error::Model(_)), "{error}");
    }

    #[test]
    fn a_model_of_the_hub_is_found_in_the_cache_that_the_options_name() {
        let cache = tempfile::tempdir().expect("a folder");
        let hub = Settings { offline: true, ..Settings::new(cache.path()) };
        let options = ResolveOptions { hub: Some(hub) };
        let error = resolve("org/name", &options, &mut ()).expect_err("an empty cache").to_string();
        assert!(error.contains("org/name is not whole in the cache"), "{error}");
        let commit = "0a".repeat(20);
        let repository = cache.path().join("models--org--name");
        let snapshot = repository.join("snapshots").join(&commit);
        fs::create_dir_all(&snapshot).and_then(|()| fs::create_dir_all(repository.join("refs"))).expect("folders");
        fs::write(repository.join("refs/main"), commit).expect("written");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::write(snapshot.join(file), "{}").expect("written");
        }
        let found = resolve("org/name", &options, &mut ()).expect("it is in the cache");
        assert!(matches!(&found, ModelSource::Directory(path) if *path == snapshot), "{found:?}");
    }
}
