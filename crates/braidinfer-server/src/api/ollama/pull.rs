//! `/api/pull`: models that clients ask the server to fetch, where it was started to do so.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{ERRORS, hexadecimal, known_name};
use crate::app::App;
use crate::http::{ApiError, Strict};
use crate::models::FetchProgress;

/// Lines that wait for the client; if there are more, some are left out.
const MOST_UNREAD: usize = 1024;

#[derive(Debug, Deserialize)]
pub struct PullFields {
    model: Option<String>,
    /// An earlier name of `model`.
    name: Option<String>,
    /// True if absent.
    stream: Option<bool>,
    /// Ignored: connections are never insecure.
    #[serde(rename = "insecure")]
    _insecure: Option<bool>,
}

pub async fn pull(State(app): State<Arc<App>>, request: Strict<PullFields>) -> Response {
    let Strict { first: PullFields { model, name, stream, .. }, ignored, .. } = request;
    let Some(name) = model.or(name) else {
        return (ignored, ApiError::field("model", "model: expected a name, found none")).into_response();
    };
    let (sender, lines) = channel(MOST_UNREAD);
    let known = known_name(&app, &name);
    if app.models.has(&known) {
        // It is here: there is nothing to fetch.
        let _ = sender.send(success()).await;
        drop(sender);
    } else if let Err(error) = app.models.check_fetching() {
        return (ignored, error).into_response();
    } else {
        let models = Arc::clone(&app.models);
        let room = match models.reserve_fetching() {
            Ok(room) => room,
            Err(error) => return (ignored, error).into_response(),
        };
        // Goes on if the client leaves: what was fetched is not lost.
        tokio::task::spawn_blocking(move || {
            let _room = room;
            let mut told = Told { lines: sender, file: String::new(), digest: String::new(), size: 0, last: 0 };
            told.line(json!({"status": "pulling manifest"}));
            let last = match models.fetch(&name, &mut told) {
                Ok(()) => success(),
                Err(error) => ERRORS.body(&error),
            };
            // This one must come, also to a client that reads slowly.
            let _ = told.lines.blocking_send(last);
        });
    }
    if stream == Some(false) {
        return (ignored, last_of(lines).await).into_response();
    }
    let lines = stream::unfold(lines, |mut lines| async move {
        let mut text = lines.recv().await?.to_string();
        text.push('\n');
        Some((Ok::<_, Infallible>(Bytes::from(text)), lines))
    });
    (ignored, [(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn success() -> Value {
    json!({"status": "success"})
}

/// The last line, which says how it ended.
async fn last_of(mut lines: Receiver<Value>) -> Result<Json<Value>, ApiError> {
    let mut last = None;
    while let Some(line) = lines.recv().await {
        last = Some(line);
    }
    match last {
        Some(line) if line["error"].is_null() => Ok(Json(line)),
        Some(line) => Err(ApiError::bad_request(line["error"].as_str().unwrap_or_default())),
        None => Err(ApiError::not_ready("the server stops")),
    }
}

/// Tells a client of a download.
struct Told {
    lines: Sender<Value>,
    file: String,
    digest: String,
    size: u64,
    /// What was told last.
    last: u64,
}

impl Told {
    fn line(&self, line: Value) {
        // A download waits for no client: who has left or reads slowly is not told of every step.
        let _ = self.lines.try_send(line);
    }

    fn tell(&mut self, completed: u64) {
        self.last = completed;
        let status = format!("pulling {}", self.file);
        self.line(json!({"status": status, "digest": self.digest, "total": self.size, "completed": completed}));
    }
}

impl FetchProgress for Told {
    fn started(&mut self, file: &str, size: u64, present: u64) {
        // Clients tell files from each other by it.
        let digest = format!("sha256:{}", hexadecimal(&Sha256::digest(file)));
        (self.file, self.digest, self.size) = (file.to_owned(), digest, size);
        self.tell(present);
    }

    fn advanced(&mut self, present: u64) {
        /// Parts of a file after each of which it is told.
        const PARTS: u64 = 200;
        if present < self.last || present - self.last > self.size / PARTS {
            self.tell(present);
        }
    }

    fn finished(&mut self, _file: &str) {
        self.tell(self.size);
    }

    fn note(&mut self, text: &str) {
        self.line(json!({"status": text}));
    }
}
