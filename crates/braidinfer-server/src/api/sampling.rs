//! The fields that chats and completions share.

use std::collections::BTreeMap;

use braidinfer::SamplingParams;
use serde::Deserialize;

use super::form::{ResponseFormat, StructuredOutputs};
use super::one_or_many::TextOr;
use crate::http::ApiError;

/// Texts that may end an answer.
const MOST_STOPS: usize = 16;

/// How to choose tokens, and how to hand them over. A field that is absent, or null, is as the model's authors set it.
#[derive(Debug, Clone, Deserialize)]
pub struct SamplingFields {
    pub model: Option<String>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    /// -1 and 0 are all tokens.
    top_k: Option<i64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    seed: Option<i64>,
    stop: Option<TextOr<String>>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    n: Option<usize>,
    /// By token id.
    logit_bias: Option<BTreeMap<String, f32>>,
    ignore_eos: Option<bool>,
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

impl SamplingFields {
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
    pub fn over(&self, defaults: &SamplingParams, max_tokens: Option<usize>) -> Result<SamplingParams, ApiError> {
        Ok(SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: match self.top_k {
                None => defaults.top_k,
                Some(-1 | 0) => None,
                Some(k) => Some(usize::try_from(k).map_err(|_| out_of_range("top_k", "-1 or more", k))?),
            },
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            seed: self.seed.map(i64::cast_unsigned),
            max_tokens: self.limit()?.or(max_tokens),
            stop: self.stops()?,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logit_bias: self.logit_bias()?,
            n: self.n.unwrap_or(1),
            ..defaults.clone()
        })
    }

    fn limit(&self) -> Result<Option<usize>, ApiError> {
        match (self.max_tokens, self.max_completion_tokens) {
            (Some(a), Some(b)) if a != b => {
                let message = format!("max_completion_tokens: expected the {a} of max_tokens, found {b}");
                Err(ApiError::field("max_completion_tokens", message))
            }
            (a, b) => Ok(a.or(b)),
        }
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(TextOr::Text(text)) => vec![text.clone()],
            Some(TextOr::Many(texts)) => texts.clone(),
        };
        if stops.len() > MOST_STOPS {
            return Err(out_of_range("stop", &format!("at most {MOST_STOPS} texts"), stops.len()));
        }
        Ok(stops)
    }

    fn logit_bias(&self) -> Result<BTreeMap<u32, f32>, ApiError> {
        let bias = |(id, bias): (&String, &f32)| {
            let id = id.parse().map_err(|_| out_of_range("logit_bias", "token ids as names", format!("`{id}`")))?;
            Ok((id, *bias))
        };
        self.logit_bias.iter().flatten().map(bias).collect()
    }
}

fn out_of_range(field: &str, expected: &str, found: impl ToString) -> ApiError {
    ApiError::field(field, format!("{field}: expected {expected}, found {}", found.to_string()))
}
