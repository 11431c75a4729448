//! One request's tokens.

use super::sampler::Sampler;
use super::{SamplingParams, SequenceId};

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
    pub(super) block_table: Vec<u32>,
    params: SamplingParams,
    stop_token_ids: Vec<u32>,
    sampler: Sampler,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, prompt: Vec<u32>, params: SamplingParams, stop_token_ids: Vec<u32>) -> Self {
        Self {
            id,
            prompt_len: prompt.len(),
            tokens: prompt,
            computed: 0,
            block_table: Vec::new(),
            sampler: Sampler::new(params.seed),
            params,
            stop_token_ids,
        }
    }

    /// Tokens that are not computed yet: the rest of the prompt, or the newest token.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub(super) fn sample(&mut self, logits: &[f32]) -> u32 {
        let (prompt, answer) = self.tokens.split_at(self.prompt_len);
        self.sampler.sample(logits, prompt, answer, &self.params)
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
}
