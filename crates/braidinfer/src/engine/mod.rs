//! The engine: schedules sequences over an executor and samples their next tokens.
//!
//! It handles only token ids, block ids and logits; the executor owns the contents of the blocks.

mod block_pool;
mod constraint;
mod draft;
mod logprobs;

mod parameters;
mod raw_sequence;
mod sampler;
mod sampling_params;
mod scheduler;
mod sequence;
mod shadow_sample;
mod step_costs;
mod waiting;
use std::borrow::Cow;
use std::time::{Duration, Instant};

pub use constraint::{Constraint, ConstraintFactory};
pub use logprobs::TokenLogprobs;
pub use parameters::{Kind, Parameter};
pub use sampler::argmax;
pub use sampling_params::{MOST_LOGPROBS, PARAMETERS, SamplingParams};
pub use sequence::FinishReason;
pub use shadow_sample::ShadowSample;
pub use waiting::ClientId;

use self::sampler::first_not_finite;
use self::scheduler::{ScheduledSequence, ScheduledStep, Scheduler};
use self::sequence::Sequence;
use self::shadow_sample::ShadowSamples;
use crate::executor::{Capabilities, Decoder, Logits, NoProbe, Outputs};
use crate::{Error, Result};

/// Identifies a sequence; ids are not reused.
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
    /// Most sequences that wait beside the running ones; see [`Engine::check_room`].
    pub max_waiting: usize,
    /// Most of them that belong to one client.
    pub max_waiting_per_client: usize,
    /// Reuse the key/value blocks of sequences with the same prefix.
    pub prefix_cache: bool,
    /// Draft the next tokens of answers by looking up the last tokens earlier in the sequence.
    pub prompt_lookup: bool,
    /// Do not decode while prompts are pending, instead of mixing small chunks of prompts into decode steps.
    pub prompts_first: bool,
    /// Share of generated tokens whose logits are kept for [`Engine::first_shadow_sample`], from 0 to 1.
    pub shadow_share: f64,
}

/// How the hidden states of a prompt's tokens are pooled into one embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The hidden state of the last token, after the last norm.
    Last,
    /// The mean of the hidden states of all tokens, after the last norm.
    Mean,
}

/// A request for one sequence.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// How to choose tokens, and when to stop.
    pub params: SamplingParams,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// A sequence with the same prompt that was added earlier; this one waits until that prompt is computed, to share it.
    pub leader: Option<SequenceId>,
    /// Constraint that every token of the answer must satisfy.
    pub constraint: Option<ConstraintFactory>,
    /// Return a pooled embedding with norm 1 instead of generating an answer.
    pub pooling: Option<Pooling>,
    /// For whom it is computed; the engine takes turns between clients.
    pub client: ClientId,
}

/// The output of one step for one sequence.
#[derive(Debug)]
pub struct StepOutput {
    /// The sequence.
    pub sequence: SequenceId,
    /// The new output; an error ends the sequence.
    pub output: Result<SequenceOutput>,
}

/// An output of a sequence.
#[derive(Debug)]
pub enum SequenceOutput {
    /// Its next token.
    Token(SampledToken),
    /// The embedding that was requested instead of an answer; always the last output.
    Embedding(Embedding),
}

/// The embedding of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The vector, `[hidden_size]`, scaled to a Euclidean norm of 1.
    pub values: Vec<f32>,
    /// Information about the prompt.
    pub prompt: PromptInfo,
}

/// A new token.
#[derive(Debug)]
pub struct SampledToken {
    /// The token id.
    pub id: u32,
    /// Its log-probability, if requested.
    pub logprobs: Option<TokenLogprobs>,
    /// Why the sequence ended, if this is its last token.
    pub finished: Option<FinishReason>,
    /// Whether it is an end token, which is not part of the text.
    pub is_end: bool,
    /// Information about the prompt, with the first token only.
    pub prompt: Option<PromptInfo>,
}

/// Information about a prompt that was computed.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptInfo {
    /// Number of tokens of the prompt.
    pub num_tokens: usize,
    /// Number of prompt tokens whose keys and values were taken from the prefix cache.
    pub num_cached_tokens: usize,
    /// Log-probabilities of every token but the first, if requested.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// Time from the arrival of the sequence to its first step.
    pub queued: Duration,
}

/// Current state and totals of an engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineStats {
    /// Number of running sequences, which can be scheduled in every step.
    pub running: usize,
    /// Number of sequences that wait for their first step, or were preempted and wait to be resumed.
    pub waiting: usize,
    /// Number of clients that have running or waiting sequences.
    pub clients: usize,
    /// Share of the key/value storage in use, from 0 to 1.
    pub kv_cache_usage: f64,
    /// Number of prompt tokens that were looked up in the prefix cache.
    pub prefix_queries: usize,
    /// Number of prompt tokens that were found in the prefix cache.
    pub prefix_hits: usize,
    /// How often a sequence lost its blocks to an earlier one.
    pub preemptions: usize,
    /// Number of draft tokens that were computed.
    pub draft_tokens: usize,
    /// Number of draft tokens that were accepted.
    pub accepted_tokens: usize,
    /// Number of sequences that ended because logits or hidden states were not finite.
    pub not_finite: usize,
    /// The last step.
    pub last_step: StepStats,
}

/// Counts and time of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Number of sequences that were scheduled.
    pub sequences: usize,
    /// Number of prompt tokens that were computed.
    pub prompt_tokens: usize,
    /// Number of tokens that were generated.
    pub written_tokens: usize,
    /// Duration of the step.
    pub took: Duration,
}

/// Continuous batching over one executor.
pub struct Engine {
    decoder: Decoder<'static>,
    /// Whether drafts cannot change an output with this decoder.
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
    /// Creates an engine over `decoder`, whose key/value storage must hold at least one sequence of `config.context` tokens.
    ///
    /// Prefix caching and drafts are turned off where the decoder's [`Capabilities`] do not guarantee unchanged outputs.
    pub fn new(decoder: Decoder<'static>, config: EngineConfig) -> Result<Self> {
        let kv_cache = decoder.kv_cache();
        if kv_cache.capacity() < config.context {
            let expected = format!("at most the {} tokens of the key/value storage", kv_cache.capacity());
            return Err(Error::bad_request("context", expected, config.context));
        }
        let Capabilities { same_bits_in_company, shares_prefixes, takes_back_drafts } = decoder.capabilities();
        // If the rounding of a row depends on the other rows of its batch, a draft could change which token is chosen.
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

    /// The decoder, to run batches directly. Clears the prefix cache.
    ///
    /// Fails while any sequence is unfinished, because such batches overwrite its keys and values.
    pub fn decoder_mut(&mut self) -> Result<&mut Decoder<'static>> {
        if self.has_unfinished() {
            let unfinished = self.scheduler.running() + self.scheduler.waiting();
            let expected = "no unfinished request, whose keys and values it could overwrite";
            return Err(Error::bad_request("direct_batch", expected, unfinished));
        }
        self.scheduler.forget_cached();
        Ok(&mut self.decoder)
    }

    /// Reads all weights once without computing, to measure memory bandwidth. `false` if the decoder does not support it.
    pub fn read_weights(&mut self) -> bool {
        self.decoder.read_weights()
    }

    /// Turns drafting by prompt lookup on or off. It stays off with a decoder whose outputs drafts could change.
    pub fn set_prompt_lookup(&mut self, wanted: bool) {
        self.scheduler.config.prompt_lookup = wanted && self.may_draft;
    }

    /// The configuration in effect.
    pub fn config(&self) -> EngineConfig {
        self.scheduler.config
    }

    /// Current state and totals.
    pub fn stats(&self) -> EngineStats {
        let scheduler = &self.scheduler;
        EngineStats {
            running: scheduler.running(),
            waiting: scheduler.waiting(),
            clients: scheduler.num_clients(),
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

    /// Fails if a request with this prompt and these parameters is invalid.
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

    /// Fails if there is no room for `answers` more sequences of a client: with [`Error::QueueFull`] if more than
    /// [`EngineConfig::max_waiting`] would wait beside the running ones, or more than
    /// [`EngineConfig::max_waiting_per_client`] of this client; with [`Error::TooManyAnswers`] if there would never be room.
    pub fn check_room(&self, client: ClientId, answers: usize) -> Result<()> {
        let EngineConfig { max_sequences, max_waiting, max_waiting_per_client, .. } = self.scheduler.config;
        let most = max_waiting.min(max_waiting_per_client).saturating_add(max_sequences);
        if answers > most {
            return Err(Error::TooManyAnswers { answers, most });
        }
        let free = max_sequences.saturating_sub(self.scheduler.running());
        for (waiting, limit, of_client) in [
            (self.scheduler.waiting(), max_waiting, false),
            (self.scheduler.waiting_of(client), max_waiting_per_client, true),
        ] {
            if waiting.saturating_add(answers) > limit.saturating_add(free) {
                return Err(Error::QueueFull { waiting, answers, limit, of_client });
            }
        }
        Ok(())
    }

    /// Queues a sequence without checking for room in the queue: a caller that wants several answers checks once, with
    /// [`Engine::check_room`], and then adds all of them. A sequence ends at a token of its `stop_token_ids`, at its token
    /// limit, or at the context's end.
    pub fn add(&mut self, request: Request) -> Result<SequenceId> {
        self.check(&request.prompt, &request.params)?;
        let id = self.next_id;
        self.next_id += 1;
        self.scheduler.add(Sequence::new(id, request)?);
        Ok(id)
    }

    /// Removes a sequence and frees its blocks.
    pub fn abort(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
    }

    /// The oldest sample that waits for its comparison with the standard kernels.
    pub fn first_shadow_sample(&self) -> Option<&ShadowSample> {
        self.shadow_samples.first()
    }

    /// Drops the sample of [`Engine::first_shadow_sample`].
    pub fn forget_first_shadow_sample(&mut self) {
        self.shadow_samples.forget_first();
    }

    /// Whether any sequence is unfinished.
    pub fn has_unfinished(&self) -> bool {
        self.scheduler.running() + self.scheduler.waiting() > 0
    }

    /// Runs one step: schedules, computes and samples. A step that only computes parts of prompts returns no outputs.
    ///
    /// An error removes all sequences.
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
        self.scheduler.step_costs.observe(step.prompt_tokens(), step.has_decodes(), step.draft_tokens(), took);
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
        // In this order: the slot that one copy reads may be the one that a later copy writes.
        let copies = self.scheduler.take_snapshots();
        copies.iter().try_for_each(|copy| self.decoder.copy_state(copy.from, copy.to))
    }

    /// Processes the results of one sequence, which begin at `row`, and appends its outputs. An error ends only this
    /// sequence.
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
        let mut emit = |output: Result<SequenceOutput>| {
            ended |= !matches!(&output, Ok(SequenceOutput::Token(SampledToken { finished: None, .. })));
            outputs.push(StepOutput { sequence: id, output });
        };
        let processed = match scheduled.is_embedding {
            true => self.process_hidden(scheduled, &computed.hidden[row..], &mut |output| emit(Ok(output))),
            false => self.process_logits(scheduled, &computed.logits, row, &mut |output| emit(Ok(output))),
        };
        if let Err(error) = processed {
            emit(Err(error));
        }
        let generated = outputs.len() - before;
        // Keys and values of rejected draft tokens do not count as computed.
        let computed =
            if scheduled.is_decoding { scheduled.positions.start + generated } else { scheduled.positions.end };
        self.scheduler.record_computed(id, computed);
        if let (Some(sequence), false) = (self.scheduler.sequence_mut(id), scheduled.draft.is_empty()) {
            let accepted = generated.saturating_sub(1);
            sequence.record_drafts(scheduled.draft.len(), accepted);
            self.draft_tokens += scheduled.draft.len();
            self.accepted_tokens += accepted;
        }
        if ended {
            self.scheduler.remove(id);
        }
    }

    /// Pools the hidden states of a scheduled sequence, which are the first elements of `states`.
    fn process_hidden(
        &mut self,
        scheduled: &ScheduledSequence,
        states: &[Vec<f32>],
        emit: &mut dyn FnMut(SequenceOutput),
    ) -> Result<()> {
        for (position, state) in scheduled.wanted.iter().zip(states) {
            self.check_finite(scheduled.sequence, state)?;
            let sequence = self.scheduler.sequence_that_ran(scheduled.sequence)?;
            sequence.pool(state);
            if position + 1 == sequence.tokens.len() {
                let prompt = sequence.prompt_info();
                emit(SequenceOutput::Embedding(Embedding { values: sequence.embedding(), prompt }));
            }
        }
        Ok(())
    }

    fn process_logits(
        &mut self,
        scheduled: &ScheduledSequence,
        logits: &Logits,
        row: usize,
        emit: &mut dyn FnMut(SequenceOutput),
    ) -> Result<()> {
        let context = self.scheduler.config.context;
        for (index, position) in scheduled.wanted.iter().enumerate() {
            let logits = logits.row(row + index);
            self.check_finite(scheduled.sequence, logits)?;
            let sequence = self.scheduler.sequence_that_ran(scheduled.sequence)?;
            sequence.record_prompt_logprobs(*position, logits);
            if position + 1 < sequence.tokens.len() {
                continue;
            }
            let prompt = (sequence.tokens.len() == sequence.prompt_len).then(|| sequence.prompt_info());
            self.shadow_samples.offer(&sequence.tokens, logits);
            let (token, logprobs) = sequence.sample(logits)?;
            let finished = sequence.append(token, context);
            let is_end = finished == Some(FinishReason::Stop) && sequence.is_end(token);
            emit(SequenceOutput::Token(SampledToken { id: token, logprobs, finished, is_end, prompt }));
            // The logits after a draft token are valid only if it was accepted.
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
