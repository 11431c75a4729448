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
mod tokens;
mod tools;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

pub use self::chat::ChatFields;
pub use self::completions::CompletionFields;
pub use self::embeddings::EmbeddingFields;
pub use self::sampling::{ParameterFields, SharedFields};
use crate::served::App;

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{*model}", get(models::model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(models::tokenizer_info))
}
