//! The engine: schedules sequences over an executor and samples their next tokens.
//!
//! It sees integers and logits only: blocks are ids, and the executor owns what they hold.

mod block_pool;
mod constraint;
mod draft;
mod logprobs;
mod pace;
mod parameters;
mod sampler;
mod sampling_params;
mod scheduler;
mod sequence;
mod tap;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use braidinfer_model::spec::RopeSpec;

pub use constraint::{Constraint, ConstraintFactory};
pub use logprobs::TokenLogprobs;
pub use parameters::{Kind, Parameter};
pub use sampler::argmax;
pub use sampling_params::{MOST_LOGPROBS, PARAMETERS, SamplingParams};
pub use sequence::FinishReason;
pub use tap::Tap;

use self::sampler::first_not_finite;
use self::scheduler::{Part, Scheduler};
use self::sequence::Sequence;
use self::tap::Taps;
use crate::executor::{ActiveKernels, Executor, Logits, NoProbe, Outputs};
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
    /// Guess what answers say next from what was said before.
    pub prompt_lookup: bool,
    /// Write nothing while prompts are read, instead of reading them in small pieces beside what is written.
    pub prompts_first: bool,
    /// Share of written tokens whose logits are kept for [`Engine::first_tap`], from 0 to 1.
    pub tapped: f64,
}

/// What becomes of the tokens of a prompt that is read for its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// What the last norm gives for the last token.
    Last,
    /// The mean of what it gives for all.
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
    /// Write nothing, and give a vector of length 1 instead.
    pub pooling: Option<Pooling>,
}

/// What one step did for one sequence.
#[derive(Debug)]
pub struct StepOutput {
    /// The sequence.
    pub sequence: SequenceId,
    /// What is new; after an error the sequence has ended.
    pub said: Result<Said>,
}

/// What a sequence gives.
#[derive(Debug)]
pub enum Said {
    /// Its next token.
    Token(SampledToken),
    /// What was asked for instead of an answer; nothing comes after it.
    Embedding(Embedding),
}

/// A prompt as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// `[hidden_size]`, of length 1.
    pub values: Vec<f32>,
    /// What there is to say of the prompt.
    pub prompt: ReadPrompt,
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
    /// Whether it stands for the end and is no part of the text.
    pub is_end: bool,
    /// With the first token only.
    pub prompt: Option<ReadPrompt>,
}

/// What there is to say of a prompt that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadPrompt {
    /// Its tokens.
    pub tokens: usize,
    /// Those of them whose keys and values were there already.
    pub cached: usize,
    /// How likely each token but the first was, if that was asked for.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// How long it waited for its first step.
    pub queued: Duration,
}

/// What an engine is doing, and what it did so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineStats {
    /// Sequences that take part in steps.
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
    /// Tokens that were guessed.
    pub guesses: usize,
    /// Those of them that were right.
    pub right_guesses: usize,
    /// Sequences that ended because logits were not finite.
    pub not_finite: usize,
    /// The last step.
    pub last_step: StepStats,
}

/// One step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Sequences that took part.
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
    executor: Box<dyn Executor>,
    /// Whether guessing changes no answer here.
    may_guess: bool,
    scheduler: Scheduler,
    next_id: SequenceId,
    steps: usize,
    guesses: usize,
    right_guesses: usize,
    not_finite: usize,
    last_step: StepStats,
    taps: Taps,
}

impl Engine {
    /// An engine over `executor`, whose storage must hold at least one sequence of the longest length.
    ///
    /// Where RoPE depends on the length of a sequence, nothing is shared: what is stored for a prefix is rotated for the
    /// length of the sequence that it was computed in. Nor is anything guessed there, or on kernels that do not owe the
    /// same bits in company.
    pub fn new(executor: Box<dyn Executor>, config: EngineConfig) -> Result<Self> {
        let kv_cache = executor.kv_cache();
        if kv_cache.capacity() < config.context {
            let expected = format!("at most the {} tokens of the key/value storage", kv_cache.capacity());
            return Err(Error::bad_request("context", expected, config.context));
        }
        let by_length = executor.spec().rope.iter().any(RopeSpec::depends_on_length);
        // Other kernels may round a row otherwise beside other rows, and then a guess could change what is chosen.
        let may_guess = !by_length && executor.report().kernels == ActiveKernels::Fused;
        let config = EngineConfig {
            prefix_cache: config.prefix_cache && !by_length,
            prompt_lookup: config.prompt_lookup && may_guess,
            ..config
        };
        Ok(Self {
            scheduler: Scheduler::new(kv_cache, executor.spec().vocab_size, config),
            executor,
            may_guess,
            next_id: 0,
            steps: 0,
            guesses: 0,
            right_guesses: 0,
            not_finite: 0,
            last_step: StepStats::default(),
            taps: Taps::new(config.tapped),
        })
    }

    /// The executor.
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The executor, to run batches directly. What it stored is forgotten.
    ///
    /// Fails while any sequence is unfinished: such batches write where its keys and values are.
    pub fn executor_mut(&mut self) -> Result<&mut dyn Executor> {
        if self.has_unfinished() {
            let unfinished = self.scheduler.running() + self.scheduler.waiting();
            let expected = "no unfinished request, whose keys and values it could overwrite";
            return Err(Error::bad_request("direct_batch", expected, unfinished));
        }
        self.scheduler.forget_stored();
        Ok(&mut *self.executor)
    }

    /// Has the executor read its weights once and compute nothing. `false` where that cannot be timed.
    pub fn read_weights(&mut self) -> bool {
        self.executor.read_weights()
    }

    /// Whether to guess from now on; where guesses could change an answer, none are made.
    pub fn set_prompt_lookup(&mut self, wanted: bool) {
        self.scheduler.config.prompt_lookup = wanted && self.may_guess;
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
            guesses: self.guesses,
            right_guesses: self.right_guesses,
            not_finite: self.not_finite,
            last_step: self.last_step,
        }
    }

    /// Whether a prompt can be run at all.
    pub fn check(&self, prompt: &[u32], params: &SamplingParams) -> Result<()> {
        params.validate()?;
        let vocab = self.executor.spec().vocab_size;
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
    pub fn first_tap(&self) -> Option<&Tap> {
        self.taps.first()
    }

    /// Forgets it.
    pub fn forget_first_tap(&mut self) {
        self.taps.forget_first();
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
        let plan = self.scheduler.schedule();
        if plan.parts.is_empty() && self.has_unfinished() {
            self.scheduler.clear();
            return Err(Error::Internal("sequences are waiting, but none can run".into()));
        }
        let computed = match self.executor.forward(&plan.batch, &mut NoProbe) {
            Ok(computed) => computed,
            Err(error) => {
                // No sequence of the batch may stay half computed.
                self.scheduler.clear();
                return Err(error);
            }
        };
        let wanted = (plan.batch.logits_rows.len(), plan.batch.hidden_rows.len());
        let found = (computed.logits.rows(), computed.hidden.len());
        if found != wanted {
            self.scheduler.clear();
            return Err(Error::Internal(format!(
                "{wanted:?} rows of logits and hidden states were wanted, {found:?} came"
            )));
        }
        let (mut outputs, mut logits_row, mut hidden_row) = (Vec::new(), 0, 0);
        for part in &plan.parts {
            let row = if part.is_embedding { &mut hidden_row } else { &mut logits_row };
            self.advance(part, &computed, *row, &mut outputs);
            *row += part.wanted.len();
        }
        let took = started.elapsed();
        self.scheduler.pace.observe(plan.prompt_tokens(), plan.has_answers(), plan.guesses(), took);
        self.last_step = StepStats {
            sequences: plan.parts.len(),
            prompt_tokens: plan.prompt_tokens(),
            written_tokens: outputs.iter().filter(|output| matches!(output.said, Ok(Said::Token(_)))).count(),
            took,
        };
        Ok(outputs)
    }

    /// Gives a sequence what was computed for it, from `row` on, and adds what it says to that. What is wrong with it ends
    /// that sequence and no other.
    fn advance(&mut self, part: &Part, computed: &Outputs, row: usize, outputs: &mut Vec<StepOutput>) {
        let id = part.sequence;
        let before = outputs.len();
        let mut ended = false;
        let mut say = |said: Result<Said>| {
            ended |= !matches!(&said, Ok(Said::Token(SampledToken { finished: None, .. })));
            outputs.push(StepOutput { sequence: id, said });
        };
        let read = match part.is_embedding {
            true => self.read_hidden(part, &computed.hidden[row..], &mut |said| say(Ok(said))),
            false => self.read_logits(part, &computed.logits, row, &mut |said| say(Ok(said))),
        };
        if let Err(error) = read {
            say(Err(error));
        }
        let written = outputs.len() - before;
        // Of what was guessed only that is stored which was right.
        let stored = if part.is_writing { part.positions.start + written } else { part.positions.end };
        self.scheduler.computed(id, stored);
        if let (Some(sequence), false) = (self.scheduler.sequence_mut(id), part.draft.is_empty()) {
            let right = written.saturating_sub(1);
            sequence.judge(part.draft.len(), right);
            self.guesses += part.draft.len();
            self.right_guesses += right;
        }
        if ended {
            self.scheduler.remove(id);
        }
    }

    /// Adds the hidden states of a part to what its sequence pools; `states` begin with the first of them.
    fn read_hidden(&mut self, part: &Part, states: &[Vec<f32>], say: &mut dyn FnMut(Said)) -> Result<()> {
        for (position, state) in part.wanted.iter().zip(states) {
            self.check_finite(part.sequence, state)?;
            let sequence = self.scheduler.sequence_that_ran(part.sequence)?;
            sequence.pool(state);
            if position + 1 == sequence.tokens.len() {
                let prompt = sequence.read_prompt();
                say(Said::Embedding(Embedding { values: sequence.embedding(), prompt }));
            }
        }
        Ok(())
    }

    fn read_logits(&mut self, part: &Part, logits: &Logits, row: usize, say: &mut dyn FnMut(Said)) -> Result<()> {
        let context = self.scheduler.config.context;
        for (index, position) in part.wanted.iter().enumerate() {
            let logits = logits.row(row + index);
            self.check_finite(part.sequence, logits)?;
            let sequence = self.scheduler.sequence_that_ran(part.sequence)?;
            sequence.read_prompt_logits(*position, logits);
            if position + 1 < sequence.tokens.len() {
                continue;
            }
            let prompt = (sequence.tokens.len() == sequence.prompt_len).then(|| sequence.read_prompt());
            self.taps.offer(&sequence.tokens, logits);
            let (token, logprobs) = sequence.sample(logits)?;
            let finished = sequence.append(token, context);
            let is_end = finished == Some(FinishReason::Stop) && sequence.is_end(token);
            say(Said::Token(SampledToken { id: token, logprobs, finished, is_end, prompt }));
            // The logits after a guess mean something only if it was right.
            if finished.is_some() || part.draft.get(index) != Some(&token) {
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
