//! One request's tokens.

use std::time::{Duration, Instant};

use super::block_pool::{BlockHash, BlockTable};
use super::logprobs::TokenLogprobs;
use super::sampler::Sampler;
use super::{Request, SamplingParams, SequenceId};
use crate::Result;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A token or text that ends it.
    Stop,
    /// The token limit or the context's end.
    Length,
    /// Whoever asked for it cancelled.
    Cancelled,
}

impl FinishReason {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A prompt and the answer so far.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Tokens whose keys and values are stored.
    pub(super) computed: usize,
    pub(super) blocks: BlockTable,
    /// Of the full blocks whose contents are known, from the first one on.
    pub(super) hashes: Vec<BlockHash>,
    /// A sequence with the same prompt, which is read first.
    pub(super) leader: Option<SequenceId>,
    /// Tokens of the prompt that did not have to be computed.
    pub(super) cached: usize,
    pub(super) was_preempted: bool,
    added: Instant,
    /// How long it waited for its first step.
    pub(super) queued: Duration,
    /// Of the prompt's tokens from the second on, as they are computed.
    prompt_logprobs: Vec<TokenLogprobs>,
    params: SamplingParams,
    stop_token_ids: Vec<u32>,
    sampler: Sampler,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, request: Request) -> Self {
        let Request { prompt, params, stop_token_ids, leader } = request;
        Self {
            id,
            prompt_len: prompt.len(),
            tokens: prompt,
            computed: 0,
            blocks: BlockTable::default(),
            hashes: Vec::new(),
            leader,
            cached: 0,
            was_preempted: false,
            added: Instant::now(),
            queued: Duration::ZERO,
            prompt_logprobs: Vec::new(),
            sampler: Sampler::new(params.seed),
            params,
            stop_token_ids,
        }
    }

    /// Tokens that are not computed yet: the rest of the prompt, or the newest token.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether all but the newest token is computed, so that a step writes the next one.
    pub(super) fn is_writing(&self) -> bool {
        self.pending() == 1 && self.tokens.len() > self.prompt_len
    }

    /// Whether the prompt is stored and can be shared.
    pub(super) fn has_read_prompt(&self) -> bool {
        self.computed >= self.prompt_len
    }

    /// Whether the logits of every token of the prompt are wanted.
    pub(super) fn wants_prompt_logprobs(&self) -> bool {
        self.params.prompt_logprobs.is_some()
    }

    /// Whether logits are wanted for a token at `position`.
    pub(super) fn wants_logits(&self, position: usize) -> bool {
        // What was given before is not asked for again when a sequence is computed again.
        let of_prompt = self.wants_prompt_logprobs() && position >= self.prompt_logprobs.len();
        position + 1 == self.tokens.len() || (of_prompt && position + 1 < self.prompt_len)
    }

    /// Takes the logits after a token of the prompt that another one follows.
    pub(super) fn read_prompt_logits(&mut self, position: usize, logits: &[f32]) {
        if let Some(count) = self.params.prompt_logprobs.filter(|_| position + 1 < self.prompt_len) {
            self.prompt_logprobs.push(TokenLogprobs::of(logits, self.tokens[position + 1], count));
        }
    }

    /// Gives what is known of the prompt's tokens, once.
    pub(super) fn take_prompt_logprobs(&mut self) -> Option<Vec<TokenLogprobs>> {
        self.wants_prompt_logprobs().then(|| std::mem::take(&mut self.prompt_logprobs))
    }

    /// The next token, and how likely it was, if that is wanted.
    pub(super) fn sample(&mut self, logits: &[f32]) -> Result<(u32, Option<TokenLogprobs>)> {
        let (prompt, answer) = self.tokens.split_at(self.prompt_len);
        let token = self.sampler.sample(logits, prompt, answer, &self.params);
        Ok((token, self.params.logprobs.map(|count| TokenLogprobs::of(logits, token, count))))
    }

    /// Takes a new token and says whether it is the last.
    pub(super) fn append(&mut self, token: u32, context: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        if !self.params.ignore_eos && self.stop_token_ids.contains(&token) {
            return Some(FinishReason::Stop);
        }
        let generated = self.tokens.len() - self.prompt_len;
        let limit = self.params.max_tokens.is_some_and(|limit| generated >= limit);
        (limit || self.tokens.len() >= context).then_some(FinishReason::Length)
    }

    /// Takes note that it runs for the first time.
    pub(super) fn begin(&mut self) {
        self.queued = self.added.elapsed();
    }

    /// Gives up what is stored; it will be computed again.
    pub(super) fn preempt(&mut self) {
        self.was_preempted = true;
        self.blocks.clear();
        self.hashes.clear();
        self.computed = 0;
    }
}
