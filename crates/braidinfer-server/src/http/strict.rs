//! JSON request bodies in which unknown fields are rejected, or ignored by a lenient server.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use axum::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use braidinfer::engine::ClientId;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::ApiError;
use super::client::Client;
use super::harmless::{self, Meaning};
use super::shown::{cut, shown};
use crate::app::App;
use crate::budget::{Claim, Held};

/// Response header that lists ignored fields.
pub const IGNORED: HeaderName = HeaderName::from_static("x-braidinfer-ignored");

/// A JSON body that is deserialized as `A`, as `B` and as `C`; each of its fields must belong to at least one of them.
pub struct Strict<A, B = NoFields, C = NoFields> {
    pub first: A,
    pub second: B,
    pub third: C,
    pub ignored: Ignored,
    /// For whom it is.
    pub client: Client,
}

/// Longest path of an unknown field, in bytes.
const LONGEST_PATH: usize = 2000;
/// Most characters of the list of ignored fields.
const MOST_IGNORED: usize = 1000;

/// Fields that were ignored, for a response header: hints that change no answer, and on a lenient server all that are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored(Vec<String>);

/// A type without fields, for bodies with fewer than three types.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub struct NoFields {}

impl Ignored {
    /// With more names.
    pub fn with(mut self, names: &[&str]) -> Self {
        self.0.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }
}

impl IntoResponseParts for Ignored {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        if self.0.is_empty() {
            return Ok(parts);
        }
        // A header holds visible ASCII only.
        let names: Vec<String> = self.0.iter().map(|name| shown(name).escape_default().to_string()).collect();
        let names = cut(&names.join(", "), MOST_IGNORED).into_owned();
        let fallback = HeaderValue::from_static("several");
        parts.headers_mut().insert(IGNORED, HeaderValue::from_str(&names).unwrap_or(fallback));
        Ok(parts)
    }
}

impl<A: DeserializeOwned, B: DeserializeOwned, C: DeserializeOwned> FromRequest<Arc<App>> for Strict<A, B, C> {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        read_body(request, app).await.map_err(IntoResponse::into_response)
    }
}

async fn read_body<A: DeserializeOwned, B: DeserializeOwned, C: DeserializeOwned>(
    request: Request,
    app: &App,
) -> Result<Strict<A, B, C>, ApiError> {
    check_headers(request.headers())?;
    // The claim is kept until the body is parsed.
    let (client, body, _claim) = read_bytes(request, app).await?;
    let strict = parse_body(&body, app.config.lenient)?;
    Ok(Strict { client: Client(client), ..strict })
}

/// The client of a request and its body, whatever that is.
pub async fn read_bytes(request: Request, app: &App) -> Result<(ClientId, Vec<u8>, Claim), ApiError> {
    check_encoding(request.headers())?;
    let client = request.extensions().get::<Client>().copied();
    let client = client.ok_or_else(|| ApiError::internal("a request without a client"))?;
    let claim = app.budget.claim(client.0, Held::Body, 0)?;
    let received = timeout(app.config.read_timeout, receive(request.into_body(), claim, app.config.max_body_bytes));
    let (body, claim) = received.await.map_err(|_| ApiError::slow_request())??;
    Ok((client.0, body, claim))
}

fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(CONTENT_TYPE).map_or("none".into(), |kind| String::from_utf8_lossy(kind.as_bytes()));
    let is = |wanted: &str| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted));
    // What curl says if people do not tell it what they send. A page of another site can send that without being asked whether
    // it may, but then its browser says where it is from.
    let is_of_curl = is("application/x-www-form-urlencoded") && !headers.contains_key(ORIGIN);
    if !is("application/json") && !is_of_curl {
        return Err(ApiError::of_another_kind("application/json", &kind));
    }
    check_encoding(headers)
}

fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoding =
        headers.get(CONTENT_ENCODING).map_or("identity".into(), |name| String::from_utf8_lossy(name.as_bytes()));
    if !encoding.trim().eq_ignore_ascii_case("identity") {
        return Err(ApiError::encoded(&encoding));
    }
    Ok(())
}

/// Receives a body of at most `most` bytes, which are claimed as they come.
async fn receive(mut body: Body, mut claim: Claim, most: usize) -> Result<(Vec<u8>, Claim), ApiError> {
    // What the client says that it will send.
    if body.size_hint().lower() > most as u64 {
        return Err(ApiError::too_large(most));
    }
    let mut received = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::bad_request(format!("body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if received.len() + data.len() > most {
            return Err(ApiError::too_large(most));
        }
        claim.grow(data.len())?;
        received.extend_from_slice(&data);
    }
    Ok((received, claim))
}

/// Parses a body as three types.
pub fn parse_body<A: DeserializeOwned, B: DeserializeOwned, C: DeserializeOwned>(
    body: &[u8],
    lenient: bool,
) -> Result<Strict<A, B, C>, ApiError> {
    let (first, to_first) = read_one(body)?;
    let (second, to_second) = read_one(body)?;
    let (third, to_third) = read_one(body)?;
    let unknown_to = [to_first, to_second, to_third];
    let all: BTreeSet<&String> = unknown_to.iter().flatten().collect();
    // Each part of a path is looked up.
    if let Some(field) = all.iter().find(|field| field.len() > LONGEST_PATH) {
        let message = format!("{}: expected fields with shorter names", shown(field));
        return Err(ApiError::field(field, message));
    }
    let to_all = |field: &&String| unknown_to.iter().all(|unknown| is_within(unknown, field));
    let unknown: Vec<String> = all.into_iter().filter(to_all).cloned().collect();
    let (mut refused, mut ignored) = (Vec::new(), Vec::new());
    if !unknown.is_empty() {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        for field in unknown {
            match harmless::meaning(&body, &field) {
                Meaning::Nothing => {}
                Meaning::Hint => ignored.push(field),
                Meaning::Something if lenient => ignored.push(field),
                Meaning::Something => refused.push(field),
            }
        }
    }
    match refused.first() {
        Some(field) => Err(ApiError::field(field, format!("{}: this server knows no such field", shown(field)))),
        None => Ok(Strict { first, second, third, ignored: Ignored(ignored), client: Client::default() }),
    }
}

/// The message of a JSON error without Rust type names, and without the line and column, since the path is reported.
fn plain_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    let whole = ["usize", "u64", "u32", "i64"].iter().fold(text.to_owned(), |text, name| {
        text.replace(&format!("expected {name}"), "expected a whole number in range")
    });
    ["f64", "f32"].iter().fold(whole, |text, name| text.replace(&format!("expected {name}"), "expected a number"))
}

/// A message of serde with what it quotes from the body cut: the quotation comes first, and what was expected last.
fn shown_error(message: &str) -> String {
    const MOST_OF_END: usize = 300;
    match message.rfind(", expected ") {
        Some(at) => format!("{}{}", shown(&message[..at]), cut(&message[at..], MOST_OF_END)),
        None => cut(message, MOST_OF_END).into_owned(),
    }
}

/// The path of a field in the format of the other errors: `messages[0].name`.
fn field_path(path: &serde_ignored::Path) -> String {
    let mut spelled = String::new();
    // `serde_ignored` adds a step `?` for each optional field.
    for step in path.to_string().split('.').filter(|step| *step != "?") {
        match step.parse::<usize>() {
            Ok(index) => spelled += &format!("[{index}]"),
            Err(_) if spelled.is_empty() => spelled += step,
            Err(_) => spelled += &format!(".{step}"),
        }
    }
    spelled
}

/// Whether a field is in `unknown` or within one of them: the fields of an unknown object are not listed one by one.
fn is_within(unknown: &BTreeSet<String>, field: &str) -> bool {
    let ends = field.match_indices(['.', '[']).map(|(end, _)| end).chain([field.len()]);
    ends.into_iter().any(|end| unknown.contains(&field[..end]))
}

/// Parses a body as one type; returns it with the paths of unknown fields.
fn read_one<T: DeserializeOwned>(body: &[u8]) -> Result<(T, BTreeSet<String>), ApiError> {
    let mut unknown = BTreeSet::new();
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_slice(body);
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = serde_ignored::deserialize(tracked, |path| {
        unknown.insert(field_path(&path));
    });
    let value: T = value.map_err(|error: serde_json::Error| {
        let path = track.path().to_string();
        match path.as_str() {
            "." | "" | "?" => ApiError::bad_request(format!("body: {}", shown_error(&error.to_string()))),
            _ => ApiError::field(&path, format!("{}: {}", shown(&path), shown_error(&plain_message(&error)))),
        }
    })?;
    json.end().map_err(|error| ApiError::bad_request(format!("body: {error}")))?;
    Ok((value, unknown))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sampling {
        temperature: Option<f64>,
    }

    #[derive(Debug, Deserialize)]
    struct Options {
        options: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        usage: bool,
    }

    fn both(body: &str, lenient: bool) -> Result<Strict<Sampling, Options>, String> {
        parse_body(body.as_bytes(), lenient).map_err(|error| error.json()["error"].to_string())
    }

    #[test]
    fn every_field_must_belong_to_one_of_the_types() {
        let read = both(r#"{"temperature": 1, "options": {"usage": true}}"#, false).expect("all is known");
        assert_eq!((read.first.temperature, read.second.options.map(|inner| inner.usage)), (Some(1.0), Some(true)));
        for (body, field) in [
            (r#"{"temprature": 1}"#, "temprature"),
            (r#"{"options": {"usage": true, "more": 1}}"#, "options.more"),
            (r#"{"options": {"usage": 3}}"#, "options.usage"),
            (r#"{"temperature": "hot"}"#, "temperature"),
        ] {
            let error = both(body, false).err().expect("a field is wrong");
            assert!(error.contains(&format!("\"param\":\"{field}\"")), "{error}");
        }
        for body in ["", "[]", "{\"temperature\": 1} x", "{\"temperature\": 1e999}", "\u{0}", &"[".repeat(100_000)] {
            assert!(both(body, true).is_err(), "{body:.20}");
        }
    }

    #[test]
    fn harmless_fields_are_accepted() {
        let read = both(
            r#"{"a": null, "options": {"usage": true, "b": null}, "c": [], "store": true, "metadata": {"x": 1}, "best_of": 1.0}"#,
            false,
        );
        let read = read.expect("nothing is asked for");
        assert_eq!(
            read.ignored,
            Ignored(vec!["metadata".into(), "store".into()]),
            "what could mean something is named"
        );
        for body in [r#"{"best_of": 2}"#, r#"{"a": {}}"#, r#"{"a": [null]}"#, r#"{"a.b": 5}"#] {
            assert!(both(body, false).is_err(), "{body}");
        }
    }

    #[test]
    fn lenient_servers_list_ignored_fields() {
        let read = both(r#"{"a": 1, "options": {"usage": true, "b": 2}}"#, true).expect("all is taken");
        assert_eq!(read.ignored, Ignored(vec!["a".into(), "options.b".into()]));
    }
}
