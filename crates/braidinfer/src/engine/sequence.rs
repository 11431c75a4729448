//! One sequence: a prompt, the tokens generated so far, and their state in the engine.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};

use super::block_pool::{Block, BlockHash, BlockTable};
use super::constraint::{Constraint, TokenMask};
use super::draft::Drafter;
use super::logprobs::TokenLogprobs;
use super::sampler::{Proposer, Sampler};
use super::waiting::{Caller, ClientId};
use super::{Pooling, PromptInfo, Request, SamplingParams, SequenceId};
use crate::{Error, Result};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop text was generated, or the constraint was complete.
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
    /// The request was cancelled.
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

/// Recurrent state of a running sequence, which layers keep in addition to its key/value blocks.
#[derive(Debug)]
pub(super) struct SequenceState {
    pub(super) slot: Block,
    /// Number of whole blocks of tokens that the state in the slot covers after the current step.
    pub(super) blocks: usize,
}

/// A prompt and the tokens generated so far.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) client: ClientId,
    /// The call of the client that it belongs to.
    pub(super) call: u64,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Number of tokens whose keys and values are stored.
    pub(super) computed: usize,
    pub(super) blocks: BlockTable,
    /// Recurrent state, if the model has any.
    pub(super) state: Option<SequenceState>,
    /// Index of the adapter that it is computed with.
    pub(super) adapter: Option<u32>,
    /// What comes before its first block: its adapter, if it has one.
    seed: Option<BlockHash>,
    /// Hashes of the full blocks, from the first block on.
    pub(super) hashes: Vec<BlockHash>,
    /// A sequence with the same prompt, whose prompt is computed first.
    pub(super) leader: Option<SequenceId>,
    /// Number of prompt tokens that were found in the prefix cache.
    pub(super) cached: usize,
    pub(super) was_preempted: bool,
    /// Whether the choice of its next token waits for its constraint, so that it sits out steps.
    pub(super) is_parked: bool,
    /// The last step in which it decoded; at first, that in which its prompt was read.
    pub(super) decoded_in: u64,
    added: Instant,
    /// How long it waited for its first step.
    pub(super) queued: Duration,
    /// Log-probabilities of the prompt's tokens from the second on, as far as they are computed.
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
    /// Fails if its constraint cannot be created.
    pub(super) fn new(id: SequenceId, request: Request, seed: Option<BlockHash>) -> Result<Self> {
        let Request { prompt, params, stop_token_ids, leader, constraint, pooling, adapter, caller } = request;
        let Caller { client, call } = caller;
        Ok(Self {
            constraint: constraint.map(|factory| factory.begin()).transpose()?,
            drafter: Drafter::new(),
            pooling,
            pooled: Vec::new(),
            id,
            client,
            call,
            prompt_len: prompt.len(),
            tokens: prompt,
            computed: 0,
            blocks: BlockTable::default(),
            state: None,
            adapter,
            seed,
            hashes: Vec::new(),
            leader,
            cached: 0,
            was_preempted: false,
            is_parked: false,
            decoded_in: 0,
            added: Instant::now(),
            queued: Duration::ZERO,
            prompt_logprobs: Vec::new(),
            sampler: Sampler::new(params.seed),
            params,
            stop_token_ids,
        })
    }

    /// What the block after those with known hashes comes after.
    pub(super) fn before_next_block(&self) -> Option<&BlockHash> {
        self.hashes.last().or(self.seed.as_ref())
    }

    /// Number of tokens that are not computed yet: the rest of the prompt, or the newest token.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether all tokens but the newest generated one are computed, so that the next step generates a token.
    pub(super) fn is_decoding(&self) -> bool {
        self.pending() == 1 && self.tokens.len() > self.prompt_len
    }

    /// Whether tokens have to be computed before one can be generated: a prompt, or those of a preempted sequence.
    pub(super) fn is_prefilling(&self) -> bool {
        self.pending() > 0 && !self.is_decoding()
    }

    /// Whether the whole prompt is computed and can be shared.
    pub(super) fn has_read_prompt(&self) -> bool {
        self.computed >= self.prompt_len
    }

    /// Whether every token of the prompt must be computed, because its logits or hidden state are needed.
    pub(super) fn wants_every_position(&self) -> bool {
        self.wants_prompt_logprobs() || self.pooling == Some(Pooling::Mean)
    }

    /// Whether log-probabilities of the prompt are still to be collected: they are returned with the first generated token.
    pub(super) fn wants_prompt_logprobs(&self) -> bool {
        self.params.prompt_logprobs.is_some() && self.tokens.len() == self.prompt_len
    }

    /// Whether the choice of its next tokens depends on nothing but which one is likeliest.
    pub(super) fn needs_only_argmax(&self) -> bool {
        let params = &self.params;
        let is_plain = params.logit_bias.is_empty() && !params.has_penalties() && params.logprobs.is_none();
        let may_end = self.tokens.len() - self.prompt_len >= params.min_tokens;
        let has_constraint = self.constraint.is_some() || self.wants_prompt_logprobs();
        params.temperature == 0.0 && is_plain && may_end && !has_constraint
    }

    /// Whether hidden states are pooled and no tokens are generated.
    pub(super) fn is_embedding(&self) -> bool {
        self.pooling.is_some()
    }

    /// Number of tokens that may still be generated.
    pub(super) fn tokens_left(&self, context: usize) -> usize {
        let generated = self.tokens.len() - self.prompt_len;
        let limit = self.params.max_tokens.map_or(usize::MAX, |limit| limit.saturating_sub(generated));
        limit.min(context.saturating_sub(self.tokens.len()))
    }

    /// Looks up at most `most` of the next tokens; see [`Drafter::draft`]. Returns them with how many times as fast tokens are expected
    /// to come with them.
    pub(super) fn look_up(&mut self, most: usize, cost: f64) -> (Vec<u32>, f64) {
        let found = self.drafter.draft(&self.tokens, most, cost);
        let gain = self.drafter.gain(found.len(), cost);
        (found, gain)
    }

    /// Chooses tokens from other logits as this sequence will.
    pub(super) fn proposer(&self) -> Proposer {
        let (prompt, answer) = self.tokens.split_at(self.prompt_len);
        let own_ends: &[u32] = if self.params.ignore_eos { &[] } else { &self.stop_token_ids };
        Proposer {
            sampler: self.sampler.clone(),
            params: self.params.clone(),
            prompt: prompt.to_vec(),
            answer: answer.to_vec(),
            ends: [own_ends, &self.params.stop_token_ids].concat(),
        }
    }

    /// Records how many tokens of the last draft that was looked up were accepted.
    pub(super) fn record_drafts(&mut self, drafted: usize, accepted: usize) {
        self.drafter.record(drafted, accepted);
    }

    /// Whether the logits after the token at `position` are needed, or its hidden state if this is an embedding.
    pub(super) fn wants_output(&self, position: usize) -> bool {
        // A sequence that is computed again after a preemption keeps the log-probabilities it already has.
        let of_prompt = self.wants_prompt_logprobs() && position >= self.prompt_logprobs.len();
        let of_all = self.pooling == Some(Pooling::Mean) || of_prompt;
        position + 1 >= self.tokens.len() || (of_all && position + 1 < self.prompt_len)
    }

    /// Records the log-probability of the prompt token after `position`, if requested; does nothing at later positions.
    pub(super) fn record_prompt_logprobs(&mut self, position: usize, logits: &[f32]) {
        let wanted = self.wants_prompt_logprobs() && position + 1 < self.prompt_len;
        if let Some(count) = self.params.prompt_logprobs.filter(|_| wanted) {
            self.prompt_logprobs.push(TokenLogprobs::of(logits, self.tokens[position + 1], count));
        }
    }

    /// Moves out the collected log-probabilities of the prompt, if they were requested.
    fn take_prompt_logprobs(&mut self) -> Option<Vec<TokenLogprobs>> {
        self.params.prompt_logprobs.map(|_| std::mem::take(&mut self.prompt_logprobs))
    }

    /// Information about the prompt; called once, when it is computed.
    pub(super) fn prompt_info(&mut self) -> PromptInfo {
        PromptInfo {
            num_tokens: self.prompt_len,
            num_cached_tokens: self.cached,
            logprobs: self.take_prompt_logprobs(),
            queued: self.queued,
        }
    }

    /// Adds the hidden state of a token to the pooled sum.
    pub(super) fn pool(&mut self, hidden: &[f32]) {
        self.pooled.resize(hidden.len(), 0.0);
        self.pooled.iter_mut().zip(hidden).for_each(|(sum, value)| *sum += value);
    }

    /// The pooled hidden state scaled to norm 1. For the mean the sum suffices, since it has the same direction.
    pub(super) fn embedding(&self) -> Vec<f32> {
        let norm = self.pooled.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        self.pooled.iter().map(|value| (f64::from(*value) / norm.max(f64::MIN_POSITIVE)) as f32).collect()
    }

    /// Its constraint, if it has one.
    pub(super) fn constraint(&mut self) -> Option<&mut dyn Constraint> {
        match &mut self.constraint {
            Some(constraint) => Some(constraint.as_mut()),
            None => None,
        }
    }

    /// Samples the next token among those that `mask` allows, with its log-probabilities if requested.
    pub(super) fn sample(&mut self, logits: &[f32], mask: Option<&TokenMask>) -> Result<(u32, Option<TokenLogprobs>)> {
        let (prompt, answer) = self.tokens.split_at(self.prompt_len);
        let mut allowed = Cow::Borrowed(logits);
        if let Some(mask) = mask
            && !mask.apply(allowed.to_mut())
        {
            return Err(Error::Internal("a constraint allows no token".into()));
        }
        if answer.len() < self.params.min_tokens {
            let without_ends = self.without_ends(&allowed);
            // A constraint may allow nothing but the end.
            if without_ends.iter().any(|logit| *logit > f32::NEG_INFINITY) {
                allowed = Cow::Owned(without_ends);
            }
        }
        let token = self.sampler.sample(&allowed, prompt, answer, &self.params);
        Ok((token, self.params.logprobs.map(|count| TokenLogprobs::of(logits, token, count))))
    }

    /// Logits in which no end token can be chosen.
    fn without_ends(&self, logits: &[f32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        for end in self.stop_token_ids.iter().chain(&self.params.stop_token_ids) {
            logits.get_mut(*end as usize).into_iter().for_each(|logit| *logit = f32::NEG_INFINITY);
        }
        logits
    }

    /// Whether a token is an end token of this sequence.
    pub(super) fn is_end(&self, token: u32) -> bool {
        let ends_texts = !self.params.ignore_eos && self.stop_token_ids.contains(&token);
        ends_texts || self.params.stop_token_ids.contains(&token)
    }

    /// Appends a generated token; returns the reason if the sequence ends with it. `is_complete` says that its constraint
    /// allows no further one.
    pub(super) fn append(&mut self, token: u32, is_complete: bool, context: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.is_end(token) || is_complete {
            return Some(FinishReason::Stop);
        }
        let generated = self.tokens.len() - self.prompt_len;
        let limit = self.params.max_tokens.is_some_and(|limit| generated >= limit);
        (limit || self.tokens.len() >= context).then_some(FinishReason::Length)
    }

    /// Records the time of the first step and the number of cached prompt tokens.
    pub(super) fn record_start(&mut self) {
        self.cached = self.computed;
        self.queued = self.added.elapsed();
    }

    /// Frees everything that is computed; it will be computed again.
    pub(super) fn preempt(&mut self) {
        self.was_preempted = true;
        self.pooled.clear();
        self.release();
    }

    /// Frees its blocks and its state.
    pub(super) fn release(&mut self) {
        self.state = None;
        self.blocks.clear();
        self.hashes.clear();
        self.computed = 0;
    }
}
