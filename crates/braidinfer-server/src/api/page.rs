//! The web page, which is part of the program.

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::Response;
use axum::routing::get;

use crate::served::App;

/// Nothing from elsewhere, and nothing that is not in a file of its own.
const POLICY: &str = "default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page by its name.
macro_rules! script {
    ($name:literal) => {
        (concat!("/", $name), SCRIPT, include_str!(concat!("../../page/", $name)))
    };
}

/// Path, type and content.
const FILES: [(&str, &str, &str); 15] = [
    ("/", HTML, include_str!("../../page/index.html")),
    ("/style.css", CSS, include_str!("../../page/style.css")),
    script!("api.js"),
    script!("app.js"),
    script!("chat.js"),
    script!("elements.js"),
    script!("markdown.js"),
    script!("memory.js"),
    script!("metrics.js"),
    script!("numbers.js"),
    script!("plot.js"),
    script!("report.js"),
    script!("settings.js"),
    script!("theme.js"),
    script!("turn.js"),
];

pub fn routes() -> Router<Arc<App>> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(async move || ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], content)))
    })
}

/// Headers of every answer, which keep browsers from doing more with it than they should.
pub async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
