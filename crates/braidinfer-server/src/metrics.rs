//! Prometheus metrics. Errors of the engine and suspicious shadow checks also go to the log.

use std::sync::atomic::AtomicU64;

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
type Label = [(&'static str, &'static str); 1];

/// Histogram buckets in seconds, from a cached token on a small model to a prompt that waits for minutes.
const SECONDS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0];
const NATS: [f64; 9] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
const SEQUENCES: [f64; 9] = [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0];

/// Metrics of the server itself, whatever it serves.
#[derive(Default)]
pub struct ServerMetrics {
    refused: Family<Label, Counter>,
    held: [Gauge; Held::ALL.len()],
    connections: Gauge,
}

impl ServerMetrics {
    /// Counts a response that refuses work.
    pub fn refused(&self, response: &Response) {
        if let Some(Refusal(reason)) = response.extensions().get() {
            self.refused.get_or_create(&[("reason", *reason)]).inc();
        }
    }

    /// Sets what is not counted as it happens.
    pub fn update(&self, budget: &Budget, connections: usize) {
        for (gauge, kind) in self.held.iter().zip(Held::ALL) {
            gauge.set(budget.held(kind) as i64);
        }
        self.connections.set(connections as i64);
    }
}

/// Metrics of one served model. Names that begin with `vllm:` are those that request routers read.
pub struct Metrics {
    registry: Registry,
    requests_running: Gauge,
    requests_waiting: Gauge,
    clients: Gauge,
    kv_cache_usage: Share,
    requests: Family<Label, Counter>,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    prefix_cache_queries: Counter,
    prefix_cache_hits: Counter,
    preemptions: Counter,
    guesses: Counter,
    right_guesses: Counter,
    not_finite: Counter,
    time_to_first_token: Histogram,
    time_per_output_token: Histogram,
    queue_time: Histogram,
    batch_size: Histogram,
    step_time: Histogram,
    shadow_kl: Histogram,
    shadow_disagreements: Counter,
    device: Family<[(&'static str, String); 1], Gauge>,
    device_memory: Gauge,
}

impl Metrics {
    /// For a model, the server around it, and the program of its workers if it has any.
    pub fn new(model: &str, server: &ServerMetrics, worker: Option<&WorkerProgram>) -> Self {
        let seconds = || Histogram::new(SECONDS);
        let mut metrics = Self {
            registry: Registry::with_labels([("model_name".into(), model.to_owned().into())].into_iter()),
            requests_running: Gauge::default(),
            requests_waiting: Gauge::default(),
            clients: Gauge::default(),
            kv_cache_usage: Share::default(),
            requests: Family::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            prefix_cache_queries: Counter::default(),
            prefix_cache_hits: Counter::default(),
            preemptions: Counter::default(),
            guesses: Counter::default(),
            right_guesses: Counter::default(),
            not_finite: Counter::default(),
            time_to_first_token: seconds(),
            time_per_output_token: seconds(),
            queue_time: seconds(),
            batch_size: Histogram::new(SEQUENCES),
            step_time: seconds(),
            shadow_kl: Histogram::new(NATS),
            shadow_disagreements: Counter::default(),
            device: Family::default(),
            device_memory: Gauge::default(),
        };
        metrics.register_engine();
        metrics.register_times();
        metrics.register_server(server);
        if let Some(worker) = worker {
            metrics.registry.register_collector(Box::new(WorkerMetrics(worker.clone())));
        }
        // Export every label with value 0, so that rates are right from the first answer on.
        let complete = [FinishReason::Stop, FinishReason::Length].map(AnswerEnd::Finished);
        for end in complete.into_iter().chain([AnswerEnd::Cancelled, AnswerEnd::Failed]) {
            let _ = metrics.requests.get_or_create(&[("finish_reason", end.as_str())]);
        }
        metrics
    }

    fn register_engine(&mut self) {
        let Self { registry, .. } = self;
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

    fn register_times(&mut self) {
        let braidinfer = self.registry.sub_registry_with_prefix("braidinfer");
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

    fn register_server(&mut self, server: &ServerMetrics) {
        let braidinfer = self.registry.sub_registry_with_prefix("braidinfer");
        braidinfer.register("refused", "Requests for which there was no room or time", server.refused.clone());
        braidinfer.register("connections", "Open connections", server.connections.clone());
        for (gauge, kind) in server.held.iter().zip(Held::ALL) {
            let (name, help) = match kind {
                Held::Body => ("body_bytes", "Bytes of requests that are being received"),
                Held::Prompt => ("prompt_bytes", "Bytes that are reserved for prompts"),
                Held::Answer => ("answer_bytes", "Bytes that are reserved for answers"),
            };
            braidinfer.register(name, help, gauge.clone());
        }
    }

    /// All metrics in OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` does not fail.
        let _ = encode(&mut text, &self.registry);
        text
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
        raise(&self.prefix_cache_queries, stats.prefix_queries);
        raise(&self.prefix_cache_hits, stats.prefix_hits);
        raise(&self.preemptions, stats.preemptions);
        raise(&self.guesses, stats.draft_tokens);
        raise(&self.right_guesses, stats.accepted_tokens);
        raise(&self.not_finite, stats.not_finite);
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
        self.requests.get_or_create(&[("finish_reason", end.as_str())]).inc_by(answers as u64);
    }

    fn answer_failed(&self, error: &Error) {
        tracing::error!(%error, "an answer failed");
    }

    fn runs_on(&self, device: &str) {
        self.device.clear();
        self.device.get_or_create(&[("device", device.to_owned())]).set(1);
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

/// Raises a counter to `sum`, a total that only grows.
fn raise(counter: &Counter, sum: usize) {
    counter.inc_by((sum as u64).saturating_sub(counter.get()));
}
