//! Request fields that chats and completions share.

use std::collections::BTreeMap;
use std::fmt;

use braidinfer::SamplingParams;
use braidinfer::engine::{Kind, PARAMETERS};
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::form::{ResponseFormat, StructuredOutputs};
use crate::api::answers::Delivery;
use crate::api::one_or_many::TextOr;
use crate::http::{ApiError, shown};

/// Names of parameters in other servers.
const OTHER_NAMES: [(&str, &str); 3] =
    [("repeat_penalty", "repetition_penalty"), ("n_predict", "max_tokens"), ("max_new_tokens", "max_tokens")];

/// The request fields that are parameters in the library's table [`PARAMETERS`].
pub struct ParameterFields {
    setters: Vec<Setter>,
    /// Whether the number of tokens is unlimited, also where there is a default.
    is_unlimited: bool,
}

/// Sets one parameter to the value of its field.
type Setter = Box<dyn Fn(&mut SamplingParams) + Send + Sync>;

/// The other fields that chats and completions share.
#[derive(Debug, Clone, Deserialize)]
pub struct SharedFields {
    pub model: Option<String>,
    /// Alias of `max_tokens`.
    max_completion_tokens: Option<usize>,
    pub response_format: Option<ResponseFormat>,
    pub structured_outputs: Option<StructuredOutputs>,
    /// Earlier names of the fields of `structured_outputs`, in vLLM.
    pub guided_json: Option<Value>,
    pub guided_regex: Option<String>,
    pub guided_choice: Option<Vec<String>>,
    pub guided_grammar: Option<String>,
    /// The schema of `response_format`, in llama.cpp.
    pub json_schema: Option<Value>,
    /// Whether special tokens are left out of the text; true if absent.
    skip_special_tokens: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Ignored: an id of the end user.
    #[serde(rename = "user")]
    _user: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl SharedFields {
    /// Whether special tokens are part of the text.
    pub fn shows_special_tokens(&self) -> bool {
        self.skip_special_tokens == Some(false)
    }

    /// Whether a stream says how many tokens it took.
    pub fn with_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    pub fn delivery(&self) -> Result<Delivery, ApiError> {
        match (self.stream.unwrap_or(false), self.stream_options) {
            (false, None) => Ok(Delivery::Whole),
            (false, Some(_)) => {
                Err(ApiError::field("stream_options", "stream_options: expected `stream` to be true beside it"))
            }
            (true, _) => Ok(Delivery::Streamed),
        }
    }

    /// The sampling parameters of a request: its fields override the model's `defaults`. `max_tokens` is the default limit.
    pub fn sampling_params(
        &self,
        parameters: &ParameterFields,
        defaults: &SamplingParams,
        max_tokens: Option<usize>,
    ) -> Result<SamplingParams, ApiError> {
        let mut params = SamplingParams { max_tokens: None, ..defaults.clone() };
        parameters.setters.iter().for_each(|set| set(&mut params));
        params.max_tokens = match (params.max_tokens, self.max_completion_tokens) {
            (Some(a), Some(b)) if a != b => {
                let message = format!("max_completion_tokens: expected the {a} of max_tokens, found {b}");
                return Err(ApiError::field("max_completion_tokens", message));
            }
            (a, b) => a.or(b).or(max_tokens.filter(|_| !parameters.is_unlimited)),
        };
        Ok(params)
    }
}

impl<'de> Deserialize<'de> for ParameterFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ParameterVisitor)
    }
}

/// Reads the fields of a body that are parameters and skips the others.
struct ParameterVisitor;

impl<'de> Visitor<'de> for ParameterVisitor {
    type Value = ParameterFields;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ParameterFields, A::Error> {
        let (mut setters, mut seen, mut is_unlimited) = (Vec::new(), Vec::new(), false);
        while let Some(name) = map.next_key::<String>()? {
            let own_name = OTHER_NAMES.iter().find(|(other, _)| *other == name).map_or(name.as_str(), |(_, own)| own);
            let Some(parameter) = PARAMETERS.iter().find(|parameter| parameter.name == own_name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&parameter.name) {
                return Err(A::Error::custom(format_args!("duplicate field `{name}`")));
            }
            seen.push(parameter.name);
            if parameter.name == "max_tokens" {
                let limit = map.next_value_seed(LimitOfTokens)?;
                is_unlimited = matches!(limit, Limit::None);
                if let Limit::Tokens(count) = limit {
                    setters
                        .push(Box::new(move |params: &mut SamplingParams| params.max_tokens = Some(count)) as Setter);
                }
                continue;
            }
            setters.extend(map.next_value_seed(OfKind(parameter.kind))?);
        }
        Ok(ParameterFields { setters, is_unlimited })
    }
}

/// A limit of tokens.
enum Limit {
    /// The request says nothing.
    Default,
    /// -1, as in llama.cpp.
    None,
    Tokens(usize),
}

/// Reads `max_tokens`.
struct LimitOfTokens;

impl<'de> DeserializeSeed<'de> for LimitOfTokens {
    type Value = Limit;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Limit, D::Error> {
        match Option::<i64>::deserialize(json)? {
            None => Ok(Limit::Default),
            Some(-1) => Ok(Limit::None),
            Some(count) => usize::try_from(count)
                .map(Limit::Tokens)
                .map_err(|_| D::Error::custom(format_args!("expected -1 or more, found {count}"))),
        }
    }
}

/// Reads the value of a parameter of this kind; null counts as absent.
struct OfKind(Kind);

impl<'de> DeserializeSeed<'de> for OfKind {
    type Value = Option<Setter>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<Setter>, D::Error> {
        match self.0 {
            Kind::Number(set) => setter(json, Ok, set),
            Kind::Count(set) => setter(json, Ok, set),
            Kind::CountOrAll(set) => setter(json, count_or_all, set),
            Kind::Seed(set) => setter(json, |seed| Ok(i64::cast_unsigned(seed)), set),
            Kind::Switch(set) => setter(json, Ok, set),
            Kind::Texts(set) => setter(json, texts, set),
            Kind::Biases(set) => setter(json, biases, set),
            Kind::TokenIds(set) => setter(json, Ok, set),
        }
    }
}

/// Reads a `T` from `json`, converts it with `read`, and returns the setter for that value.
fn setter<'de, D: Deserializer<'de>, T: Deserialize<'de>, V: Clone + Send + Sync + 'static>(
    json: D,
    read: impl FnOnce(T) -> Result<V, String>,
    set: fn(&mut SamplingParams, V),
) -> Result<Option<Setter>, D::Error> {
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
        TextOr::Many(texts) => Ok(texts),
    }
}

fn biases(biases: BTreeMap<String, f32>) -> Result<BTreeMap<u32, f32>, String> {
    let bias = |(id, bias): (String, f32)| {
        let id = id.parse().map_err(|_| format!("expected token ids as names, found `{}`", shown(&id)))?;
        Ok((id, bias))
    };
    biases.into_iter().map(bias).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn defaults() -> SamplingParams {
        SamplingParams { temperature: 0.5, top_k: Some(7), max_tokens: Some(9), ..SamplingParams::default() }
    }

    fn params_of(body: Value) -> Result<SamplingParams, String> {
        let parameters = ParameterFields::deserialize(&body).map_err(|error| error.to_string())?;
        let shared = SharedFields::deserialize(body).map_err(|error| error.to_string())?;
        shared.sampling_params(&parameters, &defaults(), Some(16)).map_err(|error| error.json().to_string())
    }

    #[test]
    fn absent_and_null_fields_keep_the_defaults_of_the_model() {
        let own = SamplingParams { max_tokens: Some(16), ..defaults() };
        assert_eq!(params_of(json!({})), Ok(own.clone()));
        for parameter in PARAMETERS {
            assert_eq!(params_of(json!({parameter.name: null})), Ok(own.clone()), "{}", parameter.name);
        }
    }

    #[test]
    fn fields_set_their_parameters() {
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
        assert_eq!(params_of(body), Ok(expected));
    }

    #[test]
    fn invalid_values_are_rejected() {
        for (body, says) in [
            (json!({"top_k": -2}), "expected -1 or more, found -2"),
            (json!({"logit_bias": {"x": 1}}), "expected token ids as names, found `x`"),
            (json!({"ignore_eos": 1}), "invalid type"),
            (json!({"max_tokens": 2, "max_completion_tokens": 3}), "expected the 2 of max_tokens, found 3"),
        ] {
            let error = params_of(body).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
        let twice = serde_json::from_str::<ParameterFields>(r#"{"n": 1, "n": 2}"#).err().expect("it is there twice");
        assert!(twice.to_string().contains("duplicate field `n`"), "{twice}");
    }
}
