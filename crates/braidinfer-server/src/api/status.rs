//! Status endpoints: health, readiness, compatibility report and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::http::ApiError;

/// Which model a request without a body is about; the only one if it does not say.
#[derive(Debug, Deserialize)]
pub struct OfModel {
    pub model: Option<String>,
}

/// Content type of [`crate::metrics::ServerMetrics::text`].
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Liveness: fails only if nothing but a new start helps.
pub async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    app.models.check_engines()?;
    Ok(Json(json!({"status": "ok"})))
}

/// Readiness: whether the server accepts requests for the model.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if app.is_stopping() {
        return Err(ApiError::not_ready("the server stops"));
    }
    if !app.models.is_ready() {
        return Err(ApiError::not_ready("the model is being loaded"));
    }
    app.models.check_engines()?;
    let names: Vec<String> = app.models.list().into_iter().map(|model| model.name).collect();
    Ok(Json(json!({"status": "ready", "model": names.first(), "models": names})))
}

/// The compatibility report by which the kernels were chosen.
pub async fn compat(State(app): State<Arc<App>>, query: Query<OfModel>) -> Result<Response, ApiError> {
    let served = app.lease(query.model.as_deref()).await?;
    match served.verdict() {
        Some(report) => Ok(Json(report).into_response()),
        None => Err(ApiError::not_found(format!(
            "{} kernels were chosen by name, without a check",
            served.kernels.as_str()
        ))),
    }
}

pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.metrics.update(&app.budget, app.connections.len());
    ([(CONTENT_TYPE, OPEN_METRICS)], app.metrics.text()).into_response()
}
