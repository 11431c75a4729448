//! The engine: schedules sequences over an executor and samples their next tokens.
//!
//! It sees integers and logits only: blocks are ids, and the executor owns what they hold.

mod block_pool;
mod constraint;
mod draft;
mod logprobs;
mod pace;
mod parameters;
mod reading;
mod sampler;
mod sampling_params;
mod scheduler;
mod sequence;
mod shadow_sample;

use std::borrow::Cow;
use std::time::{Duration, Instant};

pub use constraint::{Constraint, ConstraintFactory};
pub use logprobs::TokenLogprobs;
pub use parameters::{Kind, Parameter};
pub(crate) use reading::Reading;
pub use sampler::argmax;
pub use sampling_params::{MOST_LOGPROBS, PARAMETERS, SamplingParams};
pub use sequence::FinishReason;
pub use shadow_sample::ShadowSample;

use self::sampler::first_not_finite;
use self::scheduler::{ScheduledSequence, ScheduledStep, Scheduler};
use self::sequence::Sequence;
use self::shadow_sample::ShadowSamples;
use crate::executor::{Capabilities, Decoder, Logits, NoProbe, Outputs};
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
    /// As soon as so many sequences wait, nothing more is taken.
    pub max_waiting: usize,
    /// Share blocks of sequences that begin alike.
    pub prefix_cache: bool,
    /// Draft the next tokens of answers by looking for the same tokens earlier in the sequence.
    pub prompt_lookup: bool,
    /// Write nothing while prompts are read, instead of reading them in small pieces beside what is written.
    pub prompts_first: bool,
    /// Share of steps of answers whose logits are kept for [`Engine::first_shadow_sample`], from 0 to 1.
    pub shadow_share: f64,
}

/// How the hidden states of a prompt's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token, after the last norm.
    Last,
    /// The mean over all tokens, after the last norm.
    Mean,
}

/// One sequence to run.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// How to choose tokens, and when to stop.
    pub params: SamplingParams,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// A sequence with the same prompt that was added before; this one waits until that has read it.
    pub leader: Option<SequenceId>,
    /// The form that the answer must have.
    pub constraint: Option<ConstraintFactory>,
    /// Return a vector with a norm of 1 instead of an answer.
    pub pooling: Option<Pooling>,
}

/// What one step did for one sequence.
#[derive(Debug)]
pub struct StepOutput {
    /// The sequence.
    pub sequence: SequenceId,
    /// What is new; after an error the sequence has ended.
    pub output: Result<SequenceOutput>,
}

/// An output of a sequence.
#[derive(Debug)]
pub enum SequenceOutput {
    /// Its next token.
    Token(SampledToken),
    /// The vector that was asked for instead of an answer. It is the last output.
    Embedding(Embedding),
}

/// A prompt as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// `[hidden_size]`, with a Euclidean norm of 1.
    pub values: Vec<f32>,
    /// About the prompt.
    pub prompt: PromptInfo,
}

/// A new token.
#[derive(Debug)]
pub struct SampledToken {
    /// Its id.
    pub id: u32,
    /// How likely it was, if that was asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set when it is the last.
    pub finished: Option<FinishReason>,
    /// Whether it stands for the end and is no scheduled of the text.
    pub is_end: bool,
    /// With the first token only.
    pub prompt: Option<PromptInfo>,
}

/// About a prompt that was processed.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptInfo {
    /// Number of its tokens.
    pub num_tokens: usize,
    /// Number of those whose keys and values were taken from the prefix cache.
    pub num_cached_tokens: usize,
    /// Log-probabilities of every token but the first, if they were asked for.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// Time from its arrival to its first step.
    pub queued: Duration,
}

/// What an engine is doing, and what it did so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineStats {
    /// Sequences that take scheduled in steps.
    pub running: usize,
    /// Sequences that wait for their first step, or for their next after they were preempted.
    pub waiting: usize,
    /// Share of the key/value storage in use, from 0 to 1.
    pub kv_cache_usage: f64,
    /// Tokens of prompts that were looked for in the prefix cache.
    pub prefix_queries: usize,
    /// Those of them that were found.
    pub prefix_hits: usize,
    /// How often a sequence lost its blocks to an earlier one.
    pub preemptions: usize,
    /// Draft tokens that were computed.
    pub draft_tokens: usize,
    /// Those of them that were accepted.
    pub accepted_tokens: usize,
    /// Sequences that ended because logits were not finite.
    pub not_finite: usize,
    /// The last step.
    pub last_step: StepStats,
}

/// One step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Sequences that took scheduled.
    pub sequences: usize,
    /// Tokens of prompts that were read.
    pub prompt_tokens: usize,
    /// Tokens that were written.
    pub written_tokens: usize,
    /// How long it took.
    pub took: Duration,
}

/// Continuous batching over one executor.
pub struct Engine {
    decoder: Decoder<'static>,
    /// Whether drafts change no answer with this decoder.
    may_draft: bool,
    scheduler: Scheduler,
    next_id: SequenceId,
    steps: usize,
    draft_tokens: usize,
    accepted_tokens: usize,
    not_finite: usize,
    last_step: StepStats,
    shadow_samples: ShadowSamples,
}

impl Engine {
    /// An engine over `decoder`, whose storage must hold at least one sequence of the longest length.
    ///
    /// Prefixes are shared, and drafts made, only where the decoder's [`Capabilities`] let answers stay the same.
    pub fn new(decoder: Decoder<'static>, config: EngineConfig) -> Result<Self> {
        let kv_cache = decoder.kv_cache();
        if kv_cache.capacity() < config.context {
            let expected = format!("at most the {} tokens of the key/value storage", kv_cache.capacity());
            return Err(Error::bad_request("context", expected, config.context));
        }
        let Capabilities { same_bits_in_company, shares_prefixes, takes_back_drafts } = decoder.capabilities();
        // Where a row may be rounded otherwise beside other rows, a draft could change which token is chosen.
        let may_draft = takes_back_drafts && same_bits_in_company;
        let config = EngineConfig {
            prefix_cache: config.prefix_cache && shares_prefixes,
            prompt_lookup: config.prompt_lookup && may_draft,
            ..config
        };
        Ok(Self {
            scheduler: Scheduler::new(kv_cache, decoder.spec().vocab_size, config, decoder.state()),
            decoder,
            may_draft,
            next_id: 0,
            steps: 0,
            draft_tokens: 0,
            accepted_tokens: 0,
            not_finite: 0,
            last_step: StepStats::default(),
            shadow_samples: ShadowSamples::new(config.shadow_share),
        })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder<'static> {
        &self.decoder
    }

    /// The decoder, to run batches directly. What it stored is forgotten.
    ///
    /// Fails while any sequence is unfinished: such batches write where its keys and values are.
    pub fn decoder_mut(&mut self) -> Result<&mut Decoder<'static>> {
        if self.has_unfinished() {
            let unfinished = self.scheduler.running() + self.scheduler.waiting();
            let expected = "no unfinished request, whose keys and values it could overwrite";
            return Err(Error::bad_request("direct_batch", expected, unfinished));
        }
        self.scheduler.forget_stored();
        Ok(&mut self.decoder)
    }

    /// Has the decoder read its weights once and compute nothing. `false` where that cannot be timed.
    pub fn read_weights(&mut self) -> bool {
        self.decoder.read_weights()
    }

    /// Whether to draft tokens from now on; where drafts could change an answer, none are made.
    pub fn set_prompt_lookup(&mut self, wanted: bool) {
        self.scheduler.config.prompt_lookup = wanted && self.may_draft;
    }

    /// The limits.
    pub fn config(&self) -> EngineConfig {
        self.scheduler.config
    }

    /// What it is doing.
    pub fn stats(&self) -> EngineStats {
        let scheduler = &self.scheduler;
        EngineStats {
            running: scheduler.running(),
            waiting: scheduler.waiting(),
            kv_cache_usage: scheduler.kv_cache_usage(),
            prefix_queries: scheduler.prefix_queries,
            prefix_hits: scheduler.prefix_hits,
            preemptions: scheduler.preemptions,
            draft_tokens: self.draft_tokens,
            accepted_tokens: self.accepted_tokens,
            not_finite: self.not_finite,
            last_step: self.last_step,
        }
    }

    /// Whether a prompt can be run at all.
    pub fn check(&self, prompt: &[u32], params: &SamplingParams) -> Result<()> {
        params.validate()?;
        let vocab = self.decoder.spec().vocab_size;
        if prompt.is_empty() {
            return Err(Error::bad_request("prompt", "at least one token", "none"));
        }
        for (field, ids) in [("token_id", Cow::Borrowed(prompt))].into_iter().chain(params.tokens_by_field()) {
            if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
                return Err(Error::bad_request(field, format!("below the vocabulary size {vocab}"), id));
            }
        }
        if prompt.len() > self.scheduler.config.context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context: self.scheduler.config.context });
        }
        Ok(())
    }

    /// Fails with [`Error::QueueFull`] if as many sequences wait as may.
    pub fn check_room(&self) -> Result<()> {
        match self.scheduler.waiting() {
            waiting if waiting >= self.scheduler.config.max_waiting => Err(Error::QueueFull { waiting }),
            _ => Ok(()),
        }
    }

    /// Queues a prompt, whether there is room in the queue or not: whoever asks for several answers at once asks for all or
    /// none. A sequence ends at a token of its `stop_token_ids`, at its token limit, or at the context's end.
    pub fn add(&mut self, request: Request) -> Result<SequenceId> {
        self.check(&request.prompt, &request.params)?;
        let id = self.next_id;
        self.next_id += 1;
        self.scheduler.add(Sequence::new(id, request)?);
        Ok(id)
    }

    /// Forgets a sequence and frees its blocks.
    pub fn abort(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
    }

    /// The oldest step that was kept.
    pub fn first_shadow_sample(&self) -> Option<&ShadowSample> {
        self.shadow_samples.first()
    }

    /// Forgets it.
    pub fn forget_first_shadow_sample(&mut self) {
        self.shadow_samples.forget_first();
    }

    /// Whether any sequence is unfinished.
    pub fn has_unfinished(&self) -> bool {
        self.scheduler.running() + self.scheduler.waiting() > 0
    }

    /// Schedules, runs and samples once. A step that only reads prompts returns nothing.
    ///
    /// After an error no sequence is left.
    pub fn step(&mut self) -> Result<Vec<StepOutput>> {
        self.steps += 1;
        let started = Instant::now();
        let step = self.scheduler.schedule();
        if step.sequences.is_empty() && self.has_unfinished() {
            self.scheduler.clear();
            return Err(Error::Internal("sequences are waiting, but none can run".into()));
        }
        let computed = match self.compute(&step) {
            Ok(computed) => computed,
            Err(error) => {
                // No sequence of the batch may stay half computed.
                self.scheduler.clear();
                return Err(error);
            }
        };
        let wanted = (step.batch.logits_rows.len(), step.batch.hidden_rows.len());
        let found = (computed.logits.rows(), computed.hidden.len());
        if found != wanted {
            self.scheduler.clear();
            return Err(Error::Internal(format!(
                "{wanted:?} rows of logits and hidden states were wanted, {found:?} came"
            )));
        }
        let (mut outputs, mut logits_row, mut hidden_row) = (Vec::new(), 0, 0);
        for scheduled in &step.sequences {
            let row = if scheduled.is_embedding { &mut hidden_row } else { &mut logits_row };
            self.advance(scheduled, &computed, *row, &mut outputs);
            *row += scheduled.wanted.len();
        }
        if let Err(error) = self.take_snapshots() {
            self.scheduler.clear();
            return Err(error);
        }
        let took = started.elapsed();
        self.scheduler.pace.observe(step.prompt_tokens(), step.has_answers(), step.draft_tokens(), took);
        self.last_step = StepStats {
            sequences: step.sequences.len(),
            prompt_tokens: step.prompt_tokens(),
            written_tokens: outputs
                .iter()
                .filter(|output| matches!(output.output, Ok(SequenceOutput::Token(_))))
                .count(),
            took,
        };
        Ok(outputs)
    }

    fn compute(&mut self, step: &ScheduledStep) -> Result<Outputs> {
        for copy in &step.restored {
            self.decoder.copy_state(copy.from, copy.to)?;
        }
        self.decoder.forward(&step.batch, &mut NoProbe)
    }

    fn take_snapshots(&mut self) -> Result<()> {
        let copies = self.scheduler.take_snapshots();
        copies.iter().try_for_each(|copy| self.decoder.copy_state(copy.from, copy.to))
    }

    /// Takes what was computed for a sequence, from `row` on, and adds its outputs. An error ends this sequence and no
    /// other.
    fn advance(
        &mut self,
        scheduled: &ScheduledSequence,
        computed: &Outputs,
        row: usize,
        outputs: &mut Vec<StepOutput>,
    ) {
        let id = scheduled.sequence;
        let before = outputs.len();
        let mut ended = false;
        let mut give = |output: Result<SequenceOutput>| {
            ended |= !matches!(&output, Ok(SequenceOutput::Token(SampledToken { finished: None, .. })));
            outputs.push(StepOutput { sequence: id, output });
        };
        let read = match scheduled.is_embedding {
            true => self.read_hidden(scheduled, &computed.hidden[row..], &mut |output| give(Ok(output))),
            false => self.read_logits(scheduled, &computed.logits, row, &mut |output| give(Ok(output))),
        };
        if let Err(error) = read {
            give(Err(error));
        }
        let written = outputs.len() - before;
        // Of draft tokens only the accepted ones stay stored.
        let stored = if scheduled.is_writing { scheduled.positions.start + written } else { scheduled.positions.end };
        self.scheduler.computed(id, stored);
        if let (Some(sequence), false) = (self.scheduler.sequence_mut(id), scheduled.draft.is_empty()) {
            let accepted = written.saturating_sub(1);
            sequence.record_drafts(scheduled.draft.len(), accepted);
            self.draft_tokens += scheduled.draft.len();
            self.accepted_tokens += accepted;
        }
        if ended {
            self.scheduler.remove(id);
        }
    }

    /// Adds the hidden states of a scheduled to what its sequence pools; `states` begin with the first of them.
    fn read_hidden(
        &mut self,
        scheduled: &ScheduledSequence,
        states: &[Vec<f32>],
        give: &mut dyn FnMut(SequenceOutput),
    ) -> Result<()> {
        for (position, state) in scheduled.wanted.iter().zip(states) {
            self.check_finite(scheduled.sequence, state)?;
            let sequence = self.scheduler.sequence_that_ran(scheduled.sequence)?;
            sequence.pool(state);
            if position + 1 == sequence.tokens.len() {
                let prompt = sequence.prompt_info();
                give(SequenceOutput::Embedding(Embedding { values: sequence.embedding(), prompt }));
            }
        }
        Ok(())
    }

    fn read_logits(
        &mut self,
        scheduled: &ScheduledSequence,
        logits: &Logits,
        row: usize,
        give: &mut dyn FnMut(SequenceOutput),
    ) -> Result<()> {
        let context = self.scheduler.config.context;
        for (index, position) in scheduled.wanted.iter().enumerate() {
            let logits = logits.row(row + index);
            self.check_finite(scheduled.sequence, logits)?;
            let sequence = self.scheduler.sequence_that_ran(scheduled.sequence)?;
            sequence.read_prompt_logits(*position, logits);
            if position + 1 < sequence.tokens.len() {
                continue;
            }
            let prompt = (sequence.tokens.len() == sequence.prompt_len).then(|| sequence.prompt_info());
            self.shadow_samples.offer(&sequence.tokens, logits);
            let (token, logprobs) = sequence.sample(logits)?;
            let finished = sequence.append(token, context);
            let is_end = finished == Some(FinishReason::Stop) && sequence.is_end(token);
            give(SequenceOutput::Token(SampledToken { id: token, logprobs, finished, is_end, prompt }));
            // The logits after a draft token mean something only if it is accepted.
            if finished.is_some() || scheduled.draft.get(index) != Some(&token) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn check_finite(&mut self, sequence: SequenceId, values: &[f32]) -> Result<()> {
        let Some(index) = first_not_finite(values) else { return Ok(()) };
        self.not_finite += 1;
        Err(Error::NotFinite { step: self.steps, sequence, index, value: values[index] })
    }
}
