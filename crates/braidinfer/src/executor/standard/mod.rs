//! The standard executor: one decoder over [`DecoderSpec`] in Candle operations, on any Candle device.
//!
//! Written to be obviously right; it is the reference for every other executor. Norms, rotations, scores,
//! softmax and all sums are f32 whatever the compute type; the residual stream and what linear layers
//! return have the compute type. Quantized weights become f32, exactly, whenever they are multiplied.

mod attention;
mod feed_forward;
mod kv_cache;
mod layer;
mod layers;
mod linear;
mod load;
mod matrix;
mod norm;
mod rotary;
mod stream;
mod trace;

use braidinfer_kernels::NumericLevel;
use braidinfer_model::DecoderSpec;
use candle_core::{DType, Device, Tensor};

use self::attention::MaskCache;
use self::kv_cache::KvCache;
use self::layer::Layer;
use self::linear::Linear;
use self::matrix::Matrix;
use self::norm::Norm;
use self::rotary::Rotation;
use self::trace::Trace;
use super::rope_history::RopeHistory;
use super::{ActiveKernels, Batch, Executor, ExecutorReport, KvCacheConfig, Logits, NoProbe, Outputs, Probe};
use crate::Result;

pub use layers::StandardLayers;
pub use load::{ComputeDtype, LoadProgress, QuantizedWeights, StandardOptions};
pub use stream::StandardStream;

/// A decoder in Candle operations.
#[derive(Debug)]
pub struct StandardExecutor {
    spec: DecoderSpec,
    device: Device,
    dtype: DType,
    embed_tokens: Matrix,
    layers: Vec<Layer>,
    final_norm: Norm,
    lm_head: Linear,
    kv_cache: KvCache,
    /// Where RoPE depends on the length of the sequence.
    rope_history: Option<RopeHistory>,
}

impl Executor for StandardExecutor {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn kv_cache(&self) -> KvCacheConfig {
        self.kv_cache.config()
    }

    fn report(&self) -> ExecutorReport {
        let layers = self.layers.iter().flat_map(Layer::projections);
        ExecutorReport {
            kernels: ActiveKernels::Standard,
            isa: "candle",
            threads: rayon::current_num_threads(),
            weight_bytes: layers.chain([&self.lm_head]).map(Linear::weight_bytes).sum(),
            pack_time: None,
            levels: Vec::new(),
            main_level: NumericLevel::F32,
            kv_dtypes: vec![self.kv_cache().dtype; self.spec.layers.len()],
        }
    }

    fn forward(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Outputs> {
        batch.validate(&self.spec, &self.kv_cache.config())?;
        if batch.token_ids.is_empty() {
            return Ok(Outputs::none(self.spec.vocab_size));
        }
        self.kv_cache.reserve(batch)?;
        for piece in self.rope_history.as_ref().map_or(Ok(Vec::new()), |history| history.pieces(batch))? {
            self.decode(&piece, &mut Trace::new(&mut NoProbe))?;
            self.remember(&piece);
        }
        let outputs = self.decode(batch, &mut Trace::new(probe))?;
        self.remember(batch);
        Ok(outputs)
    }
}

impl StandardExecutor {
    fn remember(&mut self, batch: &Batch) {
        if let Some(history) = &mut self.rope_history {
            history.remember(batch);
        }
    }

    fn decode(&self, batch: &Batch, trace: &mut Trace) -> Result<Outputs> {
        let rotations = Rotation::for_batch(&self.spec, batch, &self.device)?;
        let masks = MaskCache::default();
        let mut x = self.embed(&batch.token_ids)?;
        trace.record("embed", &x)?;
        for (index, layer) in self.layers.iter().enumerate() {
            trace.enter_layer(index);
            let context =
                layer::Context { batch, rotations: &rotations, kv_cache: &self.kv_cache, masks: &masks, index };
            x = layer.forward(&x, &context, trace)?;
            trace.record("output", &x)?;
        }
        trace.leave_layers();
        let head = Head { spec: &self.spec, final_norm: &self.final_norm, lm_head: &self.lm_head };
        head.outputs(&x, batch, trace)
    }

    /// The embedding of every token, `[T, h]`.
    fn embed(&self, token_ids: &[u32]) -> Result<Tensor> {
        multiplied(self.embed_tokens.select(token_ids, self.dtype)?, &self.spec)
    }
}

/// Embeddings as the first layer takes them.
fn multiplied(x: Tensor, spec: &DecoderSpec) -> Result<Tensor> {
    if spec.embedding_multiplier == 1.0 {
        return Ok(x);
    }
    // The multiplier is rounded to the compute type before use, as Gemma was trained.
    let multiplier = Tensor::new(spec.embedding_multiplier as f32, x.device())?.to_dtype(x.dtype())?;
    Ok(x.broadcast_mul(&multiplier)?)
}

/// What turns the residual stream into logits.
struct Head<'a> {
    spec: &'a DecoderSpec,
    final_norm: &'a Norm,
    lm_head: &'a Linear,
}

impl Head<'_> {
    /// What `batch` asks for, from the residual stream `x`, `[T, h]`, after the last layer.
    fn outputs(&self, x: &Tensor, batch: &Batch, trace: &mut Trace) -> Result<Outputs> {
        let logits = match batch.logits_rows.is_empty() {
            true => Vec::new(),
            false => values_of(&self.logits(x, &batch.logits_rows, trace)?)?,
        };
        let hidden = match batch.hidden_rows.is_empty() {
            true => Vec::new(),
            false => self.normed(x, &batch.hidden_rows)?.to_dtype(DType::F32)?.to_vec2()?,
        };
        Ok(Outputs { logits: Logits::new(logits, self.spec.vocab_size), hidden })
    }

    /// What the last norm gives for some rows, at least one.
    fn normed(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        self.final_norm.forward(&x.index_select(&Tensor::new(rows, x.device())?, 0)?)
    }

    /// Logits `[rows, V]` in f32 of some rows of `x`, at least one.
    fn logits(&self, x: &Tensor, rows: &[usize], trace: &mut Trace) -> Result<Tensor> {
        let x = self.normed(x, rows)?;
        trace.record("final_norm", &x)?;
        let mut logits = self.lm_head.forward_f32(&x)?;
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

/// Values in f32, row by row.
fn values_of(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// `cap * tanh(x / cap)`.
fn softcap(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(((x / cap)?.tanh()? * cap)?)
}
