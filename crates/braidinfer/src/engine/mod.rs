//! The engine: schedules sequences over an executor and samples their next tokens.
//!
//! It handles only token ids, block ids and logits; the executor owns the contents of the blocks.

mod block_pool;
mod constraint;
mod draft;
mod draft_model;
mod logprobs;
mod parameters;
mod pending_sample;
mod raw_sequence;
mod sampler;
mod sampling_params;
mod saved_prefixes;
mod scheduler;
mod sequence;
mod shadow_sample;
mod softmax;
mod step_costs;
mod waiting;

#[cfg(test)]
mod tests;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub(crate) use block_pool::block_hash;
pub use block_pool::{BlockEvent, BlockHash};
pub use constraint::{Constraint, ConstraintFactory, TokenMask};
pub(crate) use draft_model::DraftModel;
pub use logprobs::TokenLogprobs;
pub use parameters::{Kind, Parameter};
pub use sampling_params::{MOST_LOGPROBS, PARAMETERS, SamplingParams};
pub(crate) use scheduler::state_slots;
pub use sequence::FinishReason;
pub use shadow_sample::ShadowSample;
pub use softmax::argmax;
pub use waiting::{Caller, ClientId};

use self::pending_sample::{Chosen, PendingSample};
use self::scheduler::{OutputKind, ScheduledSequence, ScheduledStep, Scheduler};
use self::sequence::Sequence;
use self::shadow_sample::ShadowSamples;
use self::softmax::first_not_finite;
use crate::digest::of_adapter;
use crate::executor::{Argmax, Batch, Capabilities, Decoder, NoProbe, Outputs, ReadPattern};
use crate::saved_prefixes::PrefixFolder;
use crate::{Error, Result};

/// Is told how the contents of the prefix cache change, after each step.
pub type BlockListener = Box<dyn FnMut(Vec<BlockEvent>) + Send>;

/// Identifies a sequence; ids are not reused.
pub type SequenceId = usize;

/// A queue of at least so many answers keeps room for clients with less than this fraction of it.
const SHARED_QUEUE: usize = 64;
/// How long all constraints of a step together are waited for after its forward pass, before their sequences sit out.
const CONSTRAINT_PATIENCE: Duration = Duration::from_millis(2);
/// How long constraints are waited for if nothing else can be done.
const IDLE_PATIENCE: Duration = Duration::from_millis(10);

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
    /// Index of the adapter to compute it with, among those of the decoder.
    pub adapter: Option<u32>,
    /// For whom it is computed; the engine takes turns between clients, and between the calls of each.
    pub caller: Caller,
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
    /// Number of blocks of the prefix cache that were read from the disk.
    pub restored_blocks: usize,
    /// Bytes of GPU memory in use.
    pub device_bytes: u64,
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

/// What a token is chosen by.
#[derive(Clone, Copy)]
enum NextToken<'a> {
    Logits(&'a [f32]),
    /// It was chosen by the decoder.
    Argmax(Argmax),
}

/// How the choice of a sequence's next tokens ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// The constraint is not ready.
    Waits,
    /// All tokens of this step are chosen.
    Over,
    /// The last token of the sequence is chosen, or an error ended it.
    Ended,
}

/// Continuous batching over one executor.
pub struct Engine {
    decoder: Decoder<'static>,
    /// Whether drafts cannot change an output with this decoder.
    may_draft: bool,
    scheduler: Scheduler,
    draft_model: Option<DraftModel>,
    next_id: SequenceId,
    steps: usize,
    draft_tokens: usize,
    accepted_tokens: usize,
    not_finite: usize,
    last_step: StepStats,
    /// How long it took to schedule the current step, with the drafts in it.
    drafting: Duration,
    shadow_samples: ShadowSamples,
    /// Sequences that sit out steps because their constraints are not ready.
    parked: BTreeMap<SequenceId, PendingSample>,
    block_listener: Option<BlockListener>,
    prefix_folder: Option<PrefixFolder>,
    /// For each adapter, what comes before the first block of its sequences: blocks depend on it.
    adapter_seeds: Vec<BlockHash>,
    restored_blocks: usize,
    /// Outputs of a step that could not be ended, for the next one.
    undelivered: Vec<StepOutput>,
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
        let Capabilities { same_bits_in_company, shares_prefixes, takes_back_drafts, computes_argmax } =
            decoder.capabilities();
        // What is compared with standard kernels are logits.
        let computes_argmax = computes_argmax && config.shadow_share == 0.0;
        // If the rounding of a row depends on the other rows of its batch, a draft could change which token is chosen.
        let may_draft = takes_back_drafts && same_bits_in_company;
        let config = EngineConfig {
            prefix_cache: config.prefix_cache && shares_prefixes,
            prompt_lookup: config.prompt_lookup && may_draft,
            ..config
        };
        let adapter_seeds = decoder.adapters().iter().map(|adapter| of_adapter(adapter)).collect();
        Ok(Self {
            scheduler: Scheduler::new(kv_cache, decoder.spec().vocab_size, config, decoder.state())
                .with_argmax(computes_argmax),
            decoder,
            may_draft,
            draft_model: None,
            next_id: 0,
            steps: 0,
            draft_tokens: 0,
            accepted_tokens: 0,
            not_finite: 0,
            last_step: StepStats::default(),
            drafting: Duration::ZERO,
            shadow_samples: ShadowSamples::new(config.shadow_share),
            parked: BTreeMap::new(),
            block_listener: None,
            prefix_folder: None,
            adapter_seeds,
            restored_blocks: 0,
            undelivered: Vec::new(),
        })
    }

    /// Tells `listener` after each step how the contents of the prefix cache have changed.
    ///
    /// Fails if there is no prefix cache.
    pub fn listen_to_blocks(&mut self, listener: BlockListener) -> Result<()> {
        if !self.config().prefix_cache {
            let found = "none with this model and these options";
            return Err(Error::bad_request("kv_events", "a prefix cache to tell of", found));
        }
        self.scheduler.take_block_events();
        self.block_listener = Some(listener);
        Ok(())
    }

    /// Tokens of a block of the prefix cache.
    pub fn block_size(&self) -> usize {
        self.decoder.kv_cache().block_size
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
    pub fn read_weights(&mut self, pattern: ReadPattern) -> bool {
        self.decoder.read_weights(pattern)
    }

    /// Bytes that the device which computes all of the model reads and writes in a second while it copies memory, as measured now.
    /// `None` if there is none, or no room to measure it.
    ///
    /// Fails if the device does.
    pub fn copy_rate(&mut self) -> Result<Option<f64>> {
        self.decoder.copy_rate()
    }

    /// Copies some of the weights that steps used to memory that is read faster, as every step does, too: some milliseconds of
    /// work. Returns whether there were any.
    pub fn copy_some_weights(&mut self) -> bool {
        self.decoder.copy_some_weights()
    }

    /// Turns drafting by prompt lookup on or off. It stays off with a decoder whose outputs drafts could change.
    pub fn set_prompt_lookup(&mut self, wanted: bool) {
        self.scheduler.config.prompt_lookup = wanted && self.may_draft;
    }

    /// Lets a smaller model draft the next tokens of answers, too. Returns whether it does: not with a decoder whose outputs drafts
    /// could change.
    pub(crate) fn set_draft_model(&mut self, model: DraftModel) -> bool {
        self.draft_model = Some(model).filter(|_| self.may_draft);
        self.draft_model.is_some()
    }

    /// Why the draft model does not draft any more, if it failed since the last call.
    pub(crate) fn take_draft_failure(&mut self) -> Option<Error> {
        let failure = self.draft_model.as_mut()?.take_failure()?;
        self.draft_model = None;
        Some(failure)
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
            restored_blocks: self.restored_blocks,
            device_bytes: self.decoder.device_bytes(),
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
        // The last quarter of a long queue is for clients with few answers, so that no others can fill it.
        let of_client = self.scheduler.waiting_of(client).saturating_add(answers);
        let is_large = max_waiting >= SHARED_QUEUE && of_client > max_waiting / SHARED_QUEUE;
        let max_waiting = if is_large { max_waiting - max_waiting / 4 } else { max_waiting };
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
        let seed = self.seed(request.adapter)?;
        self.restore_beginning(&request.prompt, request.adapter);
        let id = self.next_id;
        self.next_id += 1;
        self.scheduler.add(Sequence::new(id, request, seed)?);
        Ok(id)
    }

    /// What comes before the first block of sequences with an adapter, or with none.
    ///
    /// Fails if there is no such adapter.
    pub(crate) fn seed(&self, adapter: Option<u32>) -> Result<Option<BlockHash>> {
        let Some(adapter) = adapter else { return Ok(None) };
        let seed = self.adapter_seeds.get(adapter as usize).copied();
        let none = || Error::bad_request("adapter", format!("one of {}, by index", self.adapter_seeds.len()), adapter);
        seed.map(Some).ok_or_else(none)
    }

    /// Removes a sequence and frees its blocks.
    pub fn abort(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.parked.remove(&id);
        self.rest();
    }

    /// Removes all sequences.
    pub fn clear(&mut self) {
        self.scheduler.clear();
        self.parked.clear();
        self.undelivered.clear();
    }

    /// Gives up the decoder's devices as if they were lost; see [`Decoder::give_up_device`].
    pub fn give_up_device(&mut self) -> bool {
        self.decoder.give_up_device()
    }

    /// Goes on with another decoder of the same model, which computes all sequences anew.
    pub fn replace_decoder(&mut self, decoder: Decoder<'static>) {
        let Capabilities { same_bits_in_company, takes_back_drafts, computes_argmax, .. } = decoder.capabilities();
        self.may_draft = takes_back_drafts && same_bits_in_company;
        self.scheduler.config.prompt_lookup &= self.may_draft;
        self.draft_model = self.draft_model.take().filter(|_| self.may_draft);
        let computes_argmax = computes_argmax && self.scheduler.config.shadow_share == 0.0;
        let capacity = decoder.kv_cache().capacity();
        self.scheduler.config.context = self.scheduler.config.context.min(capacity);
        for (sequence, tokens) in self.scheduler.restart(decoder.kv_cache(), computes_argmax) {
            self.parked.remove(&sequence);
            let error = Error::TooLittleMemory {
                what: format!("keys and values of a sequence of {tokens} tokens"),
                needed: format!("room for {tokens} tokens"),
                found: format!("room for {capacity} tokens"),
                limit: "where the model runs now",
            };
            self.undelivered.push(StepOutput { sequence, output: Err(error) });
        }
        self.decoder = decoder;
        // It stores keys and values in another way.
        self.prefix_folder = None;
    }

    /// The oldest sample that waits for its comparison with the standard kernels.
    pub fn first_shadow_sample(&self) -> Option<&ShadowSample> {
        self.shadow_samples.first()
    }

    /// Drops the sample of [`Engine::first_shadow_sample`].
    pub fn forget_first_shadow_sample(&mut self) {
        self.shadow_samples.forget_first();
    }

    /// Whether any sequence is unfinished, or has outputs that no step has returned yet.
    pub fn has_unfinished(&self) -> bool {
        self.scheduler.running() + self.scheduler.waiting() + self.undelivered.len() > 0
    }

    /// Runs one step: schedules, computes and samples. A step that only computes parts of prompts returns no outputs, nor does
    /// one that only waits for constraints.
    ///
    /// An error removes all sequences, except after [`Error::ends_device`]: then they wait for [`Engine::replace_decoder`].
    pub fn step(&mut self) -> Result<Vec<StepOutput>> {
        let mut outputs = std::mem::take(&mut self.undelivered);
        let result = self.try_step(&mut outputs);
        match &result {
            Ok(()) => {}
            // What was chosen before the device was lost is part of the sequences, which go on.
            Err(error) if error.ends_device() => self.undelivered = std::mem::take(&mut outputs),
            // No sequence of a batch may stay half computed.
            Err(_) => self.clear(),
        }
        self.rest();
        self.tell_of_blocks();
        result.map(|()| outputs)
    }

    fn tell_of_blocks(&mut self) {
        if self.block_listener.is_none() && self.prefix_folder.is_none() {
            return;
        }
        let events = self.scheduler.take_block_events();
        self.keep_blocks(&events);
        if let Some(listener) = self.block_listener.as_mut().filter(|_| !events.is_empty()) {
            listener(events);
        }
    }

    /// Appends the outputs of a step.
    fn try_step(&mut self, outputs: &mut Vec<StepOutput>) -> Result<()> {
        self.steps += 1;
        let started = Instant::now();
        self.drafting = Duration::ZERO;
        self.resume_parked(started, outputs);
        let mut step = self.schedule(outputs)?;
        if step.sequences.is_empty() {
            if outputs.is_empty() && self.has_unfinished() {
                self.wait_for_parked(outputs)?;
            }
            self.last_step = StepStats::default();
            return Ok(());
        }
        self.ask_masks(&step);
        let computed = self.compute(&step)?;
        let Batch { logits_rows, argmax_rows, hidden_rows, .. } = &step.batch;
        let wanted = [logits_rows, argmax_rows, hidden_rows].map(Vec::len);
        let found = [computed.logits.rows(), computed.argmax.len(), computed.hidden.len()];
        if found != wanted {
            return Err(Error::Internal(format!(
                "{wanted:?} rows of logits, likeliest tokens and hidden states were wanted, {found:?} came"
            )));
        }
        let mut next_row = [0; 3];
        let until = Instant::now() + CONSTRAINT_PATIENCE;
        let tokens = step.tokens();
        let sequences = step.sequences.len();
        for scheduled in std::mem::take(&mut step.sequences) {
            let row = &mut next_row[scheduled.kind as usize];
            let first = *row;
            *row += scheduled.wanted.len();
            self.advance(scheduled, &computed, first, until, outputs);
        }
        self.take_snapshots()?;
        let took = started.elapsed();
        // What a draft model took is counted by itself.
        self.scheduler.step_costs.observe(tokens, took.saturating_sub(self.drafting));
        let is_token = |output: &&StepOutput| matches!(output.output, Ok(SequenceOutput::Token(_)));
        self.last_step = StepStats {
            sequences,
            prompt_tokens: tokens.prompt,
            written_tokens: outputs.iter().filter(is_token).count(),
            took,
        };
        Ok(())
    }

    /// The next step, with memory for it. A sequence for which there is none ends, with an error in `failed`; the others go on.
    ///
    /// Fails if the device of the decoder is lost.
    fn schedule(&mut self, failed: &mut Vec<StepOutput>) -> Result<ScheduledStep> {
        let mut restored = Vec::new();
        loop {
            let drafting = Instant::now();
            let mut step = self.scheduler.schedule(self.draft_model.as_mut());
            self.drafting += drafting.elapsed();
            restored.append(&mut step.restored);
            let refused = match self.decoder.reserve(&step.batch) {
                Ok(()) if step.sequences.is_empty() && self.parked.is_empty() => self.scheduler.starved(),
                Ok(()) => None,
                Err(error) if error.ends_device() => return Err(error),
                Err(error) => {
                    // Sequences wait for blocks that there is memory for, as they would in a smaller cache.
                    self.scheduler.limit_blocks(self.decoder.reserved_blocks());
                    step.largest().map(|sequence| (sequence, error))
                }
            };
            let Some((sequence, error)) = refused else {
                step.restored = restored;
                return Ok(step);
            };
            self.scheduler.remove(sequence);
            failed.push(StepOutput { sequence, output: Err(error) });
        }
    }

    /// Gives back what only a running step needs, if nothing is left to do.
    fn rest(&mut self) {
        if !self.has_unfinished() {
            self.scheduler.unlimit_blocks();
            self.decoder.release_scratch();
        }
    }

    /// Lets the constraints of a step's sequences compute their masks while the forward pass runs.
    fn ask_masks(&mut self, step: &ScheduledStep) {
        for scheduled in &step.sequences {
            let Some(sequence) = self.scheduler.sequence_mut(scheduled.sequence) else { continue };
            let samples = scheduled.wanted.iter().any(|position| position + 1 >= sequence.tokens.len());
            if let (true, Some(constraint)) = (samples, sequence.constraint()) {
                constraint.ask_masks(&scheduled.draft.tokens);
            }
        }
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
    /// sequence. If its constraint is not ready by `until`, the sequence sits out.
    fn advance(
        &mut self,
        scheduled: ScheduledSequence,
        computed: &Outputs,
        row: usize,
        until: Instant,
        outputs: &mut Vec<StepOutput>,
    ) {
        let kind = scheduled.kind;
        if kind == OutputKind::Hidden {
            return self.advance_embedding(&scheduled, &computed.hidden[row..], outputs);
        }
        let mut pending = PendingSample::new(scheduled);
        let next = |index| match kind {
            OutputKind::Argmax => NextToken::Argmax(computed.argmax[row + index]),
            OutputKind::Logits | OutputKind::Hidden => NextToken::Logits(computed.logits.row(row + index)),
        };
        match self.choose(&mut pending, &next, until, outputs) {
            Choice::Waits => {
                pending.keep(&computed.logits, row);
                self.park(pending);
            }
            choice => self.finish(&pending, choice, true),
        }
    }

    /// Lets a sequence sit out until its constraint is ready. All of its tokens are computed.
    fn park(&mut self, pending: PendingSample) {
        let id = pending.scheduled.sequence;
        let Some(sequence) = self.scheduler.sequence_mut(id) else { return };
        sequence.is_parked = true;
        let computed = sequence.tokens.len();
        self.scheduler.record_computed(id, computed);
        self.parked.insert(id, pending);
    }

    /// Goes on with the sequences that sit out, as far as their constraints are ready by `until`.
    fn resume_parked(&mut self, until: Instant, outputs: &mut Vec<StepOutput>) {
        for (id, mut pending) in std::mem::take(&mut self.parked) {
            let Some(sequence) = self.scheduler.sequence_mut(id) else { continue };
            // If it was preempted, nothing of it is computed any more.
            let is_computed = sequence.pending() == 0;
            let (rows, first) = (pending.take_kept(), pending.next);
            let choice = self.choose(&mut pending, &|index| NextToken::Logits(&rows[index - first]), until, outputs);
            if choice != Choice::Waits {
                self.finish(&pending, choice, is_computed);
                continue;
            }
            pending.put_back(rows);
            if is_computed && let Some(sequence) = self.scheduler.sequence_mut(id) {
                let computed = sequence.tokens.len();
                self.scheduler.record_computed(id, computed);
            }
            self.parked.insert(id, pending);
        }
    }

    /// Waits a little for the sequences that sit out, when there is nothing else to do.
    fn wait_for_parked(&mut self, outputs: &mut Vec<StepOutput>) -> Result<()> {
        if self.parked.is_empty() {
            return Err(Error::Internal("sequences are waiting, but none can run".into()));
        }
        self.resume_parked(Instant::now() + IDLE_PATIENCE, outputs);
        Ok(())
    }

    /// Records what a step has computed for a sequence, if it is still there, and removes the sequence if it has ended.
    fn finish(&mut self, pending: &PendingSample, choice: Choice, is_computed: bool) {
        let PendingSample { scheduled, generated, .. } = pending;
        let id = scheduled.sequence;
        if is_computed {
            // Keys and values of rejected draft tokens do not count as computed.
            let computed =
                if scheduled.is_decoding { scheduled.positions.start + generated } else { scheduled.positions.end };
            self.scheduler.record_computed(id, computed);
        }
        let Some(sequence) = self.scheduler.sequence_mut(id) else { return };
        sequence.is_parked = false;
        let drafted = scheduled.draft.tokens.len();
        if drafted > 0 {
            let accepted = generated.saturating_sub(1);
            match (&mut self.draft_model, scheduled.draft.is_of_model) {
                (Some(model), true) => model.record(id, drafted, accepted),
                _ => sequence.record_drafts(drafted, accepted),
            }
            self.draft_tokens += drafted;
            self.accepted_tokens += accepted;
        }
        if choice == Choice::Ended {
            self.scheduler.remove(id);
        }
    }

    fn advance_embedding(&mut self, scheduled: &ScheduledSequence, states: &[Vec<f32>], outputs: &mut Vec<StepOutput>) {
        let id = scheduled.sequence;
        let processed = self.process_hidden(scheduled, states);
        self.scheduler.record_computed(id, scheduled.positions.end);
        if let Some(output) = processed.transpose() {
            outputs.push(StepOutput { sequence: id, output });
            self.scheduler.remove(id);
        }
    }

    /// Pools the hidden states of a scheduled sequence, which are the first elements of `states`. Returns the embedding if
    /// that was the last token.
    fn process_hidden(&mut self, scheduled: &ScheduledSequence, states: &[Vec<f32>]) -> Result<Option<SequenceOutput>> {
        for (position, state) in scheduled.wanted.iter().zip(states) {
            self.check_finite(scheduled.sequence, state)?;
            let sequence = self.scheduler.sequence_that_ran(scheduled.sequence)?;
            sequence.pool(state);
            if position + 1 == sequence.tokens.len() {
                let prompt = sequence.prompt_info();
                return Ok(Some(SequenceOutput::Embedding(Embedding { values: sequence.embedding(), prompt })));
            }
        }
        Ok(None)
    }

    /// Chooses tokens by the logits of the positions from `pending.next` on, and appends outputs. An error ends the sequence.
    fn choose<'a>(
        &mut self,
        pending: &mut PendingSample,
        row: &dyn Fn(usize) -> NextToken<'a>,
        until: Instant,
        outputs: &mut Vec<StepOutput>,
    ) -> Choice {
        let id = pending.scheduled.sequence;
        let mut emit = |output| outputs.push(StepOutput { sequence: id, output });
        let chosen = self.choose_tokens(pending, row, until, &mut |token| emit(Ok(SequenceOutput::Token(token))));
        chosen.unwrap_or_else(|error| {
            emit(Err(error));
            Choice::Ended
        })
    }

    fn choose_tokens<'a>(
        &mut self,
        pending: &mut PendingSample,
        row: &dyn Fn(usize) -> NextToken<'a>,
        until: Instant,
        emit: &mut dyn FnMut(SampledToken),
    ) -> Result<Choice> {
        let (context, id) = (self.scheduler.config.context, pending.scheduled.sequence);
        while let Some(position) = pending.scheduled.wanted.get(pending.next).copied() {
            let index = pending.next;
            let next = row(index);
            match next {
                NextToken::Logits(logits) => self.check_finite(id, logits)?,
                NextToken::Argmax(Argmax { token, logit }) if !logit.is_finite() => {
                    self.not_finite += 1;
                    let (step, index) = (self.steps, token as usize);
                    return Err(Error::NotFinite { step, sequence: id, index, value: logit });
                }
                NextToken::Argmax(_) => {}
            }
            let sequence = self.scheduler.sequence_that_ran(id)?;
            if position + 1 < sequence.tokens.len() {
                if let NextToken::Logits(logits) = next {
                    sequence.record_prompt_logprobs(position, logits);
                }
                pending.next += 1;
                continue;
            }
            let chosen = match next {
                NextToken::Argmax(argmax) => Some(Chosen { id: argmax.token, logprobs: None, is_complete: false }),
                NextToken::Logits(logits) => pending.choose(sequence, logits, until)?,
            };
            let Some(chosen) = chosen else { return Ok(Choice::Waits) };
            let prompt = (sequence.tokens.len() == sequence.prompt_len).then(|| sequence.prompt_info());
            if let NextToken::Logits(logits) = next {
                self.shadow_samples.offer(&sequence.tokens, sequence.adapter, logits);
            }
            let Chosen { id: token, logprobs, is_complete } = chosen;
            let finished = sequence.append(token, is_complete, context);
            let is_end = finished == Some(FinishReason::Stop) && sequence.is_end(token);
            emit(SampledToken { id: token, logprobs, finished, is_end, prompt });
            (pending.next, pending.generated) = (index + 1, pending.generated + 1);
            if finished.is_some() {
                return Ok(Choice::Ended);
            }
            // The logits after a draft token are valid only if it was accepted.
            if pending.scheduled.draft.tokens.get(pending.generated - 1) != Some(&token) {
                return Ok(Choice::Over);
            }
        }
        Ok(Choice::Over)
    }

    fn check_finite(&mut self, sequence: SequenceId, values: &[f32]) -> Result<()> {
        let Some(index) = first_not_finite(values) else { return Ok(()) };
        self.not_finite += 1;
        Err(Error::NotFinite { step: self.steps, sequence, index, value: values[index] })
    }
}
