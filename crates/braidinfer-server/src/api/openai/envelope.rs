//! What all responses of the OpenAI API have in common.

use serde::Serialize;
use serde_json::{Value, json};

use crate::api::answers::{Chunk, Usage};
use crate::api::json_text::JsonText;
use crate::clock::seconds_since_1970;
use crate::http::ApiError;
use crate::models::Lease;

/// The fields that every body and every chunk of a stream has.
#[derive(Debug, Clone)]
pub struct Envelope {
    id: String,
    created: u64,
    model: String,
    /// Whether a stream says how many tokens it took: in its last chunk, and null in all others.
    with_usage: bool,
}

impl Envelope {
    /// For the response to the request with the id `name`; the id of the response is `kind-name`.
    pub fn new(kind: &str, name: &str, served: &Lease, with_usage: bool) -> Self {
        let id = format!("{kind}-{name}");
        Self { id, created: seconds_since_1970(), model: served.name().to_owned(), with_usage }
    }

    /// The JSON of a body.
    pub fn body(
        &self,
        object: &'static str,
        choices: &impl Serialize,
        usage: UsageFields,
    ) -> Result<JsonText, ApiError> {
        let Self { id, created, model, .. } = self;
        let body = WholeBody { id, object, created: *created, model, choices, usage };
        JsonText::of(&body)
    }

    /// A chunk of a stream.
    pub fn chunk(&self, object: &str, choices: Value) -> Chunk {
        Chunk::json(&self.around(object, choices, None))
    }

    /// The last chunks of a stream.
    pub fn last_chunks(&self, object: &str, usage: UsageFields) -> Vec<Chunk> {
        let of_usage = self.with_usage.then(|| Chunk::json(&self.around(object, json!([]), Some(usage))));
        of_usage.into_iter().chain([done()]).collect()
    }

    fn around(&self, object: &str, choices: Value, usage: Option<UsageFields>) -> Value {
        let mut body = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        });
        if self.with_usage {
            body["usage"] = json!(usage);
        }
        body
    }
}

/// The end of a stream that failed.
pub fn failed_chunks(error: &ApiError) -> Vec<Chunk> {
    vec![Chunk::json(&error.json()), done()]
}

fn done() -> Chunk {
    Chunk::text("[DONE]")
}

#[derive(Serialize)]
struct WholeBody<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a T,
    usage: UsageFields,
}

/// Token usage of a request.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct UsageFields {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
    #[serde(skip_serializing_if = "CompletionTokensDetails::is_empty")]
    completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct CompletionTokensDetails {
    reasoning_tokens: usize,
}

impl CompletionTokensDetails {
    fn is_empty(&self) -> bool {
        self.reasoning_tokens == 0
    }
}

impl From<&Usage> for UsageFields {
    fn from(usage: &Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.cached_tokens },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: usage.reasoning_tokens },
        }
    }
}

impl UsageFields {
    /// Without completion tokens, for prompts that were only scored: the engine generates at least one token anyway.
    pub fn without_completion(mut self) -> Self {
        (self.completion_tokens, self.total_tokens) = (0, self.prompt_tokens);
        self
    }
}
