//! Fields that several requests share.

use std::time::Duration;

use braidinfer::{AnswerForm, SamplingParams};
use serde::Deserialize;
use serde_json::Value;

use crate::api::answers::Delivery;
use crate::api::constraint::RequestedForm;
use crate::api::one_or_many::TextOr;
use crate::http::{ApiError, shown};
use crate::models::{Keep, Served};

/// The `repeat_last_n` that stands for all tokens.
const ALL_TOKENS: i64 = -1;

/// How tokens are chosen. What is null is as if it was absent.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Options {
    seed: Option<i64>,
    /// Most tokens of an answer; no limit if it is not positive.
    num_predict: Option<i64>,
    temperature: Option<f64>,
    /// 0 takes all tokens into account.
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repeat_penalty: Option<f64>,
    /// How many of the last tokens the penalty looks at.
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    stop: Option<TextOr<String>>,
}

/// Fields of `/api/chat` and `/api/generate`.
#[derive(Debug, Clone, Deserialize)]
pub struct SharedFields {
    pub model: String,
    pub options: Option<Options>,
    /// `json`, or a JSON schema.
    format: Option<Value>,
    /// Whether the model reasons, or how much.
    think: Option<Value>,
    /// True if absent.
    stream: Option<bool>,
    /// How long the model stays loaded after this request.
    keep_alive: Option<KeepAlive>,
}

/// How long a model stays loaded: a number of seconds, or a time such as `5m`; what is negative is for ever.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum KeepAlive {
    Seconds(f64),
    Text(String),
}

impl KeepAlive {
    pub fn keep(&self) -> Result<Keep, ApiError> {
        let wrong = |found: &str| refused("keep_alive", "seconds, or a time such as 5m, 0 or -1", found);
        match self {
            Self::Seconds(seconds) if *seconds < 0.0 => Ok(Keep::Always),
            Self::Seconds(seconds) => {
                let time = Duration::try_from_secs_f64(*seconds).map_err(|_| wrong(&seconds.to_string()))?;
                Ok(Keep::For(time))
            }
            Self::Text(text) => {
                let (is_negative, time) = text.strip_prefix('-').map_or((false, &**text), |time| (true, time));
                let found = match time.parse::<f64>() {
                    Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| wrong(text))?,
                    Err(_) => humantime::parse_duration(time).map_err(|_| wrong(text))?,
                };
                Ok(if is_negative { Keep::Always } else { Keep::For(found) })
            }
        }
    }
}

/// Whether the model reasons, and how much.
#[derive(Debug, Clone, Default)]
pub struct Think {
    pub is_on: Option<bool>,
    pub effort: Option<String>,
}

impl SharedFields {
    pub fn delivery(&self) -> Delivery {
        if self.stream == Some(false) { Delivery::Whole } else { Delivery::Streamed }
    }

    /// How long the model is to stay loaded, if the request says it.
    pub fn keep(&self) -> Result<Option<Keep>, ApiError> {
        self.keep_alive.as_ref().map(KeepAlive::keep).transpose()
    }

    /// The sampling parameters; `defaults` are the model's.
    pub fn params(&self, defaults: &SamplingParams) -> Result<SamplingParams, ApiError> {
        let options = self.options.clone().unwrap_or_default();
        let stop = match options.stop {
            None => Vec::new(),
            Some(TextOr::Text(text)) => vec![text],
            Some(TextOr::Many(texts)) => texts,
        };
        let repetition_penalty = options.repeat_penalty.unwrap_or(defaults.repetition_penalty);
        if let Some(count) = options.repeat_last_n.filter(|count| *count != ALL_TOKENS && repetition_penalty != 1.0) {
            let expected = "-1, since the penalty looks at all tokens";
            return Err(refused("options.repeat_last_n", expected, &count.to_string()));
        }
        Ok(SamplingParams {
            // A negative one is drawn at random.
            seed: options.seed.and_then(|seed| u64::try_from(seed).ok()),
            max_tokens: options.num_predict.and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0),
            temperature: options.temperature.unwrap_or(defaults.temperature),
            top_k: options.top_k.map_or(defaults.top_k, |count| Some(count).filter(|count| *count > 0)),
            top_p: options.top_p.unwrap_or(defaults.top_p),
            min_p: options.min_p.unwrap_or(defaults.min_p),
            repetition_penalty,
            presence_penalty: options.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: options.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            // No stop text is no stop text, and not the default.
            stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
            ..defaults.clone()
        })
    }

    /// The form of the answer.
    pub fn form(&self) -> Result<Option<RequestedForm>, ApiError> {
        match &self.format {
            None => Ok(None),
            Some(Value::String(word)) if word.is_empty() => Ok(None),
            Some(Value::String(word)) if word == "json" => Ok(Some((AnswerForm::JsonObject, "format"))),
            Some(Value::Object(schema)) => Ok(Some((AnswerForm::JsonSchema(schema.clone().into()), "format"))),
            Some(other) => Err(refused("format", "`json` or a JSON schema", &other.to_string())),
        }
    }

    pub fn think(&self) -> Result<Think, ApiError> {
        match &self.think {
            None => Ok(Think::default()),
            Some(Value::Bool(wanted)) => Ok(Think { is_on: Some(*wanted), effort: None }),
            Some(Value::String(level)) if ["low", "medium", "high"].contains(&level.as_str()) => {
                Ok(Think { is_on: Some(true), effort: Some(level.clone()) })
            }
            Some(other) => Err(refused("think", "true, false, low, medium or high", &other.to_string())),
        }
    }
}

impl Think {
    /// Fails like Ollama if a model is to reason that does not.
    pub fn check(self, served: &Served, name: &str) -> Result<Self, ApiError> {
        if self.is_on == Some(true) && !served.knows_reasoning() {
            return Err(ApiError::field("think", format!("{} does not support thinking", shown(name))));
        }
        Ok(self)
    }
}

/// Refuses a field.
pub fn refused(field: &str, expected: &str, found: &str) -> ApiError {
    ApiError::field(field, format!("{field}: expected {expected}, found {}", shown(found)))
}
