//! The OpenAI API, with what vLLM and llama.cpp add to it.

mod chat;
mod completions;
mod embeddings;
mod envelope;
mod form;
mod logprobs;
mod messages;
mod models;
mod sampling;
mod scores;
mod tokens;
mod tools;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

pub use self::chat::ChatFields;
pub use self::completions::CompletionFields;
pub use self::embeddings::EmbeddingFields;
pub use self::sampling::{ParameterFields, SharedFields};
pub use self::scores::{RerankFields, ScoreFields};
use crate::app::App;

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/score", post(scores::score))
        .route("/score", post(scores::score))
        .route("/v1/rerank", post(scores::rerank))
        .route("/v2/rerank", post(scores::rerank))
        .route("/rerank", post(scores::rerank))
        .route("/v1/models", get(models::models))
        .route("/v1/models/load", post(models::load))
        .route("/v1/models/unload", post(models::unload))
        .route("/v1/models/{*model}", get(models::model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(models::tokenizer_info))
}
