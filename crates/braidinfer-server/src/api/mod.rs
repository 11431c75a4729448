//! The wire formats of requests and responses.
//!
//! Each API has a folder, which reads its requests, writes its responses and errors, and knows no other API. What they share is here:
//! a chat as the library understands it, and how its answer is delivered.

mod answers;
mod anthropic;
mod chat;
mod completion;
mod constraint;
mod documents;
mod embedding;
mod errors;
pub mod fuzzing;
mod json_text;
mod logprobs;
mod ollama;
mod one_or_many;
mod openai;
mod page;
mod prompts;
mod reservation;
mod responses;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Method};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use self::errors::in_own_form;
pub use self::responses::ResponseStore;
use crate::app::App;
use crate::http::{
    ApiError, IGNORED, Keys, REQUEST_ID, ServerConfig, StartError, assign_id_and_log, authenticate,
    refuse_doubled_headers, require_local_host, require_model,
};

/// The validated part of the configuration that the router needs.
pub struct RouterConfig {
    keys: Keys,
    /// Whether only this machine can connect, without a key.
    is_private: bool,
    cors: Option<CorsLayer>,
}

impl RouterConfig {
    pub fn of(config: &ServerConfig) -> Result<Self, StartError> {
        let ServerConfig { api_keys, cors_origins, .. } = config;
        if api_keys.iter().any(|key| key.trim().is_empty()) {
            let (setting, expected) = ("API key", "a text of at least one character");
            return Err(StartError::Setting { setting, expected: expected.into(), found: "an empty text".into() });
        }
        let is_private = api_keys.is_empty() && config.address.ip().is_loopback();
        Ok(Self { keys: Keys::new(api_keys), is_private, cors: cors(cors_origins)? })
    }
}

fn cors(origins: &[String]) -> Result<Option<CorsLayer>, StartError> {
    if origins.is_empty() {
        return Ok(None);
    }
    // `*` does not cover `Authorization`, and clients have many headers of their own.
    let any = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, IGNORED, RETRY_AFTER]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(Some(any.allow_origin(Any)));
    }
    let origin = |origin: &String| {
        let is_origin = origin.starts_with("http://") || origin.starts_with("https://");
        let value = origin.parse::<HeaderValue>().ok().filter(|_| is_origin && !origin.ends_with('/'));
        let expected = "an origin such as https://example.org, or *";
        value.ok_or(StartError::Setting {
            setting: "CORS origin",
            expected: expected.into(),
            found: format!("`{origin}`"),
        })
    };
    let origins: Vec<HeaderValue> = origins.iter().map(origin).collect::<Result<_, _>>()?;
    Ok(Some(any.allow_origin(AllowOrigin::list(origins))))
}

pub fn router(app: Arc<App>, config: RouterConfig) -> Router {
    let RouterConfig { keys, is_private, cors } = config;
    let of_model = Router::new()
        .route("/v1/compat", get(status::compat))
        .route("/metrics", get(status::metrics))
        .route("/v1/extract_text", post(documents::extract_text))
        .merge(openai::routes())
        .merge(anthropic::routes())
        .merge(ollama::routes())
        .merge(responses::routes())
        .layer(from_fn_with_state(Arc::clone(&app), require_model))
        .layer(from_fn_with_state((keys, Arc::clone(&app)), authenticate));
    let of_model = if is_private { of_model.layer(from_fn(require_local_host)) } else { of_model };
    let router = Router::new()
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .merge(page::routes())
        .merge(of_model)
        .fallback(async || ApiError::not_found("there is nothing at this address"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(map_response(page::with_security_headers));
    // Outside of the authentication layer, because browsers send CORS preflight requests without a key.
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    let router = router.layer(from_fn(refuse_doubled_headers)).layer(from_fn(in_own_form));
    router.layer(from_fn_with_state(Arc::clone(&app), assign_id_and_log)).with_state(app)
}
