//! The public face: open a model, generate text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use braidinfer_model::{DecoderSpec, GenerationConfig, ModelSource};

use crate::compat::CompatReport;
use crate::engine::{Engine, EngineConfig, FinishReason, SamplingParams, SequenceId};
use crate::executor::standard::LoadProgress;
use crate::executor::{ActiveKernels, Batch, Executor, NoProbe, SequenceSlice};
use crate::loading::{BLOCK_SIZE, LoadOptions, Loaded, ModelParts};
use crate::text::{ChatMessage, ChatTemplate, StopMatcher, StreamDecoder, Tokenizer};
use crate::{Error, Result};

/// Tokens per engine step; bounds the scores of a long prompt.
const MAX_BATCHED_TOKENS: usize = 512;

/// What to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, tokenized with the model's own first token.
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<u32>),
    /// A chat, rendered with the model's template.
    Chat(Vec<ChatMessage>),
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Ids of the prompt.
    pub prompt_ids: Vec<u32>,
    /// Ids of the answer, a token that ended it included.
    pub ids: Vec<u32>,
    /// Text of the answer, without special tokens and without the stop text; empty if the model has no tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// How long a call took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the call to the first token of every prompt.
    pub prefill: Duration,
    /// Prompt tokens.
    pub prefill_tokens: usize,
    /// From then to the end.
    pub decode: Duration,
    /// Tokens generated in that time.
    pub decode_tokens: usize,
}

/// A new token of one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEvent<'a> {
    /// Which prompt.
    pub prompt: usize,
    /// The token.
    pub token: u32,
    /// The text that is now certain; often empty, sometimes of several tokens.
    pub text: &'a str,
}

/// A model ready to run.
pub struct Llm {
    engine: Engine,
    compat: Option<CompatReport>,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    generation: GenerationConfig,
    label: String,
    notes: Vec<String>,
}

impl Llm {
    /// Opens a model. `progress` is told how many layers are loaded.
    pub fn open(source: &ModelSource, options: &LoadOptions, progress: LoadProgress) -> Result<Self> {
        let mut parts = ModelParts::open(source, options, progress)?;
        let loaded = parts.load(options, progress)?;
        Self::assemble(parts, loaded, options)
    }

    /// What was read and what computes, together.
    pub(crate) fn assemble(parts: ModelParts, loaded: Loaded, options: &LoadOptions) -> Result<Self> {
        let Loaded { executor, compat } = loaded;
        let config = EngineConfig {
            context: parts.context,
            max_batched_tokens: MAX_BATCHED_TOKENS,
            max_sequences: options.max_sequences,
        };
        let engine = Engine::new(executor, config)?;
        let ModelParts { tokenizer, chat_template, generation, label, notes, .. } = parts;
        Ok(Self { engine, compat, tokenizer, chat_template, generation, label, notes })
    }

    /// The decoder.
    pub fn spec(&self) -> &DecoderSpec {
        self.engine.executor().spec()
    }

    /// Which kernels compute.
    pub fn kernels(&self) -> ActiveKernels {
        self.executor().report().kernels
    }

    /// The verdict that the kernels were chosen by, where there is one.
    pub fn compat(&self) -> Option<&CompatReport> {
        self.compat.as_ref()
    }

    /// The executor.
    pub fn executor(&self) -> &dyn Executor {
        self.engine.executor()
    }

    /// The executor, to run batches of one's own while nothing is generated.
    pub fn executor_mut(&mut self) -> &mut dyn Executor {
        self.engine.executor_mut()
    }

    /// The tokenizer, if the model has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The model's own generation settings.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Longest sequence in tokens.
    pub fn context(&self) -> usize {
        self.engine.config().context
    }

    /// Most tokens of one step; longer prompts are fed in chunks.
    pub fn max_batched_tokens(&self) -> usize {
        self.engine.config().max_batched_tokens
    }

    /// What was ignored or decided while loading, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Sampling as the model's authors set it; greedy unless they ask for sampling, as in `transformers`.
    pub fn default_sampling(&self) -> SamplingParams {
        let (defaults, own) = (SamplingParams::default(), &self.generation);
        SamplingParams {
            temperature: if own.do_sample { own.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: own.top_k,
            top_p: own.top_p.unwrap_or(defaults.top_p),
            min_p: own.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: own.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            max_tokens: own.max_new_tokens,
            ..defaults
        }
    }

    /// Token ids of a prompt.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            Prompt::Text(text) => {
                let mut ids = self.require_tokenizer()?.encode_prompt(text)?;
                // From nothing a model begins with its first token, as in transformers.
                if ids.is_empty() {
                    ids.extend(self.generation.bos_token_id);
                }
                Ok(ids)
            }
            Prompt::Chat(messages) => {
                let missing = || Error::Unsupported(format!("{}: the model has no chat template", self.label));
                let rendered = self.chat_template.as_ref().ok_or_else(missing)?.render(messages, true)?;
                self.require_tokenizer()?.encode_chat(&rendered)
            }
        }
    }

    /// Completes several prompts at once.
    pub fn generate(&mut self, prompts: &[Prompt], params: &SamplingParams) -> Result<Vec<Completion>> {
        self.stream(prompts, params, &mut |_| ControlFlow::Continue(())).map(|(completions, _)| completions)
    }

    /// Completes several prompts at once, handing over each token as it comes. Breaking from `on_event` ends
    /// every answer that is still running.
    ///
    /// With one seed for several prompts, each prompt draws from its own generator with that seed.
    pub fn stream(
        &mut self,
        prompts: &[Prompt],
        params: &SamplingParams,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<(Vec<Completion>, Timings)> {
        params.validate()?;
        if !params.stop.is_empty() {
            self.require_tokenizer()?;
        }
        let prompts = prompts.iter().map(|prompt| self.encode(prompt)).collect::<Result<Vec<_>>>()?;
        let mut generation = Generation { answers: Vec::new(), timings: Timings::default(), started: Instant::now() };
        for ids in prompts {
            match self.engine.add(ids.clone(), params.clone(), self.generation.eos_token_id.clone()) {
                Ok(sequence) => generation.answers.push(Answer::new(sequence, ids, params)),
                Err(error) => {
                    generation.answers.iter().for_each(|answer| self.engine.abort(answer.sequence));
                    return Err(error);
                }
            }
        }
        generation.run(&mut self.engine, self.tokenizer.as_ref(), on_event)
    }

    /// Logits of the last token of `ids`, or of every one: one row each.
    pub fn logits(&mut self, ids: &[u32], all: bool) -> Result<Vec<Vec<f32>>> {
        let context = self.context();
        if ids.len() > context {
            return Err(Error::PromptTooLong { prompt: ids.len(), context });
        }
        if ids.is_empty() {
            return Err(Error::bad_request("ids", "at least one token", "none"));
        }
        let block_table: Vec<u32> = (0..ids.len().div_ceil(BLOCK_SIZE) as u32).collect();
        let mut rows = Vec::new();
        for start in (0..ids.len()).step_by(MAX_BATCHED_TOKENS) {
            let chunk = &ids[start..ids.len().min(start + MAX_BATCHED_TOKENS)];
            let last = start + chunk.len() == ids.len();
            let slice = SequenceSlice {
                query_len: chunk.len(),
                context_len: start,
                rope_len: ids.len(),
                block_table: block_table.clone(),
            };
            let mut batch = Batch::default();
            batch.push(chunk, slice, if all { chunk.len() } else { usize::from(last) });
            let logits = self.engine.executor_mut().forward(&batch, &mut NoProbe)?;
            rows.extend((0..logits.rows()).map(|row| logits.row(row).to_vec()));
        }
        Ok(rows)
    }

    fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::Unsupported(format!(
                "{}: the model has no tokenizer (expected `tokenizer.json` or `tokenizer.model`); give token ids instead of text",
                self.label
            ))
        })
    }
}

/// One call of [`Llm::stream`].
struct Generation {
    answers: Vec<Answer>,
    timings: Timings,
    started: Instant,
}

/// An answer in the making.
struct Answer {
    sequence: SequenceId,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    text: String,
    decoder: StreamDecoder,
    stop: StopMatcher,
    finish_reason: Option<FinishReason>,
}

impl Answer {
    fn new(sequence: SequenceId, prompt_ids: Vec<u32>, params: &SamplingParams) -> Self {
        Self {
            sequence,
            decoder: StreamDecoder::after(&prompt_ids),
            prompt_ids,
            ids: Vec::new(),
            text: String::new(),
            stop: StopMatcher::new(params.stop.clone()),
            finish_reason: None,
        }
    }

    /// Takes a token and returns the text to show. With the last token comes all that was held back.
    fn push(&mut self, token: u32, finished: Option<FinishReason>, tokenizer: Option<&Tokenizer>) -> Result<String> {
        self.ids.push(token);
        self.finish_reason = finished;
        let Some(tokenizer) = tokenizer else { return Ok(String::new()) };
        let mut shown = String::new();
        // The token that ends a text is not part of it, even where the tokenizer calls it an ordinary one.
        if finished != Some(FinishReason::Stop) {
            let decoded = self.decoder.push(token, tokenizer)?;
            shown = self.stop.push(&decoded);
        }
        if finished.is_some() {
            shown += &self.flush(tokenizer)?;
        }
        if self.stop.stopped() {
            self.finish_reason = Some(FinishReason::Stop);
        }
        self.text += &shown;
        Ok(shown)
    }

    fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let rest = self.decoder.finish(tokenizer)?;
        let mut shown = self.stop.push(&rest);
        shown += &self.stop.finish();
        Ok(shown)
    }

    /// Ends an answer that someone cancelled; what was held back still belongs to it.
    fn cancel(&mut self, tokenizer: Option<&Tokenizer>) -> Result<()> {
        self.finish_reason = Some(FinishReason::Cancelled);
        if let Some(tokenizer) = tokenizer {
            let rest = self.flush(tokenizer)?;
            self.text += &rest;
        }
        Ok(())
    }
}

impl Generation {
    fn run(
        mut self,
        engine: &mut Engine,
        tokenizer: Option<&Tokenizer>,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<(Vec<Completion>, Timings)> {
        let result = self.run_steps(engine, tokenizer, on_event);
        // Also after an error nothing may stay behind in the engine.
        self.answers.iter().for_each(|answer| engine.abort(answer.sequence));
        result?;
        let total = self.started.elapsed();
        self.timings.prefill_tokens = self.answers.iter().map(|answer| answer.prompt_ids.len()).sum();
        self.timings.decode = total.saturating_sub(self.timings.prefill);
        let completions = self.answers.into_iter().map(|answer| Completion {
            prompt_ids: answer.prompt_ids,
            ids: answer.ids,
            text: answer.text,
            finish_reason: answer.finish_reason.unwrap_or(FinishReason::Cancelled),
        });
        Ok((completions.collect(), self.timings))
    }

    fn run_steps(
        &mut self,
        engine: &mut Engine,
        tokenizer: Option<&Tokenizer>,
        on_event: &mut dyn FnMut(StreamEvent) -> ControlFlow<()>,
    ) -> Result<()> {
        while engine.has_unfinished() {
            let reading_prompts = self.answers.iter().any(|answer| answer.ids.is_empty());
            let outputs = engine.step()?;
            if reading_prompts {
                self.timings.prefill = self.started.elapsed();
            } else {
                self.timings.decode_tokens += outputs.len();
            }
            for output in outputs {
                let Some(prompt) = self.answers.iter().position(|answer| answer.sequence == output.sequence) else {
                    continue;
                };
                let (answer, token) = (&mut self.answers[prompt], output.token?);
                let text = answer.push(token, output.finished, tokenizer)?;
                if answer.stop.stopped() {
                    engine.abort(answer.sequence);
                }
                if on_event(StreamEvent { prompt, token, text: &text }).is_break() {
                    return self.cancel_running(tokenizer);
                }
            }
        }
        Ok(())
    }

    fn cancel_running(&mut self, tokenizer: Option<&Tokenizer>) -> Result<()> {
        let running = self.answers.iter_mut().filter(|answer| answer.finish_reason.is_none());
        running.into_iter().try_for_each(|answer| answer.cancel(tokenizer))
    }
}
