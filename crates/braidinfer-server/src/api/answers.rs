//! Turns the outputs of the engine into response bodies and streams, in the form of any API.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use braidinfer::engine::{FinishReason, PromptInfo, TokenLogprobs};
use braidinfer::handle::{OutputStream, RequestOutput};
use braidinfer::{Output, Token};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::json_text::JsonText;
use super::logprobs::AnswerLogprobs;
use super::reservation::Reservation;
use crate::http::{ApiError, Ignored, Kept};
use crate::models::{FormSlot, Lease};

/// Interval of keep-alive comments while a stream of events has none. They also tell whether the client is still there. So long a
/// response that is streamed waits for its first part.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Whether answers are sent as one body or as a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    Whole,
    Streamed,
}

/// How the parts of a stream are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Server-sent events.
    Events,
    /// A line of JSON each.
    Lines,
}

/// A part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Name of the event, if the API names them.
    event: Option<&'static str>,
    data: String,
}

impl Chunk {
    pub fn json(value: &Value) -> Self {
        Self { event: None, data: value.to_string() }
    }

    /// An event with a name.
    pub fn named(event: &'static str, value: &Value) -> Self {
        Self { event: Some(event), data: value.to_string() }
    }

    pub fn text(text: &str) -> Self {
        Self { event: None, data: text.to_owned() }
    }

    fn into_event(self) -> Event {
        let event = Event::default().data(self.data);
        match self.event {
            Some(name) => event.event(name),
            None => event,
        }
    }

    fn into_line(mut self) -> Bytes {
        self.data.push('\n');
        self.data.into()
    }
}

/// Writes the responses of one endpoint.
pub trait ResponseWriter: Send + Unpin + 'static {
    /// How its streams are framed.
    const FRAMING: Framing;

    /// The first parts of a stream. `usage` has the prompt and the first token.
    fn opening(&mut self, usage: &Usage) -> Vec<Chunk>;

    /// Parts of a stream for one token; there may be none.
    fn token(&mut self, choice: usize, token: Token) -> Vec<Chunk>;

    /// A part that says nothing, for a stream of lines in which there was none for a while: only writing shows whether the
    /// client is still there. Streams of events have comments.
    fn idle(&mut self) -> Option<Chunk> {
        None
    }

    /// The last parts of a stream.
    fn closing(&mut self, usage: &Usage) -> Vec<Chunk>;

    /// The last parts of a stream that an error ends; there may have been none before.
    fn failing(&mut self, error: &ApiError) -> Vec<Chunk>;

    /// The body of a response that is not streamed, as JSON.
    fn body(&mut self, choices: Vec<Choice>, usage: &Usage) -> Result<JsonText, ApiError>;
}

/// A complete answer.
#[derive(Debug, Default)]
pub struct Choice {
    pub text: String,
    pub reasoning: String,
    pub logprobs: AnswerLogprobs,
    pub finish_reason: Option<FinishReason>,
    /// The stop text that ended it, if one did.
    pub stop: Option<String>,
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
        self.stop = token.stop;
        self.prompt = self.prompt.take().or(token.prompt);
        bytes
    }
}

/// Tokens and times of a request.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Prompt tokens that were in the prefix cache.
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    /// Completion tokens that are reasoning.
    pub reasoning_tokens: usize,
    /// How long the first prompt waited for its first step.
    pub queued: Duration,
    /// When the first token came.
    pub first_token: Option<Instant>,
}

impl Usage {
    /// Counts a generated token, and with the first token of the first choice its prompt. `n` is the number of choices per
    /// prompt.
    fn count(&mut self, choice: usize, n: usize, token: &Token) {
        self.completion_tokens += 1;
        self.reasoning_tokens += usize::from(token.is_reasoning);
        if let Some(prompt) = token.prompt.as_ref().filter(|_| choice.is_multiple_of(n)) {
            self.prompt_tokens += prompt.num_tokens;
            self.cached_tokens += prompt.num_cached_tokens;
        }
        if self.first_token.is_none() {
            self.first_token = Some(Instant::now());
            self.queued = token.prompt.as_ref().map(|prompt| prompt.queued).unwrap_or_default();
        }
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
    /// What was asked for and changes nothing with this model, for a response header.
    pub unused: &'static [&'static str],
    /// The model, which stays loaded until the answers have ended.
    #[expect(dead_code, reason = "it is held, not read")]
    pub lease: Lease,
}

/// The response to a request: one body or a stream as requested, or an error.
pub async fn deliver<W: ResponseWriter>(
    begun: Result<(ChoiceStream, W, Delivery), ApiError>,
    ignored: Ignored,
) -> Response {
    let ignored = ignored.with(begun.as_ref().map_or(&[][..], |(choices, ..)| choices.unused));
    match begun {
        Err(error) => (ignored, error).into_response(),
        Ok((choices, writer, Delivery::Whole)) => (ignored, choices.collect(writer).await).into_response(),
        Ok((choices, writer, Delivery::Streamed)) => (ignored, choices.into_stream(writer).await).into_response(),
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
        json_response(writer.body(choices, &usage)?, reservation)
    }

    /// The response begins with the first token, or with the first comment that keeps it alive. Until then an error has its own
    /// status, and where this server ends, a router can send the request to another one.
    async fn into_stream<W: ResponseWriter>(mut self, writer: W) -> Response {
        let first = match timeout(KEEP_ALIVE, self.next()).await {
            Ok(Some(Err(error))) => return error.into_response(),
            first => first.ok(),
        };
        let parts = ChunkStream {
            choices: self,
            first,
            writer,
            usage: Usage::default(),
            ready: VecDeque::new(),
            has_begun: false,
            is_over: false,
        };
        let chunks = stream::unfold(parts, |mut parts| async move { Some((parts.next().await?, parts)) });
        match W::FRAMING {
            Framing::Events => {
                let events = chunks.map(|chunk| Ok::<_, Infallible>(chunk.into_event()));
                Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
            }
            Framing::Lines => {
                let lines = chunks.map(|chunk| Ok::<_, Infallible>(chunk.into_line()));
                ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
            }
        }
    }
}

/// A response with a JSON text, which keeps the memory for it reserved until it is sent.
pub fn json_response(text: JsonText, mut reservation: Reservation) -> Result<Response, ApiError> {
    reservation.require(text.len())?;
    reservation.answers.shrink_to(text.len());
    Ok(([(CONTENT_TYPE, "application/json")], Kept::within(Body::new(text), reservation)).into_response())
}

struct ChunkStream<W> {
    choices: ChoiceStream,
    /// What was received before the response began.
    first: Option<Received>,
    writer: W,
    usage: Usage,
    /// Parts that are ready to be sent.
    ready: VecDeque<Chunk>,
    has_begun: bool,
    is_over: bool,
}

impl<W: ResponseWriter> ChunkStream<W> {
    async fn next(&mut self) -> Option<Chunk> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk);
            }
            if self.is_over {
                return None;
            }
            let received = match (self.first.take(), W::FRAMING) {
                (Some(first), _) => first,
                (None, Framing::Events) => self.choices.next().await,
                (None, Framing::Lines) => match timeout(KEEP_ALIVE, self.choices.next()).await {
                    Ok(received) => received,
                    Err(_) => {
                        self.ready.extend(self.writer.idle());
                        continue;
                    }
                },
            };
            match received {
                Some(Ok((choice, token))) => {
                    self.usage.count(choice, self.choices.n, &token);
                    // Sent only with the first token: clients measure the time to first token by the first chunk.
                    if !std::mem::replace(&mut self.has_begun, true) {
                        self.ready.extend(self.writer.opening(&self.usage));
                    }
                    self.ready.extend(self.writer.token(choice, token));
                }
                Some(Err(error)) => {
                    self.is_over = true;
                    self.ready.extend(self.writer.failing(&error));
                }
                None => {
                    self.is_over = true;
                    self.ready.extend(self.writer.closing(&self.usage));
                }
            }
        }
    }
}
