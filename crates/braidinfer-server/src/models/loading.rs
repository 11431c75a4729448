//! Loading and unloading the models of a server, one at a time and within its memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use braidinfer::{Error, Llm, LoadOptions, Outline};
use tokio::time::{MissedTickBehavior, interval};

use super::about::About;
use super::entry::{Entry, Keep, LayersLoaded, Loaded, Phase};
use super::{ModelOnDemand, Models, Policy, Served};
use crate::http::ApiError;
use crate::metrics::Metrics;

/// How often it is looked for models that nobody uses.
const LOOK_FOR_IDLE_EVERY: Duration = Duration::from_secs(1);

impl Models {
    /// Begins to load a model that is not being loaded.
    pub(super) fn begin_loading(self: &Arc<Self>, name: &str, entry: &mut Entry) {
        let layers = Arc::<LayersLoaded>::default();
        let before = std::mem::replace(&mut entry.phase, Phase::Loading(Arc::clone(&layers)));
        let broken = match before {
            Phase::Loaded(broken) => Some(broken),
            Phase::Unloaded | Phase::Loading(_) | Phase::Unloading(..) => None,
        };
        let (models, name) = (Arc::clone(self), name.to_owned());
        tokio::spawn(async move {
            let _turn = models.turn.lock().await;
            if let Some(broken) = broken {
                tracing::error!(model = name, "the engine has stopped; the model is loaded anew");
                broken.end().await;
            }
            let loaded = models.load(&name, &layers).await;
            if let Some(entry) = models.entries().get_mut(&name) {
                match loaded {
                    Ok(loaded) => entry.became(loaded),
                    Err(error) => entry.failed(&error),
                }
            }
        });
    }

    /// Loads a model. Those that were not used for longest are unloaded as long as there is too little memory.
    async fn load(self: &Arc<Self>, name: &str, layers: &Arc<LayersLoaded>) -> Result<Loaded, ApiError> {
        let model = self.entries().get(name).and_then(|entry| entry.on_demand.clone());
        let (Some(model), Some(policy)) = (model, self.policy.get()) else {
            return Err(ApiError::internal("the model cannot be loaded"));
        };
        if model.bytes.is_some_and(|bytes| bytes > policy.memory as u64) {
            return Err(ApiError::model_too_large(name, model.bytes.unwrap_or_default(), policy.memory));
        }
        let begun = Instant::now();
        tracing::info!(model = name, "is being loaded");
        loop {
            let oldest = self.least_recently_used();
            let options = self.options(policy, oldest.is_none());
            let (models, model, layers) = (Arc::clone(self), Arc::clone(&model), Arc::clone(layers));
            let opened = tokio::task::spawn_blocking(move || models.open(&model, &options, &layers)).await;
            let opened = opened.unwrap_or_else(|error| Err(anyhow::anyhow!("loading ended: {error}")));
            match (opened, oldest) {
                (Ok(loaded), _) => {
                    let (kernels, memory) = (loaded.served().kernels.as_str(), braidinfer::size(loaded.memory));
                    let (context, milliseconds) = (loaded.served().context, begun.elapsed().as_millis() as u64);
                    tracing::info!(model = name, kernels, context, memory, milliseconds, "is loaded");
                    return Ok(loaded);
                }
                (Err(error), Some(oldest)) if is_about_memory(&error) => {
                    tracing::info!(model = oldest, "is unloaded: its memory is needed");
                    self.unload_in_turn(&oldest).await;
                }
                (Err(error), _) => {
                    tracing::error!(model = name, error = format!("{error:#}"), "could not be loaded");
                    return Err(could_not_load(&error));
                }
            }
        }
    }

    /// How the next model is loaded; `is_alone` says that no other one can make room for it.
    fn options(&self, policy: &Policy, is_alone: bool) -> LoadOptions {
        let taken = self.entries().values().map(Entry::memory).fold(0, usize::saturating_add);
        let memory = Some(policy.memory.saturating_sub(taken));
        // A model is not to be shortened for the sake of others that are not in use.
        LoadOptions { memory, whole_context: !is_alone, ..policy.options.clone() }
    }

    fn open(&self, model: &ModelOnDemand, options: &LoadOptions, layers: &LayersLoaded) -> anyhow::Result<Loaded> {
        let source = (model.source)()?;
        let llm = Llm::open(&source, options, &|done, all| layers.update(done, all))?;
        for note in llm.notes() {
            tracing::info!(model = model.name, "{note}");
        }
        let memory = llm.memory();
        let metrics = Metrics::new(&model.name, memory, &self.metrics);
        Ok(Loaded::new(Served::begin(llm, model.name.clone(), metrics, &self.config)?, memory))
    }

    /// Reads what a model is, without its weights.
    pub(super) fn look_at(&self, model: &ModelOnDemand) -> Result<About, ApiError> {
        let options = self.policy.get().map(|policy| policy.options.clone()).unwrap_or_default();
        let outline = (model.source)().and_then(|source| Ok(Outline::read(&source, &options)?));
        outline.map(|outline| About::of(&outline, &self.config)).map_err(|error| {
            tracing::error!(model = model.name, error = format!("{error:#}"), "could not be read");
            could_not_load(&error)
        })
    }

    /// The model to unload first: one that nobody uses if there is one, and of those the one that was not used for longest.
    fn least_recently_used(&self) -> Option<String> {
        let entries = self.entries();
        let candidates = entries.iter().filter(|(_, entry)| entry.on_demand.is_some());
        let used = candidates.filter_map(|(name, entry)| Some((name, entry.loaded()?)));
        let oldest = used.min_by_key(|(_, loaded)| (loaded.uses.count() > 0, loaded.uses.last()));
        oldest.map(|(name, _)| name.clone())
    }

    /// Unloads a model when its last answers have ended. Returns whether it was loaded.
    ///
    /// Fails for a model that was given to the server.
    pub async fn unload(self: &Arc<Self>, asked: &str) -> Result<bool, ApiError> {
        let own = self.own_name(Some(asked))?;
        if self.entries().get(&own).is_some_and(|entry| entry.on_demand.is_none()) {
            let message =
                "model: expected one that is loaded on demand, found the one that this server was started with";
            return Err(ApiError::field("model", message));
        }
        let models = Arc::clone(self);
        // Goes on if the client leaves: a model that is half unloaded is no use.
        let unloading = tokio::spawn(async move {
            let _turn = models.turn.lock().await;
            models.unload_in_turn(&own).await
        });
        unloading.await.map_err(|error| ApiError::internal(error.to_string()))
    }

    async fn unload_in_turn(self: &Arc<Self>, name: &str) -> bool {
        let loaded = self.entries().get_mut(name).and_then(|entry| {
            let phase = match entry.loaded() {
                Some(loaded) => Phase::Unloading(loaded.weak(), loaded.memory),
                None => return None,
            };
            match std::mem::replace(&mut entry.phase, phase) {
                Phase::Loaded(loaded) => Some(loaded),
                Phase::Unloaded | Phase::Loading(_) | Phase::Unloading(..) => None,
            }
        });
        let Some(loaded) = loaded else { return false };
        loaded.end().await;
        if let Some(entry) = self.entries().get_mut(name) {
            entry.phase = Phase::Unloaded;
            // What a request said of it was about the time until now.
            entry.keep = Keep::AsConfigured;
            if !entry.waiting.is_empty() {
                self.begin_loading(name, entry);
            }
        }
        true
    }

    /// Unloads models that nobody has used for long, as long as the server runs.
    pub async fn unload_idle(self: Arc<Self>) {
        let Some(idle) = self.policy.get().map(|policy| policy.idle) else { return };
        let mut looks = interval(LOOK_FOR_IDLE_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            while let Some(name) = self.first_idle(idle) {
                let _turn = self.turn.lock().await;
                // It may have been used while others had their turn.
                if self.is_idle(&name, idle) {
                    tracing::info!(model = name, "is unloaded: nobody used it");
                    self.unload_in_turn(&name).await;
                }
            }
        }
    }

    fn first_idle(&self, idle: Option<Duration>) -> Option<String> {
        self.entries().iter().find(|(_, entry)| is_over(entry, idle)).map(|(name, _)| name.clone())
    }

    fn is_idle(&self, name: &str, idle: Option<Duration>) -> bool {
        self.entries().get(name).is_some_and(|entry| is_over(entry, idle))
    }
}

/// Whether nobody has used a model for as long as it is kept.
fn is_over(entry: &Entry, idle: Option<Duration>) -> bool {
    let is_unused = entry.loaded().is_some_and(|loaded| loaded.uses.count() == 0);
    is_unused && entry.remaining(idle) == Some(Duration::ZERO)
}

fn is_about_memory(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::TooLittleMemory { .. }))
}

/// What clients are told of a model that could not be loaded.
fn could_not_load(error: &anyhow::Error) -> ApiError {
    match error.downcast_ref::<Error>() {
        Some(error @ Error::TooLittleMemory { .. }) => error.into(),
        _ => ApiError::model_not_loaded(),
    }
}
