//! `/v1/score` and `/v1/rerank`: how near texts are to each other by their embeddings, in the forms of vLLM, Jina and Cohere.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use braidinfer::Prompt;
use braidinfer::engine::Pooling;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::embeddings::pooling;
use crate::api::answers::json_response;
use crate::api::embedding::{self, Embedded};
use crate::api::json_text::JsonText;
use crate::api::one_or_many::TextOr;
use crate::app::App;
use crate::clock::seconds_since_1970;
use crate::http::{ApiError, Client, HttpRequestId, Strict};

#[derive(Debug, Deserialize)]
pub struct ScoreFields {
    model: Option<String>,
    /// One text, which is compared with each of `text_2`, or as many as these.
    text_1: TextOr<String>,
    text_2: TextOr<String>,
    /// How the tokens' hidden states are pooled: `last` (the default) or `mean`.
    pooling: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct RerankFields {
    model: Option<String>,
    query: String,
    documents: Vec<Document>,
    /// How many of the nearest documents to return; all if absent.
    top_n: Option<usize>,
    /// Whether to return the documents, too; true if absent.
    return_documents: Option<bool>,
    pooling: Option<String>,
}

/// A text, or an object with one.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

#[derive(Serialize)]
struct ScoreBody {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Score>,
    usage: Value,
}

#[derive(Serialize)]
struct Score {
    index: usize,
    object: &'static str,
    score: f64,
}

#[derive(Serialize)]
struct RerankBody {
    id: String,
    model: String,
    results: Vec<Ranked>,
    usage: Value,
}

#[derive(Serialize)]
struct Ranked {
    index: usize,
    relevance_score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Value>,
}

pub async fn score(
    State(app): State<Arc<App>>,
    Extension(HttpRequestId(name)): Extension<HttpRequestId>,
    request: Strict<ScoreFields>,
) -> Response {
    let arrived = Instant::now();
    let scored = scored(&app, &name, request.client, request.first, arrived);
    (request.ignored, app.with_deadline(arrived, scored).await).into_response()
}

pub async fn rerank(
    State(app): State<Arc<App>>,
    Extension(HttpRequestId(name)): Extension<HttpRequestId>,
    request: Strict<RerankFields>,
) -> Response {
    let arrived = Instant::now();
    let ranked = ranked(&app, &name, request.client, request.first, arrived);
    (request.ignored, app.with_deadline(arrived, ranked).await).into_response()
}

async fn scored(
    app: &App,
    name: &str,
    client: Client,
    fields: ScoreFields,
    arrived: Instant,
) -> Result<Response, ApiError> {
    let texts = |field| match field {
        TextOr::Text(text) => vec![text],
        TextOr::Many(texts) => texts,
    };
    let (first, second) = (texts(fields.text_1), texts(fields.text_2));
    if first.len() != 1 && first.len() != second.len() {
        let message = format!(
            "text_1: expected one text, or as many as in `text_2`, which has {}, found {}",
            second.len(),
            first.len()
        );
        return Err(ApiError::field("text_1", message));
    }
    require_some(&second, "text_2")?;
    let pooling = pooling(fields.pooling.as_deref())?;
    let count = first.len();
    let near = nearness(app, client, fields.model.as_deref(), (first, second), pooling, arrived);
    let Near { model, scores, tokens, embedded } =
        near.await.map_err(|error| in_fields(error, count, "text_1", "text_2"))?;
    let data = scores.into_iter().enumerate().map(|(index, score)| Score { index, object: "score", score }).collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let (id, created) = (format!("score-{name}"), seconds_since_1970());
    json_response(JsonText::of(&ScoreBody { id, object: "list", created, model, data, usage })?, embedded.reservation)
}

async fn ranked(
    app: &App,
    name: &str,
    client: Client,
    fields: RerankFields,
    arrived: Instant,
) -> Result<Response, ApiError> {
    let documents: Vec<String> = fields.documents.into_iter().map(Document::text).collect();
    require_some(&documents, "documents")?;
    let most = fields.top_n.unwrap_or(documents.len());
    if most == 0 {
        return Err(ApiError::field("top_n", "top_n: expected at least 1, found 0"));
    }
    let kept = (fields.return_documents != Some(false)).then(|| documents.clone());
    let pooling = pooling(fields.pooling.as_deref())?;
    let near = nearness(app, client, fields.model.as_deref(), (vec![fields.query], documents), pooling, arrived);
    let Near { model, scores, tokens, embedded } =
        near.await.map_err(|error| in_fields(error, 1, "query", "documents"))?;
    let document = |index: usize| kept.as_ref().map(|texts| json!({"text": texts[index]}));
    let ranked = |(index, relevance_score)| Ranked { index, relevance_score, document: document(index) };
    let mut results: Vec<Ranked> = scores.into_iter().enumerate().map(ranked).collect();
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(most);
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    json_response(
        JsonText::of(&RerankBody { id: format!("rerank-{name}"), model, results, usage })?,
        embedded.reservation,
    )
}

fn require_some(texts: &[String], field: &str) -> Result<(), ApiError> {
    let message = || format!("{field}: expected at least one text, found none");
    if texts.is_empty() { Err(ApiError::field(field, message())) } else { Ok(()) }
}

/// How near each pair of texts is.
struct Near {
    model: String,
    scores: Vec<f64>,
    tokens: usize,
    embedded: Embedded,
}

/// The cosines between the embeddings of texts: of one and many, or of as many pairs.
async fn nearness(
    app: &App,
    Client(client): Client,
    model: Option<&str>,
    (first, second): (Vec<String>, Vec<String>),
    pooling: Pooling,
    arrived: Instant,
) -> Result<Near, ApiError> {
    let served = &app.lease(model).await?;
    let count = first.len();
    let prompts = first.into_iter().chain(second).map(Prompt::Text).collect();
    let embedded = embedding::embed(app, served, client, prompts, (pooling, None), arrived).await?;
    let (first, second) = embedded.vectors.split_at(count);
    // One is compared with all.
    let pairs = first.iter().cycle().zip(second);
    let scores = pairs.map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()).collect();
    Ok(Near { model: served.name().to_owned(), scores, tokens: embedded.tokens, embedded })
}

/// An error about the texts, which are all in one list for what embeds them, named by the fields in which they came.
fn in_fields(error: ApiError, first: usize, one: &'static str, other: &'static str) -> ApiError {
    let field = if first > 1 { one } else { other };
    error.renamed(&[("input", field)])
}
