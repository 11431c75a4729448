//! Bodies of requests, of which every field must mean something here.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::ApiError;
use crate::served::App;

pub const IGNORED: HeaderName = HeaderName::from_static("x-braidinfer-ignored");

/// A body, read as an `A`, as a `B` and as a `C`: each of its fields must belong to one of them.
pub struct Strict<A, B = Nothing, C = Nothing> {
    pub first: A,
    pub second: B,
    pub third: C,
    pub ignored: Ignored,
}

/// Fields that mean nothing here, for a header of the answer; there are none unless the server is lenient.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored(Vec<String>);

/// A type without fields, for bodies that are read as fewer types.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub struct Nothing {}

impl IntoResponseParts for Ignored {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        // A name that no header can hold is left out; the client sent it and knows.
        if let Some(names) = (!self.0.is_empty()).then(|| self.0.join(", ").parse().ok()).flatten() {
            parts.headers_mut().insert(IGNORED, names);
        }
        Ok(parts)
    }
}

impl<A: DeserializeOwned, B: DeserializeOwned, C: DeserializeOwned> FromRequest<Arc<App>> for Strict<A, B, C> {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("none").to_owned();
        let is_json = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err(ApiError::not_json(&kind).into_response());
        }
        let body = match timeout(app.config.read_timeout, Bytes::from_request(request, app)).await {
            Ok(Ok(body)) => body,
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                return Err(ApiError::too_large(app.config.max_body_bytes).into_response());
            }
            Ok(Err(rejection)) => return Err(ApiError::bad_request(rejection.body_text()).into_response()),
            Err(_) => return Err(ApiError::slow_request().into_response()),
        };
        read(&body, app.config.lenient).map_err(IntoResponse::into_response)
    }
}

/// Reads a body as three types.
fn read<A: DeserializeOwned, B: DeserializeOwned, C: DeserializeOwned>(
    body: &[u8],
    lenient: bool,
) -> Result<Strict<A, B, C>, ApiError> {
    let (first, to_first) = read_one(body)?;
    let (second, to_second) = read_one(body)?;
    let (third, to_third) = read_one(body)?;
    let unknown_to = [to_first, to_second, to_third];
    let all: BTreeSet<&String> = unknown_to.iter().flatten().collect();
    let to_all = |field: &&String| unknown_to.iter().all(|unknown| is_within(unknown, field));
    let unknown: Vec<String> = all.into_iter().filter(to_all).cloned().collect();
    let unknown = if unknown.is_empty() { unknown } else { without_harmless(unknown, body) };
    match unknown.first() {
        Some(field) if !lenient => {
            Err(ApiError::field(field.clone(), format!("{field}: this server knows no such field")))
        }
        _ => Ok(Strict { first, second, third, ignored: Ignored(unknown) }),
    }
}

/// What is wrong with a field, without the names that types have here and the place that the path says already.
fn in_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    let whole = ["usize", "u64", "u32", "i64"].iter().fold(text.to_owned(), |text, name| {
        text.replace(&format!("expected {name}"), "expected a whole number in range")
    });
    ["f64", "f32"].iter().fold(whole, |text, name| text.replace(&format!("expected {name}"), "expected a number"))
}

/// The path of a field, as the other errors spell theirs: `messages[0].name`.
fn spelled(path: &serde_ignored::Path) -> String {
    let mut spelled = String::new();
    // An optional field is a step of its own in these paths.
    for step in path.to_string().split('.').filter(|step| *step != "?") {
        match step.parse::<usize>() {
            Ok(index) => spelled += &format!("[{index}]"),
            Err(_) if spelled.is_empty() => spelled += step,
            Err(_) => spelled += &format!(".{step}"),
        }
    }
    spelled
}

/// Whether a field is one of `unknown`, or part of one: of an object that is not read, no field is named.
fn is_within(unknown: &BTreeSet<String>, field: &str) -> bool {
    let ends = field.match_indices(['.', '[']).map(|(end, _)| end).chain([field.len()]);
    ends.into_iter().any(|end| unknown.contains(&field[..end]))
}

/// Fields that every server may leave aside: they say nothing about the answer, or only what is so anyway.
const HARMLESS: [(&str, &[&str]); 7] = [
    ("store", &["false"]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("modalities", &["[\"text\"]"]),
    ("best_of", &["1"]),
    ("metadata", &[]),
    ("safety_identifier", &[]),
    ("prompt_cache_key", &[]),
];

/// `unknown` without fields that are null or empty, which clients send for what they do not ask for, and without harmless
/// ones.
fn without_harmless(unknown: Vec<String>, body: &[u8]) -> Vec<String> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let matters = |field: &String| {
        // A name with a dot in it leads nowhere, and says something all the same.
        let Some(value) = value_at(&body, field) else { return true };
        let says_nothing = match value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        let is_harmless = HARMLESS
            .iter()
            .any(|(name, values)| name == field && (values.is_empty() || values.contains(&value.to_string().as_str())));
        !says_nothing && !is_harmless
    };
    unknown.into_iter().filter(matters).collect()
}

/// The value of a field by its path.
fn value_at<'a>(body: &'a Value, field: &str) -> Option<&'a Value> {
    field.split(['.', '[']).try_fold(body, |value, step| match step.strip_suffix(']').map(str::parse::<usize>) {
        Some(Ok(index)) => value.get(index),
        _ => value.get(step),
    })
}

/// Reads a body, and names the fields that were not read.
fn read_one<T: DeserializeOwned>(body: &[u8]) -> Result<(T, BTreeSet<String>), ApiError> {
    let mut unknown = BTreeSet::new();
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_slice(body);
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = serde_ignored::deserialize(tracked, |path| {
        unknown.insert(spelled(&path));
    });
    let value: T = value.map_err(|error: serde_json::Error| {
        let path = track.path().to_string();
        match path.as_str() {
            "." | "" | "?" => ApiError::bad_request(format!("body: {error}")),
            _ => ApiError::field(path.clone(), format!("{path}: {}", in_words(&error))),
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
        read(body.as_bytes(), lenient).map_err(|error| error.json()["error"].to_string())
    }

    #[test]
    fn every_field_belongs_to_one_of_both() {
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
    fn what_asks_for_nothing_is_taken() {
        both(
            r#"{"a": null, "options": {"usage": true, "b": null}, "c": [], "store": false, "metadata": {"x": 1}}"#,
            false,
        )
        .expect("nothing is asked for");
        for body in [r#"{"store": true}"#, r#"{"best_of": 2}"#, r#"{"a": {}}"#, r#"{"a": [null]}"#, r#"{"a.b": 5}"#] {
            assert!(both(body, false).is_err(), "{body}");
        }
    }

    #[test]
    fn lenient_servers_name_what_they_ignore() {
        let read = both(r#"{"a": 1, "options": {"usage": true, "b": 2}}"#, true).expect("all is taken");
        assert_eq!(read.ignored, Ignored(vec!["a".into(), "options.b".into()]));
    }
}
