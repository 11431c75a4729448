//! The weights of a step: all in memory, or streamed from their files one layer at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use braidinfer_model::{DecoderSpec, Param, Slot, Weights};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::adapters::ActiveAdapter;
use super::input_squares::InputSquares;
use super::layer::Layer;
use super::linear::Linear;
use super::load::{ComputeDtype, LoadProgress, Loader, Matrices, QuantizedWeights, StandardOptions};
use super::matrix::Matrix;
use super::norm::Norm;
use super::per_layer::PerLayerInputs;
use super::streams::StreamProjections;
use crate::{Error, Result};

/// The weights of a decoder.
pub(super) enum DecoderWeights<'a> {
    /// Layers by index, and embedding and output head if this runner computes them.
    Loaded {
        layers: BTreeMap<usize, Layer>,
        embed_tokens: Option<Matrix>,
        per_layer_inputs: Option<Box<PerLayerInputs>>,
        /// From the embedding to further residual streams.
        stream_projections: Option<StreamProjections>,
        head: Option<HeadWeights>,
    },
    /// The most recently used layer, and the output head after its first use.
    Streamed {
        weights: &'a Weights,
        adapter: ActiveAdapter,
        layer: Option<(usize, Box<Layer>)>,
        head: Option<HeadWeights>,
    },
}

/// The weights that turn the residual stream into logits.
pub(super) struct HeadWeights {
    /// From further residual streams to what the head reads.
    pub(super) unembeddings: Option<StreamProjections>,
    pub(super) final_norm: Norm,
    pub(super) lm_head: Linear,
}

impl<'a> DecoderWeights<'a> {
    /// All weights, copied in parallel. Their linear layers tell `inputs` of what they are given.
    pub(super) fn load_all(
        spec: &DecoderSpec,
        weights: &Weights,
        options: &StandardOptions,
        device: &Device,
        (inputs, adapter): (Option<&Arc<InputSquares>>, &ActiveAdapter),
        progress: LoadProgress,
    ) -> Result<Self> {
        let matrices = Matrices::Loaded(options.dtype, options.quantized_weights);
        let loader = Loader { spec, weights, matrices, device, inputs, adapter };
        let done = AtomicUsize::new(0);
        let layer = |index: usize| {
            let layer = loader.layer(index)?;
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, spec.layers.len());
            Ok((index, layer))
        };
        let layers = (0..spec.layers.len()).into_par_iter().map(layer).collect::<Result<_>>()?;
        let embed_tokens = loader.matrix(Slot::EmbedTokens)?;
        let lm_head = if weights.head_is_embedding() {
            Linear::new(Slot::LmHead, embed_tokens.clone(), loader.vector(Slot::LmHead, Param::Bias)?, adapter)
        } else {
            loader.linear(Slot::LmHead)?
        };
        let head = Some(loader.head(lm_head)?);
        let per_layer_inputs = loader.per_layer_inputs()?.map(Box::new);
        let stream_projections = loader.stream_projections(Slot::StreamProjection)?;
        let embed_tokens = Some(embed_tokens);
        Ok(Self::Loaded { layers, embed_tokens, per_layer_inputs, stream_projections, head })
    }

    /// Some layers in f32, without expanding quantized weights.
    pub(super) fn load_layers(
        spec: &DecoderSpec,
        weights: &Weights,
        layers: &BTreeSet<usize>,
        adapter: &ActiveAdapter,
    ) -> Result<Self> {
        let matrices = Matrices::Loaded(ComputeDtype::F32, QuantizedWeights::Keep);
        let loader = Loader { spec, weights, matrices, device: &Device::Cpu, inputs: None, adapter };
        let layers = layers.iter().map(|index| Ok((*index, loader.layer(*index)?))).collect::<Result<_>>()?;
        Ok(Self::Loaded { layers, embed_tokens: None, per_layer_inputs: None, stream_projections: None, head: None })
    }

    /// Weights that are read from the files when needed.
    pub(super) fn stream(weights: &'a Weights, adapter: ActiveAdapter) -> Self {
        Self::Streamed { weights, adapter, layer: None, head: None }
    }

    pub(super) fn embed_tokens(&self, spec: &DecoderSpec, device: &Device) -> Result<Matrix> {
        match self {
            Self::Loaded { embed_tokens, .. } => embed_tokens.clone().ok_or_else(|| absent("the embedding")),
            Self::Streamed { weights, adapter, .. } => {
                Loader::in_file(spec, weights, device, adapter).matrix(Slot::EmbedTokens)
            }
        }
    }

    /// The inputs of all layers besides the residual stream, `[T, layers, p]`, if there are any, from the embeddings `x`.
    pub(super) fn per_layer_inputs(
        &self,
        tokens: &[u32],
        x: &Tensor,
        (spec, device): (&DecoderSpec, &Device),
    ) -> Result<Option<Tensor>> {
        let inputs = match self {
            Self::Loaded { per_layer_inputs, .. } => per_layer_inputs.as_ref().map(|inputs| inputs.of(tokens, x)),
            Self::Streamed { weights, adapter, .. } => {
                let loader = Loader::in_file(spec, weights, device, adapter);
                loader.per_layer_inputs()?.map(|inputs| inputs.of(tokens, x))
            }
        };
        inputs.transpose()
    }

    /// All residual streams before the first layer, `[T, K, h]`, from the embeddings `x` `[T, h]`; these if there is one.
    pub(super) fn spread(&self, x: Tensor, spec: &DecoderSpec, device: &Device) -> Result<Tensor> {
        match self {
            Self::Loaded { stream_projections, .. } => {
                stream_projections.as_ref().map_or(Ok(x.clone()), |projections| projections.spread(&x))
            }
            Self::Streamed { weights, adapter, .. } => {
                let loader = Loader::in_file(spec, weights, device, adapter);
                let projections = loader.stream_projections(Slot::StreamProjection)?;
                projections.map_or(Ok(x.clone()), |projections| projections.spread(&x))
            }
        }
    }

    pub(super) fn layer(&mut self, index: usize, spec: &DecoderSpec, device: &Device) -> Result<&Layer> {
        match self {
            Self::Loaded { layers, .. } => layers.get(&index).ok_or_else(|| absent(&format!("layer {index}"))),
            Self::Streamed { weights, adapter, layer, .. } => {
                if layer.as_ref().is_none_or(|(loaded, _)| *loaded != index) {
                    *layer = None;
                    let loader = Loader::in_file(spec, weights, device, adapter);
                    *layer = Some((index, Box::new(loader.layer(index)?)));
                }
                layer.as_ref().map(|(_, layer)| &**layer).ok_or_else(|| absent(&format!("layer {index}")))
            }
        }
    }

    pub(super) fn head(&mut self, spec: &DecoderSpec, device: &Device) -> Result<&HeadWeights> {
        match self {
            Self::Loaded { head, .. } => head.as_ref().ok_or_else(|| absent("the output head")),
            Self::Streamed { weights, adapter, head, .. } => {
                if head.is_none() {
                    let loader = Loader::in_file(spec, weights, device, adapter);
                    *head = Some(loader.head(loader.linear(Slot::LmHead)?)?);
                }
                head.as_ref().ok_or_else(|| absent("the output head"))
            }
        }
    }

    /// Size of the matrices in memory without the embedding, in bytes.
    pub(super) fn weight_bytes(&self) -> usize {
        let (layers, head): (Vec<&Layer>, _) = match self {
            Self::Loaded { layers, head, .. } => (layers.values().collect(), head),
            Self::Streamed { layer, head, .. } => (layer.iter().map(|(_, layer)| &**layer).collect(), head),
        };
        let inputs = match self {
            Self::Loaded { per_layer_inputs, .. } => per_layer_inputs.as_ref().map(|inputs| &inputs.projection),
            Self::Streamed { .. } => None,
        };
        let matrices = layers.into_iter().flat_map(Layer::projections).chain(head.iter().map(|head| &head.lm_head));
        let spread = match self {
            Self::Loaded { stream_projections, .. } => stream_projections.as_ref(),
            Self::Streamed { .. } => None,
        };
        let merge = head.as_ref().and_then(|head| head.unembeddings.as_ref());
        let streams = spread.into_iter().chain(merge).flat_map(|projections| &projections.matrices);
        let matrices = matrices.chain(inputs).chain(streams);
        matrices.map(Linear::weight_bytes).sum()
    }
}

fn absent(what: &str) -> Error {
    Error::Internal(format!("{what} is not among what these standard kernels compute"))
}
