//! The main public API: open a model, generate text.

mod answer_text;
mod generate;
mod model_text;
mod outline;
mod shadow;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use braidinfer_model::{DecoderSpec, GenerationConfig, ModelSource, Weights};

use crate::compat::CompatReport;
use crate::conversation::{AnswerFormat, SplitText};
use crate::engine::{
    BlockListener, Caller, ClientId, ConstraintFactory, Embedding, Engine, EngineConfig, EngineStats, FinishReason,
    Pooling, PromptInfo, Request, SamplingParams, SequenceId, SequenceOutput, StepOutput, TokenLogprobs, block_hash,
};
use crate::executor::standard::LoadProgress;
use crate::executor::{ActiveKernels, Decoder, DeviceChoice, ReadPattern};
use crate::loading::{DraftOptions, LoadOptions, Loaded, LoadedAdapter, LoadedDraft, ModelParts, Target, load_draft};
use crate::saved_prefixes::{PrefixFolder, PrefixKey, PromptFile, SavedPrefixes, write_file};
use crate::text::{ChatMessage, ChatTemplate, Tokenizer};
use crate::threads::Threads;
use crate::{Error, Result};

pub use self::generate::{Completion, StreamEvent, Timings};
pub(crate) use self::model_text::FoundTemplate;
pub use self::model_text::{ConversationPrompt, ModelText};
pub use self::outline::Outline;
pub use self::shadow::ShadowCheck;

use self::answer_text::AnswerText;
use self::shadow::ShadowChecker;

/// Most tokens per engine step; limits the memory for the attention scores of a long prompt.
const MAX_BATCHED_TOKENS: usize = 512;

/// Mean divergence up to which a model is compatible, in nats.
const LEAST_BOUND: f64 = 1e-2;

/// A prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, tokenized with the special tokens that the tokenizer adds, such as BOS.
    Text(String),
    /// Token ids, used unchanged.
    Ids(Vec<u32>),
    /// A chat, rendered with the model's chat template.
    Chat(Vec<ChatMessage>),
}

/// Identifies a request; ids are not reused.
pub type RequestId = usize;

/// The output of one step for one answer.
#[derive(Debug)]
pub struct Event {
    /// The request.
    pub request: RequestId,
    /// Index of the answer among those to the request, counted from 0.
    pub choice: usize,
    /// The new output; an error ends the answer.
    pub output: Result<Output>,
}

/// An output of a request.
#[derive(Debug)]
pub enum Output {
    /// The next token of an answer.
    Token(Token),
    /// The embedding for [`Llm::add_embedding`]; always the last output of its request.
    Embedding(Embedding),
}

/// A new token of an answer.
#[derive(Debug)]
pub struct Token {
    /// The token id.
    pub id: u32,
    /// The text that is now certain; often empty, sometimes the text of several tokens.
    pub text: String,
    /// The same of the reasoning before the answer, if the request says how to tell it.
    pub reasoning: String,
    /// Whether the token is part of the reasoning, its closing mark included.
    pub is_reasoning: bool,
    /// Its log-probability, if requested.
    pub logprobs: Option<TokenLogprobs>,
    /// Why the answer ended, if this is its last token.
    pub finished: Option<FinishReason>,
    /// The stop text that ended the answer, if one did.
    pub stop: Option<String>,
    /// Information about the prompt, with the first token only.
    pub prompt: Option<PromptInfo>,
}

/// Answers to generate.
#[derive(Debug, Clone, Default)]
pub struct GenerateRequest {
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// What the answers must satisfy.
    pub constraint: Option<ConstraintFactory>,
    /// How tokens become text.
    pub format: AnswerFormat,
    /// Index of the adapter to compute with, in [`Llm::adapters`]; `None` for the model alone.
    pub adapter: Option<u32>,
}

/// What the weights of a model are, as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsInfo {
    /// Number of values, each shared one once.
    pub parameters: usize,
    /// Size of the tensors in bytes.
    pub bytes: usize,
    /// The data type that has most of these bytes, by its name.
    pub dtype: &'static str,
}

impl WeightsInfo {
    fn of(weights: &Weights) -> Self {
        let largest = weights.sizes().into_iter().max_by_key(|(_, bytes)| *bytes);
        let dtype = largest.map_or(weights.dtype(), |(dtype, _)| dtype).name();
        Self { parameters: weights.parameter_count(), bytes: weights.size(), dtype }
    }
}

/// A model ready to run.
pub struct Llm {
    engine: Engine,
    /// Text of the unfinished answers.
    answers: BTreeMap<SequenceId, AnswerText>,
    next_request: RequestId,
    /// Checks sampled steps, if enabled.
    shadow: Option<ShadowChecker>,
    compat: Option<CompatReport>,
    adapters: Vec<LoadedAdapter>,
    text: Arc<ModelText>,
    notes: Vec<String>,
    threads: Threads,
    weights: WeightsInfo,
    memory: usize,
    /// What saved prompts are about, if they are to be saved.
    prefix_key: Option<PrefixKey>,
    /// What computes.
    device: String,
    /// Loads the model for the CPU, if it runs on a GPU.
    on_cpu: Option<OnCpu>,
    /// What happened that people should know, and were not told yet.
    notices: Vec<String>,
}

/// What computes a model that was loaded for `choice`.
fn device_of(decoder: &Decoder<'_>, choice: &DeviceChoice) -> String {
    let report = decoder.report();
    match report.device {
        Some(_) => report.isa,
        None if choice.is_of_candle() => choice.to_string(),
        None => "cpu".to_owned(),
    }
}

/// Lets an engine keep prefixes in a folder. Returns what the user should know, if they are not kept.
fn keep_prefixes(engine: &mut Engine, folder: &Path, key: PrefixKey, most_bytes: u64) -> Option<String> {
    let Some(shape) = engine.saved_shape() else {
        return Some("prefixes are not kept on the disk: not with this model, device or kernels".into());
    };
    match PrefixFolder::open(folder, key, shape, most_bytes) {
        Ok(folder) => {
            engine.keep_prefixes(folder);
            None
        }
        Err(error) => Some(format!("prefixes are not kept on the disk: {}: {error}", folder.display())),
    }
}

/// Loads a model for the CPU, with notes about it.
type OnCpu = Box<dyn FnOnce() -> Result<(Loaded, Vec<String>)> + Send>;

impl Llm {
    /// Opens a model. `progress` is called with the number of layers loaded so far.
    pub fn open(source: &ModelSource, options: &LoadOptions, progress: LoadProgress) -> Result<Self> {
        let mut parts = ModelParts::open(source, options, progress)?;
        let loaded = parts.load(options, progress)?;
        let on_gpu = parts.is_on_gpu();
        let mut llm = Self::assemble(parts, loaded, options)?;
        if let Some(draft) = &options.draft {
            llm.draft_with(draft, options, progress)?;
        }
        if on_gpu {
            let (source, options) = (source.clone(), options.clone().on_cpu());
            llm.on_cpu = Some(Box::new(move || {
                let mut parts = ModelParts::open(&source, &options, &|_, _| {})?;
                let loaded = parts.load(&options, &|_, _| {})?;
                Ok((loaded, parts.notes))
            }));
        }
        Ok(llm)
    }

    /// Lets another model draft.
    fn draft_with(&mut self, draft: &DraftOptions, options: &LoadOptions, progress: LoadProgress) -> Result<()> {
        let target = Target {
            label: &self.text.label,
            tokenizer: self.text.tokenizer(),
            vocab_size: self.spec().vocab_size,
            memory: self.memory,
        };
        let LoadedDraft { model, label, memory } = load_draft(draft, target, options, progress)?;
        if self.engine.set_draft_model(model) {
            self.memory = self.memory.saturating_add(memory);
            self.notes.push(format!("{label} drafts tokens where that is measured to be faster; it changes no answer"));
        } else {
            self.notes.push(format!("{label} does not draft: with these kernels, drafts could change answers"));
        }
        Ok(())
    }

    /// Builds the engine and the model's text from the opened files and the loaded decoder.
    pub(crate) fn assemble(mut parts: ModelParts, loaded: Loaded, options: &LoadOptions) -> Result<Self> {
        let Loaded { decoder, compat, adapters } = loaded;
        // With the standard kernels there is nothing to compare.
        let is_checked = options.shadow_check > 0.0 && decoder.report().kernels != ActiveKernels::Standard;
        let config = EngineConfig {
            context: parts.context,
            max_batched_tokens: MAX_BATCHED_TOKENS,
            max_sequences: options.max_sequences,
            max_waiting: options.max_waiting,
            max_waiting_per_client: options.max_waiting_per_client,
            prefix_cache: options.prefix_cache,
            prompt_lookup: options.prompt_lookup,
            prompts_first: options.prompts_first,
            shadow_share: if is_checked { options.shadow_check } else { 0.0 },
        };
        let device = device_of(&decoder, &options.device);
        let memory = parts.taken(options, &decoder);
        let saved = options.saved_prefixes.as_ref();
        let prefix_key = saved.map(|_| parts.prefix_key(options, &decoder)).transpose()?;
        let matrices = decoder.adapters().to_vec();
        let mut engine = Engine::new(decoder, config)?;
        if let (Some(SavedPrefixes::Folder { folder, most_bytes }), Some(key)) = (saved, prefix_key) {
            parts.notes.extend(keep_prefixes(&mut engine, folder, key, *most_bytes));
        }
        let text = Arc::new(ModelText::take_from(&mut parts, options));
        let ModelParts { spec, weights, notes, threads, .. } = parts;
        let weights_info = WeightsInfo::of(&weights);
        let shadow = is_checked.then(|| ShadowChecker::new(spec, weights, matrices, threads.clone()));
        Ok(Self {
            engine,
            answers: BTreeMap::new(),
            next_request: 0,
            shadow,
            compat,
            adapters,
            text,
            notes,
            threads,
            weights: weights_info,
            memory,
            prefix_key,
            device,
            on_cpu: None,
            notices: Vec::new(),
        })
    }

    /// What its weights are, as they are stored.
    pub fn weights(&self) -> &WeightsInfo {
        &self.weights
    }

    /// Most memory of this machine in bytes that it takes: weights, keys and values of all blocks, of which few may be in use,
    /// states, and the activations of a step. An upper estimate.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Takes keys and values of the beginning of a prompt from a file that [`Llm::save_prompt`] wrote. Returns of how many tokens; zero
    /// if there is no file. The model must have been opened with [`LoadOptions::saved_prefixes`].
    ///
    /// Fails if the file is another one's, or damaged, and if prompts of this model cannot be saved.
    pub fn restore_prompt(&mut self, path: &Path, prompt: &[u32], adapter: Option<u32>) -> Result<usize> {
        let (key, shape) = (self.require_prefix_key(adapter)?, self.engine.require_saved_shape()?);
        let Some(mut file) = PromptFile::open(path, key, shape)? else { return Ok(0) };
        let (mut restored, mut before) = (0, self.engine.seed(adapter)?);
        // The last token is always computed.
        let mut whole = prompt[..prompt.len().saturating_sub(1)].chunks_exact(shape.tokens);
        while let (Some(tokens), true) = (whole.next(), file.left() > 0) {
            let Some(block) = file.next()? else { break };
            if block.tokens != tokens || !self.engine.restore_block(before.as_ref(), &block, adapter)? {
                break;
            }
            before = Some(block_hash(before.as_ref(), tokens));
            restored += tokens.len();
        }
        Ok(restored)
    }

    /// Number of tokens that are saved in a file that [`Llm::save_prompt`] wrote; zero if there is no file. Fails like
    /// [`Llm::restore_prompt`].
    pub fn saved_prompt(&self, path: &Path, adapter: Option<u32>) -> Result<usize> {
        let (key, shape) = (self.require_prefix_key(adapter)?, self.engine.require_saved_shape()?);
        let file = PromptFile::open(path, key, shape)?;
        Ok(file.map_or(0, |file| usize::try_from(file.left()).unwrap_or(usize::MAX).saturating_mul(shape.tokens)))
    }

    /// Writes keys and values of the longest beginning of these tokens that is in the prefix cache to a file, in place of an older one.
    /// Returns of how many tokens. The model must have been opened with [`LoadOptions::saved_prefixes`].
    ///
    /// Fails if the file cannot be written, if what is there is something else than a saved prompt, and if prompts of this model cannot
    /// be saved.
    pub fn save_prompt(&self, path: &Path, tokens: &[u32], adapter: Option<u32>) -> Result<usize> {
        let (key, shape) = (self.require_prefix_key(adapter)?, self.engine.require_saved_shape()?);
        PromptFile::open(path, key, shape)?;
        let blocks = self.engine.saved_prefix(self.engine.seed(adapter)?, tokens);
        write_file(path, key, shape, &blocks)?;
        Ok(blocks.len() * shape.tokens)
    }

    /// What a saved prompt with an adapter, or with none, is about.
    fn require_prefix_key(&self, adapter: Option<u32>) -> Result<PrefixKey> {
        let key = self.prefix_key.ok_or_else(|| {
            let expected = "a model that was opened with `saved_prefixes`";
            Error::bad_request("prompt_cache", expected, "one that was not")
        })?;
        Ok(self.engine.seed(adapter)?.map_or(key, |seed| key.with(&seed)))
    }

    /// What the model is.
    pub fn outline(&self) -> Outline {
        Outline::of(self.spec(), self.weights.clone(), Arc::clone(&self.text))
    }

    /// The specification of the decoder.
    pub fn spec(&self) -> &DecoderSpec {
        self.engine.decoder().spec()
    }

    /// The kernels in use.
    pub fn kernels(&self) -> ActiveKernels {
        self.decoder().report().kernels
    }

    /// What computes: `cpu`, a device of Candle such as `cuda:0`, or GPUs with their drivers and what else has layers.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The compatibility report by which the kernels were chosen, if there was a check.
    pub fn compat(&self) -> Option<&CompatReport> {
        self.compat.as_ref()
    }

    /// The adapters beside the model, in the order of [`LoadOptions::adapters`].
    pub fn adapters(&self) -> &[LoadedAdapter] {
        &self.adapters
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder<'static> {
        self.engine.decoder()
    }

    /// The threads used by everything except the fused kernels.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The decoder, to run batches directly. Clears the prefix cache.
    ///
    /// Fails while any request is unfinished, because such batches overwrite its keys and values.
    pub fn decoder_mut(&mut self) -> Result<&mut Decoder<'static>> {
        self.engine.decoder_mut()
    }

    /// Reads all weights once without computing, to measure memory bandwidth. `false` if the decoder does not support it.
    pub fn read_weights(&mut self, pattern: ReadPattern) -> bool {
        self.engine.read_weights(pattern)
    }

    /// Bytes that the device which computes all of the model reads and writes in a second while it copies memory, as measured now.
    /// `None` if there is none, or no room to measure it.
    ///
    /// Fails if the device does.
    pub fn copy_rate(&mut self) -> Result<Option<f64>> {
        self.engine.copy_rate()
    }

    /// Copies some of the weights that steps used to memory that is read faster, as every step does, too: some milliseconds of
    /// work. Returns whether there were any.
    pub fn copy_some_weights(&mut self) -> bool {
        self.engine.copy_some_weights()
    }

    /// Tells `listener` after each step how the contents of the prefix cache have changed.
    ///
    /// Fails if there is no prefix cache.
    pub fn listen_to_blocks(&mut self, listener: BlockListener) -> Result<()> {
        self.engine.listen_to_blocks(listener)
    }

    /// Tokens of a block of the prefix cache.
    pub fn block_size(&self) -> usize {
        self.engine.block_size()
    }

    /// The tokenizer, if the model has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.text.tokenizer()
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.text.chat_template()
    }

    /// Tokenizer, chat template and generation settings, which other threads can use while the engine runs.
    pub fn text(&self) -> &Arc<ModelText> {
        &self.text
    }

    /// The model's own generation settings.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.text.generation
    }

    /// Longest sequence in tokens.
    pub fn context(&self) -> usize {
        self.engine.config().context
    }

    /// Most tokens of one step; longer prompts are fed in chunks.
    pub fn max_batched_tokens(&self) -> usize {
        self.engine.config().max_batched_tokens
    }

    /// Notes on what was ignored or decided while loading, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Sampling parameters from the model's generation settings; greedy unless these enable sampling, as in `transformers`.
    pub fn default_sampling(&self) -> SamplingParams {
        SamplingParams::of_model(&self.text.generation)
    }

    /// Token ids of a prompt.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.text.encode(prompt)
    }

    /// Fails if a request with this prompt and these parameters is invalid. Does not depend on the load of the engine.
    pub fn check(&self, prompt: &[u32], params: &SamplingParams) -> Result<()> {
        self.engine.check(prompt, params)?;
        if !params.stop.is_empty() {
            self.text.require_tokenizer()?;
        }
        Ok(())
    }

    /// Fails if there is no room for so many more `answers` of a client; see [`Engine::check_room`]. The `add` methods do not
    /// check this.
    pub fn check_room(&self, client: ClientId, answers: usize) -> Result<()> {
        self.engine.check_room(client, answers)
    }

    /// Queues a prompt; its answers come from [`Llm::step`].
    pub fn add(&mut self, prompt: Vec<u32>, params: &SamplingParams) -> Result<RequestId> {
        self.add_constrained(prompt, params, None)
    }

    /// Like [`Llm::add`], with a constraint that the answers must satisfy.
    pub fn add_constrained(
        &mut self,
        prompt: Vec<u32>,
        params: &SamplingParams,
        constraint: Option<ConstraintFactory>,
    ) -> Result<RequestId> {
        self.add_request(prompt, &GenerateRequest { params: params.clone(), constraint, ..GenerateRequest::default() })
    }

    /// Like [`Llm::add`], with all that a request may ask for.
    pub fn add_request(&mut self, prompt: Vec<u32>, wanted: &GenerateRequest) -> Result<RequestId> {
        let call = self.next_request as u64;
        self.add_for(Caller { call, ..Caller::default() }, prompt, wanted)
    }

    /// Like [`Llm::add_constrained`], for one of several callers, between which the engine takes turns.
    pub fn add_for(&mut self, caller: Caller, prompt: Vec<u32>, wanted: &GenerateRequest) -> Result<RequestId> {
        let GenerateRequest { params, constraint, format, adapter } = wanted;
        self.check(&prompt, params)?;
        let request = self.next_request;
        let mut leader = None;
        for choice in 0..params.n {
            let seed = params.seed.map(|seed| seed.wrapping_add(choice as u64));
            let added = self.engine.add(Request {
                prompt: prompt.clone(),
                params: SamplingParams { seed, ..params.clone() },
                stop_token_ids: self.text.generation.eos_token_id.clone(),
                leader,
                constraint: constraint.clone(),
                pooling: None,
                adapter: *adapter,
                caller,
            });
            match added {
                Ok(sequence) => {
                    leader = leader.or(Some(sequence));
                    self.answers.insert(sequence, AnswerText::new(request, choice, &prompt, &params.stop, format));
                }
                Err(error) => {
                    self.abort(request);
                    return Err(error);
                }
            }
        }
        self.next_request += 1;
        Ok(request)
    }

    /// Queues a prompt to compute its embedding, which comes from [`Llm::step`].
    pub fn add_embedding(&mut self, prompt: Vec<u32>, pooling: Pooling) -> Result<RequestId> {
        let call = self.next_request as u64;
        self.add_embedding_for(Caller { call, ..Caller::default() }, prompt, pooling, None)
    }

    /// Like [`Llm::add_embedding`], for one of several callers, between which the engine takes turns, and with an adapter.
    pub fn add_embedding_for(
        &mut self,
        caller: Caller,
        prompt: Vec<u32>,
        pooling: Pooling,
        adapter: Option<u32>,
    ) -> Result<RequestId> {
        let request = self.next_request;
        let answer = AnswerText::new(request, 0, &prompt, &[], &AnswerFormat::default());
        let sequence =
            self.engine.add(Request { prompt, pooling: Some(pooling), adapter, caller, ..Request::default() })?;
        self.answers.insert(sequence, answer);
        self.next_request += 1;
        Ok(request)
    }

    /// Removes a request and frees its blocks.
    pub fn abort(&mut self, request: RequestId) {
        let engine = &mut self.engine;
        self.answers.retain(|sequence, answer| {
            let stays = answer.request != request;
            if !stays {
                engine.abort(*sequence);
            }
            stays
        });
    }

    /// Turns drafting by prompt lookup on or off; see [`LoadOptions::prompt_lookup`].
    pub fn set_prompt_lookup(&mut self, wanted: bool) {
        self.engine.set_prompt_lookup(wanted);
    }

    /// The text that is held back in each answer to a request, with the index of the answer: it could still become part of a
    /// character or of a stop text.
    pub fn held_back(&mut self, request: RequestId) -> Result<Vec<(usize, SplitText)>> {
        let Some(tokenizer) = self.text.tokenizer() else { return Ok(Vec::new()) };
        let answers = self.answers.values_mut().filter(|answer| answer.request == request);
        answers.map(|answer| Ok((answer.choice, answer.flush(tokenizer)?))).collect()
    }

    /// Whether any request is unfinished.
    pub fn has_unfinished(&self) -> bool {
        self.engine.has_unfinished()
    }

    /// Runs one step of all requests together.
    ///
    /// If a GPU is lost, the model is loaded for the CPU, which takes as long as it does at the start; requests are computed anew
    /// there and go on. Any other error removes all requests, and so does that one if the CPU cannot take over.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let outputs = match self.engine.step() {
            Err(error) if error.ends_device() => {
                self.leave_device(error).inspect_err(|_| self.answers.clear())?;
                Vec::new()
            }
            result => result.inspect_err(|_| self.answers.clear())?,
        };
        if let Some(failure) = self.engine.take_prefix_failure() {
            self.notices.push(format!("prefixes are not kept on the disk any more: {failure}"));
        }
        if let Some(error) = self.engine.take_draft_failure() {
            self.notices.push(format!("the draft model does not draft any more: {error}"));
        }
        Ok(outputs.into_iter().filter_map(|output| self.event(output)).collect())
    }

    /// Goes on with the CPU after `error`.
    fn leave_device(&mut self, error: Error) -> Result<()> {
        match self.on_cpu.take().map(|load| load()) {
            Some(Ok((Loaded { decoder, compat, .. }, notes))) => {
                self.device = device_of(&decoder, &DeviceChoice::Cpu);
                self.engine.replace_decoder(decoder);
                self.compat = compat;
                self.notices.push(format!(
                    "{error}; the model runs on the CPU from now on, and what was begun is computed anew"
                ));
                self.notices.extend(notes.iter().cloned());
                self.notes = notes;
                Ok(())
            }
            failed => {
                self.engine.clear();
                if let Some(Err(other)) = failed {
                    self.notices.push(format!("{error}; the CPU cannot take over: {other}"));
                }
                Err(error)
            }
        }
    }

    /// Gives up the GPU as if it was lost, to see what follows from it. Returns whether there is one.
    pub fn give_up_device(&mut self) -> bool {
        self.engine.give_up_device()
    }

    /// What happened since the last call that people should know.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    fn event(&mut self, output: StepOutput) -> Option<Event> {
        let sequence = output.sequence;
        let answer = self.answers.get_mut(&sequence)?;
        let (request, choice) = (answer.request, answer.choice);
        let output = output.output.and_then(|output| match output {
            SequenceOutput::Token(sampled) => answer.push(sampled, self.text.tokenizer()).map(Output::Token),
            SequenceOutput::Embedding(embedding) => Ok(Output::Embedding(embedding)),
        });
        if !matches!(&output, Ok(Output::Token(Token { finished: None, .. }))) {
            self.answers.remove(&sequence);
            self.engine.abort(sequence);
        }
        Some(Event { request, choice, output })
    }

    /// Whether a sampled step is waiting for [`Llm::shadow_check`].
    pub fn has_unchecked_step(&self) -> bool {
        self.shadow.is_some() && self.engine.first_shadow_sample().is_some()
    }

    /// Computes the oldest waiting step again on the standard kernels in f32, which may take seconds. `keep_going` is called
    /// before each layer; if it returns false, the result is `None` and the step stays in the queue.
    pub fn shadow_check(&mut self, keep_going: &mut dyn FnMut() -> bool) -> Result<Option<ShadowCheck>> {
        let (Some(shadow), Some(sample)) = (&self.shadow, self.engine.first_shadow_sample()) else { return Ok(None) };
        let checked = shadow.check(sample, keep_going);
        if !matches!(checked, Ok(None)) {
            self.engine.forget_first_shadow_sample();
        }
        checked
    }

    /// Largest divergence of a single step that is acceptable, in nats: ten times the largest divergence of the compatibility
    /// check, and at least the mean divergence that a compatible model may have.
    pub fn shadow_bound(&self) -> f64 {
        let measured = self.compat.as_ref().and_then(CompatReport::measured_divergence);
        measured.map_or(LEAST_BOUND, |divergence| (10.0 * divergence.kl_max).max(LEAST_BOUND))
    }

    /// Current state and totals of the engine.
    pub fn stats(&self) -> EngineStats {
        self.engine.stats()
    }

    /// Logits after the last token of `ids`, or with `all` after every token, one row each. Does not affect unfinished
    /// requests.
    ///
    /// Fails if unfinished requests leave too few free blocks.
    pub fn logits(&mut self, ids: &[u32], all: bool) -> Result<Vec<Vec<f32>>> {
        self.logits_with(ids, all, None)
    }

    /// Like [`Llm::logits`], with an adapter.
    pub fn logits_with(&mut self, ids: &[u32], all: bool, adapter: Option<u32>) -> Result<Vec<Vec<f32>>> {
        let context = self.context();
        if ids.len() > context {
            return Err(Error::PromptTooLong { prompt: ids.len(), context });
        }
        if ids.is_empty() {
            return Err(Error::bad_request("ids", "at least one token", "none"));
        }
        let sequence = self.engine.begin_raw(ids.len(), adapter)?;
        let mut rows = Vec::new();
        for start in (0..ids.len()).step_by(MAX_BATCHED_TOKENS) {
            let step = start..ids.len().min(start + MAX_BATCHED_TOKENS);
            let wanted = if all { step.len() } else { usize::from(step.end == ids.len()) };
            let logits = self.engine.read_raw(&sequence, ids, step, wanted)?;
            rows.extend((0..logits.rows()).map(|row| logits.row(row).to_vec()));
        }
        Ok(rows)
    }

    /// The engine, for tokens that are read outside of any request.
    pub(crate) fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }
}
