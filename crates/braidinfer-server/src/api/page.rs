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

/// Content security policy: only resources of this server, no inline scripts or styles, and no text that becomes a script or HTML
/// unless it was sanitized. The mock server in `tools/web-page` has the same.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// A file of the page as `page/build.mjs` wrote it.
macro_rules! built {
    ($name:literal) => {
        include_str!(concat!("../../page/built/", $name))
    };
}

/// Files of the page: path, content type and content.
const FILES: [(&str, &str, &str); 7] = [
    ("/", HTML, built!("index.html")),
    ("/style.css", CSS, built!("style.css")),
    ("/theme.js", SCRIPT, built!("theme.js")),
    ("/page.js", SCRIPT, built!("page.js")),
    ("/code.js", SCRIPT, built!("code.js")),
    ("/math.js", SCRIPT, built!("math.js")),
    ("/licenses.txt", TEXT, built!("licenses.txt")),
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
