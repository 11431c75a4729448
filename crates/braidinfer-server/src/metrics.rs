//! Prometheus metrics. Errors of the engine and suspicious shadow checks also go to the log.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::response::Response;
use braidinfer::engine::{EngineStats, StepStats};
use braidinfer::handle::{AnswerEnd, EngineObserver, TokenTimes};
use braidinfer::{Error, FinishReason, ShadowCheck, Token, WorkerProgram};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::budget::{Budget, Held};
use crate::http::Refusal;
use crate::worker_metrics::WorkerMetrics;

type Share = Gauge<f64, AtomicU64>;
type Labels<const N: usize> = [(&'static str, String); N];
/// A metric of each model.
type OfModels<M, C = fn() -> M> = Family<Labels<1>, M, C>;

/// Histogram buckets in seconds, from a cached token on a small model to a prompt that waits for minutes.
const SECONDS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0];
const NATS: [f64; 9] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
const SEQUENCES: [f64; 9] = [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0];

/// All metrics of a server. Names that begin with `vllm:` are those that request routers read.
pub struct ServerMetrics {
    registry: Registry,
    refused: Family<Labels<1>, Counter>,
    held: [Gauge; Held::ALL.len()],
    connections: Gauge,
    workers: Arc<OnceLock<WorkerProgram>>,
    of_models: ModelMetrics,
}

/// What is measured of each model. It is kept when a model is unloaded.
struct ModelMetrics {
    requests_running: OfModels<Gauge>,
    requests_waiting: OfModels<Gauge>,
    clients: OfModels<Gauge>,
    kv_cache_usage: OfModels<Share>,
    requests: Family<Labels<2>, Counter>,
    prompt_tokens: OfModels<Counter>,
    generation_tokens: OfModels<Counter>,
    prefix_cache_queries: OfModels<Counter>,
    prefix_cache_hits: OfModels<Counter>,
    preemptions: OfModels<Counter>,
    guesses: OfModels<Counter>,
    right_guesses: OfModels<Counter>,
    not_finite: OfModels<Counter>,
    time_to_first_token: OfModels<Histogram>,
    time_per_output_token: OfModels<Histogram>,
    queue_time: OfModels<Histogram>,
    batch_size: OfModels<Histogram>,
    step_time: OfModels<Histogram>,
    shadow_kl: OfModels<Histogram>,
    shadow_disagreements: OfModels<Counter>,
    device: Family<Labels<2>, Gauge>,
    device_memory: OfModels<Gauge>,
    loaded: OfModels<Gauge>,
    memory: OfModels<Gauge>,
}

impl ServerMetrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let mut metrics = Self {
            refused: Family::default(),
            held: <[Gauge; Held::ALL.len()]>::default(),
            connections: Gauge::default(),
            workers: Arc::default(),
            of_models: ModelMetrics::registered(&mut registry),
            registry,
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let braidinfer = self.registry.sub_registry_with_prefix("braidinfer");
        braidinfer.register("refused", "Requests for which there was no room or time", self.refused.clone());
        braidinfer.register("connections", "Open connections", self.connections.clone());
        for (gauge, kind) in self.held.iter().zip(Held::ALL) {
            let (name, help) = match kind {
                Held::Body => ("body_bytes", "Bytes of requests that are being received"),
                Held::Prompt => ("prompt_bytes", "Bytes that are reserved for prompts"),
                Held::Answer => ("answer_bytes", "Bytes that are reserved for answers"),
            };
            braidinfer.register(name, help, gauge.clone());
        }
        self.registry.register_collector(Box::new(WorkerMetrics(Arc::clone(&self.workers))));
    }

    /// Counts the worker processes of this program from now on, unless there is one already.
    pub fn counts_workers_of(&self, worker: Option<&WorkerProgram>) {
        if let Some(worker) = worker {
            self.workers.get_or_init(|| worker.clone());
        }
    }

    /// Counts a response that refuses work.
    pub fn refused(&self, response: &Response) {
        if let Some(Refusal(reason)) = response.extensions().get() {
            self.refused.get_or_create(&[("reason", (*reason).to_owned())]).inc();
        }
    }

    /// Sets what is not counted as it happens.
    pub fn update(&self, budget: &Budget, connections: usize) {
        for (gauge, kind) in self.held.iter().zip(Held::ALL) {
            gauge.set(budget.held(kind) as i64);
        }
        self.connections.set(connections as i64);
    }

    /// All metrics in OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl ModelMetrics {
    fn registered(registry: &mut Registry) -> Self {
        let seconds = || Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let metrics = Self {
            requests_running: new(),
            requests_waiting: new(),
            clients: new(),
            kv_cache_usage: new(),
            requests: Family::default(),
            prompt_tokens: new(),
            generation_tokens: new(),
            prefix_cache_queries: new(),
            prefix_cache_hits: new(),
            preemptions: new(),
            guesses: new(),
            right_guesses: new(),
            not_finite: new(),
            time_to_first_token: seconds(),
            time_per_output_token: seconds(),
            queue_time: seconds(),
            batch_size: Family::new_with_constructor(|| Histogram::new(SEQUENCES)),
            step_time: seconds(),
            shadow_kl: Family::new_with_constructor(|| Histogram::new(NATS)),
            shadow_disagreements: new(),
            device: Family::default(),
            device_memory: new(),
            loaded: new(),
            memory: new(),
        };
        metrics.register_engine(registry);
        metrics.register_times(registry.sub_registry_with_prefix("braidinfer"));
        metrics
    }

    fn register_engine(&self, registry: &mut Registry) {
        registry.register(
            "vllm:num_requests_running",
            "Requests that take part in steps",
            self.requests_running.clone(),
        );
        registry.register("vllm:num_requests_waiting", "Requests that wait", self.requests_waiting.clone());
        registry.register(
            "vllm:kv_cache_usage_perc",
            "Share of the key/value storage in use, from 0 to 1",
            self.kv_cache_usage.clone(),
        );
        let braidinfer = registry.sub_registry_with_prefix("braidinfer");
        braidinfer.register("model_loaded", "1 for a model that is loaded, 0 for others", self.loaded.clone());
        let memory = "Most memory that a loaded model may take: weights, all keys and values, activations";
        braidinfer.register_with_unit("model_memory", memory, Unit::Bytes, self.memory.clone());
        braidinfer.register("clients", "Clients with a running or waiting answer", self.clients.clone());
        braidinfer.register("prompt_tokens", "Tokens of prompts that were read", self.prompt_tokens.clone());
        braidinfer.register("generation_tokens", "Tokens that were written", self.generation_tokens.clone());
        let queries = "Tokens of prompts that were looked for in the prefix cache";
        braidinfer.register("prefix_cache_queries", queries, self.prefix_cache_queries.clone());
        braidinfer.register("prefix_cache_hits", "Those of them that were found", self.prefix_cache_hits.clone());
        let preemptions = "How often a sequence lost its blocks to an earlier one";
        braidinfer.register("preemptions", preemptions, self.preemptions.clone());
        braidinfer.register("guesses", "Tokens that were guessed", self.guesses.clone());
        braidinfer.register("right_guesses", "Those of them that were right", self.right_guesses.clone());
        let not_finite = "Answers that ended because what was computed was not finite";
        braidinfer.register("not_finite", not_finite, self.not_finite.clone());
        braidinfer.register("batch_size", "Sequences in a step", self.batch_size.clone());
        let shadow_kl = "Divergence of checked steps from standard kernels, in nats";
        braidinfer.register("shadow_kl", shadow_kl, self.shadow_kl.clone());
        let disagreements = "Checked steps in which another token is likeliest on standard kernels, and clearly so";
        braidinfer.register("shadow_disagreements", disagreements, self.shadow_disagreements.clone());
        braidinfer.register("device", "What computes: 1 for the device in use", self.device.clone());
        let memory = "Memory of GPUs in use: weights, keys and values, activations";
        braidinfer.register_with_unit("gpu_memory", memory, Unit::Bytes, self.device_memory.clone());
        braidinfer.register_with_unit("step_time", "Time of a step", Unit::Seconds, self.step_time.clone());
    }

    fn register_times(&self, braidinfer: &mut Registry) {
        braidinfer.register("requests", "Answers by how they ended", self.requests.clone());
        let times = [
            ("time_to_first_token", "From a request's arrival to its first token", &self.time_to_first_token),
            ("time_per_output_token", "Mean time of each further token of an answer", &self.time_per_output_token),
            ("request_queue_time", "From a request's arrival to its first step", &self.queue_time),
        ];
        for (name, help, histogram) in times {
            braidinfer.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
    }
}

/// A metric of each model that begins with zero.
fn new<M: Default>() -> OfModels<M> {
    Family::new_with_constructor(M::default)
}

/// Metrics of one model, as long as it is loaded.
pub struct Metrics {
    model: String,
    requests_running: Gauge,
    requests_waiting: Gauge,
    clients: Gauge,
    kv_cache_usage: Share,
    requests: Family<Labels<2>, Counter>,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    prefix_cache_queries: Total,
    prefix_cache_hits: Total,
    preemptions: Total,
    guesses: Total,
    right_guesses: Total,
    not_finite: Total,
    time_to_first_token: Histogram,
    time_per_output_token: Histogram,
    queue_time: Histogram,
    batch_size: Histogram,
    step_time: Histogram,
    shadow_kl: Histogram,
    shadow_disagreements: Counter,
    device: Family<Labels<2>, Gauge>,
    device_name: Mutex<Option<String>>,
    device_memory: Gauge,
    loaded: Gauge,
    memory: Gauge,
}

impl Metrics {
    /// Those of a model that is loaded now and may take `memory` bytes.
    pub fn new(model: &str, memory: usize, server: &ServerMetrics) -> Self {
        let of = &server.of_models;
        let label = [("model_name", model.to_owned())];
        let gauge = |of: &OfModels<Gauge>| of.get_or_create_owned(&label);
        let counter = |of: &OfModels<Counter>| of.get_or_create_owned(&label);
        let total = |of: &OfModels<Counter>| Total::of(counter(of));
        let histogram = |of: &OfModels<Histogram>| of.get_or_create_owned(&label);
        let metrics = Self {
            model: model.to_owned(),
            requests_running: gauge(&of.requests_running),
            requests_waiting: gauge(&of.requests_waiting),
            clients: gauge(&of.clients),
            kv_cache_usage: of.kv_cache_usage.get_or_create_owned(&label),
            requests: of.requests.clone(),
            prompt_tokens: counter(&of.prompt_tokens),
            generation_tokens: counter(&of.generation_tokens),
            prefix_cache_queries: total(&of.prefix_cache_queries),
            prefix_cache_hits: total(&of.prefix_cache_hits),
            preemptions: total(&of.preemptions),
            guesses: total(&of.guesses),
            right_guesses: total(&of.right_guesses),
            not_finite: total(&of.not_finite),
            time_to_first_token: histogram(&of.time_to_first_token),
            time_per_output_token: histogram(&of.time_per_output_token),
            queue_time: histogram(&of.queue_time),
            batch_size: histogram(&of.batch_size),
            step_time: histogram(&of.step_time),
            shadow_kl: histogram(&of.shadow_kl),
            shadow_disagreements: counter(&of.shadow_disagreements),
            device: of.device.clone(),
            device_name: Mutex::default(),
            device_memory: gauge(&of.device_memory),
            loaded: gauge(&of.loaded),
            memory: gauge(&of.memory),
        };
        metrics.loaded.set(1);
        metrics.memory.set(memory as i64);
        // Export every label with value 0, so that rates are right from the first answer on.
        let complete = [FinishReason::Stop, FinishReason::Length].map(AnswerEnd::Finished);
        for end in complete.into_iter().chain([AnswerEnd::Cancelled, AnswerEnd::Failed]) {
            let _ = metrics.requests.get_or_create(&metrics.ended(end));
        }
        metrics
    }

    fn ended(&self, end: AnswerEnd) -> Labels<2> {
        [("model_name", self.model.clone()), ("finish_reason", end.as_str().to_owned())]
    }

    fn on(&self, device: &str) -> Labels<2> {
        [("model_name", self.model.clone()), ("device", device.to_owned())]
    }
}

impl Drop for Metrics {
    /// The model is unloaded: what it has in use is nothing, and what was counted stays.
    fn drop(&mut self) {
        let Self { requests_running, requests_waiting, clients, device_memory, loaded, memory, .. } = self;
        for gauge in [requests_running, requests_waiting, clients, device_memory, loaded, memory] {
            gauge.set(0);
        }
        self.kv_cache_usage.set(0.0);
        if let Some(device) = self.device_name.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.device.remove(&self.on(&device));
        }
    }
}

/// A counter of what an engine counts itself.
struct Total {
    counter: Counter,
    /// What earlier engines of the model counted.
    before: u64,
}

impl Total {
    fn of(counter: Counter) -> Self {
        Self { before: counter.get(), counter }
    }

    /// Raises the counter by what the total of the engine grew.
    fn raise(&self, sum: usize) {
        self.counter.inc_by((self.before + sum as u64).saturating_sub(self.counter.get()));
    }
}

impl EngineObserver for Metrics {
    fn step(&self, step: &StepStats) {
        self.batch_size.observe(step.sequences as f64);
        self.step_time.observe(step.took.as_secs_f64());
        self.prompt_tokens.inc_by(step.prompt_tokens as u64);
        self.generation_tokens.inc_by(step.written_tokens as u64);
    }

    fn engine_stats(&self, stats: &EngineStats) {
        self.requests_running.set(stats.running as i64);
        self.requests_waiting.set(stats.waiting as i64);
        self.clients.set(stats.clients as i64);
        self.kv_cache_usage.set(stats.kv_cache_usage);
        self.prefix_cache_queries.raise(stats.prefix_queries);
        self.prefix_cache_hits.raise(stats.prefix_hits);
        self.preemptions.raise(stats.preemptions);
        self.guesses.raise(stats.draft_tokens);
        self.right_guesses.raise(stats.accepted_tokens);
        self.not_finite.raise(stats.not_finite);
        self.device_memory.set(stats.device_bytes as i64);
    }

    fn token(&self, token: &Token, times: &TokenTimes) {
        if times.index == 0 {
            self.time_to_first_token.observe(times.since_arrival.as_secs_f64());
        }
        if let Some(prompt) = &token.prompt {
            self.queue_time.observe(prompt.queued.as_secs_f64());
        }
        if token.finished.is_some() && times.index > 0 {
            self.time_per_output_token.observe(times.since_first_token.as_secs_f64() / times.index as f64);
        }
    }

    fn answers_ended(&self, end: AnswerEnd, answers: usize) {
        self.requests.get_or_create(&self.ended(end)).inc_by(answers as u64);
    }

    fn answer_failed(&self, error: &Error) {
        tracing::error!(%error, "an answer failed");
    }

    fn runs_on(&self, device: &str) {
        if let Some(before) = self.device_name.lock().unwrap_or_else(PoisonError::into_inner).replace(device.to_owned())
        {
            self.device.remove(&self.on(&before));
        }
        self.device.get_or_create(&self.on(device)).set(1);
    }

    fn notice(&self, notice: &str) {
        tracing::warn!("{notice}");
    }

    fn step_failed(&self, error: &Error) {
        tracing::error!(%error, "a step failed; every answer was ended");
    }

    fn shadow_checked(&self, check: &ShadowCheck, bound: f64) {
        let ShadowCheck { tokens, kl, disagrees } = *check;
        // One NaN or infinity would spoil the sum of the histogram for good; such values are only logged.
        if kl.is_finite() {
            self.shadow_kl.observe(kl);
        }
        self.shadow_disagreements.inc_by(u64::from(disagrees));
        // NaN counts as above every bound.
        if kl.is_nan() || kl > bound || disagrees {
            tracing::warn!(kl, bound, tokens, disagrees, "a step was far from standard kernels");
        }
    }

    fn shadow_check_failed(&self, error: &Error) {
        tracing::error!(%error, "a step could not be checked");
    }
}
