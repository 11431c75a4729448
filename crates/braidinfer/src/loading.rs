//! Loading a model from its files: choosing the kernels and their precision.

mod adapters;
mod draft;
mod keeping;
mod pipeline;

use std::path::PathBuf;
use std::sync::Arc;

use braidinfer_kernels::{Isa, NumericLevel};
use braidinfer_model::quantization::FileType;
use braidinfer_model::{DecoderSpec, GenerationConfig, ModelError, ModelSource, Weights, describe};

use sha2::{Digest, Sha256};

pub use self::adapters::{AdapterOptions, LoadedAdapter};
use self::adapters::{Adapters, Verdicts};
pub use self::draft::DraftOptions;
pub(crate) use self::draft::{LoadedDraft, Target, load_draft};
use self::keeping::Place;
pub use self::pipeline::PipelinePlan;
use crate::compat::{self, Checked, CheckedKernels, CompatReport, Precision, Subject, Thoroughness, VerdictCache};
use crate::containment::WorkerProgram;
use crate::digest::field;
use crate::engine::{SamplingParams, state_slots};
use crate::executor::fused::{self, FusedOptions};
use crate::executor::standard::{self, ComputeDtype, InputSquares, LoadProgress, QuantizedWeights, StandardOptions};
use crate::executor::{
    ActiveKernels, ChosenGpu, Decoder, DeviceChoice, GpuShare, Kernels, KvCacheConfig, KvDtype, OnGpu, load_on_gpu,
};
use crate::llm::FoundTemplate;
use crate::memory::{self, Need, Room, kv_bytes_per_token};
use crate::packed_cache::PackedCache;
use crate::quantize::{quantize_weights, quantized_bytes};
use crate::saved_prefixes::{PrefixKey, SavedPrefixes};
use crate::text::{ChatTemplate, Tokenizer, TokenizerSettings};
use crate::threads::Threads;
use crate::{Error, Result};

/// Tokens per key/value block.
pub(crate) const BLOCK_SIZE: usize = 16;

/// Longest context that can be requested.
const MAX_CONTEXT: usize = 1 << 31;

/// Shortest context that a model's own is limited to for lack of memory.
const LEAST_CONTEXT: usize = 128;

/// Most tokens of a step.
const MOST_ROWS: usize = 512;

/// Block ids are 32-bit; sequences that find no free block wait.
const MAX_BLOCKS: usize = u32::MAX as usize;

/// Options for opening a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The kernels to use.
    pub kernels: Kernels,
    /// With [`Kernels::Fused`]: use the fastest level, even if a check finds the results wrong.
    pub force: bool,
    /// How close to f32 the answers of fused kernels must be.
    pub precision: Precision,
    /// Directory for cached verdicts of checks; if `None`, verdicts are not cached.
    pub verdicts: Option<PathBuf>,
    /// Where fused kernels keep packed weights, so that a model starts faster the next time, and one that is larger than the
    /// memory can be run; if `None`, weights are packed into memory at every start.
    pub packed: Option<PackedCache>,
    /// A file with a chat template, or the name of one of the model's, in place of its default.
    pub chat_template: Option<PathBuf>,
    /// Standard kernels: data type of weights and of the residual stream. If `None`, f32 on a CPU, where quantized
    /// weights stay quantized, and the checkpoint's data type on other devices. Fused kernels, which keep the data type
    /// of the weights: the coarsest type that activations may be rounded to in products; if `None`, 8 bits.
    pub dtype: Option<ComputeDtype>,
    /// Data type of stored keys and values; if `None`, that of the kernels: f32 where they compute in f32 throughout, and f16
    /// elsewhere. A check may store them finer, layer by layer. Quantized types are for fused kernels.
    pub kv_dtype: Option<KvDtype>,
    /// Quantize the weights in memory to this type.
    pub quantize: Option<FileType>,
    /// The device to compute on.
    pub device: DeviceChoice,
    /// How much of the model GPUs take, if any compute.
    pub gpu_share: GpuShare,
    /// Number of compute threads; if `None`, the number of cores available to this process.
    pub threads: Option<usize>,
    /// Longest sequence in tokens; if `None`, the model's own context length.
    pub context: Option<usize>,
    /// Fail where there is too little memory for the model's own context length, instead of limiting it.
    pub whole_context: bool,
    /// Most memory in bytes that the model may take; if `None`, as much as there is. See [`crate::Llm::memory`].
    pub memory: Option<usize>,
    /// Maximum number of running sequences.
    pub max_sequences: usize,
    /// Most sequences that may wait beside the running ones; [`crate::Llm::check_room`] fails if there would be more.
    pub max_waiting: usize,
    /// Most of them that may belong to one client.
    pub max_waiting_per_client: usize,
    /// Size of the KV cache. Memory is allocated as tokens are first stored.
    pub kv_cache: KvCacheRoom,
    /// Reuse the KV cache blocks of common prompt prefixes (prefix caching), as long as they are not evicted.
    pub prefix_cache: bool,
    /// Propose draft tokens from repetitions in the text (prompt lookup decoding) where that is faster. Outputs do not
    /// change.
    pub prompt_lookup: bool,
    /// A smaller model with the same tokens, which drafts where that is expected to be faster. Outputs do not change.
    pub draft: Option<DraftOptions>,
    /// Low-rank adapters (LoRA) beside the model, which requests name. Each gets a verdict of its own. On the CPU, or on a device of
    /// Candle with standard kernels.
    pub adapters: Vec<AdapterOptions>,
    /// Keep keys and values of prompts on the disk; if `None`, only in memory.
    pub saved_prefixes: Option<SavedPrefixes>,
    /// Pause decoding during prefill, instead of mixing chunked prefill with decode steps.
    pub prompts_first: bool,
    /// A program that does the work on untrusted input (chat templates, schemas, grammars) in processes of its own, with limits
    /// of time and memory. If `None`, this process does it, and only size and nesting are limited.
    pub worker: Option<WorkerProgram>,
    /// Fraction of output tokens, from 0 to 1, whose logits are kept for [`crate::Llm::shadow_check`].
    pub shadow_check: f64,
}

impl LoadOptions {
    /// Memory that a model with these options may still take.
    fn room(&self) -> Room {
        let limit = self.memory.map(|bytes| Room { bytes, limit: "that this model may take" });
        limit.into_iter().fold(Room::now(), Room::min)
    }

    /// The same on the CPU.
    #[must_use]
    pub fn on_cpu(self) -> Self {
        Self { device: DeviceChoice::Cpu, gpu_share: GpuShare::default(), ..self }
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            chat_template: None,
            kernels: Kernels::Auto,
            force: false,
            precision: Precision::Auto,
            verdicts: None,
            packed: None,
            dtype: None,
            kv_dtype: None,
            quantize: None,
            device: DeviceChoice::Cpu,
            gpu_share: GpuShare::default(),
            threads: None,
            context: None,
            whole_context: false,
            memory: None,
            max_sequences: 16,
            max_waiting: usize::MAX,
            max_waiting_per_client: usize::MAX,
            kv_cache: KvCacheRoom::AllSequences,
            prefix_cache: true,
            prompt_lookup: true,
            draft: None,
            adapters: Vec::new(),
            saved_prefixes: None,
            prompts_first: false,
            worker: None,
            shadow_check: 0.0,
        }
    }
}

/// Size of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCacheRoom {
    /// Room for the maximum number of running sequences at their longest.
    #[default]
    AllSequences,
    /// This many tokens, but not more than all running sequences can use.
    Tokens(usize),
    /// Half of the memory that the weights leave free, but room for at least one sequence at its longest.
    Fitting,
}

/// A model before its kernels are chosen: description, weights and text processing.
pub(crate) struct ModelParts {
    source: ModelSource,
    pub(crate) spec: DecoderSpec,
    pub(crate) weights: Weights,
    adapters: Adapters,
    pub(crate) tokenizer: Option<Tokenizer>,
    /// What the model has instead of a tokenizer.
    pub(crate) other_tokenizer: Option<String>,
    pub(crate) chat_template: FoundTemplate,
    pub(crate) generation: GenerationConfig,
    pub(crate) label: String,
    pub(crate) notes: Vec<String>,
    /// Longest sequence in tokens.
    pub(crate) context: usize,
    /// Memory that keys and values may take, in bytes.
    room_for_kv: usize,
    /// Where packed weights will lie.
    place: Place,
    /// The GPU that computes the model, if one does.
    gpu: Option<ChosenGpu>,
    /// Number of notes that do not depend on it.
    notes_before_gpu: usize,
    /// The compute threads.
    pub(crate) threads: Threads,
}

/// A model that is ready to run.
pub(crate) struct Loaded {
    pub(crate) decoder: Decoder<'static>,
    pub(crate) compat: Option<CompatReport>,
    pub(crate) adapters: Vec<LoadedAdapter>,
}

/// The chat template that is asked for, or the model's own.
fn chat_template(source: &ModelSource, settings: &TokenizerSettings, options: &LoadOptions) -> Result<FoundTemplate> {
    let worker = options.worker.as_ref();
    if let Some(name) = &options.chat_template {
        return ChatTemplate::read_other(name, source, settings, worker)
            .map(|template| FoundTemplate::Usable(Box::new(template)));
    }
    match ChatTemplate::read(source, settings, worker) {
        Ok(template) => Ok(template.map_or(FoundTemplate::None, |template| FoundTemplate::Usable(Box::new(template)))),
        // It stops only what needs it.
        Err(Error::Text { path, message }) => Ok(FoundTemplate::Faulty { path, message }),
        Err(error) => Err(error),
    }
}

impl ModelParts {
    /// Reads all files, but of the weights only what describes them, and looks how much of the model fits in memory.
    pub(crate) fn open(source: &ModelSource, options: &LoadOptions, progress: LoadProgress) -> Result<Self> {
        let mut parts = Self::read(source, options, progress)?;
        let room = options.room();
        parts.place = parts.place(options, room)?;
        parts.fit(options, room);
        Ok(parts)
    }

    /// Reads all files, but of the weights only what describes them.
    pub(crate) fn read(source: &ModelSource, options: &LoadOptions, progress: LoadProgress) -> Result<Self> {
        let (description, config) = describe(source)?;
        let spec = description.spec;
        // Small files first: a broken tokenizer should not wait for gigabytes of weights.
        let generation = GenerationConfig::read(source, &config)?;
        check_generation(source, &generation)?;
        let settings = TokenizerSettings::read(source)?;
        let tokenizer = Tokenizer::read(source, &settings)?;
        let chat_template = chat_template(source, &settings, options)?;
        if !(0.0..=1.0).contains(&options.shadow_check) {
            return Err(Error::bad_request("shadow_check", "a share from 0 to 1", options.shadow_check));
        }
        if options.max_sequences == 0 {
            return Err(Error::bad_request("max_sequences", "at least 1", 0));
        }
        if options.kv_cache == KvCacheRoom::Tokens(0) {
            return Err(Error::bad_request("kv_cache_tokens", "at least 1", 0));
        }
        let threads = Threads::new(options.threads)?;
        let mut weights = Weights::open(source, &spec, &description.names)?;
        let mut notes = weights.notes().to_vec();
        let (adapters, about_adapters) = Adapters::open(source, &options.adapters, options.room().bytes)?;
        notes.extend(about_adapters);
        let gpu = gpu(&spec, options, &mut notes)?;
        if let Some(file_type) = options.quantize {
            let bytes = quantized_bytes(&spec, &weights, file_type);
            // Fused kernels repack them.
            let copies = if options.kernels == Kernels::Standard { 1 } else { 2 };
            let need = Need { weights: bytes.saturating_mul(copies), kv: 0, states: 0, context: 0, scratch: 0 };
            need.check(&source.label(), options.room())?;
        }
        if let Some(file_type) = options.quantize {
            notes.extend(quantize_weights(&spec, &mut weights, file_type, &threads, progress)?);
        }
        notes.extend(tokenizer.iter().flat_map(Tokenizer::notes).cloned());
        notes.extend(chat_template.fault().map(|fault| format!("{fault}; chats are refused")));
        let context = context(&spec, options.context, &mut notes)?;
        let label = source.label();
        let room_for_kv = usize::MAX;
        let other_tokenizer = source.other_tokenizer();
        let parts = Self {
            source: source.clone(),
            spec,
            weights,
            adapters,
            tokenizer,
            other_tokenizer,
            chat_template,
            generation,
            label,
            notes,
            context,
            room_for_kv,
            place: Place::memory(),
            notes_before_gpu: 0,
            gpu,
            threads,
        };
        parts.check_kv_dtype(options)?;
        Ok(parts)
    }

    /// Adapts what nobody asked for to the memory that there is: a context that is the model's own, and the room for keys
    /// and values of several sequences.
    fn fit(&mut self, options: &LoadOptions, room: Room) {
        self.notes_before_gpu = self.notes.len();
        if let Some(gpu) = &self.gpu {
            let most = gpu.most_tokens(&self.spec);
            if options.context.is_none() && most < self.context {
                self.notes.push(format!(
                    "the context is limited to {most} tokens, whose keys are what {} can read",
                    gpu.name
                ));
                self.context = most;
            }
        }
        if self.lies_on_device(options) {
            return;
        }
        self.room_for_kv = room.bytes.saturating_sub(self.need(options).fixed());
        let token = kv_bytes_per_token(&self.spec, largest_kv_dtype(options)).max(1);
        let fitting = self.room_for_kv / token / BLOCK_SIZE * BLOCK_SIZE;
        if options.context.is_none() && !options.whole_context && fitting < self.context {
            // Less is no use: what there is too little memory for is refused when it is loaded.
            if fitting >= LEAST_CONTEXT {
                self.notes.push(format!(
                    "the context is limited to {fitting} tokens: keys and values of all {} tokens that the model is meant for may \
                     take {}, and there is memory for {} of them",
                    self.context,
                    memory::size(token.saturating_mul(self.context)),
                    memory::size(self.room_for_kv)
                ));
                self.context = fitting;
            }
        }
        let all = self.context.saturating_mul(options.max_sequences);
        if options.kv_cache == KvCacheRoom::AllSequences && options.max_sequences > 1 && fitting < all {
            self.notes.push(format!(
                "keys and values of {} sequences of {} tokens may take {}, and there is memory for {} of them: sequences wait for it",
                options.max_sequences,
                self.context,
                memory::size(token.saturating_mul(all)),
                memory::size(self.room_for_kv)
            ));
        }
    }

    /// The memory that these options need, with one sequence at a time.
    fn need(&self, options: &LoadOptions) -> Need {
        let standard = options.kernels == Kernels::Standard || !has_fused(options);
        let on_device = self.lies_on_device(options);
        let (weights, dtype) = match (standard, on_device) {
            // They lie in the memory of the device.
            (_, true) => (0, KvDtype::F16),
            (false, false) => {
                let weights = match &self.place {
                    Place::File(kept) => kept.needed,
                    Place::Memory { .. } => fused::weight_bytes(&self.weights),
                };
                (weights.saturating_add(self.adapters.bytes()), self.fused_kv_dtype(options))
            }
            (true, false) => {
                let (dtype, quantized) = self.standard_types(options);
                let weights = standard::weight_bytes(&self.weights, dtype, quantized);
                (weights.saturating_add(self.adapters.bytes()), kv_dtype(dtype))
            }
        };
        let kv = if on_device { 0 } else { kv_bytes_per_token(&self.spec, dtype).saturating_mul(self.context) };
        let rows = self.context.min(MOST_ROWS);
        let scratch = memory::scratch_bytes(&self.spec, rows, options.max_sequences);
        let slots = state_slots(options.max_sequences);
        let states = memory::state_bytes(&self.spec, BLOCK_SIZE).saturating_mul(slots);
        Need { weights, kv, states, context: self.context, scratch }
    }

    /// Whether weights, keys and values lie in memory of a device.
    fn lies_on_device(&self, options: &LoadOptions) -> bool {
        self.gpu.as_ref().is_some_and(|gpu| !gpu.shares_memory) || options.device.is_of_candle()
    }

    /// Fails if there is too little memory for loading with these options.
    fn check_memory(&self, options: &LoadOptions) -> Result<()> {
        self.need(options).check(&self.label, options.room()).map_err(|error| self.place.explain(error))
    }

    /// Whether a GPU computes the model.
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.gpu.is_some()
    }

    /// Loads the weights for the requested kernels, or for those that a check chooses. Where nobody asked for a GPU, one that fails
    /// is left for the CPU.
    pub(crate) fn load(&mut self, options: &LoadOptions, progress: LoadProgress) -> Result<Loaded> {
        let loaded = self.load_where_chosen(options, progress);
        match (loaded, &self.gpu) {
            (Err(error), Some(_)) if options.device == DeviceChoice::Auto && error.may_be_of_gpu() => {
                self.leave_gpu(&error.to_string(), options)?;
                self.load_where_chosen(options, progress)
            }
            (loaded, _) => loaded,
        }
    }

    /// Goes on with the CPU.
    ///
    /// Fails if a file of the model was written to since it was opened.
    fn leave_gpu(&mut self, reason: &str, options: &LoadOptions) -> Result<()> {
        let Some(gpu) = self.gpu.take() else { return Ok(()) };
        // What was said of running there no longer holds, nor do its limits.
        self.notes.truncate(self.notes_before_gpu);
        self.context = options.context.unwrap_or_else(|| self.spec.context_length());
        self.notes.push(format!("runs on the CPU, not on {}: {reason}", gpu.name));
        let room = options.room();
        self.place = self.place(options, room)?;
        self.fit(options, room);
        Ok(())
    }

    fn load_where_chosen(&mut self, options: &LoadOptions, progress: LoadProgress) -> Result<Loaded> {
        match options.kernels {
            Kernels::Standard => self.load_standard(options, progress, None),
            Kernels::Fused if options.force => {
                let fused = self.fused(options, progress)?;
                let otherwise = self.unforced(options, &fused)?;
                self.notes.extend(self.gpu.as_ref().map(|gpu| format!("runs on {}", gpu.name)));
                let kv = options.kv_dtype.map_or(String::new(), |kv| format!(", keys and values in {}", kv.name()));
                self.notes.push(format!(
                    "fused kernels at the fastest level{kv}, as forced: no check was made; not forced, {otherwise}"
                ));
                Ok(Loaded { decoder: fused, compat: None, adapters: self.adapters.with_verdicts(Vec::new()) })
            }
            Kernels::Auto if !has_fused(options) => {
                self.notes.push("standard kernels: fused ones run on the CPU, and not in f16".into());
                if options.precision != Precision::Auto {
                    self.notes.push("`precision` is for fused kernels: standard ones compute in `dtype`".into());
                }
                self.load_standard(options, progress, None)
            }
            Kernels::Auto | Kernels::Fused => self.load_checked(options, progress),
        }
    }

    /// What would run by the verdict that is kept, if kernels were `auto` and not forced.
    fn unforced(&self, options: &LoadOptions, fused: &Decoder<'_>) -> Result<String> {
        let cache = options.verdicts.is_some().then(|| self.verdict_cache(options, &CheckedKernels::of(fused), None));
        let known = cache
            .transpose()?
            .and_then(|cache| cache.read())
            .filter(|report| compat::plan_of(report, fused.plan()).is_some());
        Ok(match known {
            Some(report) => match report.useless_kv_dtype() {
                Some(asked) => format!("keys and values in {asked} would be refused: {}", report.reason),
                None => decision(&report, true),
            },
            None => "a check would choose the kernels: no verdict of one is kept".into(),
        })
    }

    /// Loads fused kernels with the plan of a check, if it finds one.
    fn load_checked(&mut self, options: &LoadOptions, progress: LoadProgress) -> Result<Loaded> {
        let mut fused = self.fused(options, progress)?;
        let verdicts = self.verdicts(&mut fused, options)?;
        let fused = fused.with_plan(verdicts.plan.clone())?;
        let (kernels, report) = verdicts.decisive();
        let subject = match &report.adapter {
            None => self.label.clone(),
            Some(adapter) => format!("{} with {adapter}", self.label),
        };
        let on_gpu = self.gpu.as_ref().filter(|_| kernels != ActiveKernels::Standard);
        self.notes.extend(on_gpu.map(|gpu| format!("runs on {}", gpu.name)));
        self.notes.extend(verdicts.notes.iter().cloned());
        if options.kernels == Kernels::Fused && kernels != ActiveKernels::Fused {
            let (model, status, reason) = (subject, report.status.as_str(), report.reason.clone());
            return Err(Error::FusedForbidden { model, status, reason });
        }
        let adapters = self.adapters.with_verdicts(verdicts.adapters.clone());
        match kernels {
            ActiveKernels::Fused => Ok(Loaded { decoder: fused, compat: Some(verdicts.base), adapters }),
            ActiveKernels::Mixed => {
                let (layers, storage) = (report.standard_layers(), fused.kv_cache());
                let bytes = standard::layer_bytes(&self.weights, &layers);
                let taken = self.need(&LoadOptions { kernels: Kernels::Fused, ..options.clone() }).fixed();
                let left = options.memory.map(|memory| memory.saturating_sub(taken));
                LoadOptions { memory: left, ..options.clone() }.room().hold(bytes, || {
                    format!(
                        "{}: weights of {} layers for standard kernels: {}",
                        self.label,
                        layers.len(),
                        report.reason
                    )
                })?;
                let standard = standard::load_layers(&self.spec, &self.weights, &layers, storage, &self.threads)?;
                Ok(Loaded { decoder: fused.with_layers(&layers, standard)?, compat: Some(verdicts.base), adapters })
            }
            ActiveKernels::Standard if self.gpu.is_some() => {
                drop(fused);
                self.leave_gpu(&format!("its kernels are {} with this model", report.status.as_str()), options)?;
                self.load_checked(options, progress)
            }
            ActiveKernels::Standard => {
                drop(fused);
                if let (Some(adapter), true) = (&report.adapter, verdicts.base.kernels() == ActiveKernels::Fused) {
                    self.notes.push(format!("standard kernels compute all requests, because of {adapter}"));
                }
                if let Some(asked) = options.kv_dtype {
                    let note = format!(
                        "keys and values are not stored in {}: standard kernels have a type of their own",
                        asked.name()
                    );
                    self.notes.push(note);
                }
                let reason = format!(
                    "standard kernels need weights of their own, since fused ones are {} with {subject}: {}",
                    report.status.as_str(),
                    report.reason
                );
                self.load_standard(options, progress, Some(verdicts)).map_err(|error| because(error, &reason))
            }
        }
    }

    /// Most memory in bytes that the loaded decoder takes: weights, all its keys and values, states and activations.
    pub(crate) fn taken(&self, options: &LoadOptions, decoder: &Decoder<'_>) -> usize {
        let report = decoder.report();
        let kernels = if report.kernels == ActiveKernels::Standard { Kernels::Standard } else { Kernels::Fused };
        let fixed = self.need(&LoadOptions { kernels, ..options.clone() }).fixed();
        let KvCacheConfig { block_size, num_blocks, .. } = decoder.kv_cache();
        // The check may have chosen another type for some layers.
        let layers = report.kv_dtypes.iter().enumerate().map(|(layer, dtype)| dtype.layer_bytes(&self.spec, layer));
        let token = if self.lies_on_device(options) { 0 } else { layers.sum() };
        let copies = match report.kernels {
            ActiveKernels::Mixed => standard::layer_bytes(&self.weights, &decoder.standard_layers()),
            ActiveKernels::Standard | ActiveKernels::Fused => 0,
        };
        token.saturating_mul(block_size).saturating_mul(num_blocks).saturating_add(copies).saturating_add(fixed)
    }

    /// Where the verdict on these kernels is kept.
    fn verdict_cache(
        &self,
        options: &LoadOptions,
        fused: &CheckedKernels<'_>,
        adapter: Option<u32>,
    ) -> Result<VerdictCache> {
        VerdictCache::new(options.verdicts.as_deref(), &self.subject(adapter), fused, options.precision)
    }

    /// What keys and values depend on, besides tokens: the model, its kernels with their plan, and this build.
    pub(crate) fn prefix_key(&self, options: &LoadOptions, decoder: &Decoder<'_>) -> Result<PrefixKey> {
        let verdict = self.verdict_cache(options, &CheckedKernels::of(decoder), None)?;
        let mut hash = Sha256::new();
        field(&mut hash, verdict.key().as_bytes());
        field(&mut hash, format!("{:?}", decoder.plan()).as_bytes());
        // The verdict is about samples of large tensors, as it may be; here any other value gives other keys and values.
        for file in self.weights.checkpoint_marks()?.into_iter().flatten() {
            field(&mut hash, file.mark.as_bytes());
        }
        Ok(PrefixKey(hash.finalize().into()))
    }

    /// Fails if a check found that the type of keys and values that was asked for does not serve.
    fn refuse_useless_kv_dtype(&self, report: &CompatReport) -> Result<()> {
        let Some(kv_dtype) = report.useless_kv_dtype().map(str::to_owned) else { return Ok(()) };
        Err(Error::KvDtypeForbidden { model: self.label.clone(), kv_dtype, reason: report.reason.clone() })
    }

    /// This model, alone or with one of its adapters, as the subject of a check.
    pub(crate) fn subject(&self, adapter: Option<u32>) -> Subject<'_> {
        Subject {
            label: self.label.clone(),
            spec: &self.spec,
            weights: &self.weights,
            tokenizer: self.tokenizer.as_ref(),
            chat_template: self.chat_template.usable(),
            threads: &self.threads,
            adapters: self.adapters.all(),
            adapter,
            reference: None,
        }
    }

    fn kv_cache(&self, options: &LoadOptions, dtype: KvDtype) -> KvCacheConfig {
        let num_blocks = self.blocks(options, self.fitting_tokens(options));
        KvCacheConfig { block_size: BLOCK_SIZE, num_blocks, dtype }
    }

    /// Fails if there is too little memory for the keys and values of as many tokens as were asked for.
    fn check_kv_room(&self, options: &LoadOptions, dtype: KvDtype) -> Result<()> {
        let KvCacheRoom::Tokens(tokens) = options.kv_cache else { return Ok(()) };
        let room = Room { bytes: self.room_for_kv, ..Room::now() };
        let most = self.context.saturating_mul(options.max_sequences);
        let bytes = kv_bytes_per_token(&self.spec, dtype).saturating_mul(tokens.min(most));
        room.hold(bytes, || format!("{}: keys and values of {tokens} tokens", self.label))
    }

    /// Blocks of keys and values, where there is memory for `fitting` tokens.
    fn blocks(&self, options: &LoadOptions, fitting: usize) -> usize {
        let blocks = |tokens: usize| tokens.div_ceil(BLOCK_SIZE);
        let all = blocks(self.context).saturating_mul(options.max_sequences);
        let wanted = match options.kv_cache {
            KvCacheRoom::AllSequences => blocks(fitting.max(self.context)),
            KvCacheRoom::Tokens(tokens) => blocks(tokens),
            KvCacheRoom::Fitting => blocks((fitting / 2).max(self.context)),
        };
        let readable = self.gpu.as_ref().map_or(MAX_BLOCKS, |gpu| gpu.most_tokens(&self.spec) / BLOCK_SIZE);
        wanted.min(all).min(MAX_BLOCKS).min(readable)
    }

    /// Tokens whose keys and values fill the memory that the weights leave free.
    fn fitting_tokens(&self, options: &LoadOptions) -> usize {
        self.room_for_kv / kv_bytes_per_token(&self.spec, largest_kv_dtype(options)).max(1)
    }

    /// Fails on a type of keys and values that these options do not allow.
    fn check_kv_dtype(&self, options: &LoadOptions) -> Result<()> {
        let Some(asked) = options.kv_dtype else { return Ok(()) };
        if options.kernels == Kernels::Standard || options.kernels == Kernels::Auto && !has_fused(options) {
            let own = kv_dtype(self.standard_types(options).0);
            let expected = format!("{}, their own, with standard kernels of this `dtype`", own.name());
            return if asked == own { Ok(()) } else { Err(Error::bad_request("kv_dtype", expected, asked.name())) };
        }
        if asked.is_quantized() && options.precision == Precision::Exact {
            return Err(Error::bad_request("kv_dtype", "f32 or f16 with precision exact", asked.name()));
        }
        Ok(())
    }

    /// Size of the weights in their files, in bytes.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.weights.sizes().iter().map(|(_, bytes)| bytes).sum()
    }

    fn load_standard(
        &self,
        options: &LoadOptions,
        progress: LoadProgress,
        verdicts: Option<Verdicts>,
    ) -> Result<Loaded> {
        let standard = self.standard_options(options)?;
        let decoder = standard::load(self.spec.clone(), &self.weights, standard, progress)?;
        let decoder = decoder.with_adapters(self.adapters.all())?;
        let (compat, of_adapters) = verdicts.map(|verdicts| (verdicts.base, verdicts.adapters)).unzip();
        Ok(Loaded { decoder, compat, adapters: self.adapters.with_verdicts(of_adapters.unwrap_or_default()) })
    }

    /// Loads standard kernels that add to `inputs` what their linear layers are given.
    pub(crate) fn load_observed(
        &self,
        options: &LoadOptions,
        inputs: &Arc<InputSquares>,
        progress: LoadProgress,
    ) -> Result<Decoder<'static>> {
        let standard = self.standard_options(options)?;
        standard::load_observed(self.spec.clone(), &self.weights, standard, inputs, progress)
    }

    /// How standard kernels are loaded. Fails if there is too little memory for that.
    fn standard_options(&self, options: &LoadOptions) -> Result<StandardOptions> {
        self.check_memory(&LoadOptions { kernels: Kernels::Standard, ..options.clone() })?;
        let (dtype, quantized_weights) = self.standard_types(options);
        self.check_kv_room(options, kv_dtype(dtype))?;
        Ok(StandardOptions {
            dtype,
            quantized_weights,
            device: options.device.clone(),
            kv_cache: self.kv_cache(options, kv_dtype(dtype)),
            threads: self.threads.clone(),
        })
    }

    /// The data type of standard kernels, and how they keep quantized weights.
    fn standard_types(&self, options: &LoadOptions) -> (ComputeDtype, QuantizedWeights) {
        let own = if options.device.is_of_candle() { self.weights.dtype().into() } else { ComputeDtype::F32 };
        let dtype = options.dtype.unwrap_or(own);
        // A requested data type applies to quantized weights, too.
        (dtype, if options.dtype.is_none() { QuantizedWeights::Keep } else { QuantizedWeights::Expand })
    }

    /// The data type of keys and values that fused kernels begin with.
    fn fused_kv_dtype(&self, options: &LoadOptions) -> KvDtype {
        let own = if options.dtype == Some(ComputeDtype::F32) { KvDtype::F32 } else { KvDtype::F16 };
        options.kv_dtype.unwrap_or(own)
    }

    /// Loads fused kernels at the fastest levels that the options allow.
    pub(crate) fn fused(&mut self, options: &LoadOptions, progress: LoadProgress) -> Result<Decoder<'static>> {
        self.check_memory(&LoadOptions { kernels: Kernels::Fused, ..options.clone() })?;
        if let Some(gpu) = &self.gpu {
            self.check_gpu_context(gpu)?;
            let kv_dtype = self.fused_kv_dtype(options);
            self.check_kv_room(options, kv_dtype)?;
            let fused = self.cpu_options(options)?;
            let is_auto = options.device == DeviceChoice::Auto;
            let how = OnGpu { share: &options.gpu_share, fused, compare_with_cpu: is_auto };
            let (decoder, placement) = load_on_gpu(gpu, self.spec.clone(), &self.weights, how, progress)?;
            let slower = placement.layer_times.filter(|times| times.cpu_is_faster());
            if let (Some(times), true) = (slower, is_auto) {
                drop(decoder);
                self.leave_gpu(&times.to_string(), options)?;
                return self.fused(options, progress);
            }
            let used = gpu.used_in(&placement);
            if placement.gpus.len() < gpu.count() {
                self.notes.push(format!("of {} GPUs, only these have layers: {}", gpu.count(), used.name));
            }
            if placement.has_twins() && options.gpu_share.memory.is_some() {
                self.notes.push("a GPU has layers twice, and the limit of its memory counts for each time".into());
            }
            self.gpu = Some(used);
            self.notes.extend(placement.in_words());
            self.notes.extend(slower.map(|times| format!("{times}: the CPU alone may be faster")));
            return Ok(decoder);
        }
        let (spec, fused_options) = (self.spec.clone(), self.fused_options(options)?);
        self.check_kv_room(options, fused_options.kv_cache.dtype)?;
        match &self.place {
            Place::Memory { because } => {
                self.notes.extend(because.iter().map(|because| format!("packed weights are not kept: {because}")));
                fused::load(spec, &self.weights, fused_options, progress)?.with_adapters(self.adapters.all())
            }
            Place::File(kept) => {
                let (decoder, notes) = fused::load_kept(spec, &self.weights, fused_options, &kept.keeping, progress)?;
                self.notes.extend(kept.scarce.iter().cloned().chain(notes));
                decoder.with_adapters(self.adapters.all())
            }
        }
    }

    /// Fails if a GPU cannot read the keys of a whole context.
    fn check_gpu_context(&self, gpu: &ChosenGpu) -> Result<()> {
        let most = gpu.most_tokens(&self.spec);
        if most < self.context {
            return Err(Error::bad_request("context", format!("at most {most} tokens on {}", gpu.name), self.context));
        }
        Ok(())
    }

    pub(crate) fn fused_options(&self, options: &LoadOptions) -> Result<FusedOptions> {
        if options.device.is_of_candle() || self.gpu.is_some() {
            let device = &options.device;
            return Err(Error::Unsupported(format!("fused kernels run on the CPU, not on {device}")));
        }
        self.cpu_options(options)
    }

    /// How fused kernels on the CPU are loaded, for all layers or beside a GPU.
    fn cpu_options(&self, options: &LoadOptions) -> Result<FusedOptions> {
        let kv_dtype = self.fused_kv_dtype(options);
        let coarsest = match options.dtype {
            None => NumericLevel::Int8,
            Some(ComputeDtype::F32) => NumericLevel::F32,
            Some(ComputeDtype::BF16) => NumericLevel::Bf16,
            Some(ComputeDtype::F16) => {
                let expected = "auto, f32 or bf16 with fused kernels, which have no products in f16";
                return Err(Error::bad_request("dtype", expected, "f16"));
            }
        };
        let isa = Isa::detect().map_err(|error| Error::Unsupported(error.to_string()))?;
        let kv_cache = self.kv_cache(options, kv_dtype);
        Ok(FusedOptions { coarsest, kv_cache, threads: self.threads.count(), isa })
    }
}

/// An error of the check of memory, with why that much is needed.
fn because(error: Error, reason: &str) -> Error {
    match error {
        Error::TooLittleMemory { what, needed, found, limit } => {
            Error::TooLittleMemory { what: format!("{what}; {reason}"), needed, found, limit }
        }
        error => error,
    }
}

/// The type of keys and values that room is kept for: a check may choose f32, for every layer; without one it is what was
/// asked for.
fn largest_kv_dtype(options: &LoadOptions) -> KvDtype {
    options.kv_dtype.filter(|_| options.kernels == Kernels::Fused && options.force).unwrap_or(KvDtype::F32)
}

/// The data type of keys and values of standard kernels that compute in `dtype`.
fn kv_dtype(dtype: ComputeDtype) -> KvDtype {
    if dtype == ComputeDtype::F32 { KvDtype::F32 } else { KvDtype::F16 }
}

/// Whether fused kernels support the requested device and data type.
fn has_fused(options: &LoadOptions) -> bool {
    !options.device.is_of_candle() && options.dtype != Some(ComputeDtype::F16)
}

/// The GPU that computes a model, if one does.
///
/// Fails if these options cannot be had there.
fn gpu(spec: &DecoderSpec, options: &LoadOptions, notes: &mut Vec<String>) -> Result<Option<ChosenGpu>> {
    check_gpu_share(options, None)?;
    let is_asked_for = matches!(options.device, DeviceChoice::Gpu(_));
    if let (true, Some(AdapterOptions { name, .. })) = (is_asked_for, options.adapters.first()) {
        return Err(Error::bad_request(
            "device",
            "the CPU, on which adapters run",
            format!("a GPU, and adapter {name}"),
        ));
    }
    if options.kernels == Kernels::Standard && is_asked_for {
        return Err(Error::bad_request("kernels", "auto or fused on a GPU", "standard"));
    }
    if options.kernels == Kernels::Standard {
        notes.extend((options.device == DeviceChoice::Auto).then(|| "runs on the CPU: standard kernels do".into()));
        return Ok(None);
    }
    if is_asked_for && !matches!(options.dtype, None | Some(ComputeDtype::F32)) {
        let found = options.dtype.map_or(String::new(), |dtype| dtype.to_string());
        return Err(Error::bad_request("dtype", "auto or f32 on a GPU, whose kernels round nothing but sums", found));
    }
    if let (true, Some(asked)) = (is_asked_for, options.kv_dtype.filter(|asked| asked.is_quantized())) {
        return Err(Error::bad_request("kv_dtype", "f32 or f16 on a GPU", asked.name()));
    }
    let is_for_cpu = options.dtype.is_some_and(|dtype| dtype != ComputeDtype::F32)
        || options.kv_dtype.is_some_and(KvDtype::is_quantized);
    if options.device == DeviceChoice::Auto && !options.adapters.is_empty() {
        notes.push("runs on the CPU: adapters do".into());
        return Ok(None);
    }
    if options.device == DeviceChoice::Auto && is_for_cpu {
        notes.push("runs on the CPU: these types are for its kernels alone".into());
        return Ok(None);
    }
    let gpu = options.device.gpu(spec, notes)?;
    check_gpu_share(options, gpu.as_ref())?;
    Ok(gpu)
}

/// Fails if there are shares of GPUs and none was asked for, or if the numbers of layers are not those of the GPUs.
fn check_gpu_share(options: &LoadOptions, gpu: Option<&ChosenGpu>) -> Result<()> {
    let GpuShare { layers, memory } = &options.gpu_share;
    if !matches!(options.device, DeviceChoice::Gpu(_) | DeviceChoice::Auto) {
        let found = || format!("device {}", options.device);
        return match (layers.is_empty(), memory) {
            (false, _) => Err(Error::bad_request("gpu_layers", "a GPU to compute on", found())),
            (_, Some(_)) => Err(Error::bad_request("gpu_memory", "a GPU to compute on", found())),
            _ => Ok(()),
        };
    }
    match gpu.map(ChosenGpu::count) {
        Some(count) if !layers.is_empty() && layers.len() != count => {
            let expected =
                if count == 1 { "one number".to_owned() } else { format!("a number for each of {count} GPUs") };
            Err(Error::bad_request("gpu_layers", expected, format!("{layers:?}")))
        }
        _ => Ok(()),
    }
}

/// Fails with [`Error::TooLittleMemory`] if a model cannot be loaded with these options, without loading it.
pub fn check_memory(source: &ModelSource, options: &LoadOptions) -> Result<()> {
    let unquantized = LoadOptions { quantize: None, ..options.clone() };
    let parts = ModelParts::open(source, &unquantized, &|_, _| {})?;
    match options.quantize {
        // Opening it quantized begins with this.
        Some(_) => Ok(()),
        None => parts.check_memory(options),
    }
}

/// Extent of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckDepth {
    /// Only inspect the weights.
    Static,
    /// Measure by running the model.
    Measured(Thoroughness),
}

/// Checks whether fused kernels change the answers of a model, with its adapter if the options name one. The kernels in `options` are ignored. A measured verdict
/// is cached where the options say.
pub fn check(
    source: &ModelSource,
    options: &LoadOptions,
    depth: CheckDepth,
    progress: LoadProgress,
) -> Result<(CompatReport, Vec<String>)> {
    let adapter = match options.adapters.len() {
        0 => None,
        1 => Some(0),
        several => return Err(Error::bad_request("adapter", "one at a time, each with a verdict of its own", several)),
    };
    if let (CheckDepth::Static, Some(_)) = (depth, adapter) {
        return Err(Error::bad_request("adapter", "none for a look at the weights alone", "one"));
    }
    let mut parts = ModelParts::open(source, options, progress)?;
    let CheckDepth::Measured(thoroughness) = depth else {
        let isa = Isa::detect().map_err(|error| Error::Unsupported(error.to_string()))?;
        if let Some(asked) = options.kv_dtype.filter(|asked| asked.is_quantized()) {
            parts.notes.push(format!("a prediction says nothing about keys and values in {}", asked.name()));
        }
        let where_to = parts.gpu.as_ref().map_or(isa.name(), |gpu| &gpu.name);
        return Ok((parts.subject(None).predict(where_to)?, parts.notes));
    };
    let mut fused = parts.fused(options, progress)?;
    let cache = parts.verdict_cache(options, &CheckedKernels::of(&fused), adapter)?;
    let Checked { report, .. } = parts.subject(adapter).check(&mut fused, thoroughness, options.precision)?;
    parts.notes.extend(cache.write(&report).err());
    Ok((report, parts.notes))
}

/// One line with the choice and the reason.
fn decision(report: &CompatReport, from_cache: bool) -> String {
    let kernels = report.kernels().as_str();
    let measured = report.measured.as_ref().filter(|_| !from_cache).map(|measured| {
        let more = if measured.more_than_usual { ", more than usual" } else { "" };
        format!("measured now at {} positions{more}, in {:.1} s", measured.tokens, measured.seconds)
    });
    let when = measured.unwrap_or_else(|| "measured earlier".to_owned());
    let standard = match report.kernels() {
        ActiveKernels::Mixed => {
            let layers: Vec<String> = report.standard_layers().iter().map(usize::to_string).collect();
            format!("; standard: layers {}", layers.join(", "))
        }
        ActiveKernels::Standard | ActiveKernels::Fused => String::new(),
    };
    format!("{kernels} kernels: {} ({when}): {}{standard}", report.status.as_str(), report.reason)
}

/// Fails on a sampling parameter of the model's own that no request could have.
fn check_generation(source: &ModelSource, generation: &GenerationConfig) -> Result<()> {
    SamplingParams::of_model(generation).validate().map_err(|error| match error {
        Error::BadRequest { field, expected, found } => {
            let field = if field == "max_tokens" { "max_new_tokens".to_owned() } else { field };
            ModelError::Field { path: source.path_of("generation_config.json"), field, expected, found }.into()
        }
        other => other,
    })
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
