//! Blocking generation: complete prompts, or stream their tokens to a callback.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Event, GenerateRequest, Llm, Output, Prompt, RequestId};
use crate::engine::{FinishReason, SamplingParams, TokenLogprobs};
use crate::{Error, Result};

/// A completed answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Token ids of the prompt.
    pub prompt_ids: Vec<u32>,
    /// Token ids of the answer, including the end token.
    pub ids: Vec<u32>,
    /// Text of the answer, without special tokens and without the stop text; empty if the model has no tokenizer.
    pub text: String,
    /// The reasoning before it, if the request says how to tell it.
    pub reasoning: String,
    /// Log-probabilities of its tokens, if they were requested.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
}

/// How long a call took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Time from the call until every answer has its first token.
    pub prefill: Duration,
    /// Number of prompt tokens.
    pub prefill_tokens: usize,
    /// Time from the end of the prefill to the end of the call.
    pub decode: Duration,
    /// Number of tokens generated in the decode time.
    pub decode_tokens: usize,
}

/// A new token of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEvent<'a> {
    /// Index of the completion among those that are returned.
    pub completion: usize,
    /// The token id.
    pub token: u32,
    /// The text that is now certain; often empty, sometimes the text of several tokens.
    pub text: &'a str,
    /// The same of the reasoning before the answer.
    pub reasoning: &'a str,
}

impl Llm {
    /// Completes several prompts at once. Returns `params.n` completions for the first prompt, then those for the second, and
    /// so on.
    pub fn generate(&mut self, prompts: &[Prompt], params: &SamplingParams) -> Result<Vec<Completion>> {
        self.stream(prompts, params, &mut |_| ControlFlow::Continue(())).map(|(completions, _)| completions)
    }

    /// Completes several prompts at once and calls `on_event` for each new token. If `on_event` breaks, every unfinished
    /// answer is cancelled.
    ///
    /// If a seed is set, each prompt has its own random generator with that seed.
    pub fn stream(
        &mut self,
        prompts: &[Prompt],
        params: &SamplingParams,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<(Vec<Completion>, Timings)> {
        let wanted = GenerateRequest { params: params.clone(), ..GenerateRequest::default() };
        self.stream_request(prompts, &wanted, on_event)
    }

    /// Like [`Llm::stream`], with a constraint or a format of the answers.
    pub fn stream_request(
        &mut self,
        prompts: &[Prompt],
        wanted: &GenerateRequest,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<(Vec<Completion>, Timings)> {
        let mut generation = Generation::begin();
        let result = generation.run(self, prompts, wanted, on_event);
        // After an error or a break, no request may stay in the engine.
        generation.requests.iter().for_each(|request| self.abort(*request));
        result?;
        Ok(generation.finish())
    }
}

/// One call of [`Llm::stream`].
struct Generation {
    requests: Vec<RequestId>,
    /// Number of answers to each prompt.
    n: usize,
    completions: Vec<Completion>,
    timings: Timings,
    started: Instant,
}

impl Generation {
    fn begin() -> Self {
        let (requests, completions) = (Vec::new(), Vec::new());
        Self { requests, n: 1, completions, timings: Timings::default(), started: Instant::now() }
    }

    fn run(
        &mut self,
        llm: &mut Llm,
        prompts: &[Prompt],
        wanted: &GenerateRequest,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.n = wanted.params.n;
        let prompts = prompts.iter().map(|prompt| llm.encode(prompt)).collect::<Result<Vec<_>>>()?;
        for ids in prompts {
            self.requests.push(llm.add_request(ids.clone(), wanted)?);
            self.timings.prefill_tokens += ids.len();
            let completion = Completion {
                prompt_ids: ids,
                ids: Vec::new(),
                text: String::new(),
                reasoning: String::new(),
                logprobs: wanted.params.logprobs.map(|_| Vec::new()),
                finish_reason: FinishReason::Cancelled,
            };
            self.completions.extend(std::iter::repeat_n(completion, self.n));
        }
        while llm.has_unfinished() {
            let reading_prompts = self.completions.iter().any(|completion| completion.ids.is_empty());
            let events = llm.step()?;
            if reading_prompts {
                self.timings.prefill = self.started.elapsed();
            } else {
                self.timings.decode_tokens += events.len();
            }
            for event in events {
                if self.take(event, on_event)?.is_break() {
                    return self.append_held_back(llm);
                }
            }
        }
        Ok(())
    }

    /// Adds a token to its completion and passes it to `on_event`.
    fn take(
        &mut self,
        event: Event,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let unknown = || Error::Internal(format!("a token of request {}, which is not known", event.request));
        let prompt = self.requests.iter().position(|request| *request == event.request).ok_or_else(unknown)?;
        let completion = prompt * self.n + event.choice;
        let Output::Token(token) = event.output? else {
            return Err(Error::Internal("a vector came where a token was asked for".into()));
        };
        let answer = &mut self.completions[completion];
        answer.ids.push(token.id);
        answer.text += &token.text;
        answer.reasoning += &token.reasoning;
        if let Some(all) = &mut answer.logprobs {
            all.extend(token.logprobs);
        }
        answer.finish_reason = token.finished.unwrap_or(FinishReason::Cancelled);
        Ok(on_event(StreamEvent { completion, token: token.id, text: &token.text, reasoning: &token.reasoning }))
    }

    /// Adds the text that was held back to the completions, after a cancellation.
    fn append_held_back(&mut self, llm: &mut Llm) -> Result<()> {
        for (prompt, request) in self.requests.iter().enumerate() {
            for (choice, rest) in llm.held_back(*request)? {
                let completion = &mut self.completions[prompt * self.n + choice];
                completion.text += &rest.answer;
                completion.reasoning += &rest.reasoning;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> (Vec<Completion>, Timings) {
        self.timings.decode = self.started.elapsed().saturating_sub(self.timings.prefill);
        (self.completions, self.timings)
    }
}
