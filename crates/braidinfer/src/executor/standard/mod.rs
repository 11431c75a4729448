//! The standard kernels: a decoder for a [`DecoderSpec`] in Candle operations, on any Candle device.
//!
//! Written to be obviously right; it is the reference for all other kernels. Norms, rotations, scores, softmax and all
//! sums are f32 in every compute type; the residual stream and the outputs of linear layers have the compute type.
//! Quantized weights are dequantized exactly, to f32, in every multiplication.

mod adapters;
mod attention;
mod decoder_weights;
mod delta_net;
mod feed_forward;
mod group;
mod input_squares;
mod kv_cache;
mod latent;
mod laurel;
mod layer;
mod linear;
mod load;
mod mamba2;
mod matrix;
mod mixture;
mod norm;
mod per_layer;
mod recurrent_state;
mod rotary;
mod short_conv;
mod streams;
mod trace;

use std::collections::BTreeSet;
use std::sync::Arc;

use braidinfer_kernels::NumericLevel;
use braidinfer_model::{Adapter, DecoderSpec, Param, Slot, TensorView, Weights};
use candle_core::{DType, Device, Tensor};

use self::adapters::{ActiveAdapter, AdapterTensors};
use self::decoder_weights::{DecoderWeights, HeadWeights};
use self::group::{Group, StepTensors};
use self::kv_cache::KvCache;
use self::layer::Context;
use self::recurrent_state::RecurrentStates;
use self::trace::Trace;
use super::{
    ActiveKernels, Batch, Capabilities, Decoder, ExecutorReport, KernelPlan, KvCacheConfig, KvDtype, LayerRunner,
    LayerState, Logits, Outputs, Probe, SequenceSlice, Step, WantedRows,
};
use crate::contained::contained;
use crate::threads::Threads;
use crate::{Error, Result, memory};

pub use input_squares::{InputSquares, Squares};
pub use load::{ComputeDtype, LoadProgress, QuantizedWeights, StandardOptions};

/// Loads a decoder in Candle operations. Its weights are copied into matrices, several layers in parallel.
///
/// Fails on a weight that is not finite (or outside the range of the compute type), naming tensor and index.
pub fn load(
    spec: DecoderSpec,
    weights: &Weights,
    options: StandardOptions,
    progress: LoadProgress,
) -> Result<Decoder<'static>> {
    load_and_tell(spec, weights, options, None, progress)
}

/// Like [`load`]; the decoder adds to `inputs` what its linear layers are given.
pub fn load_observed(
    spec: DecoderSpec,
    weights: &Weights,
    options: StandardOptions,
    inputs: &Arc<InputSquares>,
    progress: LoadProgress,
) -> Result<Decoder<'static>> {
    load_and_tell(spec, weights, options, Some(inputs), progress)
}

fn load_and_tell(
    spec: DecoderSpec,
    weights: &Weights,
    options: StandardOptions,
    inputs: Option<&Arc<InputSquares>>,
    progress: LoadProgress,
) -> Result<Decoder<'static>> {
    let device = options.device.open()?;
    let adapter = ActiveAdapter::default();
    let decoder_weights = options
        .threads
        .run(|| DecoderWeights::load_all(&spec, weights, &options, &device, (inputs, &adapter), progress))?;
    let decoder_weights = (decoder_weights, adapter);
    let plan = KernelPlan::fastest(&spec, weights, NumericLevel::F32, options.kv_cache.dtype);
    let (storage, layers) = (options.kv_cache, 0..spec.layers.len());
    let runner = StandardRunner::new(&spec, decoder_weights, layers, options.dtype, storage, device, options.threads)?;
    Ok(Decoder::new(spec, storage, plan, runner))
}

/// Loads some layers in f32 on the CPU, without expanding quantized weights, with keys and values in f32: for a decoder
/// whose other layers use other kernels. `storage` is the size of that decoder's KV cache.
///
/// Fails on a non-finite weight, naming tensor and index.
pub fn load_layers(
    spec: &DecoderSpec,
    weights: &Weights,
    layers: &BTreeSet<usize>,
    storage: KvCacheConfig,
    threads: &Threads,
) -> Result<impl LayerRunner + use<>> {
    let storage = KvCacheConfig { dtype: KvDtype::F32, ..storage };
    let adapter = ActiveAdapter::default();
    let decoder_weights = (DecoderWeights::load_layers(spec, weights, layers, &adapter)?, adapter);
    let layers = layers.iter().copied();
    StandardRunner::new(spec, decoder_weights, layers, ComputeDtype::F32, storage, Device::Cpu, threads.clone())
}

/// Size of the parameters in memory, in bytes.
pub(crate) fn weight_bytes(weights: &Weights, dtype: ComputeDtype, quantized: QuantizedWeights) -> usize {
    let tied = weights.head_is_embedding();
    let loaded = weights.iter().filter(|(slot, param, _)| !(tied && *slot == Slot::LmHead && *param == Param::Weight));
    loaded.map(|(_, param, view)| parameter_bytes(param, &view, dtype, quantized)).fold(0, usize::saturating_add)
}

/// Size of the parameters of layers that [`load_layers`] loads, in bytes.
pub(crate) fn layer_bytes(weights: &Weights, layers: &BTreeSet<usize>) -> usize {
    let of_layers =
        |slot: Slot| matches!(slot, Slot::Layer(layer, _) | Slot::Expert(layer, ..) if layers.contains(&layer));
    let loaded = weights.iter().filter(|(slot, ..)| of_layers(*slot));
    let bytes = loaded.map(|(_, param, view)| parameter_bytes(param, &view, ComputeDtype::F32, QuantizedWeights::Keep));
    bytes.fold(0, usize::saturating_add)
}

fn parameter_bytes(param: Param, view: &TensorView<'_>, dtype: ComputeDtype, quantized: QuantizedWeights) -> usize {
    match (param, view.shape.len()) {
        (Param::Weight, 2) if view.dtype.is_quantized() && quantized == QuantizedWeights::Keep => view.data.len(),
        (Param::Weight, 2) => view.len().saturating_mul(dtype.candle().size_in_bytes()),
        _ => view.len() * size_of::<f32>(),
    }
}

/// Options for reading weights while they are used.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Data type of the residual stream and of the outputs of linear layers. Keys and values are f32 if this is f32,
    /// and f16 otherwise.
    pub dtype: ComputeDtype,
    /// Tokens per block.
    pub block_size: usize,
    /// Number of blocks.
    pub num_blocks: usize,
    /// The compute threads.
    pub threads: Threads,
}

/// A decoder on the CPU that holds one layer at a time in memory. The weights stay in their files and must have been
/// checked by another loader; if they were written to since they were opened, that is an error. All products are in f32.
pub fn stream<'a>(spec: &DecoderSpec, weights: &'a Weights, options: StreamOptions) -> Result<Decoder<'a>> {
    let StreamOptions { dtype, block_size, num_blocks, threads } = options;
    let kv_dtype = if dtype == ComputeDtype::F32 { KvDtype::F32 } else { KvDtype::F16 };
    let storage = KvCacheConfig { block_size, num_blocks, dtype: kv_dtype };
    let (adapter, layers) = (ActiveAdapter::default(), 0..spec.layers.len());
    let decoder_weights = (DecoderWeights::stream(weights, adapter.clone()), adapter);
    let runner = StandardRunner::new(spec, decoder_weights, layers, dtype, storage, Device::Cpu, threads)?;
    let plan = KernelPlan::fastest(spec, weights, NumericLevel::F32, kv_dtype);
    Ok(Decoder::new(spec.clone(), storage, plan, runner))
}

/// Runs layers in Candle operations; products and attention run on its own threads.
struct StandardRunner<'a> {
    spec: DecoderSpec,
    weights: DecoderWeights<'a>,
    device: Device,
    dtype: DType,
    kv_cache: KvCache,
    recurrent_states: RecurrentStates,
    /// What linear layers compute with besides their weights at the moment.
    active: ActiveAdapter,
    /// All adapters, by index.
    adapters: Vec<Arc<AdapterTensors>>,
    /// The current step.
    groups: Vec<Group>,
    /// Further inputs of all layers for the tokens of a group.
    per_layer_inputs: Vec<PerLayerInputsOf>,
    /// Whether a step since the last rest needed much memory.
    ran_large: bool,
    threads: Threads,
}

/// Further inputs of all layers, `[T, layers, p]`, and the tokens and the adapter that they are for.
struct PerLayerInputsOf {
    adapter: Option<u32>,
    tokens: Vec<u32>,
    inputs: Tensor,
}

/// Starts the threads of Candle's quantized products now, while there is memory for their stacks: in the middle of a step it would
/// panic.
fn start_candle_threads() -> Result<()> {
    let started = contained(|| candle_core::utils::barrier_pool().n_workers());
    started.map(|_| ()).map_err(|_| Error::TooLittleMemory {
        what: "threads of the standard kernels".into(),
        needed: "2 MB for the stack of each".into(),
        found: "less".into(),
        limit: "in the limits of this process",
    })
}

impl<'a> StandardRunner<'a> {
    fn new(
        spec: &DecoderSpec,
        (weights, active): (DecoderWeights<'a>, ActiveAdapter),
        layers: impl IntoIterator<Item = usize>,
        dtype: ComputeDtype,
        storage: KvCacheConfig,
        device: Device,
        threads: Threads,
    ) -> Result<Self> {
        start_candle_threads()?;
        let layers: Vec<usize> = layers.into_iter().collect();
        let kv_cache = KvCache::new(spec, layers.iter().copied(), storage, &device)?;
        let recurrent_states = RecurrentStates::new(spec, &layers, storage.block_size);
        let (spec, dtype) = (spec.clone(), dtype.candle());
        Ok(Self {
            spec,
            weights,
            device,
            dtype,
            kv_cache,
            recurrent_states,
            active,
            adapters: Vec::new(),
            groups: Vec::new(),
            per_layer_inputs: Vec::new(),
            ran_large: false,
            threads,
        })
    }

    /// The groups of the current step, for work that may fail; they must be put back.
    fn take_groups(&mut self) -> Result<Vec<Group>> {
        match std::mem::take(&mut self.groups) {
            groups if groups.is_empty() => Err(no_stream()),
            groups => Ok(groups),
        }
    }

    /// Runs `work` for each group of the step, with its adapter active.
    fn for_each_group(&mut self, mut work: impl FnMut(&mut Self, &mut Group) -> Result<()>) -> Result<()> {
        let mut groups = self.take_groups()?;
        let done = groups.iter_mut().try_for_each(|group| {
            self.active.set(group.adapter.map(|adapter| Arc::clone(&self.adapters[adapter as usize])));
            work(self, group)
        });
        self.active.set(None);
        self.groups = groups;
        done
    }

    /// The embedding of every token, `[T, h]`.
    fn embedding(&mut self, batch: &Batch) -> Result<Tensor> {
        let embed_tokens = self.weights.embed_tokens(&self.spec, &self.device)?;
        scaled(embed_tokens.select(&batch.token_ids, self.dtype)?, self.spec.embedding_multiplier)
    }

    /// Computes the further inputs of all layers, if the architecture has any. They depend on the tokens and their adapters
    /// alone, so that layers that are run one at a time share them.
    fn prepare_per_layer_inputs(&mut self) -> Result<()> {
        let are_for = |known: &PerLayerInputsOf, group: &Group| {
            known.adapter == group.adapter && known.tokens == group.batch.token_ids
        };
        let known = &self.per_layer_inputs;
        let are_known = known.len() == self.groups.len()
            && known.iter().zip(&self.groups).all(|(known, group)| are_for(known, group));
        if self.spec.per_layer_inputs.is_none() || are_known {
            return Ok(());
        }
        self.per_layer_inputs.clear();
        self.for_each_group(|runner, group| {
            let (x, tokens) = (runner.embedding(&group.batch)?, group.batch.token_ids.clone());
            let inputs = runner.weights.per_layer_inputs(&tokens, &x, (&runner.spec, &runner.device))?;
            let adapter = group.adapter;
            runner.per_layer_inputs.extend(inputs.map(|inputs| PerLayerInputsOf { adapter, tokens, inputs }));
            Ok(())
        })
    }

    fn decode_layer(&mut self, index: usize, group: &mut Group, trace: &mut Trace) -> Result<()> {
        let x = group.hidden.clone().ok_or_else(no_stream)?;
        let layer = self.weights.layer(index, &self.spec, &self.device)?;
        let StepTensors { rotations, masks } = &group.tensors;
        let (kv_cache, recurrent_states, batch) = (&self.kv_cache, &self.recurrent_states, &group.batch);
        let own = self.per_layer_inputs.iter().find(|known| known.adapter == group.adapter);
        let per_layer_inputs = own.map(|known| &known.inputs);
        let context = Context { batch, rotations, kv_cache, masks, recurrent_states, per_layer_inputs, index };
        trace.enter_layer(index);
        let x = layer.forward(&x, &context, trace)?;
        trace.record("output", &x)?;
        group.hidden = Some(x);
        Ok(())
    }

    fn outputs(&mut self, wanted: WantedRows<'_>, trace: &mut Trace) -> Result<Outputs> {
        let vocab_size = self.spec.vocab_size;
        let mut logits = vec![0.0; wanted.logits.len() * vocab_size];
        let mut hidden = vec![Vec::new(); wanted.hidden.len()];
        self.for_each_group(|runner, group| {
            let x = group.hidden.clone().ok_or_else(no_stream)?;
            let weights = runner.weights.head(&runner.spec, &runner.device)?;
            let (of_logits, of_hidden) = (group.own_rows(wanted.logits), group.own_rows(wanted.hidden));
            let rows = WantedRows { logits: &of_logits.1, argmax: &[], hidden: &of_hidden.1 };
            let outputs = Head { spec: &runner.spec, weights }.outputs(&x, rows, trace)?;
            for (index, place) in of_logits.0.into_iter().enumerate() {
                logits[place * vocab_size..][..vocab_size].copy_from_slice(outputs.logits.row(index));
            }
            for (place, state) in of_hidden.0.into_iter().zip(outputs.hidden) {
                hidden[place] = state;
            }
            Ok(())
        })?;
        Ok(Outputs { logits: Logits::new(logits, vocab_size), argmax: Vec::new(), hidden })
    }
}

fn no_stream() -> Error {
    Error::Internal("a step of standard kernels has no residual stream".into())
}

impl LayerRunner for StandardRunner<'_> {
    fn capabilities(&self) -> Capabilities {
        // A matrix library may sum a row in another order when the batch has other rows.
        Capabilities {
            same_bits_in_company: false,
            shares_prefixes: true,
            takes_back_drafts: true,
            computes_argmax: false,
        }
    }

    fn report(&self, _plan: &KernelPlan) -> ExecutorReport {
        ExecutorReport {
            kernels: ActiveKernels::Standard,
            isa: "candle".to_owned(),
            threads: self.threads.count(),
            weight_bytes: self.weights.weight_bytes(),
            pack_time: None,
            levels: Vec::new(),
            main_level: NumericLevel::F32,
            kv_dtypes: vec![self.kv_cache.config().dtype; self.spec.layers.len()],
            device: None,
        }
    }

    fn layer_state(&self, layer: usize, _plan: &KernelPlan) -> LayerState {
        let config = self.kv_cache.config();
        let bytes_per_sequence = memory::layer_state_bytes(&self.spec, layer, config.block_size);
        let bytes_per_token = config.dtype.layer_bytes(&self.spec, layer);
        // Keys outside the sliding window are read and then masked, so they must stay.
        let window = if self.spec.attention(layer).is_some() { None } else { Some(0) };
        LayerState { bytes_per_token, bytes_per_sequence, window }
    }

    fn reserve(&mut self, step: Step<'_>) -> Result<()> {
        self.kv_cache.reserve(step.batch)?;
        self.recurrent_states.reserve(step.batch)?;
        let bytes = scratch_bytes(&self.spec, step.batch);
        if bytes < UNCHECKED_SCRATCH {
            return Ok(());
        }
        self.ran_large = true;
        memory::can_grow(bytes, || memory::of_step(step.batch.token_ids.len()))
    }

    fn release_scratch(&mut self) -> bool {
        self.groups.clear();
        self.per_layer_inputs.clear();
        std::mem::take(&mut self.ran_large)
    }

    fn reserved_blocks(&self, _plan: &KernelPlan) -> usize {
        self.kv_cache.reserved_blocks()
    }

    fn begin(&mut self, step: Step<'_>) -> Result<()> {
        self.kv_cache.reserve(step.batch)?;
        self.groups = Group::all(step.batch, &self.spec, &self.device)?;
        let threads = self.threads.clone();
        threads.run(|| self.prepare_per_layer_inputs())
    }

    fn embed(&mut self, _step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        let (threads, mut trace) = (self.threads.clone(), Trace::new(probe));
        threads.run(|| {
            self.for_each_group(|runner, group| {
                let x = runner.embedding(&group.batch)?;
                trace.record("embed", &x)?;
                group.hidden = Some(runner.weights.spread(x, &runner.spec, &runner.device)?);
                Ok(())
            })
        })
    }

    fn layer(&mut self, index: usize, _step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        let (threads, mut trace) = (self.threads.clone(), Trace::new(probe));
        threads.run(|| self.for_each_group(|runner, group| runner.decode_layer(index, group, &mut trace)))
    }

    fn head(&mut self, rows: WantedRows<'_>, _step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        let threads = self.threads.clone();
        threads.run(|| self.outputs(rows, &mut Trace::new(probe)))
    }

    fn hidden(&mut self) -> Result<Vec<f32>> {
        let width = self.spec.stream_width();
        let mut hidden = vec![0.0; width * self.groups.iter().map(|group| group.rows.len()).sum::<usize>()];
        for group in &self.groups {
            let x = group.hidden.as_ref().ok_or_else(no_stream)?;
            let values: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            for (row, values) in group.rows.iter().zip(values.chunks_exact(width)) {
                hidden[row * width..][..width].copy_from_slice(values);
            }
        }
        Ok(hidden)
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        let (width, stream_width) = (self.spec.hidden_size, self.spec.stream_width());
        for group in &mut self.groups {
            let of_row = |row: &usize| hidden[row * stream_width..][..stream_width].iter().copied();
            let (values, rows): (Vec<f32>, usize) = (group.rows.iter().flat_map(of_row).collect(), group.rows.len());
            let x = match self.spec.altup {
                Some(_) => Tensor::from_vec(values, (rows, self.spec.streams(), width), &self.device)?,
                None => Tensor::from_vec(values, (rows, width), &self.device)?,
            };
            group.hidden = Some(x.to_dtype(self.dtype)?);
        }
        Ok(())
    }

    fn set_adapters(&mut self, adapters: &[Arc<Adapter>]) -> Result<()> {
        let tensors = |adapter: &Arc<Adapter>| AdapterTensors::new(adapter, &self.device).map(Arc::new);
        self.adapters = adapters.iter().map(tensors).collect::<Result<_>>()?;
        self.per_layer_inputs.clear();
        Ok(())
    }

    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        self.recurrent_states.copy(from, to);
        Ok(())
    }

    fn release_storage(&mut self) -> Result<()> {
        self.recurrent_states.clear();
        self.kv_cache.clear()
    }
}

/// Steps that need no more bytes than this are run without looking for room.
const UNCHECKED_SCRATCH: usize = 8 << 20;

/// Activations of a step, in bytes: those of any kernels, and for the longest sequence its keys and values in f32, twice, its
/// mask, and its scores, before and after they are masked or made probabilities. Scores of the step before were a little
/// smaller, so that the allocator may not find room for these where those were: they are counted once more.
fn scratch_bytes(spec: &DecoderSpec, batch: &Batch) -> usize {
    let (rows, logits) = (batch.token_ids.len(), batch.logits_rows.len());
    let attentions = || spec.layer_attentions();
    let heads = attentions().map(|attention| attention.num_attention_heads).max().unwrap_or(0);
    let width = attentions().map(|attention| 4 * attention.key_value_width()).max().unwrap_or(0);
    let of = |sequence: &SequenceSlice| sequence.positions().end * ((3 * heads + 1) * sequence.query_len + width);
    let longest = batch.sequences.iter().map(of).max().unwrap_or(0);
    memory::scratch_bytes(spec, rows, logits).saturating_add(longest.saturating_mul(size_of::<f32>()))
}

/// Embeddings times a multiplier.
fn scaled(x: Tensor, multiplier: f64) -> Result<Tensor> {
    if multiplier == 1.0 {
        return Ok(x);
    }
    // The multiplier is rounded to the compute type before use, as in the training of Gemma.
    let multiplier = Tensor::new(multiplier as f32, x.device())?.to_dtype(x.dtype())?;
    Ok(x.broadcast_mul(&multiplier)?)
}

/// The output head.
struct Head<'a> {
    spec: &'a DecoderSpec,
    weights: &'a HeadWeights,
}

impl Head<'_> {
    /// The requested outputs, from the residual stream `x`, `[T, h]`, or all streams, `[T, K, h]`, after the last layer.
    fn outputs(&self, x: &Tensor, rows: WantedRows<'_>, trace: &mut Trace) -> Result<Outputs> {
        let logits = match rows.logits.is_empty() {
            true => Vec::new(),
            false => self.logits(x, rows.logits, trace)?.flatten_all()?.to_vec1()?,
        };
        let hidden = match rows.hidden.is_empty() {
            true => Vec::new(),
            false => self.normed(x, rows.hidden)?.to_dtype(DType::F32)?.to_vec2()?,
        };
        Ok(Outputs { logits: Logits::new(logits, self.spec.vocab_size), argmax: Vec::new(), hidden })
    }

    /// The hidden states of some rows (at least one) after the final norm.
    fn normed(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let x = x.index_select(&Tensor::new(rows, x.device())?, 0)?;
        let x = self.weights.unembeddings.as_ref().map_or(Ok(x.clone()), |projections| projections.merged(&x))?;
        self.weights.final_norm.forward(&x)
    }

    /// Logits `[rows, V]` in f32 of some rows of `x` (at least one).
    fn logits(&self, x: &Tensor, rows: &[usize], trace: &mut Trace) -> Result<Tensor> {
        let x = self.normed(x, rows)?;
        trace.record("final_norm", &x)?;
        let mut logits = self.weights.lm_head.forward_f32(&x)?;
        if self.spec.logits_scaling != 1.0 {
            logits = (logits / self.spec.logits_scaling)?;
        }
        if let Some(cap) = self.spec.final_logit_softcapping {
            logits = softcap(&logits, cap)?;
        }
        trace.record("logits", &logits)?;
        Ok(logits)
    }
}

/// `cap * tanh(x / cap)`.
fn softcap(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(((x / cap)?.tanh()? * cap)?)
}
