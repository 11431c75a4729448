//! One request's tokens.

use std::fmt;
use std::time::{Duration, Instant};

use super::block_pool::{Block, BlockHash, BlockTable};
use super::constraint::Constraint;
use super::draft::Drafter;
use super::logprobs::TokenLogprobs;
use super::sampler::Sampler;
use super::{Pooling, PromptInfo, Request, SamplingParams, SequenceId};
use crate::Result;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A token or text that ends it.
    Stop,
    /// The token limit or the context's end.
    Length,
    /// It was cancelled.
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

/// What layers keep of a running sequence besides its blocks.
#[derive(Debug)]
pub(super) struct SequenceState {
    pub(super) slot: Block,
    /// Whole blocks of tokens that the state in the slot stands after, once the step has run.
    pub(super) blocks: usize,
}

/// A prompt and the answer so far.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Tokens whose keys and values are stored.
    pub(super) computed: usize,
    pub(super) blocks: BlockTable,
    /// What layers keep of it besides its blocks, where they do.
    pub(super) state: Option<SequenceState>,
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
    constraint: Option<Box<dyn Constraint>>,
    drafter: Drafter,
    pooling: Option<Pooling>,
    /// Sum of the hidden states so far.
    pooled: Vec<f32>,
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Sequence").field("id", &self.id).field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Sequence {
    /// Fails where its constraint cannot begin.
    pub(super) fn new(id: SequenceId, request: Request) -> Result<Self> {
        let Request { prompt, params, stop_token_ids, leader, constraint, pooling } = request;
        Ok(Self {
            constraint: constraint.map(|factory| factory.begin()).transpose()?,
            drafter: Drafter::new(),
            pooling,
            pooled: Vec::new(),
            id,
            prompt_len: prompt.len(),
            tokens: prompt,
            computed: 0,
            blocks: BlockTable::default(),
            state: None,
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
        })
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

    /// Whether every token of the prompt must be computed, for what it gives.
    pub(super) fn wants_every_position(&self) -> bool {
        self.wants_prompt_logprobs() || self.pooling == Some(Pooling::Mean)
    }

    /// Whether the prompt's tokens are to be told how likely they were: until the first token of the answer tells it.
    pub(super) fn wants_prompt_logprobs(&self) -> bool {
        self.params.prompt_logprobs.is_some() && self.tokens.len() == self.prompt_len
    }

    /// Whether hidden states are wanted, and nothing is written.
    pub(super) fn is_embedding(&self) -> bool {
        self.pooling.is_some()
    }

    /// Tokens that may still be written.
    pub(super) fn tokens_left(&self, context: usize) -> usize {
        let written = self.tokens.len() - self.prompt_len;
        let limit = self.params.max_tokens.map_or(usize::MAX, |limit| limit.saturating_sub(written));
        limit.min(context.saturating_sub(self.tokens.len()))
    }

    /// Drafts of the next tokens.
    pub(super) fn draft(&mut self, most: usize, cost: f64) -> Vec<u32> {
        self.drafter.draft(&self.tokens, most, cost)
    }

    /// Learns how many of the last drafts were accepted.
    pub(super) fn record_drafts(&mut self, drafted: usize, accepted: usize) {
        self.drafter.record(drafted, accepted);
    }

    /// Whether logits are wanted for a token at `position`, or, of an embedding, the hidden state.
    pub(super) fn wants_output(&self, position: usize) -> bool {
        // What was given before is not asked for again when a sequence is computed again.
        let of_prompt = self.wants_prompt_logprobs() && position >= self.prompt_logprobs.len();
        let of_all = self.pooling == Some(Pooling::Mean) || of_prompt;
        position + 1 >= self.tokens.len() || (of_all && position + 1 < self.prompt_len)
    }

    /// Takes the logits after a token of the prompt that another one follows.
    pub(super) fn read_prompt_logits(&mut self, position: usize, logits: &[f32]) {
        let wanted = self.wants_prompt_logprobs() && position + 1 < self.prompt_len;
        if let Some(count) = self.params.prompt_logprobs.filter(|_| wanted) {
            self.prompt_logprobs.push(TokenLogprobs::of(logits, self.tokens[position + 1], count));
        }
    }

    /// Gives what is known of the prompt's tokens, once.
    fn take_prompt_logprobs(&mut self) -> Option<Vec<TokenLogprobs>> {
        self.params.prompt_logprobs.map(|_| std::mem::take(&mut self.prompt_logprobs))
    }

    /// About the prompt, once it is processed.
    pub(super) fn prompt_info(&mut self) -> PromptInfo {
        PromptInfo {
            num_tokens: self.prompt_len,
            num_cached_tokens: self.cached,
            logprobs: self.take_prompt_logprobs(),
            queued: self.queued,
        }
    }

    /// Adds the hidden state of a token.
    pub(super) fn pool(&mut self, hidden: &[f32]) {
        self.pooled.resize(hidden.len(), 0.0);
        self.pooled.iter_mut().zip(hidden).for_each(|(sum, value)| *sum += value);
    }

    /// The pooled hidden state with a norm of 1: the direction of a mean is that of the sum.
    pub(super) fn embedding(&self) -> Vec<f32> {
        let length = self.pooled.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        self.pooled.iter().map(|value| (f64::from(*value) / length.max(f64::MIN_POSITIVE)) as f32).collect()
    }

    /// The next token, and how likely it was, if that is wanted.
    pub(super) fn sample(&mut self, logits: &[f32]) -> Result<(u32, Option<TokenLogprobs>)> {
        let (prompt, answer) = self.tokens.split_at(self.prompt_len);
        let token = match &mut self.constraint {
            None => self.sampler.sample(logits, prompt, answer, &self.params),
            Some(constraint) => {
                let mut allowed = logits.to_vec();
                constraint.restrict(&mut allowed)?;
                let token = self.sampler.sample(&allowed, prompt, answer, &self.params);
                constraint.take(token)?;
                token
            }
        };
        Ok((token, self.params.logprobs.map(|count| TokenLogprobs::of(logits, token, count))))
    }

    /// Whether a token ends the answer by itself.
    pub(super) fn is_end(&self, token: u32) -> bool {
        let ends_texts = !self.params.ignore_eos && self.stop_token_ids.contains(&token);
        ends_texts || self.params.stop_token_ids.contains(&token)
    }

    /// Takes a new token and says whether it is the last.
    pub(super) fn append(&mut self, token: u32, context: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.is_end(token) || self.constraint.as_ref().is_some_and(|constraint| constraint.is_complete()) {
            return Some(FinishReason::Stop);
        }
        let generated = self.tokens.len() - self.prompt_len;
        let limit = self.params.max_tokens.is_some_and(|limit| generated >= limit);
        (limit || self.tokens.len() >= context).then_some(FinishReason::Length)
    }

    /// Takes note that it runs for the first time, and of what is stored of it.
    pub(super) fn begin(&mut self) {
        self.cached = self.computed;
        self.queued = self.added.elapsed();
    }

    /// Gives up what is stored; it will be computed again.
    pub(super) fn preempt(&mut self) {
        self.was_preempted = true;
        self.pooled.clear();
        self.give_back();
    }

    /// Gives up its blocks.
    pub(super) fn give_back(&mut self) {
        self.state = None;
        self.blocks.clear();
        self.hashes.clear();
        self.computed = 0;
    }
}
