//! The public face: open a model, generate text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use braidinfer_kernels::{Isa, NumericLevel};
use braidinfer_model::quantization::FileType;
use braidinfer_model::{DecoderSpec, GenerationConfig, ModelSource, Weights, describe};

use crate::engine::{Engine, EngineConfig, FinishReason, SamplingParams, SequenceId};
use crate::executor::fused::{FusedExecutor, FusedOptions};
use crate::executor::standard::{ComputeDtype, LoadProgress, QuantizedWeights, StandardExecutor, StandardOptions};
use crate::executor::{
    Batch, DeviceChoice, Executor, Kernels, KvCacheConfig, KvDtype, NoProbe, SequenceSlice, threads,
};
use crate::quantize::quantize_weights;
use crate::text::{ChatMessage, ChatTemplate, StopMatcher, StreamDecoder, Tokenizer, TokenizerSettings};
use crate::{Error, Result};

/// Tokens per key/value block.
const BLOCK_SIZE: usize = 16;
/// Tokens per engine step; bounds the scores of a long prompt.
const MAX_BATCHED_TOKENS: usize = 512;

/// Longest context that may be asked for.
const MAX_CONTEXT: usize = 1 << 31;

/// Block ids are 32-bit; sequences that find no block wait for one.
const MAX_BLOCKS: usize = u32::MAX as usize;

/// How to open a model.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Which kernels compute.
    pub kernels: Kernels,
    /// With standard kernels the type of weights and of the residual stream; if `None`, f32 on a CPU, where quantized
    /// weights stay quantized, and the checkpoint's own type elsewhere. With fused kernels, which keep the weights as
    /// they are, the coarsest type that activations may be rounded to for a product; if `None`, 8 bits.
    pub dtype: Option<ComputeDtype>,
    /// Quantize the weights in memory.
    pub quantize: Option<FileType>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Longest sequence in tokens; what the model is meant for if `None`.
    pub context: Option<usize>,
    /// Most sequences in flight.
    pub max_sequences: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            kernels: Kernels::Auto,
            dtype: None,
            quantize: None,
            device: DeviceChoice::Cpu,
            context: None,
            max_sequences: 16,
        }
    }
}

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
    kernels: Kernels,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    generation: GenerationConfig,
    label: String,
    notes: Vec<String>,
}

impl Llm {
    /// Opens a model. `progress` is told how many layers are loaded.
    pub fn open(source: &ModelSource, options: &LoadOptions, progress: LoadProgress) -> Result<Self> {
        let (description, config) = describe(source)?;
        let spec = description.spec;
        // Small files first: a broken tokenizer should not wait for gigabytes of weights.
        let generation = GenerationConfig::read(source, &config)?;
        let settings = TokenizerSettings::read(source)?;
        let tokenizer = Tokenizer::read(source, &settings)?;
        let chat_template = ChatTemplate::read(source, &settings)?;
        if options.max_sequences == 0 {
            return Err(Error::bad_request("max_sequences", "at least 1", 0));
        }
        let mut weights = Weights::open(source, &spec, &description.names)?;
        let mut notes = weights.notes().to_vec();
        if let Some(file_type) = options.quantize {
            notes.extend(quantize_weights(&spec, &mut weights, file_type, progress)?);
        }
        notes.extend(tokenizer.iter().flat_map(Tokenizer::notes).cloned());
        let context = context(&spec, options.context, &mut notes)?;
        let loading = Loading { options, num_blocks: num_blocks(context, options.max_sequences), progress };
        let kernels = if options.kernels == Kernels::Fused { Kernels::Fused } else { Kernels::Standard };
        let executor = match kernels {
            Kernels::Fused => loading.fused(spec, &weights)?,
            Kernels::Auto | Kernels::Standard => loading.standard(spec, &weights)?,
        };
        let config =
            EngineConfig { context, max_batched_tokens: MAX_BATCHED_TOKENS, max_sequences: options.max_sequences };
        let engine = Engine::new(executor, config)?;
        Ok(Self { engine, kernels, tokenizer, chat_template, generation, label: source.label(), notes })
    }

    /// The decoder.
    pub fn spec(&self) -> &DecoderSpec {
        self.engine.executor().spec()
    }

    /// Which kernels compute.
    pub fn kernels(&self) -> Kernels {
        self.kernels
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

/// Blocks for `max_sequences` sequences of the longest length.
fn num_blocks(context: usize, max_sequences: usize) -> usize {
    context.div_ceil(BLOCK_SIZE).saturating_mul(max_sequences).min(MAX_BLOCKS)
}

/// What executors are loaded with.
struct Loading<'a> {
    options: &'a LoadOptions,
    num_blocks: usize,
    progress: LoadProgress<'a>,
}

impl Loading<'_> {
    fn kv_cache(&self, dtype: KvDtype) -> KvCacheConfig {
        KvCacheConfig { block_size: BLOCK_SIZE, num_blocks: self.num_blocks, dtype }
    }

    fn standard(&self, spec: DecoderSpec, weights: &Weights) -> Result<Box<dyn Executor>> {
        let options = self.options;
        let dtype = options.dtype.unwrap_or(match options.device {
            DeviceChoice::Cpu => ComputeDtype::F32,
            DeviceChoice::Cuda(_) | DeviceChoice::Metal => weights.dtype().into(),
        });
        let options = StandardOptions {
            dtype,
            // Whoever names a type wants the weights in it.
            quantized_weights: if options.dtype.is_none() { QuantizedWeights::Keep } else { QuantizedWeights::Expand },
            device: options.device,
            kv_cache: self.kv_cache(if dtype == ComputeDtype::F32 { KvDtype::F32 } else { KvDtype::F16 }),
        };
        Ok(Box::new(StandardExecutor::load(spec, weights, options, self.progress)?))
    }

    fn fused(&self, spec: DecoderSpec, weights: &Weights) -> Result<Box<dyn Executor>> {
        if self.options.device != DeviceChoice::Cpu {
            let device = self.options.device;
            return Err(Error::Unsupported(format!("fused kernels run on the CPU, not on {device}")));
        }
        let (coarsest, kv_dtype) = match self.options.dtype {
            None => (NumericLevel::Int8, KvDtype::F16),
            Some(ComputeDtype::F32) => (NumericLevel::F32, KvDtype::F32),
            Some(ComputeDtype::BF16) => (NumericLevel::Bf16, KvDtype::F16),
            Some(ComputeDtype::F16) => {
                let expected = "auto, f32 or bf16 with fused kernels, which have no products in f16";
                return Err(Error::bad_request("dtype", expected, "f16"));
            }
        };
        let isa = Isa::detect().map_err(|error| Error::Unsupported(error.to_string()))?;
        let options = FusedOptions { coarsest, kv_cache: self.kv_cache(kv_dtype), threads: threads(), isa };
        Ok(Box::new(FusedExecutor::load(spec, weights, options, self.progress)?))
    }
}

fn context(spec: &DecoderSpec, asked: Option<usize>, notes: &mut Vec<String>) -> Result<usize> {
    let meant = spec.context_length();
    let context = asked.unwrap_or(meant);
    if !(1..=MAX_CONTEXT).contains(&context) {
        return Err(Error::bad_request("context", format!("from 1 to {MAX_CONTEXT} tokens"), context));
    }
    if context > meant {
        notes.push(format!("a context of {context} tokens is beyond the {meant} this model is meant for"));
    }
    Ok(context)
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
