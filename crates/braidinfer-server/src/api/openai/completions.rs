//! `/v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use braidinfer::engine::PromptInfo;
use braidinfer::{ModelText, SamplingParams, Token};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::envelope::{Envelope, UsageFields, failed_chunks};
use super::form;
use super::logprobs::{CompletionLogprobs, TextOffset};
use super::sampling::{ParameterFields, SharedFields};
use crate::api::answers::{self, Choice, ChoiceStream, Chunk, Delivery, Framing, ResponseWriter, Usage};
use crate::api::completion::{self, CompletionRequest};
use crate::api::json_text::JsonText;
use crate::api::logprobs::TokenChoice;
use crate::api::one_or_many::{PromptItem, TextOr};
use crate::api::prompts;
use crate::app::App;
use crate::http::{ApiError, Client, HttpRequestId, Strict};

/// Default of `max_tokens`, as in the OpenAI API.
const MAX_TOKENS: usize = 16;
/// Most answers in one request.
const MOST_ANSWERS: usize = 2048;

#[derive(Debug, Deserialize)]
pub struct CompletionFields {
    prompt: TextOr<PromptItem>,
    /// Text after what is to be filled in.
    suffix: Option<String>,
    echo: Option<bool>,
    logprobs: Option<usize>,
}

pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(HttpRequestId(name)): Extension<HttpRequestId>,
    request: Strict<ParameterFields, SharedFields, CompletionFields>,
) -> Response {
    let arrived = Instant::now();
    let begun = begin(&app, &name, request.client, (&request.first, &request.second), request.third, arrived);
    let begun = app.with_deadline(arrived, begun).await;
    answers::deliver(begun, request.ignored).await
}

async fn begin(
    app: &App,
    name: &str,
    Client(client): Client,
    (parameters, shared): (&ParameterFields, &SharedFields),
    fields: CompletionFields,
    arrived: Instant,
) -> Result<(ChoiceStream, CompletionWriter, Delivery), ApiError> {
    let served = &app.lease(shared.model.as_deref()).await?;
    let delivery = shared.delivery()?;
    let echo = fields.echo.unwrap_or(false);
    let mut params = SamplingParams {
        logprobs: fields.logprobs,
        prompt_logprobs: fields.logprobs.filter(|_| echo),
        ..shared.sampling_params(parameters, &served.default_sampling, Some(MAX_TOKENS))?
    };
    // `echo` with `max_tokens` 0 only scores the prompt. The engine generates at least one token, which is left out below.
    let only_prompt = echo && params.max_tokens == Some(0);
    if only_prompt {
        params.max_tokens = Some(1);
    }
    let prompts = prompts::prompts_in(fields.prompt, "prompt")?;
    let answers = prompts.len().saturating_mul(params.n);
    if answers > MOST_ANSWERS {
        let message = format!("n: expected at most {MOST_ANSWERS} answers to all prompts together, found {answers}");
        return Err(ApiError::field("n", message));
    }
    let prompts = match fields.suffix.filter(|suffix| !suffix.is_empty()) {
        Some(_) if echo => {
            return Err(ApiError::field("echo", "echo: expected false beside `suffix`, found true"));
        }
        Some(suffix) => {
            let (prompts, ends) = prompts::encode_infill(served, prompts, suffix).await?;
            params.stop_token_ids.extend(ends);
            prompts
        }
        None => prompts::encode_all(served, prompts, "prompt").await?,
    };
    let echoed = if echo { prompts.clone() } else { Vec::new() };
    let (n, count) = (params.n, params.n * prompts.len());
    let request = CompletionRequest {
        prompts,
        params,
        form: form::requested(shared)?,
        shows_special_tokens: shared.shows_special_tokens(),
    };
    let stream = completion::begin(app, served, client, request, delivery, arrived).await?;
    let envelope = Envelope::new("cmpl", name, served, shared.with_usage());
    let writer = CompletionWriter {
        envelope,
        text: Arc::clone(&served.text),
        with_logprobs: fields.logprobs.is_some(),
        echoed,
        only_prompt,
        n,
        offsets: vec![TextOffset::default(); count],
    };
    Ok((stream, writer, delivery))
}

struct CompletionWriter {
    envelope: Envelope,
    text: Arc<ModelText>,
    with_logprobs: bool,
    /// Prompts to repeat before their answers; empty without `echo`.
    echoed: Vec<Vec<u32>>,
    /// Whether the response repeats only the prompts, without generated text.
    only_prompt: bool,
    /// Number of answers to each prompt.
    n: usize,
    /// TextOffset at the end of the text of each answer so far.
    offsets: Vec<TextOffset>,
}

impl CompletionWriter {
    /// The text of the prompt of an answer, if it is to be repeated.
    fn echo(&self, choice: usize) -> String {
        let Some(ids) = self.echoed.get(choice / self.n) else { return String::new() };
        let decoded = self.text.tokenizer().and_then(|tokenizer| tokenizer.decode(ids, true).ok());
        decoded.unwrap_or_default()
    }

    fn usage_fields(&self, usage: &Usage) -> UsageFields {
        let fields = UsageFields::from(usage);
        if self.only_prompt { fields.without_completion() } else { fields }
    }

    /// Writes the log-probabilities of tokens, and of the prompt before them, with `write`.
    fn logprobs<'a, T>(
        &mut self,
        choice: usize,
        prompt: Option<&PromptInfo>,
        found: impl Iterator<Item = TokenChoice<'a>>,
        write: impl FnOnce(&CompletionLogprobs) -> T,
    ) -> Option<T> {
        let tokenizer = self.text.tokenizer().filter(|_| self.with_logprobs)?;
        let mut logprobs = CompletionLogprobs::default();
        let offset = &mut self.offsets[choice];
        if let (Some(ids), Some(of_prompt)) =
            (self.echoed.get(choice / self.n), prompt.and_then(|p| p.logprobs.as_ref()))
        {
            // Decoding fails only for ids outside of the vocabulary, which were rejected before.
            *offset = logprobs.begin(ids, of_prompt, tokenizer).unwrap_or_default();
        }
        if !self.only_prompt {
            found.for_each(|found| logprobs.push(found, tokenizer, offset));
        }
        Some(write(&logprobs))
    }
}

#[derive(Serialize)]
struct WholeChoice {
    index: usize,
    text: String,
    logprobs: Option<Box<RawValue>>,
    finish_reason: Option<&'static str>,
}

const OBJECT: &str = "text_completion";

impl ResponseWriter for CompletionWriter {
    const FRAMING: Framing = Framing::Events;

    fn opening(&mut self, _usage: &Usage) -> Vec<Chunk> {
        Vec::new()
    }

    fn token(&mut self, choice: usize, token: Token) -> Vec<Chunk> {
        let echo = if token.prompt.is_some() { self.echo(choice) } else { String::new() };
        let text = if self.only_prompt { echo } else { echo + &token.text };
        if text.is_empty() && token.logprobs.is_none() && token.finished.is_none() {
            return Vec::new();
        }
        let found = token.logprobs.iter().map(TokenChoice::from);
        let logprobs = self.logprobs(choice, token.prompt.as_ref(), found, |logprobs| json!(logprobs));
        let finish_reason = token.finished.map(|reason| reason.as_str());
        let choice = json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_reason});
        vec![self.envelope.chunk(OBJECT, json!([choice]))]
    }

    fn closing(&mut self, usage: &Usage) -> Vec<Chunk> {
        self.envelope.last_chunks(OBJECT, self.usage_fields(usage))
    }

    fn failing(&mut self, error: &ApiError) -> Vec<Chunk> {
        failed_chunks(error)
    }

    fn body(&mut self, answers: Vec<Choice>, usage: &Usage) -> Result<JsonText, ApiError> {
        let mut choices = Vec::with_capacity(answers.len());
        for (index, answer) in answers.into_iter().enumerate() {
            let text = self.echo(index) + if self.only_prompt { "" } else { &answer.text };
            let logprobs =
                self.logprobs(index, answer.prompt.as_ref(), answer.logprobs.iter(), |logprobs| to_raw_value(logprobs));
            let logprobs = logprobs.transpose().map_err(|error| ApiError::internal(error.to_string()))?;
            let finish_reason = answer.finish_reason.map(|reason| reason.as_str());
            choices.push(WholeChoice { index, text, logprobs, finish_reason });
        }
        self.envelope.body(OBJECT, &choices, self.usage_fields(usage))
    }
}
