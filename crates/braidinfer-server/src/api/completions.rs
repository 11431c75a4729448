//! `/v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use braidinfer::engine::{PromptInfo, TokenLogprobs};
use braidinfer::handle::Task;
use braidinfer::{ModelText, SamplingParams, Token};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::{self, Answer, Answers, Envelope, Form, Usage};
use super::form;
use super::logprobs::{CompletionLogprobs, Offset};
use super::one_or_many::{PromptItem, TextOr};
use super::prompts;
use super::sampling::{Delivery, ParameterFields, SharedFields};
use crate::http::{ApiError, RequestName, Strict};
use crate::served::App;

/// Tokens of an answer if none are asked for, as in the OpenAI API.
const MAX_TOKENS: usize = 16;
/// Answers to one request.
const MOST_ANSWERS: usize = 2048;

#[derive(Debug, Deserialize)]
pub struct CompletionFields {
    prompt: TextOr<PromptItem>,
    echo: Option<bool>,
    logprobs: Option<usize>,
}

pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(RequestName(name)): Extension<RequestName>,
    request: Strict<ParameterFields, SharedFields, CompletionFields>,
) -> Response {
    let arrived = Instant::now();
    let begun = begin(&app, &name, (&request.first, &request.second), request.third, arrived);
    let begun = app.in_time(arrived, begun).await;
    answers::deliver(begun, request.ignored).await
}

async fn begin(
    app: &App,
    name: &str,
    (parameters, shared): (&ParameterFields, &SharedFields),
    fields: CompletionFields,
    arrived: Instant,
) -> Result<(Answers, CompletionForm, Delivery), ApiError> {
    let served = app.served_as(shared.model.as_deref())?;
    let delivery = shared.delivery()?;
    let echo = fields.echo.unwrap_or(false);
    let mut params = SamplingParams {
        logprobs: fields.logprobs,
        prompt_logprobs: fields.logprobs.filter(|_| echo),
        ..shared.over(parameters, &served.default_sampling, Some(MAX_TOKENS))?
    };
    // Whoever wants a prompt scored and nothing written; a step writes a token all the same.
    let only_prompt = echo && params.max_tokens == Some(0);
    if only_prompt {
        params.max_tokens = Some(1);
    }
    let prompts = prompts::listed(fields.prompt, "prompt")?;
    let answers = prompts.len().saturating_mul(params.n);
    if answers > MOST_ANSWERS {
        let message = format!("n: expected at most {MOST_ANSWERS} answers to all prompts together, found {answers}");
        return Err(ApiError::field("n", message));
    }
    let prompts = prompts::encode_all(served, prompts, "prompt").await?;
    let echoed = if echo { prompts.clone() } else { Vec::new() };
    let (n, count, deadline) = (params.n, params.n * prompts.len(), app.deadline(arrived));
    let asked = form::asked_for(shared.response_format.as_ref(), shared.structured_outputs.as_ref())?;
    let task = Task::Generate(Box::new(params), form::constraint(served, asked).await?);
    let stream = served.engine.submit(prompts, task, arrived).await?;
    let envelope = Envelope::new("cmpl", name, served, delivery);
    let form = CompletionForm {
        envelope,
        text: Arc::clone(&served.text),
        with_logprobs: fields.logprobs.is_some(),
        echoed,
        only_prompt,
        n,
        offsets: vec![Offset::default(); count],
    };
    Ok((Answers { stream, count, n, deadline }, form, delivery))
}

struct CompletionForm {
    envelope: Envelope,
    text: Arc<ModelText>,
    with_logprobs: bool,
    /// Prompts that are repeated before their answers; none if that is not asked for.
    echoed: Vec<Vec<u32>>,
    /// Prompts are repeated, and nothing else is said.
    only_prompt: bool,
    /// Answers to each prompt.
    n: usize,
    /// How far each answer has come.
    offsets: Vec<Offset>,
}

impl CompletionForm {
    /// The prompt of an answer as text, if it is repeated.
    fn echo(&self, choice: usize) -> String {
        let Some(ids) = self.echoed.get(choice / self.n) else { return String::new() };
        let decoded = self.text.tokenizer().and_then(|tokenizer| tokenizer.decode(ids, true).ok());
        decoded.unwrap_or_default()
    }

    fn logprobs(&mut self, choice: usize, prompt: Option<&PromptInfo>, found: &[TokenLogprobs]) -> Value {
        let Some(tokenizer) = self.text.tokenizer().filter(|_| self.with_logprobs) else { return Value::Null };
        let mut logprobs = CompletionLogprobs::default();
        let offset = &mut self.offsets[choice];
        if let (Some(ids), Some(of_prompt)) =
            (self.echoed.get(choice / self.n), prompt.and_then(|p| p.logprobs.as_ref()))
        {
            // Ids were checked before they were read, and only unknown ones could not be decoded.
            *offset = logprobs.begin(ids, of_prompt, tokenizer).unwrap_or_default();
        }
        if !self.only_prompt {
            found.iter().for_each(|found| logprobs.push(found, tokenizer, offset));
        }
        json!(logprobs)
    }

    fn choice(choice: usize, text: &str, logprobs: Value, finish_reason: Option<&str>) -> Value {
        json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_reason})
    }
}

impl Form for CompletionForm {
    fn opening(&mut self, _choice: usize) -> Vec<Value> {
        Vec::new()
    }

    fn part(&mut self, choice: usize, token: Token) -> Vec<Value> {
        let echo = if token.prompt.is_some() { self.echo(choice) } else { String::new() };
        let text = if self.only_prompt { echo } else { echo + &token.text };
        if text.is_empty() && token.logprobs.is_none() && token.finished.is_none() {
            return Vec::new();
        }
        let logprobs = self.logprobs(choice, token.prompt.as_ref(), token.logprobs.as_slice());
        let choice = Self::choice(choice, &text, logprobs, token.finished.map(|reason| reason.as_str()));
        vec![self.envelope.around("text_completion", json!([choice]), None)]
    }

    fn usage_part(&self, usage: Usage) -> Value {
        let usage = if self.only_prompt { usage.without_answers() } else { usage };
        self.envelope.around("text_completion", json!([]), Some(usage))
    }

    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value {
        let usage = if self.only_prompt { usage.without_answers() } else { usage };
        let mut choices = Vec::with_capacity(answers.len());
        for (index, answer) in answers.iter().enumerate() {
            let text = self.echo(index) + if self.only_prompt { "" } else { &answer.text };
            let logprobs = self.logprobs(index, answer.prompt.as_ref(), &answer.logprobs);
            choices.push(Self::choice(index, &text, logprobs, answer.finish_reason.map(|reason| reason.as_str())));
        }
        self.envelope.around("text_completion", json!(choices), Some(usage))
    }
}
