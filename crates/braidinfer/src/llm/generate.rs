//! Prompts that are answered while the caller waits.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Event, Llm, Output, Prompt, RequestId};
use crate::engine::{FinishReason, SamplingParams};
use crate::{Error, Result};

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Ids of the prompt.
    pub prompt_ids: Vec<u32>,
    /// Ids of the answer, a token that ended it included.
    pub ids: Vec<u32>,
    /// Text of the answer, without special tokens and without the stop text; empty if the model has no tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// How long a call took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the call to the first token of every prompt.
    pub prefill: Duration,
    /// Prompt tokens.
    pub prefill_tokens: usize,
    /// From then to the end.
    pub decode: Duration,
    /// Tokens generated in that time.
    pub decode_tokens: usize,
}

/// A new token of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEvent<'a> {
    /// Which completion, in the order in which they are returned.
    pub completion: usize,
    /// The token.
    pub token: u32,
    /// The text that is now certain; often empty, sometimes of several tokens.
    pub text: &'a str,
}

impl Llm {
    /// Completes several prompts at once: as many answers for each as `params` ask for, one prompt after the other.
    pub fn generate(&mut self, prompts: &[Prompt], params: &SamplingParams) -> Result<Vec<Completion>> {
        self.stream(prompts, params, &mut |_| ControlFlow::Continue(())).map(|(completions, _)| completions)
    }

    /// Completes several prompts at once, handing over each token as it comes. Breaking from `on_event` ends
    /// every answer that is still running.
    ///
    /// With one seed for several prompts, each prompt draws from its own generator with that seed.
    pub fn stream(
        &mut self,
        prompts: &[Prompt],
        params: &SamplingParams,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<(Vec<Completion>, Timings)> {
        let mut generation = Generation::begin();
        let result = generation.run(self, prompts, params, on_event);
        // Also after an error or a break nothing may stay behind in the engine.
        generation.requests.iter().for_each(|request| self.abort(*request));
        result?;
        Ok(generation.finish())
    }
}

/// One call of [`Llm::stream`].
struct Generation {
    requests: Vec<RequestId>,
    /// Answers to one prompt.
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
        params: &SamplingParams,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.n = params.n;
        let prompts = prompts.iter().map(|prompt| llm.encode(prompt)).collect::<Result<Vec<_>>>()?;
        for ids in prompts {
            self.requests.push(llm.add(ids.clone(), params)?);
            self.timings.prefill_tokens += ids.len();
            let completion = Completion {
                prompt_ids: ids,
                ids: Vec::new(),
                text: String::new(),
                finish_reason: FinishReason::Cancelled,
            };
            self.completions.extend(std::iter::repeat_n(completion, params.n));
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
                    return self.hand_over_rest(llm);
                }
            }
        }
        Ok(())
    }

    /// Adds a token to its completion.
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
        answer.finish_reason = token.finished.unwrap_or(FinishReason::Cancelled);
        Ok(on_event(StreamEvent { completion, token: token.id, text: &token.text }))
    }

    /// Ends answers that someone cancelled; what was held back still belongs to them.
    fn hand_over_rest(&mut self, llm: &mut Llm) -> Result<()> {
        for (prompt, request) in self.requests.iter().enumerate() {
            for (choice, rest) in llm.held_back(*request)? {
                self.completions[prompt * self.n + choice].text += &rest;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> (Vec<Completion>, Timings) {
        self.timings.decode = self.started.elapsed().saturating_sub(self.timings.prefill);
        (self.completions, self.timings)
    }
}
