//! The engine: schedules sequences over an executor and samples their next tokens.
//!
//! It sees integers and logits only: blocks are ids, and the executor owns what they hold.

mod block_allocator;
mod sampler;
mod sampling_params;
mod scheduler;
mod sequence;

pub use sampler::argmax;
pub use sampling_params::SamplingParams;
pub use sequence::FinishReason;

use self::scheduler::Scheduler;
use self::sequence::Sequence;
use crate::executor::{Executor, NoProbe};
use crate::{Error, Result};

/// Names a sequence for as long as the engine knows it.
pub type SequenceId = usize;

/// Limits of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Longest sequence, prompt and answer together, in tokens.
    pub context: usize,
    /// Most tokens in one step; longer prompts are fed in chunks.
    pub max_batched_tokens: usize,
    /// Most sequences in one step.
    pub max_sequences: usize,
}

/// What one step did for one sequence.
#[derive(Debug)]
pub struct StepOutput {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its new token; after an error the sequence has ended.
    pub token: Result<u32>,
    /// Set when this was its last token.
    pub finished: Option<FinishReason>,
}

/// Continuous batching over one executor.
pub struct Engine {
    executor: Box<dyn Executor>,
    config: EngineConfig,
    scheduler: Scheduler,
    next_id: SequenceId,
    steps: usize,
}

impl Engine {
    /// An engine over `executor`, whose storage must hold at least one sequence of the longest length.
    pub fn new(executor: Box<dyn Executor>, config: EngineConfig) -> Result<Self> {
        let kv_cache = executor.kv_cache();
        if kv_cache.capacity() < config.context {
            let expected = format!("at most the {} tokens of the key/value storage", kv_cache.capacity());
            return Err(Error::bad_request("context", expected, config.context));
        }
        Ok(Self { scheduler: Scheduler::new(kv_cache, config), executor, config, next_id: 0, steps: 0 })
    }

    /// The executor.
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The executor, to run batches of one's own while no sequence is in flight.
    pub fn executor_mut(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// The limits.
    pub fn config(&self) -> EngineConfig {
        self.config
    }

    /// Queues a prompt. A sequence ends at a token of `stop_token_ids`, at its token limit, or at the context's end.
    pub fn add(&mut self, prompt: Vec<u32>, params: SamplingParams, stop_token_ids: Vec<u32>) -> Result<SequenceId> {
        params.validate()?;
        let vocab = self.executor.spec().vocab_size;
        if prompt.is_empty() {
            return Err(Error::bad_request("prompt", "at least one token", "none"));
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::bad_request("token id", format!("below the vocabulary size {vocab}"), id));
        }
        if prompt.len() > self.config.context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context: self.config.context });
        }
        let id = self.next_id;
        self.next_id += 1;
        self.scheduler.add(Sequence::new(id, prompt, params, stop_token_ids));
        Ok(id)
    }

    /// Forgets a sequence and frees its blocks.
    pub fn abort(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
    }

    /// Whether any sequence is unfinished.
    pub fn has_unfinished(&self) -> bool {
        !self.scheduler.is_empty()
    }

    /// Schedules, runs and samples once. A step that only reads prompts returns nothing.
    pub fn step(&mut self) -> Result<Vec<StepOutput>> {
        self.steps += 1;
        let (batch, sampled) = self.scheduler.schedule();
        if batch.sequences.is_empty() && self.has_unfinished() {
            self.scheduler.clear();
            return Err(Error::Internal("sequences are waiting, but none can run".into()));
        }
        match self.executor.forward(&batch, &mut NoProbe) {
            Ok(logits) => {
                Ok(sampled.into_iter().enumerate().map(|(row, id)| self.advance(id, logits.row(row))).collect())
            }
            Err(error) => {
                // No sequence of the batch may stay half computed.
                self.scheduler.clear();
                Err(error)
            }
        }
    }

    /// Samples the next token of one sequence. Bad logits end that sequence and no other.
    fn advance(&mut self, id: SequenceId, logits: &[f32]) -> StepOutput {
        let (token, finished) = match self.sample(id, logits) {
            Ok((token, finished)) => (Ok(token), finished),
            Err(error) => (Err(error), None),
        };
        if token.is_err() || finished.is_some() {
            self.scheduler.remove(id);
        }
        StepOutput { sequence: id, token, finished }
    }

    fn sample(&mut self, id: SequenceId, logits: &[f32]) -> Result<(u32, Option<FinishReason>)> {
        if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(Error::NotFinite { step: self.steps, sequence: id, index, value: logits[index] });
        }
        let unknown = || Error::Internal(format!("sequence {id} was run but is not known"));
        let sequence = self.scheduler.sequence_mut(id).ok_or_else(unknown)?;
        let token = sequence.sample(logits);
        Ok((token, sequence.append(token, self.config.context)))
    }
}
