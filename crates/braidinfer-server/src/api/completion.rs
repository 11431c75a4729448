//! Completions: the text after prompts, without a chat template.

use std::time::Instant;

use braidinfer::conversation::{AnswerFormat, ShownTokens};
use braidinfer::engine::ClientId;
use braidinfer::handle::Task;
use braidinfer::{GenerateRequest, SamplingParams};

use super::answers::{ChoiceStream, Delivery};
use super::constraint::{self, RequestedForm};
use super::reservation;
use crate::app::App;
use crate::http::ApiError;
use crate::models::Lease;

/// Prompts to be completed.
#[derive(Debug, Clone)]
pub struct CompletionRequest {
    /// Token ids.
    pub prompts: Vec<Vec<u32>>,
    pub params: SamplingParams,
    /// The form of the answers.
    pub form: Option<RequestedForm>,
    /// Whether special tokens are part of the text.
    pub shows_special_tokens: bool,
}

/// Begins to complete prompts.
pub async fn begin(
    app: &App,
    served: &Lease,
    client: ClientId,
    request: CompletionRequest,
    delivery: Delivery,
    arrived: Instant,
) -> Result<ChoiceStream, ApiError> {
    let CompletionRequest { prompts, params, form, shows_special_tokens } = request;
    let (n, count, deadline) = (params.n, params.n * prompts.len(), app.deadline(arrived));
    let (constraint, form_slot) = constraint::constraint(served, form, client).await?.unzip();
    let reservation = reservation::reserve(app, served, client, &prompts, &params, delivery)?;
    let special_tokens = if shows_special_tokens { ShownTokens::All } else { ShownTokens::None };
    let format = AnswerFormat { special_tokens, ..AnswerFormat::default() };
    let task = Task::Generate(Box::new(GenerateRequest { params, constraint, format, adapter: served.adapter() }));
    let engine = served.engine.for_client(client).with_most_unread(reservation::most_unread(app));
    let stream = engine.submit(prompts, task, arrived).await?;
    let (form_slot, lease) = (form_slot.flatten(), served.clone());
    Ok(ChoiceStream { stream, count, n, deadline, form_slot, reservation, unused: &[], lease })
}
