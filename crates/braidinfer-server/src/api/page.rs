//! The web page, whose files are compiled into the program.

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::Response;
use axum::routing::get;

use crate::app::App;

/// Content security policy: only resources of this server, and no inline scripts or styles.
const POLICY: &str = "default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Entry of [`FILES`] for a script of the page.
macro_rules! script {
    ($name:literal) => {
        (concat!("/", $name), SCRIPT, include_str!(concat!("../../page/", $name)))
    };
}

/// Files of the page: path, content type and content.
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

/// Adds security headers for browsers to every response.
pub async fn with_security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
