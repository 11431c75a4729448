//! Layers on a GPU, in the kernels of [`braidinfer_gpu`].
//!
//! What a step needs is uploaded, the commands of all layers are recorded one after the other, and the device gets them together
//! when something is read back: logits, hidden states, or the residual stream. Activations stay in f32; sums have an order that
//! depends on shapes alone, so that a sequence has the same bits alone and in company.

mod layer;
mod memory;
#[cfg(test)]
pub(crate) mod planted;
mod trace;
mod upload;
mod weights;

use std::ops::Range;
use std::time::{Duration, Instant};

use braidinfer_gpu::kernels::{NormStep, ProductKernels, ProductStep};
use braidinfer_gpu::{Adapters, Gpu, GpuError, stride};
use braidinfer_kernels::NumericLevel;
use braidinfer_model::{DecoderSpec, Dtype, Slot, Weights};

use self::memory::{KvMemory, Scratch, Widths};
use self::trace::Trace;
use self::upload::Upload;
use self::weights::{Ends, GpuLayer, Loader};
use super::fused::{self, FusedOptions};
use super::standard::LoadProgress;
use super::{
    ActiveKernels, Argmax, Batch, Capabilities, Decoder, DeviceReport, ExecutorReport, KernelPlan, KvCacheConfig,
    LayerRunner, LayerState, LayerTimes, Logits, NoProbe, Outputs, PlacedLayers, Placement, PlannedProjection, Probe,
    SequenceSlice, Step, WantedRows, no_ends,
};
use crate::memory::Room;
use crate::{Error, Result};

/// Options for loading a decoder.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// The adapters by their numbers, and which layers each takes of those that are left by the ones before it: the last of them.
    /// Layers that are left by all run on the CPU, in fused kernels.
    pub adapters: Vec<(usize, GpuLayers)>,
    /// How layers on the CPU are loaded, and the size of the KV cache of all: its block size must be a multiple of 16.
    pub fused: FusedOptions,
    /// Most memory to take on each GPU, in bytes.
    pub memory: Option<u64>,
    /// Whether to measure how long a layer takes on the CPU also if none runs there.
    pub compare_with_cpu: bool,
}

/// How many layers run on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as there is memory for, with the keys and values of some tokens.
    Fitting,
    /// This many, or all if there are fewer.
    Last(usize),
}

/// Tokens whose keys and values have to fit beside layers that are loaded as far as there is memory.
const LEAST_TOKENS: usize = 2048;

/// A step for which there has to be room, too: as large as those of checks.
const USUAL_STEP: UsualStep = UsualStep { tokens: 512, rows: super::HEAD_ROWS };

struct UsualStep {
    tokens: usize,
    /// Rows of logits.
    rows: usize,
}

/// Layers that are loaded for the CPU to measure how long they take there, where all run on GPUs: of large models, more than its caches
/// hold.
const COMPARED_LAYERS: usize = 8;

/// How often times are measured.
const TRIES: usize = 3;

/// Loads a decoder onto GPUs, or its last layers. There, nothing but sums is rounded, and keys and values if they are kept in f16. Also
/// returns which layers run where.
///
/// Fails with [`Error::Unsupported`] if a layer has a part that there are no kernels for, on a non-finite weight, naming tensor
/// and index, and if a device has too little memory.
pub fn load(
    spec: DecoderSpec,
    weights: &Weights,
    options: &GpuOptions,
    progress: LoadProgress,
) -> Result<(Decoder<'static>, Placement)> {
    check(&spec)?;
    let fastest = KernelPlan::fastest(&spec, weights, options.fused.coarsest, options.fused.kv_cache.dtype);
    let (mut runners, rest) = load_shares(&spec, weights, options, &fastest, progress)?;
    let count = spec.layers.len();
    let plan = fastest.clone().exact_in(&(0..count).map(|layer| layer >= rest).collect::<Vec<_>>());
    let on_cpu = match rest {
        0 => None,
        _ => Some(load_on_cpu(&spec, weights, (0..rest, &plan), options.fused, progress)?),
    };
    let mut on_cpu = on_cpu.map(|on_cpu| (on_cpu, 0..rest, &plan));
    if on_cpu.is_none() && options.compare_with_cpu {
        let layers = 0..COMPARED_LAYERS.min(count);
        on_cpu = match load_on_cpu(&spec, weights, (layers.clone(), &fastest), options.fused, progress) {
            Ok(on_cpu) => Some((on_cpu, layers, &fastest)),
            // The model runs without a comparison, too.
            Err(Error::TooLittleMemory { .. }) => None,
            Err(error) => return Err(error),
        };
    }
    let layer_times = match (&mut on_cpu, runners.iter_mut().find(|runner| runner.count() > 0)) {
        (Some((on_cpu, layers, of_cpu)), Some(runner)) => Some(LayerTimes {
            on_cpu: layer_time(on_cpu, &spec, layers.clone(), of_cpu)?,
            on_gpu: layer_time(runner, &spec, runner.first()..count, &plan)?,
        }),
        _ => None,
    };
    let gpus = runners.iter().map(GpuRunner::placed).collect();
    let placement = Placement { on_cpu: rest, gpus, layer_times };
    runners.iter_mut().try_for_each(GpuRunner::release_storage)?;
    let mut runners = runners.into_iter();
    let first = runners.next().ok_or_else(|| Error::Internal("no adapter was chosen".into()))?;
    let mut decoder = Decoder::new(spec, options.fused.kv_cache, plan.clone(), first);
    for runner in runners {
        decoder = decoder.with_layers(&runner.layers_here().collect(), runner)?;
    }
    match on_cpu {
        Some((on_cpu, layers, _)) if rest > 0 => Ok((decoder.with_layers(&layers.collect(), on_cpu)?, placement)),
        _ => Ok((decoder, placement)),
    }
}

/// Loads onto each GPU what it takes. Also returns how many of the first layers are left.
fn load_shares(
    spec: &DecoderSpec,
    weights: &Weights,
    options: &GpuOptions,
    plan: &KernelPlan,
    progress: LoadProgress,
) -> Result<(Vec<GpuRunner>, usize)> {
    let adapters = Adapters::find();
    let mut left = spec.layers.len();
    let mut runners: Vec<GpuRunner> = Vec::new();
    for (adapter, layers) in &options.adapters {
        let share = Share { end: left, layers: *layers, with_ends: runners.is_empty() };
        if !share.with_ends && (left == 0 || *layers == GpuLayers::Last(0)) {
            continue;
        }
        let mut gpu = Gpu::open(&adapters, *adapter)?;
        gpu.limit_memory(options.memory);
        let runner = GpuRunner::load(gpu, (spec, weights), (options.fused.kv_cache, plan), share, progress)?;
        left -= runner.count();
        if share.with_ends || runner.count() > 0 {
            runners.push(runner);
        }
    }
    Ok((runners, left))
}

/// A step for which there is room from the start: the end of a long prompt, with some rows of logits.
fn usual_step(kv_cache: KvCacheConfig) -> Batch {
    let context = LEAST_TOKENS.min(kv_cache.capacity());
    let tokens = USUAL_STEP.tokens.min(context);
    let blocks = (0..context.div_ceil(kv_cache.block_size) as u32).collect();
    let mut batch = Batch::default();
    batch.push(&vec![0; tokens], SequenceSlice::new(context - tokens, tokens, blocks), USUAL_STEP.rows.min(tokens));
    batch
}

/// Loads some layers for the CPU.
fn load_on_cpu(
    spec: &DecoderSpec,
    weights: &Weights,
    (layers, plan): (Range<usize>, &KernelPlan),
    options: FusedOptions,
    progress: LoadProgress,
) -> Result<impl LayerRunner + use<>> {
    let bytes = fused::weight_bytes(&weights.of_layers(&layers, false));
    Room::now().hold(bytes, || format!("the first {} layers on the CPU", layers.end))?;
    fused::load_layers(spec, weights, (layers, plan), options, progress)
}

/// How long a layer takes for one token that is the first of its sequence: the mean of some layers of a runner in one step, the best of
/// some tries.
fn layer_time(
    runner: &mut impl LayerRunner,
    spec: &DecoderSpec,
    layers: Range<usize>,
    plan: &KernelPlan,
) -> Result<Duration> {
    let mut batch = Batch::default();
    batch.push(&[0], SequenceSlice::new(0, 1, vec![0]), 0);
    let step = Step { batch: &batch, plan };
    runner.reserve(step)?;
    let hidden = vec![1.0; spec.hidden_size];
    let mut best = Duration::MAX;
    // The first time, drivers prepare what they need.
    for attempt in 0..=TRIES {
        runner.begin(step)?;
        runner.set_hidden(&hidden)?;
        let started = Instant::now();
        layers.clone().try_for_each(|layer| runner.layer(layer, step, &mut NoProbe))?;
        runner.hidden()?;
        best = if attempt > 0 { best.min(started.elapsed()) } else { best };
    }
    runner.release_storage()?;
    Ok(best / layers.len().max(1) as u32)
}

/// Fails with [`Error::Unsupported`] if a layer cannot be computed on a GPU.
pub(super) fn check(spec: &DecoderSpec) -> Result<()> {
    let Some((layer, why)) = unsupported(spec) else { return Ok(()) };
    let model = &spec.model_type;
    Err(Error::Unsupported(format!(
        "there are no kernels for GPUs for {why}, as layer {layer} of this {model} model has; the CPU computes it"
    )))
}

/// The first layer that cannot be computed on a GPU, and why; `None` if all can.
fn unsupported(spec: &DecoderSpec) -> Option<(usize, &'static str)> {
    if spec.altup.is_some() {
        return Some((0, "several residual streams"));
    }
    if spec.laurel.is_some() {
        return Some((0, "a branch of low rank"));
    }
    if spec.per_layer_inputs.is_some() {
        return Some((0, "inputs of their own"));
    }
    (0..spec.layers.len()).find_map(|layer| Some((layer, weights::unsupported(spec, layer)?)))
}

/// Runs layers on a device.
struct GpuRunner {
    spec: DecoderSpec,
    gpu: Gpu,
    /// The projections that plans have levels for, and their data types.
    projections: Vec<(Slot, Dtype)>,
    /// Layers that are computed here.
    layers: Vec<Option<GpuLayer>>,
    /// What comes before the first layer and after the last one, if that is computed here.
    ends: Option<Ends>,
    kv: KvMemory,
    scratch: Scratch,
    upload: Upload,
    /// Rows of embeddings, before they are uploaded.
    embeddings: Vec<f32>,
    /// Bytes that a step reads of weights.
    weight_bytes: usize,
    /// Whether the device's driver gives a row the same bits in products of any number of rows, as measured.
    products_agree: bool,
    /// Whether the residual stream is still what was uploaded as embeddings.
    only_embedded: bool,
}

/// What a device is to take.
#[derive(Clone, Copy)]
struct Share {
    /// Up to which layer.
    end: usize,
    /// How many of the layers before that.
    layers: GpuLayers,
    /// Whether it also takes what comes before the first layer and after the last one.
    with_ends: bool,
}

impl GpuRunner {
    fn load(
        mut gpu: Gpu,
        (spec, weights): (&DecoderSpec, &Weights),
        (kv_cache, plan): (KvCacheConfig, &KernelPlan),
        share: Share,
        progress: LoadProgress,
    ) -> Result<Self> {
        let mut kv = KvMemory::new(spec, kv_cache)?;
        let products_agree = ProductKernels::agree(&mut gpu)?;
        let allocated_before = gpu.allocated_bytes();
        let mut loader = Loader { gpu: &mut gpu, spec, weights };
        #[cfg(test)]
        planted::spoil(loader.gpu, None);
        let ends = share.with_ends.then(|| loader.ends()).transpose()?;
        let (count, end) = (spec.layers.len(), share.end);
        let fits = share.layers == GpuLayers::Fitting;
        let ends_bytes = loader.gpu.allocated_bytes() - allocated_before;
        let mut layers: Vec<Option<GpuLayer>> = (0..count).map(|_| None).collect();
        let mut layer_bytes = vec![0; count];
        let most = if let GpuLayers::Last(most) = share.layers { most.min(end) } else { end };
        for index in (end - most..end).rev() {
            #[cfg(test)]
            planted::spoil(loader.gpu, Some(index));
            let allocated_before = loader.gpu.allocated_bytes();
            match loader.layer(index).and_then(|layer| {
                layer_bytes[index] = loader.gpu.allocated_bytes() - allocated_before;
                let tokens = if fits { LEAST_TOKENS.min(kv_cache.capacity()) } else { 0 };
                kv.reserve_layer(loader.gpu, (index, plan.kv_dtypes[index]), tokens.div_ceil(memory::TILE))?;
                Ok(layer)
            }) {
                Ok(layer) => layers[index] = Some(layer),
                // Those before run elsewhere.
                Err(Error::TooLittleMemory { .. }) if fits && (index + 1 < end || !share.with_ends) => break,
                Err(error) => return Err(error),
            }
            progress(count - index, count);
        }
        let mut runner = Self {
            spec: spec.clone(),
            projections: plan.projections.iter().map(|planned| (planned.slot, planned.dtype)).collect(),
            scratch: Scratch::new(&mut gpu, Widths::of(spec, &layers, ends.as_ref()))?,
            gpu,
            layers,
            ends,
            kv,
            upload: Upload::default(),
            embeddings: Vec::new(),
            weight_bytes: 0,
            products_agree,
            only_embedded: false,
        };
        runner.fit(share, plan)?;
        runner.weight_bytes = (ends_bytes + runner.layers_here().map(|layer| layer_bytes[layer]).sum::<u64>()) as usize;
        Ok(runner)
    }

    /// Makes room for usual steps, for which layers make way that may run elsewhere.
    fn fit(&mut self, share: Share, plan: &KernelPlan) -> Result<()> {
        let batch = usual_step(self.kv.config());
        let fits = share.layers == GpuLayers::Fitting;
        loop {
            if self.count() == 0 && !share.with_ends {
                return Ok(());
            }
            let error = match self.make_room(Step { batch: &batch, plan }) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let may_leave = fits && self.count() > usize::from(share.with_ends);
            if !may_leave || !matches!(error, Error::TooLittleMemory { .. }) {
                return Err(error);
            }
            let first = self.first();
            self.layers[first] = None;
            self.kv.clear_layer(first);
            self.gpu.forget_buffers();
            let widths = Widths::of(&self.spec, &self.layers, self.ends.as_ref());
            self.scratch = Scratch::new(&mut self.gpu, widths)?;
        }
    }

    /// The layers that are computed here.
    fn layers_here(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers.len()).filter(|layer| self.layers[*layer].is_some())
    }

    /// The first of them.
    fn first(&self) -> usize {
        self.layers_here().next().unwrap_or(self.layers.len())
    }

    /// Its GPU, and how many layers it has.
    fn placed(&self) -> PlacedLayers {
        let adapter = self.gpu.adapter();
        PlacedLayers { index: adapter.index, name: adapter.to_string(), layers: self.count() }
    }

    /// How many they are.
    fn count(&self) -> usize {
        self.layers_here().count()
    }

    /// Makes room for the keys and values of a step, and for its activations.
    fn make_room(&mut self, step: Step<'_>) -> Result<()> {
        let Step { batch, plan } = step;
        self.kv.reserve(&mut self.gpu, batch, &plan.kv_dtypes, &self.layers)?;
        self.scratch.reserve_tokens(&mut self.gpu, batch.token_ids.len())?;
        // What is read back at once: what the head gives, or the residual stream, which another runner may go on with even if all layers
        // are here.
        let mut results = batch.token_ids.len() * stride(self.spec.hidden_size);
        if self.ends.is_some() {
            let hidden = batch.hidden_rows.len();
            let at_once = |rows: &[usize]| rows.len().min(super::HEAD_ROWS);
            let (logits, argmax) = (at_once(&batch.logits_rows), at_once(&batch.argmax_rows));
            self.scratch.reserve_head(&mut self.gpu, logits + argmax + hidden, logits + argmax)?;
            let head = logits * stride(self.spec.vocab_size) + 2 * argmax + hidden * stride(self.spec.hidden_size);
            results = results.max(head);
        }
        self.gpu.reserve_results(results)?;
        let positions: Vec<u32> =
            batch.sequences.iter().flat_map(SequenceSlice::positions).map(|position| position as u32).collect();
        self.scratch.reserve_partials(&mut self.gpu, &self.layers, &positions)?;
        self.scratch.reserve_step(&mut self.gpu, Upload::words_of(&self.spec, batch))
    }

    fn upload_embeddings(&mut self, batch: &Batch) -> Result<()> {
        let ends = self.ends.as_ref().ok_or_else(no_ends)?;
        let (width, multiplier) = (self.spec.hidden_size, self.spec.embedding_multiplier as f32);
        self.embeddings.clear();
        for token in &batch.token_ids {
            ends.embedding.row(*token, &mut self.embeddings)?;
            let padded = self.embeddings.len() + stride(width) - width;
            self.embeddings.resize(padded, 0.0);
        }
        if multiplier != 1.0 {
            self.embeddings.iter_mut().for_each(|value| *value *= multiplier);
        }
        self.gpu.write_f32(&self.scratch.hidden, 0, &self.embeddings);
        Ok(())
    }

    /// Records norm and output head for some rows: first those of logits, then those whose likeliest token is wanted, then those of
    /// hidden states.
    fn record_head(&mut self, wanted: WantedRows<'_>) -> Result<()> {
        let ends = self.ends.as_ref().ok_or_else(no_ends)?;
        let rows = wanted.logits.iter().chain(wanted.argmax).chain(wanted.hidden);
        let rows: Vec<u32> = rows.map(|row| *row as u32).collect();
        let with_logits = wanted.logits.len() + wanted.argmax.len();
        self.scratch.reserve_head(&mut self.gpu, rows.len(), with_logits)?;
        let Scratch { hidden, head_rows_normed, logits, argmax, rows: listed, nothing, .. } = &self.scratch;
        self.gpu.write(listed, 0, &rows);
        let width = self.spec.hidden_size;
        let step = NormStep {
            stream: hidden,
            branch: nothing,
            branch_norm: nothing,
            norm: &ends.final_norm,
            output: head_rows_normed,
            step: (listed, 0),
            width,
            tokens: rows.len(),
            factor: 1.0,
            stream_factor: 1.0,
        };
        ends.norm.record(&mut self.gpu, step);
        if with_logits > 0 {
            let step = ProductStep {
                input: head_rows_normed,
                input_stride: stride(width),
                output: logits,
                output_stride: stride(ends.lm_head.rows),
                output_column: 0,
                tokens: with_logits,
            };
            ends.logits.record(&mut self.gpu, &ends.lm_head, step);
        }
        if !wanted.argmax.is_empty() {
            let rows = [wanted.logits.len(), wanted.argmax.len()];
            ends.argmax.record(&mut self.gpu, logits, self.spec.vocab_size, rows, argmax);
        }
        Ok(())
    }
}

impl LayerRunner for GpuRunner {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            same_bits_in_company: self.products_agree,
            shares_prefixes: true,
            takes_back_drafts: true,
            computes_argmax: true,
        }
    }

    fn report(&self, plan: &KernelPlan) -> ExecutorReport {
        let usage = self.gpu.usage();
        ExecutorReport {
            kernels: ActiveKernels::Fused,
            isa: self.gpu.adapter().to_string(),
            threads: 1,
            weight_bytes: self.weight_bytes,
            pack_time: None,
            levels: plan.summary(),
            main_level: plan.main_level(),
            kv_dtypes: plan.kv_dtypes.clone(),
            device: Some(DeviceReport {
                name: self.gpu.adapter().to_string(),
                allocated_bytes: self.gpu.allocated_bytes(),
                dispatches: usage.dispatches,
                submissions: usage.submissions,
                bytes_read: usage.bytes_read,
                bytes_written: usage.bytes_written,
                model_bytes: usage.model_bytes,
            }),
        }
    }

    fn device_bytes(&self) -> u64 {
        self.gpu.allocated_bytes()
    }

    fn copy_rate(&mut self) -> Result<Option<f64>> {
        match self.gpu.copy_rate() {
            Ok(rate) => Ok(Some(rate)),
            Err(GpuError::OutOfMemory { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn layer_state(&self, layer: usize, plan: &KernelPlan) -> LayerState {
        fused::layer_state(&self.spec, layer, plan, self.kv.config().block_size)
    }

    fn reserve(&mut self, step: Step<'_>) -> Result<()> {
        self.make_room(step)
    }

    fn reserved_blocks(&self, plan: &KernelPlan) -> usize {
        self.kv.reserved_blocks(&plan.kv_dtypes, &self.layers)
    }

    fn begin(&mut self, step: Step<'_>) -> Result<()> {
        step.plan.check(&self.projections, self.spec.layers.len())?;
        let is_here = |planned: &&PlannedProjection| planned.layer().is_none_or(|layer| self.layers[layer].is_some());
        let mut here = step.plan.projections.iter().filter(is_here);
        if let Some(planned) = here.find(|planned| planned.level != NumericLevel::F32) {
            return Err(Error::bad_request("kernel_plan", "level f32 on a GPU", planned.level.name()));
        }
        let (tokens, most) = (step.batch.token_ids.len(), self.gpu.max_groups());
        if tokens > most as usize {
            return Err(Error::bad_request("batch", format!("at most {most} tokens on this GPU"), tokens));
        }
        // Commands of a step that failed.
        self.gpu.discard();
        self.gpu.check()?;
        self.make_room(step)?;
        self.upload.fill(&self.spec, step.batch, &self.kv);
        self.gpu.write(&self.scratch.step, 0, &self.upload.words);
        Ok(())
    }

    fn embed(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        self.upload_embeddings(step.batch)?;
        self.only_embedded = true;
        let (rows, width) = (step.batch.token_ids.len(), self.spec.hidden_size);
        Trace::new(probe, None).rows(&mut self.gpu, "embed", &self.scratch.hidden, rows, width)
    }

    fn layer(&mut self, index: usize, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        self.only_embedded = false;
        self.record_layer(index, step.plan.kv_dtypes[index], &mut Trace::new(probe, Some(index)))
    }

    fn head(&mut self, wanted: WantedRows<'_>, _step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        let (vocab, width) = (self.spec.vocab_size, self.spec.hidden_size);
        let (rows, likeliest) = (wanted.logits.len(), wanted.argmax.len());
        if rows + likeliest + wanted.hidden.len() == 0 {
            // The step is over, though nothing of it is wanted.
            self.gpu.read(&[])?;
            return Ok(Outputs::none(vocab));
        }
        self.record_head(wanted)?;
        let mut trace = Trace::new(probe, None);
        let Scratch { head_rows_normed, logits, argmax, .. } = &self.scratch;
        if rows > 0 {
            trace.rows(&mut self.gpu, "final_norm", head_rows_normed, rows, width)?;
        }
        let first_hidden = rows + likeliest;
        let parts = [
            (logits, 0..rows * stride(vocab)),
            (argmax, 0..2 * likeliest),
            (head_rows_normed, first_hidden * stride(width)..(first_hidden + wanted.hidden.len()) * stride(width)),
        ];
        let words = self.gpu.read(&parts)?;
        let (logits, others) = words.split_at(rows * stride(vocab));
        let (argmax, hidden) = others.split_at(2 * likeliest);
        let logits = without_padding(logits, vocab);
        if rows > 0 {
            trace.record("logits", rows, || logits.clone());
        }
        let likeliest = |words: &[u32]| Argmax { token: words[0], logit: f32::from_bits(words[1]) };
        Ok(Outputs {
            logits: Logits::new(logits, vocab),
            argmax: argmax.chunks_exact(2).map(likeliest).collect(),
            hidden: without_padding(hidden, width).chunks_exact(width).map(<[f32]>::to_vec).collect(),
        })
    }

    fn hidden(&mut self) -> Result<Vec<f32>> {
        let (rows, width) = (self.upload.positions.len(), self.spec.hidden_size);
        if self.only_embedded {
            let rows = self.embeddings.chunks_exact(stride(width));
            return Ok(rows.flat_map(|row| &row[..width]).copied().collect());
        }
        let words = self.gpu.read(&[(&self.scratch.hidden, 0..rows * stride(width))])?;
        Ok(without_padding(&words, width))
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        self.only_embedded = false;
        let (rows, width) = (self.upload.positions.len(), self.spec.hidden_size);
        if hidden.len() != rows * width {
            return Err(Error::Internal(format!("{} values for {rows} rows of {width}", hidden.len())));
        }
        let mut padded = Vec::with_capacity(rows * stride(width));
        for row in hidden.chunks_exact(width) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + stride(width) - width, 0.0);
        }
        self.gpu.write_f32(&self.scratch.hidden, 0, &padded);
        Ok(())
    }

    fn release_storage(&mut self) -> Result<()> {
        self.kv.clear();
        self.gpu.forget_buffers();
        Ok(())
    }

    fn give_up_device(&mut self) -> bool {
        self.gpu.destroy();
        true
    }
}

/// The values of rows, without what is beyond their width.
fn without_padding(words: &[u32], width: usize) -> Vec<f32> {
    words.chunks_exact(stride(width)).flat_map(|row| &row[..width]).map(|bits| f32::from_bits(*bits)).collect()
}

impl From<GpuError> for Error {
    fn from(error: GpuError) -> Self {
        match error {
            // Other commands still run, and so do models that need less.
            GpuError::OutOfMemory { adapter, what, bytes, available } => Self::TooLittleMemory {
                what: format!("{what} on GPU {adapter}"),
                needed: crate::memory::size(bytes),
                found: available.map_or_else(|| "less".to_owned(), crate::memory::size),
                limit: if available.is_some() { "left of what it may take there" } else { "by what its driver says" },
            },
            error => Self::Gpu(error),
        }
    }
}
