//! Several models in one server, each loaded when somebody asks for it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{anyhow, bail};
use braidinfer::model::ModelSource;
use braidinfer::{LocalModel, Places, available_memory, hub_settings};
use braidinfer_hub::{Hub, HubId};
use braidinfer_server::{Catalog, Fetch, FetchProgress, ModelOnDemand, OnDemand, Server};

use super::{load_options, name_of};
use crate::args::{OnDemandArgs, ServeArgs};
use crate::output::{counted, size};
use crate::{model, output};

/// Whether models are to be loaded when somebody asks for them, and not at the start.
pub fn is_wanted(args: &ServeArgs) -> bool {
    let OnDemandArgs { models_dir, local_models, model_memory, idle, allow_pull } = &args.on_demand;
    let has_many = args.models.len() > 1 || !models_dir.is_empty() || *local_models;
    has_many || model_memory.is_some() || idle.is_some() || *allow_pull
}

/// Fails if something was asked for that is for one model alone, or if it is not clear which model a name is.
pub fn check(args: &ServeArgs) -> anyhow::Result<()> {
    if !is_wanted(args) {
        return Ok(());
    }
    let of_one = [
        ("--served-model-name", !args.engine.served_model_name.is_empty()),
        ("--any-model-name", args.engine.any_model_name),
        ("--chat-template", args.load.chat_template.is_some()),
        ("--draft", args.load.draft.is_some()),
        ("--lora", !args.load.lora.is_empty()),
        #[cfg(feature = "kv-events")]
        ("--kv-events", args.kv_events.kv_events.is_some()),
    ];
    if let Some((flag, _)) = of_one.iter().find(|(_, is_given)| *is_given) {
        bail!("{flag}: expected one model, which is loaded at the start, found models that are loaded on demand");
    }
    for folder in &args.on_demand.models_dir {
        // Not a folder that will come into being: a typing error would never be noticed.
        std::fs::read_dir(folder).map_err(|error| anyhow!("--models-dir {}: {error}", folder.display()))?;
    }
    for wanted in &args.models {
        model::require(wanted)?;
    }
    let mut seen = BTreeSet::new();
    for (name, _) in args.models.iter().map(|model| name_of(model)) {
        if !seen.insert(name.clone()) {
            bail!(
                "{name}: expected models with different names, found two of this one; an alias gives one another name"
            );
        }
    }
    Ok(())
}

/// Serves the models, and says which.
pub fn begin(server: &Server, args: ServeArgs, address: &str) -> anyhow::Result<()> {
    let options = load_options(&args)?;
    let memory =
        args.on_demand.model_memory.map_or_else(available_memory, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let models: Vec<ModelOnDemand> = args.models.into_iter().map(named).collect();
    let places = places(&args.on_demand);
    let mut names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    names.extend(places.iter().flat_map(Places::models).map(|model| model.name));
    say_doubles(&names);
    names.sort();
    names.dedup();
    let idle = args.on_demand.idle.map(|time| *time);
    let fetch = args.on_demand.allow_pull.then(|| -> Fetch { Box::new(fetch) });
    let catalog =
        places.map(|places| -> Catalog { Box::new(move || places.models().into_iter().map(local).collect()) });
    if !server.serve_on_demand(OnDemand { models, catalog, fetch, options, memory, idle }) {
        bail!("the server has a model already");
    }
    let unloading =
        idle.map_or(String::new(), |idle| format!(" or nobody used one for {}", humantime::format_duration(idle)));
    output::note(format!(
        "listening at {address}: {} loaded when somebody asks for one, and unloaded when more than {} are needed{unloading}: {}",
        counted(names.len(), "model"),
        size(memory as u64),
        names.join(", ")
    ));
    Ok(())
}

/// Where models are looked for again and again, if anywhere.
fn places(args: &OnDemandArgs) -> Option<Places> {
    let mut places = if args.local_models { Places::from_env() } else { Places::default() };
    places.folders.extend(args.models_dir.iter().cloned());
    (args.local_models || !args.models_dir.is_empty()).then_some(places)
}

/// Of several models with one name, the first is served.
fn say_doubles(names: &[String]) {
    let mut seen = BTreeSet::new();
    let doubles: BTreeSet<&String> = names.iter().filter(|name| !seen.insert(*name)).collect();
    for name in doubles {
        output::note(format!("several models are called {name}: the first that `braidinfer list` shows is served"));
    }
}

fn named(wanted: OsString) -> ModelOnDemand {
    let (name, file_name) = name_of(&wanted);
    ModelOnDemand { name, file_name, bytes: None, source: Box::new(move || model::source(Some(&wanted))) }
}

fn local(found: LocalModel) -> ModelOnDemand {
    let LocalModel { name, path, bytes, .. } = found;
    let source = move || Ok(ModelSource::open(&path)?);
    ModelOnDemand { name, file_name: None, bytes: Some(bytes), source: Box::new(source) }
}

/// Fetches a model of the Hub, whose id may have the prefix that Ollama's users write.
fn fetch(name: &str, progress: &mut dyn FetchProgress) -> anyhow::Result<ModelOnDemand> {
    let id = ["hf.co/", "huggingface.co/"].into_iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    if !HubId::looks_like(id) {
        bail!("expected a model of the Hugging Face Hub, hf.co/ORG/NAME or hf.co/ORG/NAME:QUANT, found another name");
    }
    let path = Hub::new(hub_settings()?)?.fetch(&id.parse()?, progress)?;
    let source = move || Ok(ModelSource::open(&path)?);
    Ok(ModelOnDemand { name: name.to_owned(), file_name: Some(id.to_owned()), bytes: None, source: Box::new(source) })
}

/// Reads a time such as `10m`, or a number of seconds.
pub fn parse_time(text: &str) -> Result<humantime::Duration, String> {
    let seconds = text.parse::<u64>().map(|seconds| Duration::from_secs(seconds).into());
    seconds.or_else(|_| text.parse()).map_err(|_| format!("expected a time such as 10m or 1h 30m, found `{text}`"))
}
