//! The decoder of a [`DecoderSpec`] in our own kernels.
//!
//! The steps of a layer are few: norm and encoding; query, key and value projections; query/key norms, RoPE and
//! storing; attention; output projection with the residual sum; norm and encoding; gate and up projections with the
//! activation; down projection with the residual sum. Each is cut into small pieces that threads take in turn, and
//! no sum depends on how: a row has the same bits whatever else is in the batch and however many threads run.

mod attention;
mod each_row;
mod encode;
mod heads;
mod kv_cache;
mod layer;
mod layer_by_layer;
mod packed;
mod plan;
#[cfg(test)]
pub(crate) mod planted;
mod product;
mod scratch;
mod step;
mod trace;

use std::time::{Duration, Instant};

use braidinfer_kernels::{Isa, LANES, NumericLevel, Pool, ceilings, elementwise};
use braidinfer_model::{DecoderSpec, Weights};

pub use self::plan::{KernelPlan, LevelCount, PlannedProjection};

use self::encode::{Input, Source};
use self::kv_cache::KvCache;
use self::packed::PackedDecoder;
use self::product::Products;
use self::scratch::Scratch;
use self::step::Step;
use self::trace::Trace;
use super::rope_history::RopeHistory;
use super::standard::LoadProgress;
use super::{ActiveKernels, Batch, Executor, ExecutorReport, KvCacheConfig, Logits, NoProbe, Outputs, Probe};
use crate::{Error, Result};

/// How to load.
#[derive(Debug, Clone, Copy)]
pub struct FusedOptions {
    /// The coarsest level that projections may be multiplied at.
    pub coarsest: NumericLevel,
    /// Key/value storage; the block size is a multiple of 16.
    pub kv_cache: KvCacheConfig,
    /// Threads, the caller included.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
}

/// A decoder in our own kernels, on the CPU.
pub struct FusedExecutor {
    spec: DecoderSpec,
    isa: Isa,
    plan: KernelPlan,
    weights: PackedDecoder,
    pool: Pool,
    kv_cache: KvCache,
    scratch: Scratch,
    step: Step,
    /// Where RoPE depends on the length of the sequence.
    rope_history: Option<RopeHistory>,
    pack_time: Duration,
    #[cfg(test)]
    pub(crate) planted: Option<planted::Planted>,
}

impl FusedExecutor {
    /// Packs the weights at the fastest levels that the options allow.
    ///
    /// Fails on a weight that is not finite, naming tensor and index, and on a block size that is no multiple of 16.
    pub fn load(spec: DecoderSpec, weights: &Weights, options: FusedOptions, progress: LoadProgress) -> Result<Self> {
        let plan = KernelPlan::fastest(&spec, weights, options.coarsest, options.kv_cache.dtype);
        let threads = |error| Error::Unsupported(format!("{} threads: {error}", options.threads));
        let mut pool = Pool::new(options.threads).map_err(threads)?;
        let kv_cache = KvCache::new(&spec, options.kv_cache, &plan.kv_dtypes)?;
        let started = Instant::now();
        let packed = PackedDecoder::load(&spec, weights, &plan, &mut pool, progress)?;
        Ok(Self {
            pack_time: started.elapsed(),
            rope_history: RopeHistory::new(&spec, options.kv_cache.block_size),
            scratch: Scratch::new(options.threads),
            step: Step::default(),
            isa: options.isa,
            weights: packed,
            spec,
            plan,
            pool,
            kv_cache,
            #[cfg(test)]
            planted: None,
        })
    }

    /// Which level multiplies what.
    pub fn plan(&self) -> &KernelPlan {
        &self.plan
    }

    /// Computes by another plan from now on; what was stored of keys and values before is of no use any more. Weights stay
    /// packed as they are.
    ///
    /// Fails on a plan for another model, or with a level that weights of a type cannot be multiplied at.
    pub fn set_plan(&mut self, plan: KernelPlan) -> Result<()> {
        let slots = |plan: &KernelPlan| -> Vec<_> {
            plan.projections.iter().map(|planned| (planned.slot, planned.dtype)).collect()
        };
        if slots(&plan) != slots(&self.plan) || plan.kv_dtypes.len() != self.plan.kv_dtypes.len() {
            return Err(Error::bad_request("kernel_plan", "one for this model", "one for another"));
        }
        if let Some(planned) = plan.projections.iter().find(|planned| !planned.is_possible()) {
            let found = format!("{} for {} weights in {:?}", planned.level.name(), planned.dtype, planned.slot);
            return Err(Error::bad_request("kernel_plan", "a level that its weights can be multiplied at", found));
        }
        self.kv_cache.set_dtypes(&plan.kv_dtypes);
        self.rope_history = RopeHistory::new(&self.spec, self.kv_cache.config().block_size);
        self.weights.set_levels(&plan);
        self.plan = plan;
        Ok(())
    }

    /// Lets the memory of all stored keys and values go.
    pub fn release_kv_cache(&mut self) -> Result<()> {
        self.kv_cache = KvCache::new(&self.spec, self.kv_cache.config(), &self.plan.kv_dtypes)?;
        Ok(())
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of the packed matrices: what a step of one token reads, but for keys and values.
    pub fn packed_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// How long packing took.
    pub fn pack_time(&self) -> Duration {
        self.pack_time
    }
}

impl Executor for FusedExecutor {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn kv_cache(&self) -> KvCacheConfig {
        self.kv_cache.config()
    }

    fn report(&self) -> ExecutorReport {
        ExecutorReport {
            kernels: ActiveKernels::Fused,
            isa: self.isa.name(),
            threads: self.pool.threads(),
            weight_bytes: self.weights.bytes(),
            pack_time: Some(self.pack_time),
            levels: self.plan.summary(),
            main_level: self.weights.main_level(),
            kv_dtypes: self.plan.kv_dtypes.clone(),
        }
    }

    fn read_weights(&mut self) -> bool {
        ceilings::read_once(self.isa, &mut self.pool, self.weights.all_panels());
        true
    }

    fn forward(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Outputs> {
        batch.validate(&self.spec, &self.kv_cache.config())?;
        if batch.token_ids.is_empty() {
            return Ok(Outputs::none(self.spec.vocab_size));
        }
        self.kv_cache.reserve(batch);
        for piece in self.rope_history.as_ref().map_or(Ok(Vec::new()), |history| history.pieces(batch))? {
            self.decode(&piece, &mut Trace::new(&mut NoProbe));
            self.remember(&piece);
        }
        let outputs = self.decode(batch, &mut Trace::new(probe));
        self.remember(batch);
        Ok(outputs)
    }
}

impl FusedExecutor {
    fn remember(&mut self, batch: &Batch) {
        if let Some(history) = &mut self.rope_history {
            history.remember(batch);
        }
    }

    fn decode(&mut self, batch: &Batch, trace: &mut Trace) -> Outputs {
        self.step.fill(&self.spec, batch, &self.kv_cache);
        self.embed(&batch.token_ids);
        trace.panels("embed", &self.scratch.hidden, self.step.rows, self.spec.hidden_size);
        for index in 0..self.spec.layers.len() {
            trace.enter_layer(index);
            self.decode_layer(index, trace);
            trace.panels("output", &self.scratch.hidden, self.step.rows, self.spec.hidden_size);
        }
        trace.leave_layers();
        self.outputs(batch, trace)
    }

    /// What the batch asks for, from the residual stream after the last layer.
    fn outputs(&mut self, batch: &Batch, trace: &mut Trace) -> Outputs {
        Outputs { hidden: self.hidden_states(&batch.hidden_rows), logits: self.head(&batch.logits_rows, trace) }
    }

    /// What the last norm gives for some rows.
    fn hidden_states(&self, wanted: &[usize]) -> Vec<Vec<f32>> {
        if wanted.is_empty() {
            return Vec::new();
        }
        let width = self.spec.hidden_size;
        let source = Source::Panels { data: &self.scratch.hidden, stride: self.step.rows, select: Some(wanted) };
        let input = Input { source, rows: wanted.len(), width, norm: Some(&self.weights.final_norm) };
        trace::from_input(self.isa, &input).chunks_exact(width).map(<[f32]>::to_vec).collect()
    }

    /// The embedding of every token into the residual stream.
    fn embed(&mut self, token_ids: &[u32]) {
        let (rows, width) = (token_ids.len(), self.spec.hidden_size);
        let multiplier = self.spec.embedding_multiplier as f32;
        let hidden = scratch::panels(&mut self.scratch.hidden, width, rows);
        let mut embedding = vec![0.0; width.next_multiple_of(LANES)];
        for (row, token) in token_ids.iter().enumerate() {
            self.weights.embed(*token, &mut embedding[..width]);
            if multiplier != 1.0 {
                elementwise::scale(self.isa, &mut embedding, multiplier);
            }
            for (panel, values) in embedding.chunks_exact(LANES).enumerate() {
                hidden[(panel * rows + row) * LANES..][..LANES].copy_from_slice(values);
            }
        }
    }

    /// Logits of the wanted rows.
    fn head(&mut self, wanted: &[usize], trace: &mut Trace) -> Logits {
        let (vocab, width) = (self.spec.vocab_size, self.spec.hidden_size);
        if wanted.is_empty() {
            return Logits::new(Vec::new(), vocab);
        }
        let Scratch { hidden, normed, logits, rows: scratch, .. } = &mut self.scratch;
        let rows = wanted.len();
        let source = Source::Panels { data: hidden, stride: self.step.rows, select: Some(wanted) };
        let input = Input { source, rows, width, norm: Some(&self.weights.final_norm) };
        trace.input("final_norm", self.isa, &input);
        let products = Products { isa: self.isa, weights: &self.weights, threads: self.pool.threads() };
        let lm_head = &self.weights.lm_head;
        normed.fill(self.isa, &mut self.pool, scratch, input, &[lm_head]);
        products.all(&mut self.pool, &[lm_head], normed, rows, scratch::panels(logits, vocab, rows));
        if self.spec.logits_scaling != 1.0 {
            // A division, as in the reference, and not a product with the rounded inverse.
            let scaling = self.spec.logits_scaling as f32;
            logits.iter_mut().for_each(|logit| *logit /= scaling);
        }
        if let Some(cap) = self.spec.final_logit_softcapping {
            elementwise::softcap(self.isa, logits, cap as f32);
        }
        let values = trace::from_panels(logits, rows, vocab);
        trace.record("logits", rows, || values.clone());
        Logits::new(values, vocab)
    }
}
