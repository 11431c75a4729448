//! The models of a server: given to it loaded, or loaded when somebody asks for them and unloaded when their memory is needed.

mod about;
mod entry;
mod lease;
mod loading;
mod served;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use braidinfer::model::ModelSource;
use braidinfer::{Llm, LoadOptions, LoadedAdapter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use self::about::About;
pub use self::entry::{Keep, ListedModel, ModelState};
pub use self::lease::Lease;
pub use self::served::{FormSlot, Served};

use self::entry::{Entry, Loaded, Phase};
use crate::http::{ApiError, ServerConfig};
use crate::metrics::{Metrics, ServerMetrics};

/// Most requests at once for models to be fetched.
const MOST_FETCHES: usize = 8;
/// How often a catalog is looked through at most.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A model that a server loads when it is first asked for.
pub struct ModelOnDemand {
    /// What it is called in requests.
    pub name: String,
    /// Another name, which is not listed, such as that of its file.
    pub file_name: Option<String>,
    /// Size of its weights in bytes, if it is known.
    pub bytes: Option<u64>,
    /// Finds its files, and fetches them if they are not on this machine.
    pub source: Box<dyn Fn() -> anyhow::Result<ModelSource> + Send + Sync>,
}

impl fmt::Debug for ModelOnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelOnDemand").field("name", &self.name).finish_non_exhaustive()
    }
}

pub use braidinfer::hub::Progress as FetchProgress;

/// Fetches a model from elsewhere, by the name that a client gives it.
pub type Fetch = Box<dyn Fn(&str, &mut dyn FetchProgress) -> anyhow::Result<ModelOnDemand> + Send + Sync>;
/// Lists models.
pub type Catalog = Box<dyn Fn() -> Vec<ModelOnDemand> + Send + Sync>;

/// Models that are loaded when somebody asks for them.
pub struct OnDemand {
    /// Those that are known from the beginning.
    pub models: Vec<ModelOnDemand>,
    /// Lists further ones, again when somebody asks for the list or for a name that is not known.
    pub catalog: Option<Catalog>,
    /// Fetches what clients ask for; `None` if they may not.
    pub fetch: Option<Fetch>,
    /// How all of them are loaded.
    pub options: LoadOptions,
    /// Most memory in bytes that those that are loaded may take together.
    pub memory: usize,
    /// How long one stays loaded when nobody uses it; `None` until its memory is needed.
    pub idle: Option<Duration>,
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { models, memory, idle, .. } = self;
        f.debug_struct("OnDemand").field("models", models).field("memory", memory).field("idle", idle).finish()
    }
}

/// What holds for all models that are loaded on demand.
struct Policy {
    catalog: Option<Catalog>,
    fetch: Option<Fetch>,
    options: LoadOptions,
    memory: usize,
    idle: Option<Duration>,
}

/// All models of a server, by name.
pub struct Models {
    config: Arc<ServerConfig>,
    metrics: Arc<ServerMetrics>,
    policy: OnceLock<Policy>,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// When the catalog was looked through.
    looked: Mutex<Option<Instant>>,
    fetching: Mutex<()>,
    /// Room for those who wait for it.
    fetches: Arc<Semaphore>,
    /// Models are loaded and unloaded one after another.
    turn: tokio::sync::Mutex<()>,
}

impl Models {
    pub fn new(config: &Arc<ServerConfig>, metrics: &Arc<ServerMetrics>) -> Arc<Self> {
        Arc::new(Self {
            config: Arc::clone(config),
            metrics: Arc::clone(metrics),
            policy: OnceLock::new(),
            entries: Mutex::default(),
            looked: Mutex::default(),
            fetching: Mutex::default(),
            fetches: Arc::new(Semaphore::new(MOST_FETCHES)),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Serves a model that is loaded, from now on and until the server ends. Returns `false` if there is one already.
    pub fn give(&self, llm: Llm, name: String) -> std::io::Result<bool> {
        let own = |adapter: &&LoadedAdapter| adapter.name == name || self.config.model_names.is_named(&adapter.name);
        if let Some(adapter) = llm.adapters().iter().find(own) {
            let message = format!("adapter {}: expected a name that is not one of the model", adapter.name);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
        }
        let memory = llm.memory();
        self.metrics.counts_workers_of(llm.text().worker());
        let metrics = Metrics::new(&name, memory, &self.metrics);
        let loaded = Loaded::new(Served::begin(llm, name.clone(), metrics, &self.config)?, memory);
        let mut entries = self.entries();
        if !entries.is_empty() {
            return Ok(false);
        }
        entries.insert(name, Entry::given(self.config.model_names.clone(), loaded));
        Ok(true)
    }

    /// Serves models that are loaded when somebody asks for them. Returns `false` if there are models already.
    pub fn on_demand(&self, wanted: OnDemand) -> bool {
        let OnDemand { models, catalog, fetch, options, memory, idle } = wanted;
        self.metrics.counts_workers_of(options.worker.as_ref());
        let policy = Policy { catalog, fetch, options, memory, idle };
        let is_first = self.entries().is_empty() && self.policy.set(policy).is_ok();
        if is_first {
            models.into_iter().for_each(|model| self.add(model));
        }
        is_first
    }

    /// Adds a model, unless there is one with this name.
    pub fn add(&self, model: ModelOnDemand) {
        self.entries().entry(model.name.clone()).or_insert_with(|| Entry::on_demand(model));
    }

    /// Whether there is a model, or will be when somebody asks for it.
    pub fn is_ready(&self) -> bool {
        self.policy.get().is_some() || !self.entries().is_empty()
    }

    /// Fails if a model that was given to the server will answer nothing any more.
    pub fn check_engines(&self) -> Result<(), ApiError> {
        let entries = self.entries();
        let given = entries.values().filter(|entry| entry.on_demand.is_none()).filter_map(Entry::loaded);
        given.map(Loaded::served).try_for_each(Served::check_engine)
    }

    /// The only model, if it was given to the server.
    pub fn given(&self) -> Option<Lease> {
        self.entries().values().find(|entry| entry.on_demand.is_none())?.lease()
    }

    /// All models, by name; each by all names that are listed.
    pub fn list(&self) -> Vec<ListedModel> {
        self.look_again();
        let idle = self.policy.get().and_then(|policy| policy.idle);
        let entries = self.entries();
        let listed = |(name, entry): (&String, &Entry)| {
            let names: Vec<&String> = std::iter::once(name).chain(&entry.names.listed).collect();
            let adapters = entry.adapters().map(|adapter| entry.listed_adapter(adapter, name, idle));
            names.into_iter().map(|name| entry.listed(name, idle)).chain(adapters).collect::<Vec<_>>()
        };
        entries.iter().flat_map(listed).collect()
    }

    /// What is told of the model with this name.
    pub fn listed(&self, asked: &str) -> Result<ListedModel, ApiError> {
        let own = self.own_name(Some(asked))?;
        let idle = self.policy.get().and_then(|policy| policy.idle);
        let entries = self.entries();
        let listed = |entry: &Entry| match entry.adapters().find(|adapter| *adapter == asked) {
            Some(adapter) => entry.listed_adapter(adapter, &own, idle),
            None => entry.listed(asked, idle),
        };
        entries.get(&own).map(listed).ok_or_else(|| unknown(asked, &entries))
    }

    /// What a model is. One that is not loaded is looked at, without its weights.
    pub async fn about(self: &Arc<Self>, asked: &str) -> Result<Arc<About>, ApiError> {
        let own = self.own_name(Some(asked))?;
        let model = match self.entries().get(&own) {
            Some(Entry { about: Some(about), .. }) => return Ok(Arc::clone(about)),
            Some(entry) => entry.on_demand.clone(),
            None => None,
        };
        let (model, models) = (model.ok_or_else(|| unknown(asked, &self.entries()))?, Arc::clone(self));
        let looked = tokio::task::spawn_blocking(move || models.look_at(&model)).await;
        let about = Arc::new(looked.map_err(|error| ApiError::internal(error.to_string()))??);
        if let Some(entry) = self.entries().get_mut(&own) {
            entry.about.get_or_insert_with(|| Arc::clone(&about));
        }
        Ok(about)
    }

    /// Whether there is a model with this name.
    pub fn has(&self, name: &str) -> bool {
        self.own_name(Some(name)).is_ok()
    }

    /// Fails if clients may not ask for models from elsewhere.
    pub fn check_fetching(&self) -> Result<(), ApiError> {
        let may = self.policy.get().is_some_and(|policy| policy.fetch.is_some());
        if may { Ok(()) } else { Err(ApiError::no_fetching()) }
    }

    /// Room for a request to fetch a model. Fails if too many wait already: each waits on a thread.
    pub fn reserve_fetching(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.fetches).try_acquire_owned().map_err(|_| ApiError::too_many_fetches(MOST_FETCHES))
    }

    /// Fetches a model, which takes long, and adds it. Models are fetched one after another.
    pub fn fetch(&self, asked: &str, progress: &mut dyn FetchProgress) -> Result<(), ApiError> {
        self.check_fetching()?;
        let Some(fetch) = self.policy.get().and_then(|policy| policy.fetch.as_ref()) else { return Ok(()) };
        let _turn = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        tracing::info!(model = asked, "is being fetched");
        let model = fetch(asked, progress).map_err(|error| {
            tracing::error!(model = asked, error = format!("{error:#}"), "could not be fetched");
            ApiError::not_fetched(asked, &format!("{error:#}"))
        })?;
        self.add(model);
        Ok(())
    }

    /// Sets how long a model stays loaded when nobody uses it. Does nothing to one that was given to the server.
    pub fn keep(&self, name: &str, keep: Keep) -> Result<(), ApiError> {
        let own = self.own_name(Some(name))?;
        if let Some(entry) = self.entries().get_mut(&own) {
            entry.keep = keep;
        }
        Ok(())
    }

    /// The model with this name, or the only one if `None`. Waits until it is loaded.
    pub async fn lease(self: &Arc<Self>, asked: Option<&str>) -> Result<Lease, ApiError> {
        let own = self.own_name(asked)?;
        match self.lease_or_wait(&own)? {
            Ok(lease) => Ok(lease),
            Err(loaded) => loaded.await.unwrap_or_else(|_| Err(ApiError::not_ready("the server stops"))),
        }
        .map(|lease| lease.by_name(asked))
    }

    /// A lease if the model is loaded; otherwise it will be, and a lease comes then.
    fn lease_or_wait(
        self: &Arc<Self>,
        own: &str,
    ) -> Result<Result<Lease, oneshot::Receiver<Result<Lease, ApiError>>>, ApiError> {
        let mut entries = self.entries();
        if !entries.contains_key(own) {
            return Err(unknown(own, &entries));
        }
        let Some(entry) = entries.get_mut(own) else { return Err(ApiError::internal("the model went away")) };
        if let Some(lease) = entry.lease() {
            return Ok(Ok(lease));
        }
        if let Some(failure) = entry.failure() {
            return Err(failure.clone());
        }
        let (waiter, loaded) = oneshot::channel();
        entry.waiting.push(waiter);
        // Others are on their way to a phase in which those who wait are looked at.
        if matches!(entry.phase, Phase::Unloaded | Phase::Loaded(_)) {
            self.begin_loading(own, entry);
        }
        Ok(Err(loaded))
    }

    /// Ends all answers.
    pub fn end_answers(&self) {
        for entry in self.entries().values() {
            match &entry.phase {
                Phase::Loaded(loaded) => loaded.engine().end_all(),
                Phase::Unloading(served, _) => {
                    if let Some(served) = served.upgrade() {
                        served.engine.end_all();
                    }
                }
                Phase::Unloaded | Phase::Loading(_) => {}
            }
        }
    }

    /// The own name of the model with a name, or of the only one if `None`.
    fn own_name(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let found = known(asked, &self.entries());
        if found.is_ok() || !self.look_again() {
            return found;
        }
        known(asked, &self.entries())
    }

    /// Looks through the catalog, if there is one and it was not looked through a moment ago.
    fn look_again(&self) -> bool {
        let Some(catalog) = self.policy.get().and_then(|policy| policy.catalog.as_ref()) else { return false };
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|when| when.elapsed() < LOOK_EVERY) {
            return false;
        }
        catalog().into_iter().for_each(|model| self.add(model));
        *looked = Some(Instant::now());
        true
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The own name of the model with a name, or of the only one if `None`.
fn known(asked: Option<&str>, entries: &BTreeMap<String, Entry>) -> Result<String, ApiError> {
    let Some(asked) = asked else {
        return match entries.keys().collect::<Vec<_>>()[..] {
            [only] => Ok(only.clone()),
            [] => Err(ApiError::not_ready("the model is being loaded")),
            _ => Err(ApiError::field("model", format!("model: expected {}, found none", names(entries)))),
        };
    };
    if entries.contains_key(asked) {
        return Ok(asked.to_owned());
    }
    let of_adapter = entries.iter().find(|(_, entry)| entry.adapters().any(|adapter| adapter == asked));
    let other = of_adapter.or_else(|| entries.iter().find(|(_, entry)| entry.names.include(asked)));
    other.map(|(name, _)| name.clone()).ok_or_else(|| unknown(asked, entries))
}

fn unknown(asked: &str, entries: &BTreeMap<String, Entry>) -> ApiError {
    if entries.is_empty() {
        return ApiError::not_ready("the model is being loaded");
    }
    ApiError::no_such_model(asked, &names(entries))
}

/// The names of models, for messages.
fn names(entries: &BTreeMap<String, Entry>) -> String {
    /// Most names in a message.
    const MOST: usize = 8;
    let all = || entries.iter().flat_map(|(name, entry)| std::iter::once(name.as_str()).chain(entry.adapters()));
    let shown: Vec<String> = all().take(MOST).map(|name| format!("`{name}`")).collect();
    match all().count().checked_sub(MOST).filter(|more| *more > 0) {
        Some(more) => format!("{} or one of {more} others", shown.join(", ")),
        None => shown.join(" or "),
    }
}
