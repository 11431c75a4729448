//! One model of a server, and how it goes from unloaded to loaded and back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use braidinfer::SamplingParams;
use braidinfer::executor::ActiveKernels;
use braidinfer::handle::Handle;
use tokio::sync::oneshot;

use super::about::About;
use super::lease::{Lease, Uses};
use super::{ModelOnDemand, Served};
use crate::clock::seconds_since_1970;
use crate::http::{ApiError, ModelNames};

/// How long a model that could not be loaded is not tried again.
const FAILED_FOR: Duration = Duration::from_secs(10);

/// Somebody who waits for a lease.
pub type Waiter = oneshot::Sender<Result<Lease, ApiError>>;

/// A model of a server.
pub struct Entry {
    /// What else it is called.
    pub names: ModelNames,
    /// When the server learned of it, in seconds since 1970.
    pub created: u64,
    /// How to load it; `None` for one that was given to the server, and stays loaded.
    pub on_demand: Option<Arc<ModelOnDemand>>,
    pub phase: Phase,
    /// Those who get a lease as soon as it is loaded.
    pub waiting: Vec<Waiter>,
    /// How long it stays loaded when nobody uses it.
    pub keep: Keep,
    pub about: Option<Arc<About>>,
    failed: Option<(Instant, ApiError)>,
}

/// Where a model is on its way.
pub enum Phase {
    Unloaded,
    /// It waits for its turn, or for memory, or is being loaded.
    Loading(Arc<LayersLoaded>),
    Loaded(Loaded),
    /// It waits for the end of its last answers, with the memory that it takes until then.
    Unloading(Weak<Served>, usize),
}

/// A model that is loaded.
pub struct Loaded {
    served: Arc<Served>,
    pub uses: Arc<Uses>,
    /// Memory in bytes that it may take.
    pub memory: usize,
}

/// How many layers were loaded, and of how many.
#[derive(Debug, Default)]
pub struct LayersLoaded {
    done: AtomicUsize,
    all: AtomicUsize,
}

impl LayersLoaded {
    /// Layers finish on several threads, so the counts may arrive out of order.
    pub fn update(&self, done: usize, all: usize) {
        self.done.fetch_max(done, Ordering::Relaxed);
        self.all.store(all, Ordering::Relaxed);
    }

    pub fn get(&self) -> (usize, usize) {
        (self.done.load(Ordering::Relaxed), self.all.load(Ordering::Relaxed))
    }
}

/// How long a model stays loaded when nobody uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// As long as the server's setting says.
    #[default]
    AsConfigured,
    For(Duration),
    Always,
}

/// What clients are told of a model.
#[derive(Clone)]
pub struct ListedModel {
    pub name: String,
    /// The model that it is an adapter for, if it is one.
    pub parent: Option<String>,
    pub created: u64,
    pub state: ModelState,
    /// Whether it is loaded when somebody asks for it.
    pub is_on_demand: bool,
    /// Size of the weights in bytes, if it is known.
    pub bytes: Option<u64>,
    /// What it is; known once it was loaded or looked at.
    pub about: Option<Arc<About>>,
    /// How tokens are chosen where a request does not say; known while it is loaded.
    pub sampling: Option<SamplingParams>,
    /// Why it could not be loaded, if that was tried not long ago.
    pub failure: Option<ApiError>,
}

/// In which state a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelState {
    Unloaded,
    /// With how many layers were loaded, and of how many; zeros as long as it waits.
    Loading(usize, usize),
    Loaded {
        kernels: ActiveKernels,
        context: usize,
        /// Memory that it may take, in bytes.
        memory: usize,
        /// Requests that use it.
        in_use: usize,
        /// For how long it will stay if nobody uses it; `None` if it will until its memory is needed.
        remaining: Option<Duration>,
    },
    Unloading,
}

impl ModelState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading(..) => "loading",
            Self::Loaded { .. } => "loaded",
            Self::Unloading => "unloading",
        }
    }
}

impl Loaded {
    pub fn new(served: Served, memory: usize) -> Self {
        Self { served: Arc::new(served), uses: Arc::default(), memory }
    }

    pub fn lease(&self) -> Lease {
        Lease::new(&self.served, &self.uses)
    }

    pub fn served(&self) -> &Served {
        &self.served
    }

    pub fn engine(&self) -> &Handle {
        &self.served.engine
    }

    /// Whether it can still answer.
    pub fn is_well(&self) -> bool {
        self.served.check_engine().is_ok()
    }

    pub fn weak(&self) -> Weak<Served> {
        Arc::downgrade(&self.served)
    }

    /// Frees its memory when the last lease has ended. New ones must not be given meanwhile.
    pub async fn end(self) {
        self.uses.ended().await;
        let ended = tokio::task::spawn_blocking(move || {
            // At the end of a server, somebody may look at it for a moment; its engine ends with that.
            if let Some(served) = Arc::into_inner(self.served) {
                served.engine.end_and_wait();
            }
        });
        // Who waited for an answer was told of a panic.
        let _ = ended.await;
    }
}

impl Entry {
    /// A model that was given to the server.
    pub fn given(names: ModelNames, loaded: Loaded) -> Self {
        let about = Some(Arc::clone(&loaded.served.about));
        Self { about, phase: Phase::Loaded(loaded), ..Self::new(names, None) }
    }

    /// A model that is loaded when somebody asks for it.
    pub fn on_demand(model: ModelOnDemand) -> Self {
        let names = ModelNames { unlisted: model.file_name.clone(), ..ModelNames::default() };
        Self::new(names, Some(Arc::new(model)))
    }

    fn new(names: ModelNames, on_demand: Option<Arc<ModelOnDemand>>) -> Self {
        Self {
            names,
            created: seconds_since_1970(),
            on_demand,
            phase: Phase::Unloaded,
            waiting: Vec::new(),
            keep: Keep::default(),
            about: None,
            failed: None,
        }
    }

    pub fn loaded(&self) -> Option<&Loaded> {
        match &self.phase {
            Phase::Loaded(loaded) => Some(loaded),
            Phase::Unloaded | Phase::Loading(_) | Phase::Unloading(..) => None,
        }
    }

    /// Memory in bytes that it may take now.
    pub fn memory(&self) -> usize {
        match &self.phase {
            Phase::Loaded(Loaded { memory, .. }) | Phase::Unloading(_, memory) => *memory,
            Phase::Unloaded | Phase::Loading(_) => 0,
        }
    }

    /// A lease, if it is loaded and can answer, or if it is one of those that are never loaded anew.
    pub fn lease(&self) -> Option<Lease> {
        self.loaded().filter(|loaded| self.on_demand.is_none() || loaded.is_well()).map(Loaded::lease)
    }

    /// Why it could not be loaded, if that was tried not long ago.
    pub fn failure(&self) -> Option<&ApiError> {
        self.failed.as_ref().filter(|(when, _)| when.elapsed() < FAILED_FOR).map(|(_, error)| error)
    }

    /// It is loaded: all who wait have a lease of it.
    pub fn became(&mut self, loaded: Loaded) {
        self.about = Some(Arc::clone(&loaded.served.about));
        self.failed = None;
        for waiter in self.waiting.drain(..) {
            // A lease that nobody waits for any more ends at once.
            let _ = waiter.send(Ok(loaded.lease()));
        }
        self.phase = Phase::Loaded(loaded);
    }

    /// It could not be loaded.
    pub fn failed(&mut self, error: &ApiError) {
        self.phase = Phase::Unloaded;
        self.failed = Some((Instant::now(), error.clone()));
        for waiter in self.waiting.drain(..) {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    /// For how long it will stay loaded if nobody uses it; `None` if it will until its memory is needed.
    pub fn remaining(&self, configured: Option<Duration>) -> Option<Duration> {
        let kept = match self.keep {
            Keep::AsConfigured => configured,
            Keep::For(time) => Some(time),
            Keep::Always => None,
        };
        let (kept, loaded) = (kept?, self.loaded().filter(|_| self.on_demand.is_some())?);
        let unused = if loaded.uses.count() > 0 { Duration::ZERO } else { loaded.uses.last().elapsed() };
        Some(kept.saturating_sub(unused))
    }

    pub fn listed(&self, name: &str, idle: Option<Duration>) -> ListedModel {
        let state = match &self.phase {
            Phase::Unloaded => ModelState::Unloaded,
            Phase::Unloading(..) => ModelState::Unloading,
            Phase::Loading(layers) => {
                let (done, all) = layers.get();
                ModelState::Loading(done, all)
            }
            Phase::Loaded(loaded) => ModelState::Loaded {
                kernels: loaded.served.kernels,
                context: loaded.served.context,
                memory: loaded.memory,
                in_use: loaded.uses.count(),
                remaining: self.remaining(idle),
            },
        };
        let of_files = self.on_demand.as_ref().and_then(|model| model.bytes);
        let of_weights = self.about.as_ref().map(|about| about.weights.bytes as u64);
        ListedModel {
            name: name.to_owned(),
            parent: None,
            created: self.created,
            state,
            is_on_demand: self.on_demand.is_some(),
            bytes: of_weights.or(of_files),
            about: self.about.clone(),
            sampling: self.loaded().map(|loaded| loaded.served.default_sampling.clone()),
            failure: self.failure().cloned(),
        }
    }

    /// The names of the adapters of a model that is loaded.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.loaded().into_iter().flat_map(|loaded| &loaded.served.adapters).map(|adapter| adapter.name.as_str())
    }

    /// What clients are told of an adapter of the model `parent`.
    pub fn listed_adapter(&self, adapter: &str, parent: &str, idle: Option<Duration>) -> ListedModel {
        ListedModel { parent: Some(parent.to_owned()), ..self.listed(adapter, idle) }
    }
}
