//! The engine: schedules sequences over an executor and samples their next tokens.
//!
//! It sees integers and logits only: blocks are ids, and the executor owns what they hold.

mod block_allocator;
mod sampler;
mod sampling_params;
mod scheduler;
mod sequence;

pub use sampling_params::SamplingParams;
pub use sequence::FinishReason;

use self::scheduler::Scheduler;
use self::sequence::Sequence;
use crate::executor::{Batch, Executor, NoProbe};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepOutput {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its new token.
    pub token: u32,
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

    /// Tokens of a sequence whose keys and values are stored: how far its prompt has been read.
    pub fn computed(&self, id: SequenceId) -> Option<usize> {
        self.scheduler.sequence(id).map(|sequence| sequence.computed)
    }

    /// Schedules, runs and samples once. A step that only reads prompts returns nothing.
    pub fn step(&mut self) -> Result<Vec<StepOutput>> {
        self.steps += 1;
        let (batch, sampled) = self.scheduler.schedule();
        if batch.sequences.is_empty() {
            return Ok(Vec::new());
        }
        let outputs = self.run(&batch, &sampled);
        if outputs.is_err() {
            // Which sequence is at fault is in the error; none of the others may stay half computed.
            self.scheduler.clear();
        }
        outputs
    }

    fn run(&mut self, batch: &Batch, sampled: &[SequenceId]) -> Result<Vec<StepOutput>> {
        let logits = self.executor.forward(batch, &mut NoProbe)?;
        let mut outputs = Vec::with_capacity(sampled.len());
        for (row, id) in sampled.iter().enumerate() {
            let logits = logits.row(row);
            if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
                return Err(Error::NotFinite { step: self.steps, sequence: *id, index, value: logits[index] });
            }
            let Some(sequence) = self.scheduler.sequence_mut(*id) else { continue };
            let token = sequence.sample(logits);
            let finished = sequence.append(token, self.config.context);
            if finished.is_some() {
                self.scheduler.remove(*id);
            }
            outputs.push(StepOutput { sequence: *id, token, finished });
        }
        Ok(outputs)
    }
}
