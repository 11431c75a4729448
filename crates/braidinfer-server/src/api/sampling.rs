//! The fields that chats and completions share.

use std::collections::BTreeMap;
use std::fmt;

use braidinfer::SamplingParams;
use braidinfer::engine::{Kind, PARAMETERS};
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::form::{ResponseFormat, StructuredOutputs};
use super::one_or_many::TextOr;
use crate::http::ApiError;

/// Texts of one field.
const MOST_TEXTS: usize = 16;

/// Fields of the library's table of parameters.
pub struct ParameterFields(Vec<Change>);

/// What a field sets.
type Change = Box<dyn Fn(&mut SamplingParams) + Send + Sync>;

/// What chats and completions ask for beside parameters.
#[derive(Debug, Clone, Deserialize)]
pub struct SharedFields {
    pub model: Option<String>,
    /// Another name of `max_tokens`.
    max_completion_tokens: Option<usize>,
    pub response_format: Option<ResponseFormat>,
    pub structured_outputs: Option<StructuredOutputs>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Says who asks, to services that watch over that; means nothing here.
    #[serde(rename = "user")]
    _user: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// How answers are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    Whole,
    Streamed { with_usage: bool },
}

impl SharedFields {
    pub fn delivery(&self) -> Result<Delivery, ApiError> {
        match (self.stream.unwrap_or(false), self.stream_options) {
            (false, None) => Ok(Delivery::Whole),
            (false, Some(_)) => {
                Err(ApiError::field("stream_options", "stream_options: expected `stream` to be true beside it"))
            }
            (true, options) => {
                let with_usage = options.and_then(|options| options.include_usage).unwrap_or(false);
                Ok(Delivery::Streamed { with_usage })
            }
        }
    }

    /// Settings over those of the model; `max_tokens` is what an absent limit means.
    pub fn over(
        &self,
        parameters: &ParameterFields,
        defaults: &SamplingParams,
        max_tokens: Option<usize>,
    ) -> Result<SamplingParams, ApiError> {
        let mut params = SamplingParams { max_tokens: None, ..defaults.clone() };
        parameters.0.iter().for_each(|change| change(&mut params));
        params.max_tokens = match (params.max_tokens, self.max_completion_tokens) {
            (Some(a), Some(b)) if a != b => {
                let message = format!("max_completion_tokens: expected the {a} of max_tokens, found {b}");
                return Err(ApiError::field("max_completion_tokens", message));
            }
            (a, b) => a.or(b).or(max_tokens),
        };
        Ok(params)
    }
}

impl<'de> Deserialize<'de> for ParameterFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

/// Reads the fields of a body that are parameters, and leaves the others alone.
struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = ParameterFields;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ParameterFields, A::Error> {
        let (mut changes, mut seen) = (Vec::new(), Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            let Some(parameter) = PARAMETERS.iter().find(|parameter| parameter.name == name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&parameter.name) {
                return Err(A::Error::custom(format_args!("duplicate field `{name}`")));
            }
            seen.push(parameter.name);
            changes.extend(map.next_value_seed(OfKind(parameter.kind))?);
        }
        Ok(ParameterFields(changes))
    }
}

/// Reads the value of a parameter; null is no value.
struct OfKind(Kind);

impl<'de> DeserializeSeed<'de> for OfKind {
    type Value = Option<Change>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<Change>, D::Error> {
        match self.0 {
            Kind::Number(set) => change(json, Ok, set),
            Kind::Count(set) => change(json, Ok, set),
            Kind::CountOrAll(set) => change(json, count_or_all, set),
            Kind::Seed(set) => change(json, |seed| Ok(i64::cast_unsigned(seed)), set),
            Kind::Switch(set) => change(json, Ok, set),
            Kind::Texts(set) => change(json, texts, set),
            Kind::Biases(set) => change(json, biases, set),
            Kind::TokenIds(set) => change(json, Ok, set),
        }
    }
}

/// What sets a parameter to the value in `json`, which stands there as a `T`.
fn change<'de, D: Deserializer<'de>, T: Deserialize<'de>, V: Clone + Send + Sync + 'static>(
    json: D,
    read: impl FnOnce(T) -> Result<V, String>,
    set: fn(&mut SamplingParams, V),
) -> Result<Option<Change>, D::Error> {
    let Some(found) = Option::<T>::deserialize(json)? else { return Ok(None) };
    let value = read(found).map_err(D::Error::custom)?;
    Ok(Some(Box::new(move |params| set(params, value.clone()))))
}

fn count_or_all(count: i64) -> Result<Option<usize>, String> {
    match count {
        -1 | 0 => Ok(None),
        count => usize::try_from(count).map(Some).map_err(|_| format!("expected -1 or more, found {count}")),
    }
}

fn texts(texts: TextOr<String>) -> Result<Vec<String>, String> {
    match texts {
        TextOr::Text(text) => Ok(vec![text]),
        TextOr::Many(texts) if texts.len() > MOST_TEXTS => {
            Err(format!("expected at most {MOST_TEXTS} texts, found {}", texts.len()))
        }
        TextOr::Many(texts) => Ok(texts),
    }
}

fn biases(biases: BTreeMap<String, f32>) -> Result<BTreeMap<u32, f32>, String> {
    let bias = |(id, bias): (String, f32)| {
        let id = id.parse().map_err(|_| format!("expected token ids as names, found `{id}`"))?;
        Ok((id, bias))
    };
    biases.into_iter().map(bias).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn defaults() -> SamplingParams {
        SamplingParams { temperature: 0.5, top_k: Some(7), max_tokens: Some(9), ..SamplingParams::default() }
    }

    fn asked(body: Value) -> Result<SamplingParams, String> {
        let parameters = ParameterFields::deserialize(&body).map_err(|error| error.to_string())?;
        let shared = SharedFields::deserialize(body).map_err(|error| error.to_string())?;
        shared.over(&parameters, &defaults(), Some(16)).map_err(|error| error.json().to_string())
    }

    #[test]
    fn what_is_absent_or_null_is_as_the_model_has_it() {
        let own = SamplingParams { max_tokens: Some(16), ..defaults() };
        assert_eq!(asked(json!({})), Ok(own.clone()));
        for parameter in PARAMETERS {
            assert_eq!(asked(json!({parameter.name: null})), Ok(own.clone()), "{}", parameter.name);
        }
    }

    #[test]
    fn fields_set_what_they_name() {
        let body = json!({"temperature": 0, "top_k": -1, "seed": -1, "stop": "a", "ignore_eos": true, "max_tokens": 3,
            "max_completion_tokens": 3, "logit_bias": {"5": 2.5}, "n": 2, "unknown": {"temperature": 3}});
        let expected = SamplingParams {
            temperature: 0.0,
            top_k: None,
            seed: Some(u64::MAX),
            stop: vec!["a".into()],
            ignore_eos: true,
            max_tokens: Some(3),
            logit_bias: BTreeMap::from([(5, 2.5)]),
            n: 2,
            ..SamplingParams::default()
        };
        assert_eq!(asked(body), Ok(expected));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (body, says) in [
            (json!({"top_k": -2}), "expected -1 or more, found -2"),
            (json!({"stop": vec!["x"; 17]}), "expected at most 16 texts, found 17"),
            (json!({"logit_bias": {"x": 1}}), "expected token ids as names, found `x`"),
            (json!({"ignore_eos": 1}), "invalid type"),
            (json!({"max_tokens": 2, "max_completion_tokens": 3}), "expected the 2 of max_tokens, found 3"),
        ] {
            let error = asked(body).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
        let twice = serde_json::from_str::<ParameterFields>(r#"{"n": 1, "n": 2}"#).err().expect("it is there twice");
        assert!(twice.to_string().contains("duplicate field `n`"), "{twice}");
    }
}
