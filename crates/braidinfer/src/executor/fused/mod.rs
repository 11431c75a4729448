//! The decoder of a [`DecoderSpec`] in this crate's own CPU kernels.
//!
//! A layer has few steps: norm and activation encoding; query, key and value
//! projections, of latent attention in two steps with a norm between them; query/key norms, RoPE and KV
//! cache writes; attention (or, for both, convolution and the gated delta rule on a recurrent state); gates; output projection with the residual add; norm and encoding; gate and up projections with
//! the activation function; down projection with the residual add. Each step is split into small tasks that threads
//! claim dynamically. The order of sums does not depend on the split: results of a row are bitwise independent of the
//! other rows in the batch and of the number of threads.

mod adapters;
mod attention;
mod batch_layout;
mod delta_net;
mod each_row;
mod encode;
mod heads;
mod kept;
mod kv_cache;
mod latent;
mod laurel;
mod layer;
mod mamba2;
mod mixture;
mod packed;
mod packed_file;
mod packing;
#[cfg(feature = "gpu")]
mod part;
mod per_layer;
#[cfg(test)]
pub(crate) mod planted;
mod product;
mod recurrent_state;
mod scratch;
mod short_conv;
mod streams;
mod trace;
mod weight_memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use braidinfer_kernels::{Isa, LANES, NumericLevel, Pool, ceilings, elementwise};
use braidinfer_model::spec::Mixer;
use braidinfer_model::{Adapter, DecoderSpec, Dtype, Slot, Weights};

use self::adapters::Adapters;
use self::batch_layout::BatchLayout;
use self::encode::{Input, Source};
pub(crate) use self::kept::{Keeping, kept_bytes};
use self::kv_cache::KvCache;
use self::packed::{Ends, PackedDecoder};
#[cfg(feature = "gpu")]
pub(crate) use self::part::load_layers;
use self::per_layer::LayerInputs;
use self::product::Products;
use self::recurrent_state::RecurrentStates;
use self::scratch::Scratch;
use self::streams::StreamScratch;
use self::trace::{Trace, from_panels};
use super::standard::LoadProgress;
use super::{
    ActiveKernels, Capabilities, Decoder, ExecutorReport, KernelPlan, KvCacheConfig, LayerRunner, LayerState, Logits,
    Outputs, Probe, ReadPattern, Step, WantedRows,
};
use crate::{Error, Result, memory};

/// Activations of no more bytes than this are kept while nothing is computed.
const KEPT_SCRATCH: usize = 16 << 20;

/// Options for loading a decoder.
#[derive(Debug, Clone, Copy)]
pub struct FusedOptions {
    /// The coarsest numeric level that projections may use.
    pub coarsest: NumericLevel,
    /// Size of the KV cache; the block size must be a multiple of 16.
    pub kv_cache: KvCacheConfig,
    /// Number of threads, including the calling thread.
    pub threads: usize,
    /// The instruction set of the kernels.
    pub isa: Isa,
}

/// Loads a decoder with fused CPU kernels. Its plan is the fastest that the options allow.
///
/// Fails on a non-finite weight, naming tensor and index, and if the block size is not a multiple of 16.
pub fn load(
    spec: DecoderSpec,
    weights: &Weights,
    options: FusedOptions,
    progress: LoadProgress,
) -> Result<Decoder<'static>> {
    let (plan, runner) = FusedRunner::load(&spec, weights, options, progress)?;
    Ok(Decoder::new(spec, options.kv_cache, plan, runner))
}

/// The same, with packed weights from a file, which is made first if there is none. Returns what the user should know.
pub(crate) fn load_kept(
    spec: DecoderSpec,
    weights: &Weights,
    options: FusedOptions,
    keeping: &Keeping,
    progress: LoadProgress,
) -> Result<(Decoder<'static>, Vec<String>)> {
    let mut notes = Vec::new();
    let (plan, runner) = FusedRunner::with_packed(&spec, weights, options, |plan, pool| {
        kept::load((&spec, weights, plan), keeping, pool, progress, &mut notes)
    })?;
    Ok((Decoder::new(spec, options.kv_cache, plan, runner), notes))
}

/// Size of the parameters once they are packed, in bytes.
pub(crate) fn weight_bytes(weights: &Weights) -> usize {
    packed::weight_bytes(weights)
}

/// A runner for some consecutive layers, or for what comes before and after all of them: `spec` and `weights` have only these.
///
/// Fails like [`load`].
pub(crate) fn load_part(
    spec: &DecoderSpec,
    weights: &Weights,
    options: FusedOptions,
    progress: LoadProgress,
) -> Result<Box<dyn LayerRunner>> {
    Ok(Box::new(FusedRunner::load(spec, weights, options, progress)?.1))
}

/// What the fused kernels guarantee.
pub(super) const CAPABILITIES: Capabilities =
    Capabilities { same_bits_in_company: true, shares_prefixes: true, takes_back_drafts: true, computes_argmax: false };

/// The state that a layer stores with fused kernels.
pub(super) fn layer_state(spec: &DecoderSpec, layer: usize, plan: &KernelPlan, block_size: usize) -> LayerState {
    let bytes_per_token = plan.kv_dtypes[layer].layer_bytes(spec, layer);
    let bytes_per_sequence = memory::layer_state_bytes(spec, layer, block_size);
    let window = match spec.layers[layer].mixer {
        Mixer::Attention { sliding_window, .. } => sliding_window,
        _ => Some(0),
    };
    LayerState { bytes_per_token, bytes_per_sequence, window }
}

/// Runs layers with the fused CPU kernels.
struct FusedRunner {
    spec: DecoderSpec,
    isa: Isa,
    /// The projections that plans have levels for, and their data types.
    projections: Vec<(Slot, Dtype)>,
    weights: PackedDecoder,
    adapters: Adapters,
    pool: Pool,
    kv_cache: KvCache,
    recurrent_states: RecurrentStates,
    scratch: Scratch,
    /// What the largest step so far needed, by an upper estimate.
    scratch_bytes: usize,
    layout: BatchLayout,
    pack_time: Duration,
    #[cfg(test)]
    planted: Option<planted::Planted>,
}

impl FusedRunner {
    /// Packs the weights into memory, and returns the fastest plan for them.
    fn load(
        spec: &DecoderSpec,
        weights: &Weights,
        options: FusedOptions,
        progress: LoadProgress,
    ) -> Result<(KernelPlan, Self)> {
        Self::with_packed(spec, weights, options, |plan, pool| PackedDecoder::load(spec, weights, plan, pool, progress))
    }

    /// The same, with packed weights from `pack`.
    fn with_packed(
        spec: &DecoderSpec,
        weights: &Weights,
        options: FusedOptions,
        pack: impl FnOnce(&KernelPlan, &mut Pool) -> Result<PackedDecoder>,
    ) -> Result<(KernelPlan, Self)> {
        let plan = KernelPlan::fastest(spec, weights, options.coarsest, options.kv_cache.dtype);
        let threads = |error| Error::Unsupported(format!("{} threads: {error}", options.threads));
        let mut pool = Pool::new(options.threads).map_err(threads)?;
        let kv_cache = KvCache::new(spec, options.kv_cache)?;
        let started = Instant::now();
        let packed = pack(&plan, &mut pool)?;
        let runner = Self {
            pack_time: started.elapsed(),
            scratch: Scratch::new(options.threads),
            scratch_bytes: 0,
            layout: BatchLayout::default(),
            isa: options.isa,
            projections: plan.projections.iter().map(|planned| (planned.slot, planned.dtype)).collect(),
            weights: packed,
            adapters: Adapters::default(),
            spec: spec.clone(),
            pool,
            kv_cache,
            recurrent_states: RecurrentStates::new(spec, options.kv_cache.block_size),
            #[cfg(test)]
            planted: None,
        };
        Ok((plan, runner))
    }
}

impl LayerRunner for FusedRunner {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn report(&self, plan: &KernelPlan) -> ExecutorReport {
        ExecutorReport {
            kernels: ActiveKernels::Fused,
            isa: self.isa.name().to_owned(),
            threads: self.pool.threads(),
            weight_bytes: self.weights.bytes(),
            pack_time: Some(self.pack_time),
            levels: plan.summary(),
            main_level: plan.main_level(),
            kv_dtypes: plan.kv_dtypes.clone(),
            device: None,
        }
    }

    fn layer_state(&self, layer: usize, plan: &KernelPlan) -> LayerState {
        layer_state(&self.spec, layer, plan, self.kv_cache.config().block_size)
    }

    fn reserve(&mut self, step: Step<'_>) -> Result<()> {
        self.kv_cache.reserve(step.batch, &step.plan.kv_dtypes)?;
        self.recurrent_states.reserve(step.batch)?;
        let bytes = memory::scratch_bytes(&self.spec, step.batch.token_ids.len(), step.batch.logits_rows.len());
        if bytes > self.scratch_bytes {
            memory::can_grow(bytes - self.scratch_bytes, || memory::of_step(step.batch.token_ids.len()))?;
            self.scratch_bytes = bytes;
        }
        Ok(())
    }

    fn reserved_blocks(&self, plan: &KernelPlan) -> usize {
        self.kv_cache.reserved_blocks(&plan.kv_dtypes)
    }

    fn saved_block_bytes(&self, layer: usize, plan: &KernelPlan) -> Option<usize> {
        Some(self.kv_cache.block_bytes(layer, plan.kv_dtypes[layer]))
    }

    fn save_block(&self, layer: usize, block: u32, plan: &KernelPlan, out: &mut Vec<u8>) {
        self.kv_cache.save_block(layer, block, plan.kv_dtypes[layer], out);
    }

    fn restore_block(&mut self, layer: usize, block: u32, plan: &KernelPlan, bytes: &[u8]) -> Result<()> {
        self.kv_cache.restore_block(layer, block, &plan.kv_dtypes, bytes)
    }

    fn release_scratch(&mut self) -> bool {
        let large = self.scratch_bytes > KEPT_SCRATCH;
        if large {
            self.scratch = Scratch::new(self.pool.threads());
            self.scratch_bytes = 0;
        }
        large
    }

    fn begin(&mut self, step: Step<'_>) -> Result<()> {
        step.plan.check(&self.projections, self.spec.layers.len())?;
        self.kv_cache.reserve(step.batch, &step.plan.kv_dtypes)?;
        self.layout.fill(&self.spec, step.batch, &self.kv_cache);
        self.adapters.begin(step.batch);
        self.weights.begin_step(&mut self.pool);
        self.prepare_layer_inputs(&step.batch.token_ids, step.plan)
    }

    fn embed(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        self.embed_tokens(&step.batch.token_ids)?;
        Trace::new(probe).panels("embed", &self.scratch.hidden, self.layout.rows, self.spec.hidden_size);
        self.spread_streams(step.plan);
        self.weights.check()?;
        Ok(())
    }

    fn layer(&mut self, index: usize, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        let mut trace = Trace::new(probe);
        trace.enter_layer(index);
        self.weights.read_ahead(index + 1);
        self.decode_layer(index, step, &mut trace)?;
        self.weights.check()?;
        let (stream, rows) = self.stream();
        trace.record("output", self.layout.rows, || from_panels(stream, rows, self.spec.hidden_size));
        Ok(())
    }

    fn head(&mut self, rows: WantedRows<'_>, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        let hidden = self.hidden_states(rows.hidden, step.plan)?;
        let logits = self.logits(rows.logits, step.plan, &mut Trace::new(probe))?;
        self.weights.check()?;
        Ok(Outputs { logits, argmax: Vec::new(), hidden })
    }

    fn hidden(&mut self) -> Result<Vec<f32>> {
        let (stream, rows) = self.stream();
        Ok(from_panels(stream, rows, self.spec.hidden_size))
    }

    fn set_hidden(&mut self, values: &[f32]) -> Result<()> {
        let width = self.spec.hidden_size;
        let (hidden, rows) = self.stream_mut();
        if values.len() != rows * width {
            return Err(Error::Internal(format!("{} values for {rows} rows of {width}", values.len())));
        }
        hidden.fill(0.0);
        for (row, values) in values.chunks_exact(width).enumerate() {
            for (panel, values) in values.chunks(LANES).enumerate() {
                hidden[(panel * rows + row) * LANES..][..values.len()].copy_from_slice(values);
            }
        }
        Ok(())
    }

    fn set_adapters(&mut self, adapters: &[Arc<Adapter>]) -> Result<()> {
        self.adapters = Adapters::pack(adapters);
        self.scratch.layer_inputs = LayerInputs::default();
        Ok(())
    }

    fn read_weights(&mut self, pattern: ReadPattern) -> bool {
        for panels in self.weights.all_panels() {
            ceilings::read_once(self.isa, &mut self.pool, panels, pattern);
        }
        true
    }

    fn copy_some_weights(&mut self) -> bool {
        self.weights.copy_some(&mut self.pool)
    }

    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        self.recurrent_states.copy(from, to);
        #[cfg(test)]
        if self.planted == Some(planted::Planted::StatesCopiedWrong) {
            self.recurrent_states.spoil(to);
        }
        Ok(())
    }

    fn release_storage(&mut self) -> Result<()> {
        self.kv_cache.clear();
        self.recurrent_states.clear();
        Ok(())
    }
}

impl FusedRunner {
    /// The hidden state after the final norm, for some rows.
    fn hidden_states(&mut self, wanted: &[usize], plan: &KernelPlan) -> Result<Vec<Vec<f32>>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.merge_streams(wanted, plan);
        let width = self.spec.hidden_size;
        let Scratch { hidden, several, .. } = &self.scratch;
        let source = head_input(&self.spec, hidden, several, (wanted, self.layout.rows));
        let input = Input { source, rows: wanted.len(), width, norm: Some(&self.weights.ends()?.final_norm) };
        Ok(trace::from_input(self.isa, &input).chunks_exact(width).map(<[f32]>::to_vec).collect())
    }

    /// Sets the residual stream to the embedding of every token.
    fn embed_tokens(&mut self, token_ids: &[u32]) -> Result<()> {
        let ends = self.weights.ends()?;
        let (rows, width) = (token_ids.len(), self.spec.hidden_size);
        let multiplier = self.spec.embedding_multiplier as f32;
        let hidden = scratch::panels(&mut self.scratch.hidden, width, rows);
        let mut embedding = vec![0.0; width.next_multiple_of(LANES)];
        for (row, token) in token_ids.iter().enumerate() {
            self.weights.embed(ends, *token, &mut embedding[..width]);
            if multiplier != 1.0 {
                elementwise::scale(self.isa, &mut embedding, multiplier);
            }
            for (panel, values) in embedding.chunks_exact(LANES).enumerate() {
                hidden[(panel * rows + row) * LANES..][..LANES].copy_from_slice(values);
            }
        }
        Ok(())
    }

    /// Logits of some rows.
    fn logits(&mut self, wanted: &[usize], plan: &KernelPlan, trace: &mut Trace) -> Result<Logits> {
        let (vocab, width) = (self.spec.vocab_size, self.spec.hidden_size);
        if wanted.is_empty() {
            return Ok(Logits::new(Vec::new(), vocab));
        }
        self.merge_streams(wanted, plan);
        let Ends { final_norm, lm_head, .. } = self.weights.ends()?;
        let Scratch { hidden, several, normed, logits, rows: scratch, .. } = &mut self.scratch;
        let rows = wanted.len();
        let source = head_input(&self.spec, hidden, several, (wanted, self.layout.rows));
        let input = Input { source, rows, width, norm: Some(final_norm) };
        trace.input("final_norm", self.isa, &input);
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool).of_rows(wanted);
        normed.fill(self.isa, &mut self.pool, scratch, input, products.levels([lm_head].iter()));
        products.all(&mut self.pool, &[lm_head], normed, rows, scratch::panels(logits, vocab, rows));
        if self.spec.logits_scaling != 1.0 {
            // A division, as in the reference: a product with the rounded inverse would differ.
            let scaling = self.spec.logits_scaling as f32;
            logits.iter_mut().for_each(|logit| *logit /= scaling);
        }
        if let Some(cap) = self.spec.final_logit_softcapping {
            elementwise::softcap(self.isa, logits, cap as f32);
        }
        let values = from_panels(logits, rows, vocab);
        trace.record("logits", rows, || values.clone());
        Ok(Logits::new(values, vocab))
    }
}

/// Where the output head reads some rows: of the residual stream of `rows` tokens, or of what was merged of several.
fn head_input<'a>(
    spec: &DecoderSpec,
    hidden: &'a [f32],
    several: &'a StreamScratch,
    (wanted, rows): (&'a [usize], usize),
) -> Source<'a> {
    match spec.altup {
        Some(_) => Source::Panels { data: &several.merged, stride: wanted.len(), select: None },
        None => Source::Panels { data: hidden, stride: rows, select: Some(wanted) },
    }
}
