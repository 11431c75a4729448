//! Some layers of a decoder, for an executor that computes the others otherwise.

use std::collections::{BTreeMap, BTreeSet};

use braidinfer_model::{DecoderSpec, Weights};
use candle_core::{DType, Device, Tensor};

use super::attention::MaskCache;
use super::kv_cache::KvCache;
use super::layer::{self, Layer};
use super::load::{ComputeDtype, Loader, Matrices, QuantizedWeights};
use super::rotary::Rotation;
use super::trace::Trace;
use super::values_of;
use crate::executor::{Batch, KvCacheConfig, KvDtype, Layers, Probe};
use crate::{Error, Result};

/// Layers in f32 on the CPU, quantized weights as they are, keys and values in f32.
#[derive(Debug)]
pub struct StandardLayers {
    spec: DecoderSpec,
    layers: BTreeMap<usize, Layer>,
    kv_cache: KvCache,
}

impl StandardLayers {
    /// Copies the weights of some layers; `storage` has the shape of the key/value storage.
    ///
    /// Fails on a weight that is not finite, naming tensor and index.
    pub fn load(
        spec: DecoderSpec,
        weights: &Weights,
        layers: &BTreeSet<usize>,
        storage: KvCacheConfig,
    ) -> Result<Self> {
        let matrices = Matrices::Loaded(ComputeDtype::F32, QuantizedWeights::Keep);
        let loader = Loader { spec: &spec, weights, matrices, device: &Device::Cpu };
        let layers: BTreeMap<usize, Layer> =
            layers.iter().map(|index| Ok((*index, loader.layer(*index)?))).collect::<Result<_>>()?;
        let storage = KvCacheConfig { dtype: KvDtype::F32, ..storage };
        let kv_cache = KvCache::new(&spec, layers.keys().copied(), storage, &Device::Cpu)?;
        Ok(Self { spec, layers, kv_cache })
    }

    /// Which layers these are, in order.
    pub fn indices(&self) -> impl Iterator<Item = usize> {
        self.layers.keys().copied()
    }
}

impl Layers for StandardLayers {
    fn layer(&mut self, index: usize, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Vec<f32>> {
        batch.validate(&self.spec, &self.kv_cache.config())?;
        self.kv_cache.reserve(batch)?;
        let stored = self.indices().position(|own| own == index);
        let absent = || Error::Internal(format!("layer {index} is not among those of standard kernels"));
        let place = Place { index, stored: stored.ok_or_else(absent)?, kv_cache: &self.kv_cache };
        forward_layer(&self.layers[&index], &self.spec, place, batch, tensor(hidden, &self.spec, DType::F32)?, probe)
    }
}

/// Which layer it is, and where its keys and values are.
pub(super) struct Place<'a> {
    pub(super) index: usize,
    /// Its place in the storage.
    pub(super) stored: usize,
    pub(super) kv_cache: &'a KvCache,
}

/// One layer on the CPU, on `x` of shape `[T, h]`.
pub(super) fn forward_layer(
    layer: &Layer,
    spec: &DecoderSpec,
    place: Place,
    batch: &Batch,
    x: Tensor,
    probe: &mut dyn Probe,
) -> Result<Vec<f32>> {
    let rotations = Rotation::for_batch(spec, batch, &Device::Cpu)?;
    let masks = MaskCache::default();
    let Place { index, stored, kv_cache } = place;
    let context = layer::Context { batch, rotations: &rotations, kv_cache, masks: &masks, index: stored };
    let mut trace = Trace::new(probe);
    trace.enter_layer(index);
    let x = layer.forward(&x, &context, &mut trace)?;
    trace.record("output", &x)?;
    values_of(&x)
}

/// A residual stream as a tensor `[T, h]`.
pub(super) fn tensor(hidden: &[f32], spec: &DecoderSpec, dtype: DType) -> Result<Tensor> {
    let width = spec.hidden_size;
    Ok(Tensor::from_slice(hidden, (hidden.len() / width, width), &Device::Cpu)?.to_dtype(dtype)?)
}
