//! The text of documents, which the page puts into prompts.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use braidinfer::{CancelFlag, text_of_pdf};

use super::json_text::JsonText;
use crate::app::App;
use crate::budget::Held;
use crate::http::{ApiError, Kept, read_bytes};

/// The text of the PDF file in the body.
pub async fn extract_text(State(app): State<Arc<App>>, request: Request) -> Response {
    extracted(&app, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn extracted(app: &App, request: Request) -> Result<Response, ApiError> {
    let kind =
        request.headers().get(CONTENT_TYPE).map_or("none".into(), |kind| String::from_utf8_lossy(kind.as_bytes()));
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/pdf")) {
        return Err(ApiError::of_another_kind("application/pdf", &kind));
    }
    let Some(worker) = app.config.worker.clone() else {
        return Err(ApiError::not_found("this server reads no documents: it has no worker processes"));
    };
    let (client, body, claim) = read_bytes(request, app).await?;
    let reading = async {
        let slot = app.document_slots.acquire(client).await;
        let slot = slot.ok_or_else(|| ApiError::not_ready("the server stops"))?;
        let cancel = CancelFlag::default();
        let _wanted = cancel.cancel_on_drop();
        let read = tokio::task::spawn_blocking(move || {
            let _held = (claim, slot);
            text_of_pdf(&worker, &body, &cancel)
        });
        Ok(read.await.map_err(|error| ApiError::internal(error.to_string()))??)
    };
    let found = app.with_deadline(Instant::now(), reading).await?;
    let mut held = app.budget.claim(client, Held::Answer, found.text.len())?;
    let text = JsonText::of(&found)?;
    held.grow(text.len())?;
    Ok(([(CONTENT_TYPE, "application/json")], Kept::within(Body::new(text), held)).into_response())
}
