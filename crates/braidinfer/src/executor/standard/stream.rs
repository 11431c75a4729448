//! A decoder of which one layer is in memory at a time.

use braidinfer_model::{DecoderSpec, Param, Slot, Weights};
use candle_core::{DType, Device};

use super::kv_cache::KvCache;
use super::layer::Layer;
use super::layers::{Place, forward_layer, tensor};
use super::linear::Linear;
use super::load::{ComputeDtype, Loader, Matrices};
use super::norm::Norm;
use super::trace::Trace;
use super::{Head, multiplied, values_of};
use crate::Result;
use crate::executor::{Batch, KvCacheConfig, KvDtype, LayerByLayer, Layers, Outputs, Probe};

/// Standard kernels on the CPU over weights that stay in their files, which some other loader has checked. Memory that
/// only caches a layer's part of the file is let go when another layer is asked for. Every product is in f32.
///
/// While a model is loaded its files are mapped; afterwards they may change, and are read instead
/// ([`StandardStream::rereading`]).
pub struct StandardStream<'a> {
    spec: &'a DecoderSpec,
    weights: &'a Weights,
    device: Device,
    dtype: DType,
    matrices: Matrices,
    kv_cache: KvCache,
    loaded: Option<(usize, Layer)>,
    head: Option<(Norm, Linear)>,
}

impl<'a> StandardStream<'a> {
    /// `dtype` is that of the residual stream and of what linear layers return; with f32, keys and values are f32, too,
    /// and f16 otherwise.
    pub fn new(
        spec: &'a DecoderSpec,
        weights: &'a Weights,
        dtype: ComputeDtype,
        block_size: usize,
        num_blocks: usize,
    ) -> Result<Self> {
        let kv_dtype = if dtype == ComputeDtype::F32 { KvDtype::F32 } else { KvDtype::F16 };
        let config = KvCacheConfig { block_size, num_blocks, dtype: kv_dtype };
        let kv_cache = KvCache::new(spec, 0..spec.layers.len(), config, &Device::Cpu)?;
        let (device, dtype, matrices) = (Device::Cpu, dtype.candle(), Matrices::Stored);
        Ok(Self { spec, weights, device, dtype, matrices, kv_cache, loaded: None, head: None })
    }

    /// Over files that may have been written to since the weights were opened, which is then an error.
    pub fn rereading(self) -> Self {
        Self { matrices: Matrices::InFile, ..self }
    }

    fn loader(&self) -> Loader<'_> {
        Loader { spec: self.spec, weights: self.weights, matrices: self.matrices, device: &self.device }
    }

    fn release(&self, layer: usize) {
        let of_layer = |slot: &Slot| matches!(slot, Slot::Layer(index, _) if *index == layer);
        let slots = self.weights.iter().map(|(slot, _, _)| slot).filter(of_layer);
        slots.for_each(|slot| self.weights.release(slot, Param::Weight));
    }

    fn load_head(&self) -> Result<(Norm, Linear)> {
        let loader = self.loader();
        let final_norm = loader.norm(Slot::FinalNorm, &self.spec.norm)?;
        Ok((final_norm.ok_or_else(|| loader.absent(Slot::FinalNorm))?, loader.linear(Slot::LmHead)?))
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        batch.validate(self.spec, &self.kv_cache.config())?;
        self.kv_cache.reserve(batch)
    }
}

impl Layers for StandardStream<'_> {
    fn layer(&mut self, index: usize, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Vec<f32>> {
        self.begin(batch)?;
        let layer = match self.loaded.take() {
            Some((loaded, layer)) if loaded == index => layer,
            loaded => {
                if let Some((loaded, _)) = loaded {
                    self.release(loaded);
                }
                self.loader().layer(index)?
            }
        };
        let place = Place { index, stored: index, kv_cache: &self.kv_cache };
        let x = tensor(hidden, self.spec, self.dtype)?;
        let after = forward_layer(&layer, self.spec, place, batch, x, probe);
        self.loaded = Some((index, layer));
        after
    }
}

impl LayerByLayer for StandardStream<'_> {
    fn embed(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Vec<f32>> {
        self.begin(batch)?;
        let embeddings = self.loader().matrix(Slot::EmbedTokens)?.select(&batch.token_ids, self.dtype)?;
        let x = multiplied(embeddings, self.spec)?;
        Trace::new(probe).record("embed", &x)?;
        values_of(&x)
    }

    fn head(&mut self, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Outputs> {
        let (final_norm, lm_head) = match self.head.take() {
            Some(head) => head,
            None => self.load_head()?,
        };
        let head = Head { spec: self.spec, final_norm: &final_norm, lm_head: &lm_head };
        let outputs = head.outputs(&tensor(hidden, self.spec, self.dtype)?, batch, &mut Trace::new(probe))?;
        self.head = Some((final_norm, lm_head));
        Ok(outputs)
    }
}
