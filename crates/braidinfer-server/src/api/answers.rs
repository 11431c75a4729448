//! From the engine's outputs to bodies and streams of answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use braidinfer::engine::{FinishReason, PromptInfo, TokenLogprobs};
use braidinfer::handle::{OutputStream, RequestOutput};
use braidinfer::{Output, Token};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::sampling::Delivery;
use crate::http::{ApiError, Ignored};
use crate::served::{Served, seconds_since_1970};

/// Between signs of life, while nothing is said.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How one kind of answers is written.
pub trait Form: Send + 'static {
    /// Parts of a stream that come before anything is said, one for each answer.
    fn opening(&mut self, choice: usize) -> Vec<Value>;

    /// The part of a stream that a token makes, if it makes one.
    fn part(&mut self, choice: usize, token: Token) -> Vec<Value>;

    /// The part of a stream that tells what was used.
    fn usage_part(&self, usage: Usage) -> Value;

    /// A whole body.
    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value;
}

/// A whole answer.
#[derive(Debug, Default)]
pub struct Answer {
    pub text: String,
    pub logprobs: Vec<TokenLogprobs>,
    pub finish_reason: Option<FinishReason>,
    pub prompt: Option<PromptInfo>,
}

/// Tokens that were read and written.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

impl Usage {
    /// Counts a token. Prompts with several answers count once.
    fn count(&mut self, choice: usize, n: usize, token: &Token) {
        self.completion_tokens += 1;
        if let Some(prompt) = token.prompt.as_ref().filter(|_| choice.is_multiple_of(n)) {
            self.prompt_tokens += prompt.num_tokens;
            self.prompt_tokens_details.cached_tokens += prompt.num_cached_tokens;
        }
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }

    /// Forgets tokens that were only written because every step writes one.
    pub fn without_answers(mut self) -> Self {
        (self.completion_tokens, self.total_tokens) = (0, self.prompt_tokens);
        self
    }
}

/// Answers that are being written, to one request.
pub struct Answers {
    pub stream: OutputStream,
    /// All of them.
    pub count: usize,
    /// To each prompt.
    pub n: usize,
    pub deadline: Instant,
}

/// Hands over answers as they were asked for, or what is wrong with the request.
pub async fn deliver<F: Form>(begun: Result<(Answers, F, Delivery), ApiError>, ignored: Ignored) -> Response {
    match begun {
        Err(error) => (ignored, error).into_response(),
        Ok((answers, form, Delivery::Whole)) => (ignored, answers.whole(form).await).into_response(),
        Ok((answers, form, Delivery::Streamed { with_usage })) => {
            (ignored, answers.streamed(form, with_usage)).into_response()
        }
    }
}

impl Answers {
    async fn next(&mut self) -> Option<Result<(usize, Token), ApiError>> {
        match timeout_at(self.deadline, self.stream.next()).await {
            Err(_) => Some(Err(ApiError::slow_answer())),
            Ok(received) => received.map(|RequestOutput { choice, output }| match output? {
                Output::Token(token) => Ok((choice, token)),
                Output::Embedding(_) => Err(ApiError::internal("a vector came where a token was asked for")),
            }),
        }
    }

    async fn whole(mut self, mut form: impl Form) -> Result<Json<Value>, ApiError> {
        let mut answers: Vec<Answer> = (0..self.count).map(|_| Answer::default()).collect();
        let mut usage = Usage::default();
        while let Some(received) = self.next().await {
            let (choice, token) = received?;
            usage.count(choice, self.n, &token);
            let answer = &mut answers[choice];
            answer.text += &token.text;
            answer.logprobs.extend(token.logprobs);
            answer.finish_reason = token.finished;
            answer.prompt = answer.prompt.take().or(token.prompt);
        }
        Ok(Json(form.whole(answers, usage)))
    }

    fn streamed(self, form: impl Form, with_usage: bool) -> Response {
        let streaming = Streaming {
            answers: self,
            form,
            with_usage,
            usage: Usage::default(),
            parts: VecDeque::new(),
            has_begun: false,
            is_over: false,
        };
        let events = stream::unfold(streaming, |mut streaming| async move {
            let event = streaming.next().await?;
            Some((Ok::<_, Infallible>(event), streaming))
        });
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }
}

struct Streaming<F> {
    answers: Answers,
    form: F,
    with_usage: bool,
    usage: Usage,
    /// What is ready to be sent.
    parts: VecDeque<Event>,
    has_begun: bool,
    is_over: bool,
}

impl<F: Form> Streaming<F> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Some(part);
            }
            if self.is_over {
                return None;
            }
            match self.answers.next().await {
                Some(Ok((choice, token))) => {
                    // Not before there is something to say: whoever measures the time to it looks at the first part.
                    if !std::mem::replace(&mut self.has_begun, true) {
                        let openings = (0..self.answers.count).flat_map(|choice| self.form.opening(choice));
                        self.parts.extend(openings.map(sent));
                    }
                    self.usage.count(choice, self.answers.n, &token);
                    self.parts.extend(self.form.part(choice, token).into_iter().map(sent));
                }
                Some(Err(error)) => self.end(Some(error)),
                None => self.end(None),
            }
        }
    }

    /// Sends what comes last.
    fn end(&mut self, error: Option<ApiError>) {
        self.is_over = true;
        match error {
            Some(error) => self.parts.push_back(sent(error.json())),
            None if self.with_usage => self.parts.push_back(sent(self.form.usage_part(self.usage))),
            None => {}
        }
        self.parts.push_back(Event::default().data("[DONE]"));
    }
}

fn sent(part: Value) -> Event {
    Event::default().data(part.to_string())
}

/// What every body and every part of a stream begins with.
#[derive(Debug, Clone)]
pub struct Envelope {
    id: String,
    created: u64,
    model: String,
    /// Parts of a stream say that they do not tell what was used, if the last one will.
    with_usage: bool,
}

impl Envelope {
    /// Of the answer to a request called `name`; `kind` stands before that in its id.
    pub fn new(kind: &str, name: &str, served: &Served, delivery: Delivery) -> Self {
        Self {
            id: format!("{kind}-{name}"),
            created: seconds_since_1970(),
            model: served.name.clone(),
            with_usage: delivery == (Delivery::Streamed { with_usage: true }),
        }
    }

    /// A body, or a part of a stream.
    pub fn around(&self, object: &str, choices: Value, usage: Option<Usage>) -> Value {
        let mut body = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        });
        if usage.is_some() || self.with_usage {
            body["usage"] = json!(usage);
        }
        body
    }
}
