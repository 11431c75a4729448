//! Status endpoints: health, readiness, compatibility report and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::ApiError;
use crate::served::{App, Served};

/// Content type of [`crate::metrics::Metrics::text`].
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Liveness: fails only if nothing but a new start helps.
pub async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    app.served().map_or(Ok(()), |served| check_engine(served))?;
    Ok(Json(json!({"status": "ok"})))
}

/// Readiness: whether the server accepts requests for the model.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if app.is_stopping() {
        return Err(ApiError::not_ready("the server stops"));
    }
    let served = app.served_as(None)?;
    check_engine(served)?;
    Ok(Json(json!({"status": "ready", "model": served.name})))
}

/// Fails if the engine will answer nothing any more.
fn check_engine(served: &Served) -> Result<(), ApiError> {
    if !served.engine.is_alive() {
        return Err(ApiError::not_ready("the engine has stopped"));
    }
    served.engine.fault().map_or(Ok(()), |fault| Err(fault.into()))
}

/// The compatibility report by which the kernels were chosen.
pub async fn compat(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let served = app.served_as(None)?;
    match &served.compat {
        Some(report) => Ok(Json(report).into_response()),
        None => Err(ApiError::not_found(format!(
            "{} kernels were chosen by name, without a check",
            served.kernels.as_str()
        ))),
    }
}

pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let served = app.served_as(None)?;
    app.metrics.update(&app.budget, app.connections.len());
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], served.metrics.text()).into_response())
}
