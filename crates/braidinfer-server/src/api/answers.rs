//! Turns the outputs of the engine into response bodies and event streams.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use braidinfer::engine::{FinishReason, PromptInfo, TokenLogprobs};
use braidinfer::handle::{OutputStream, RequestOutput};
use braidinfer::{Output, Token};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};

use super::json_text::JsonText;
use super::logprobs::AnswerLogprobs;
use super::reservation::Reservation;
use super::sampling::Delivery;
use crate::http::{ApiError, Ignored, Kept};
use crate::served::{FormSlot, Served, seconds_since_1970};

/// Interval of keep-alive comments while a stream has no events. They also tell whether the client is still there. So long a
/// response that is streamed waits for its first event.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Writes the responses of one endpoint.
pub trait ResponseWriter: Send + 'static {
    /// Chunks of a stream that come before the first token of a choice.
    fn opening_chunks(&mut self, choice: usize) -> Vec<Value>;

    /// Chunks of a stream for one token; there may be none.
    fn token_chunks(&mut self, choice: usize, token: Token) -> Vec<Value>;

    /// The chunk of a stream with the token usage.
    fn usage_chunk(&self, usage: Usage) -> Value;

    /// The body of a response that is not streamed, as JSON.
    fn body(&mut self, choices: Vec<Choice>, usage: Usage) -> Result<JsonText, ApiError>;
}

/// A complete answer.
#[derive(Debug, Default)]
pub struct Choice {
    pub text: String,
    pub reasoning: String,
    pub logprobs: AnswerLogprobs,
    pub finish_reason: Option<FinishReason>,
    pub prompt: Option<PromptInfo>,
}

impl Choice {
    /// Adds a token; returns how many bytes that takes.
    fn push(&mut self, token: Token) -> usize {
        let of_prompt = token.prompt.iter().flat_map(|prompt| prompt.logprobs.iter().flatten());
        let logprobs = of_prompt.chain(&token.logprobs).map(TokenLogprobs::bytes).sum::<usize>();
        let bytes = token.text.len() + token.reasoning.len() + logprobs;
        self.text += &token.text;
        self.reasoning += &token.reasoning;
        token.logprobs.iter().for_each(|found| self.logprobs.push(found));
        self.finish_reason = token.finished;
        self.prompt = self.prompt.take().or(token.prompt);
        bytes
    }
}

/// Token usage of a request.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
    #[serde(skip_serializing_if = "CompletionTokensDetails::is_empty")]
    completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct CompletionTokensDetails {
    reasoning_tokens: usize,
}

impl CompletionTokensDetails {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Usage {
    /// Counts a generated token, and with the first token of the first choice its prompt. `n` is the number of choices per
    /// prompt.
    fn count(&mut self, choice: usize, n: usize, token: &Token) {
        self.completion_tokens += 1;
        self.completion_tokens_details.reasoning_tokens += usize::from(token.is_reasoning);
        if let Some(prompt) = token.prompt.as_ref().filter(|_| choice.is_multiple_of(n)) {
            self.prompt_tokens += prompt.num_tokens;
            self.prompt_tokens_details.cached_tokens += prompt.num_cached_tokens;
        }
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }

    /// Without completion tokens, for prompts that were only scored: the engine generates at least one token anyway.
    pub fn without_completion(mut self) -> Self {
        (self.completion_tokens, self.total_tokens) = (0, self.prompt_tokens);
        self
    }
}

/// The choices of one request that are being generated.
pub struct ChoiceStream {
    pub stream: OutputStream,
    /// Number of choices.
    pub count: usize,
    /// Number of choices for each prompt.
    pub n: usize,
    pub deadline: Instant,
    /// Room for the required form of the answers, until they have ended.
    #[expect(dead_code, reason = "it is held, not read")]
    pub form_slot: Option<FormSlot>,
    /// Memory for the prompts and answers.
    pub reservation: Reservation,
}

/// The response to a request: one body or a stream as requested, or an error.
pub async fn deliver<W: ResponseWriter>(
    begun: Result<(ChoiceStream, W, Delivery), ApiError>,
    ignored: Ignored,
) -> Response {
    match begun {
        Err(error) => (ignored, error).into_response(),
        Ok((choices, writer, Delivery::Whole)) => (ignored, choices.collect(writer).await).into_response(),
        Ok((choices, writer, Delivery::Streamed { with_usage })) => {
            (ignored, choices.into_events(writer, with_usage).await).into_response()
        }
    }
}

/// A token of a choice, or the error that ends the request; `None` when all choices have ended.
type Received = Option<Result<(usize, Token), ApiError>>;

impl ChoiceStream {
    async fn next(&mut self) -> Received {
        match timeout_at(self.deadline, self.stream.next()).await {
            Err(_) => Some(Err(ApiError::slow_answer())),
            Ok(received) => received.map(|RequestOutput { choice, output }| match output? {
                Output::Token(token) => Ok((choice, token)),
                Output::Embedding(_) => Err(ApiError::internal("a vector came where a token was asked for")),
            }),
        }
    }

    async fn collect(mut self, mut writer: impl ResponseWriter) -> Result<Response, ApiError> {
        let mut choices: Vec<Choice> = (0..self.count).map(|_| Choice::default()).collect();
        let (mut usage, mut bytes) = (Usage::default(), 0);
        while let Some(received) = self.next().await {
            let (choice, token) = received?;
            usage.count(choice, self.n, &token);
            bytes += choices[choice].push(token);
            self.reservation.require(bytes)?;
        }
        let Self { stream, reservation, .. } = self;
        drop(stream);
        json_response(writer.body(choices, usage)?, reservation)
    }

    /// The response begins with the first token, or with the first comment that keeps it alive. Until then an error has its own
    /// status, and where this server ends, a router can send the request to another one.
    async fn into_events(mut self, writer: impl ResponseWriter, with_usage: bool) -> Response {
        let first = match timeout(KEEP_ALIVE, self.next()).await {
            Ok(Some(Err(error))) => return error.into_response(),
            first => first.ok(),
        };
        let stream = EventStream {
            choices: self,
            first,
            writer,
            with_usage,
            usage: Usage::default(),
            ready: VecDeque::new(),
            has_begun: false,
            is_over: false,
        };
        let events = stream::unfold(stream, |mut stream| async move {
            let event = stream.next().await?;
            Some((Ok::<_, Infallible>(event), stream))
        });
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }
}

/// A response with a JSON text, which keeps the memory for it reserved until it is sent.
pub fn json_response(text: JsonText, mut reservation: Reservation) -> Result<Response, ApiError> {
    reservation.require(text.len())?;
    reservation.answers.shrink_to(text.len());
    Ok(([(CONTENT_TYPE, "application/json")], Kept::within(Body::new(text), reservation)).into_response())
}

struct EventStream<W> {
    choices: ChoiceStream,
    /// What was received before the response began.
    first: Option<Received>,
    writer: W,
    with_usage: bool,
    usage: Usage,
    /// Events that are ready to be sent.
    ready: VecDeque<Event>,
    has_begun: bool,
    is_over: bool,
}

impl<W: ResponseWriter> EventStream<W> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            let received = match self.first.take() {
                Some(first) => first,
                None => self.choices.next().await,
            };
            match received {
                Some(Ok((choice, token))) => {
                    // Sent only with the first token: clients measure the time to first token by the first chunk.
                    if !std::mem::replace(&mut self.has_begun, true) {
                        let openings = (0..self.choices.count).flat_map(|choice| self.writer.opening_chunks(choice));
                        self.ready.extend(openings.map(event_of));
                    }
                    self.usage.count(choice, self.choices.n, &token);
                    self.ready.extend(self.writer.token_chunks(choice, token).into_iter().map(event_of));
                }
                Some(Err(error)) => self.end(Some(error)),
                None => self.end(None),
            }
        }
    }

    /// Queues the last events: an error or the usage, and `[DONE]`.
    fn end(&mut self, error: Option<ApiError>) {
        self.is_over = true;
        match error {
            Some(error) => self.ready.push_back(event_of(error.json())),
            None if self.with_usage => self.ready.push_back(event_of(self.writer.usage_chunk(self.usage))),
            None => {}
        }
        self.ready.push_back(Event::default().data("[DONE]"));
    }
}

fn event_of(chunk: Value) -> Event {
    Event::default().data(chunk.to_string())
}

/// The fields that every body and every chunk of a stream has.
#[derive(Debug, Clone)]
pub struct Envelope {
    id: String,
    created: u64,
    model: String,
    /// Whether chunks have the field `usage`: it is null in all but the last one.
    with_usage: bool,
}

impl Envelope {
    /// For the response to the request with the id `name`; the id of the response is `kind-name`.
    pub fn new(kind: &str, name: &str, served: &Served, delivery: Delivery) -> Self {
        Self {
            id: format!("{kind}-{name}"),
            created: seconds_since_1970(),
            model: served.name.clone(),
            with_usage: delivery == (Delivery::Streamed { with_usage: true }),
        }
    }

    /// The JSON of a body.
    pub fn body(&self, object: &'static str, choices: &impl Serialize, usage: Usage) -> Result<JsonText, ApiError> {
        let Self { id, created, model, .. } = self;
        let body = WholeBody { id, object, created: *created, model, choices, usage };
        JsonText::of(&body)
    }

    /// A chunk of a stream.
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

#[derive(Serialize)]
struct WholeBody<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a T,
    usage: Usage,
}
