//! Embeddings.

use std::time::Instant;

use braidinfer::engine::{ClientId, Embedding, Pooling};
use braidinfer::handle::{OutputStream, Task};
use braidinfer::{Output, Prompt};

use super::prompts::{self, MOST_PROMPTS};
use super::reservation::{self, Reservation};
use crate::app::App;
use crate::http::ApiError;
use crate::models::Lease;

/// The embeddings of some prompts.
pub struct Embedded {
    /// Vectors of length one, in the order of their prompts.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all prompts.
    pub tokens: usize,
    /// Memory for them.
    pub reservation: Reservation,
}

/// Embeds the prompts of the field `input`. Of the hidden states, pooled in this way, only the first `dimensions` values are
/// returned if that is given, with length one again.
pub async fn embed(
    app: &App,
    served: &Lease,
    client: ClientId,
    prompts: Vec<Prompt>,
    (pooling, dimensions): (Pooling, Option<usize>),
    arrived: Instant,
) -> Result<Embedded, ApiError> {
    if let Some(wanted) = dimensions.filter(|wanted| !(1..=served.about.hidden_size).contains(wanted)) {
        let message = format!("dimensions: expected 1 to {}, found {wanted}", served.about.hidden_size);
        return Err(ApiError::field("dimensions", message));
    }
    if prompts.len() > MOST_PROMPTS {
        let message = format!("input: expected at most {MOST_PROMPTS} texts, found {}", prompts.len());
        return Err(ApiError::field("input", message));
    }
    let prompts = prompts::encode_all(served, prompts, "input").await?;
    let count = prompts.len();
    let reservation = reservation::reserve_embeddings(app, served, client, &prompts)?;
    let task = Task::Embed { pooling, adapter: served.adapter() };
    let stream = served.engine.for_client(client).submit(prompts, task, arrived).await?;
    let found = collected(stream, count).await?;
    let tokens = found.iter().map(|embedding| embedding.prompt.num_tokens).sum();
    let shortened = |embedding: Embedding| match dimensions {
        Some(wanted) => first_values(embedding.values, wanted),
        None => embedding.values,
    };
    Ok(Embedded { vectors: found.into_iter().map(shortened).collect(), tokens, reservation })
}

/// Waits for all embeddings; returns them in the order of their prompts.
async fn collected(mut stream: OutputStream, count: usize) -> Result<Vec<Embedding>, ApiError> {
    let mut found: Vec<Option<Embedding>> = vec![None; count];
    while let Some(output) = stream.next().await {
        match output.output? {
            Output::Embedding(embedding) => found[output.choice] = Some(embedding),
            Output::Token(_) => return Err(ApiError::internal("a token came where a vector was asked for")),
        }
    }
    let missing = || ApiError::internal("the engine stopped before all vectors were there");
    found.into_iter().collect::<Option<_>>().ok_or_else(missing)
}

/// The first values of a vector, with length one.
fn first_values(mut values: Vec<f32>, wanted: usize) -> Vec<f32> {
    values.truncate(wanted);
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    values
}
