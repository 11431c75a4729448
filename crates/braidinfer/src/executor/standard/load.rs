//! Loading weights as tensors.

use std::fmt;
use std::sync::Arc;

use braidinfer_model::spec::{
    self, ActivationFunction, DeltaNetProjections, DeltaNetSpec, ExpertsSpec, LatentSpec, Mamba2Spec, NormSpec,
    SharedExpertSpec, ShortConvSpec,
};
use braidinfer_model::{DecoderSpec, Dtype, ExpertSlot, LayerSlot, Param, Slot, Weights};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::adapters::ActiveAdapter;
use super::attention::Attention;
use super::decoder_weights::HeadWeights;
use super::delta_net::{DeltaNet, Projections};
use super::feed_forward::{DenseFeedForward, FeedForward};
use super::input_squares::{InputObserver, InputSquares};
use super::laurel::Laurel;
use super::layer::{Layer, Mixer};
use super::linear::Linear;
use super::mamba2::Mamba2;
use super::matrix::{Matrix, StoredMatrix};
use super::mixture::{Mixture, SharedExpert};
use super::norm::Norm;
use super::per_layer::{PerLayerInput, PerLayerInputs};
use super::short_conv::ShortConv;
use super::streams::{AltUp, StreamProjections};
use crate::executor::branch_norms::BranchNorms;
use crate::executor::keys::{Keys, OwnKeys};
use crate::executor::latent::Latent;
use crate::executor::{DeviceChoice, KvCacheConfig};
use crate::threads::Threads;
use crate::{Error, Result};

/// The data type of weights and of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDtype {
    /// 4 bytes; the fixtures are compared in this type.
    F32,
    /// 2 bytes, with the range of f32.
    BF16,
    /// 2 bytes, largest value 65504.
    F16,
}

impl ComputeDtype {
    pub(super) fn candle(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::BF16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

impl fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.candle().as_str())
    }
}

impl From<Dtype> for ComputeDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::BF16 => Self::BF16,
            Dtype::F16 => Self::F16,
            // bf16 has the range of f32 in half the memory.
            _ => Self::BF16,
        }
    }
}

/// How to keep block-quantized weights. Both ways compute with their exact values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizedWeights {
    /// Keep the quantized blocks, and dequantize to f32 in every multiplication: least memory. Only on the CPU; on
    /// other devices they are expanded.
    Keep,
    /// Dequantize to the compute type when loading: more memory, and faster.
    Expand,
}

/// Options for loading a decoder.
#[derive(Debug, Clone)]
pub struct StandardOptions {
    /// Data type of weights and of the residual stream.
    pub dtype: ComputeDtype,
    /// Whether to keep quantized weights in blocks.
    pub quantized_weights: QuantizedWeights,
    /// The device to compute on.
    pub device: DeviceChoice,
    /// Size of the KV cache.
    pub kv_cache: KvCacheConfig,
    /// The compute threads.
    pub threads: Threads,
}

/// Called after each layer is loaded, from several threads, with the number of loaded layers and of all layers.
pub type LoadProgress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// How to load matrices.
#[derive(Debug, Clone, Copy)]
pub(super) enum Matrices {
    /// Check and copy them, in the compute type or as quantized blocks.
    Loaded(ComputeDtype, QuantizedWeights),
    /// Read them from the file in every multiplication, in its data type. The caller has checked them.
    InFile,
}

/// Loads parts of a decoder.
pub(super) struct Loader<'a> {
    pub(super) spec: &'a DecoderSpec,
    pub(super) weights: &'a Weights,
    pub(super) matrices: Matrices,
    pub(super) device: &'a Device,
    /// What is to be told of the inputs of linear layers.
    pub(super) inputs: Option<&'a Arc<InputSquares>>,
    /// What linear layers compute with besides their weights.
    pub(super) adapter: &'a ActiveAdapter,
}

impl<'a> Loader<'a> {
    /// A loader of matrices that stay in their file.
    pub(super) fn in_file(
        spec: &'a DecoderSpec,
        weights: &'a Weights,
        device: &'a Device,
        adapter: &'a ActiveAdapter,
    ) -> Self {
        Self { spec, weights, matrices: Matrices::InFile, device, inputs: None, adapter }
    }
}

impl Loader<'_> {
    pub(super) fn layer(&self, index: usize) -> Result<Layer> {
        let norm = |slot| self.norm(Slot::Layer(index, slot), &self.spec.norm);
        Ok(Layer {
            parallel: self.spec.block.parallel,
            altup: self.altup(index)?,
            residual_multiplier: self.spec.residual_multiplier,
            input_norm: norm(LayerSlot::InputNorm)?,
            mixers: self.mixers(index)?,
            attention_output_norm: norm(LayerSlot::AttentionOutputNorm)?,
            laurel: self.laurel(index)?,
            feed_forward_norm: norm(LayerSlot::FeedForwardNorm)?,
            feed_forward: self.feed_forward(index)?,
            feed_forward_multiplier: self.spec.branch_multipliers().feed_forward,
            feed_forward_output_norm: norm(LayerSlot::FeedForwardOutputNorm)?,
            per_layer_input: self.per_layer_input(index)?,
            scalar: self.scalar(Slot::Layer(index, LayerSlot::LayerScalar))?,
        })
    }

    /// A single number, or `None` if the architecture has none there.
    fn scalar(&self, slot: Slot) -> Result<Option<f64>> {
        let Some(view) = self.weights.get(slot, Param::Weight) else { return Ok(None) };
        Ok(view.read::<f32>()?.first().map(|scalar| f64::from(*scalar)))
    }

    fn altup(&self, index: usize) -> Result<Option<AltUp>> {
        let Some(spec) = self.spec.altup else { return Ok(None) };
        let slot = |slot| Slot::Layer(index, slot);
        let vector = |name| self.vector(slot(name), Param::Weight);
        let required = |name| vector(name)?.ok_or_else(|| self.absent(slot(name)));
        let router_norm = self.required_norm(slot(LayerSlot::StreamRouterNorm), &self.spec.norm)?;
        Ok(Some(AltUp {
            spec,
            router_norm: router_norm.times(spec.router_multiplier)?,
            router: self.linear(slot(LayerSlot::StreamRouter))?,
            prediction_coefs: required(LayerSlot::PredictionCoefs)?,
            correction_coefs: required(LayerSlot::CorrectionCoefs)?,
            output_scale: vector(LayerSlot::CorrectOutputScale)?,
        }))
    }

    fn laurel(&self, index: usize) -> Result<Option<Laurel>> {
        let with_mixer = self.spec.layers[index].mixer != spec::Mixer::None;
        let Some(laurel) = self.spec.laurel.filter(|_| with_mixer) else { return Ok(None) };
        let slot = |slot| Slot::Layer(index, slot);
        Ok(Some(Laurel {
            left: self.linear(slot(LayerSlot::LaurelLeft))?,
            right: self.linear(slot(LayerSlot::LaurelRight))?,
            norm: self.required_norm(slot(LayerSlot::LaurelNorm), &self.spec.norm)?,
            sum_multiplier: laurel.sum_multiplier,
        }))
    }

    /// The projections in `slot` of each further residual stream, if there are several.
    pub(super) fn stream_projections(&self, slot: fn(usize) -> Slot) -> Result<Option<StreamProjections>> {
        let Some(spec) = self.spec.altup else { return Ok(None) };
        let matrices = (0..spec.altup_num_inputs - 1).map(|stream| self.linear(slot(stream)));
        Ok(Some(StreamProjections { spec, matrices: matrices.collect::<Result<_>>()? }))
    }

    /// The weights that turn the residual stream into logits, with an output head.
    pub(super) fn head(&self, lm_head: Linear) -> Result<HeadWeights> {
        let unembeddings = self.stream_projections(Slot::StreamUnembedding)?;
        Ok(HeadWeights { unembeddings, final_norm: self.final_norm()?, lm_head })
    }

    fn per_layer_input(&self, index: usize) -> Result<Option<PerLayerInput>> {
        let Some(spec) = &self.spec.per_layer_inputs else { return Ok(None) };
        let slot = |slot| Slot::Layer(index, slot);
        Ok(Some(PerLayerInput {
            hidden_act: spec.hidden_act,
            gate: self.linear(slot(LayerSlot::PerLayerInputGate))?,
            projection: self.linear(slot(LayerSlot::PerLayerProjection))?,
            norm: self.required_norm(slot(LayerSlot::PostPerLayerInputNorm), &self.spec.norm)?,
        }))
    }

    pub(super) fn per_layer_inputs(&self) -> Result<Option<PerLayerInputs>> {
        let Some(spec) = self.spec.per_layer_inputs else { return Ok(None) };
        Ok(Some(PerLayerInputs {
            spec,
            layers: self.spec.layers.len(),
            embed_tokens: self.matrix(Slot::EmbedTokensPerLayer)?,
            projection: self.linear(Slot::PerLayerModelProjection)?,
            norm: self.required_norm(Slot::PerLayerProjectionNorm, &self.spec.norm)?,
        }))
    }

    /// The mixers of a layer, each with a factor of its output.
    fn mixers(&self, index: usize) -> Result<Vec<(Mixer, f64)>> {
        let branches = self.spec.branch_multipliers();
        let first = match self.spec.layers[index].mixer {
            spec::Mixer::Attention { .. } => Some(Mixer::Attention(self.attention(index)?)),
            spec::Mixer::DeltaNet { delta_net } => {
                Some(Mixer::DeltaNet(self.delta_net(index, self.spec.delta_nets[delta_net])?))
            }
            spec::Mixer::ShortConv { short_conv } => {
                Some(Mixer::ShortConv(self.short_conv(index, self.spec.short_convs[short_conv])?))
            }
            spec::Mixer::Mamba2 { .. } | spec::Mixer::None => None,
        };
        let mamba2 = self.spec.mamba2(index).map(|mamba2| self.mamba2(index, *mamba2)).transpose()?;
        let second = mamba2.map(|mamba2| (Mixer::Mamba2(mamba2), branches.mamba2));
        Ok(first.map(|mixer| (mixer, branches.attention)).into_iter().chain(second).collect())
    }

    fn mamba2(&self, index: usize, spec: Mamba2Spec) -> Result<Mamba2> {
        let slot = |slot| Slot::Layer(index, slot);
        let conv_bias = self.vector(slot(LayerSlot::Conv1d), Param::Bias)?;
        let rates = self.values(index, LayerSlot::ALog)?;
        Ok(Mamba2 {
            spec,
            in_proj: self.linear(slot(LayerSlot::InProjZxbcdt))?,
            conv1d: self.values(index, LayerSlot::Conv1d)?,
            conv_bias: conv_bias.map(|bias| bias.to_vec1()).transpose()?,
            dt_bias: self.values(index, LayerSlot::DtBias)?,
            rates: rates.into_iter().map(|stored| spec.decay_rates.negative(stored)).collect(),
            skip: self.values(index, LayerSlot::SkipD)?,
            norm: spec.norm.map(|_| self.values(index, LayerSlot::MambaNorm)).transpose()?,
            out_proj: self.linear(slot(LayerSlot::OutProj))?,
        })
    }

    /// The values of a parameter of a layer, in f32.
    fn values(&self, index: usize, name: LayerSlot) -> Result<Vec<f32>> {
        let slot = Slot::Layer(index, name);
        Ok(self.weights.get(slot, Param::Weight).ok_or_else(|| self.absent(slot))?.read::<f32>()?)
    }

    fn short_conv(&self, index: usize, spec: ShortConvSpec) -> Result<ShortConv> {
        let slot = |slot| Slot::Layer(index, slot);
        let bias = self.vector(slot(LayerSlot::Conv1d), Param::Bias)?;
        Ok(ShortConv {
            spec,
            in_proj: self.linear(slot(LayerSlot::InProjBcx))?,
            conv: self.values(index, LayerSlot::Conv1d)?,
            bias: bias.map(|bias| bias.to_vec1()).transpose()?,
            out_proj: self.linear(slot(LayerSlot::OutProj))?,
        })
    }

    fn delta_net(&self, index: usize, spec: DeltaNetSpec) -> Result<DeltaNet> {
        let slot = |slot| Slot::Layer(index, slot);
        let linear = |name| self.linear(slot(name));
        let values = |name| self.values(index, name);
        let projections = match spec.projections {
            DeltaNetProjections::ByKind => Projections::ByKind {
                qkv: linear(LayerSlot::InProjQkv)?,
                z: linear(LayerSlot::InProjZ)?,
                b: linear(LayerSlot::InProjB)?,
                a: linear(LayerSlot::InProjA)?,
            },
            DeltaNetProjections::ByKeyHead => {
                Projections::ByKeyHead { qkvz: linear(LayerSlot::InProjQkvz)?, ba: linear(LayerSlot::InProjBa)? }
            }
            DeltaNetProjections::StrengthByKeyHead => Projections::StrengthByKeyHead {
                qkv: linear(LayerSlot::InProjQkv)?,
                z: linear(LayerSlot::InProjZ)?,
                ba: linear(LayerSlot::InProjBa)?,
            },
        };
        let norm = slot(LayerSlot::DeltaNorm);
        Ok(DeltaNet {
            spec,
            projections,
            conv1d: values(LayerSlot::Conv1d)?,
            dt_bias: values(LayerSlot::DtBias)?,
            rates: values(LayerSlot::ALog)?.into_iter().map(|stored| spec.decay_rates.negative(stored)).collect(),
            norm: self.required_norm(norm, &spec.norm)?,
            out_proj: linear(LayerSlot::OutProj)?,
        })
    }

    fn attention(&self, index: usize) -> Result<Attention> {
        let slot = |slot| Slot::Layer(index, slot);
        let spec::Mixer::Attention { attention, sliding_window, rope, kv_shared_with } = self.spec.layers[index].mixer
        else {
            return Err(self.absent(slot(LayerSlot::QProj)));
        };
        let spec = self.spec.attentions[attention];
        let qk_norm = |name| spec.qk_norm.map(|norm| self.required_norm(slot(name), &norm.norm)).transpose();
        let keys = match kv_shared_with {
            Some(layer) => Keys::OfLayer(layer),
            None => {
                let v_norm = spec.value_norm_eps.map(|eps| Norm::plain(eps, spec.head_dim, self.device)).transpose()?;
                let v_proj = spec.value_slot().map(|name| self.linear(slot(name))).transpose()?;
                let (k_proj, k_norm) = (self.linear(slot(spec.key_slot()))?, qk_norm(LayerSlot::KNorm)?);
                Keys::Own(Box::new(OwnKeys { k_proj, v_proj, k_norm, v_norm }))
            }
        };
        Ok(Attention {
            spec,
            sliding_window,
            rope,
            q_proj: self.linear(slot(spec.query_slot()))?,
            keys,
            latent: spec.latent.map(|latent| self.latent(index, latent)).transpose()?.map(Box::new),
            o_proj: self.linear(slot(LayerSlot::OProj))?,
            q_norm: qk_norm(LayerSlot::QNorm)?,
            head_gate: spec.head_gate.then(|| self.linear(slot(LayerSlot::HeadGate))).transpose()?,
            sinks: self.vector(slot(LayerSlot::Sinks), Param::Weight)?,
        })
    }

    /// What latent attention has besides its first projections.
    fn latent(&self, index: usize, spec: LatentSpec) -> Result<Latent<Linear, Norm>> {
        let linear = |name| self.linear(Slot::Layer(index, name));
        let norm = |name| self.required_norm(Slot::Layer(index, name), &spec.norm);
        let expanded = spec.q_lora_rank.is_some();
        let queries = expanded.then(|| Ok::<_, Error>((norm(LayerSlot::QANorm)?, linear(LayerSlot::QBProj)?)));
        Ok(Latent {
            spec,
            queries: queries.transpose()?,
            kv_a_norm: norm(LayerSlot::KvANorm)?,
            kv_b_proj: linear(LayerSlot::KvBProj)?,
        })
    }

    fn feed_forward(&self, index: usize) -> Result<Option<FeedForward>> {
        let slot = |slot| Slot::Layer(index, slot);
        Ok(match self.spec.layers[index].feed_forward {
            spec::FeedForward::Dense { hidden_act, gated, gate_cutoff, .. } => {
                let gate = gated.then_some(slot(LayerSlot::GateProj));
                let dense = self.dense(hidden_act, gate, slot(LayerSlot::UpProj), slot(LayerSlot::DownProj))?;
                Some(FeedForward::Dense(Box::new(DenseFeedForward { gate_cutoff, ..dense })))
            }
            spec::FeedForward::Experts(experts) => Some(FeedForward::Experts(Box::new(self.mixture(index, experts)?))),
            spec::FeedForward::None => None,
        })
    }

    fn dense(
        &self,
        hidden_act: ActivationFunction,
        gate: Option<Slot>,
        up: Slot,
        down: Slot,
    ) -> Result<DenseFeedForward> {
        let gate_proj = gate.map(|gate| self.linear(gate)).transpose()?;
        let (xielu, up_proj) = (self.weights.xielu(down)?, self.linear(up)?);
        let down_proj = self.linear(down)?;
        Ok(DenseFeedForward { hidden_act, xielu, gate_proj, gate_cutoff: None, up_proj, down_proj })
    }

    fn mixture(&self, index: usize, spec: ExpertsSpec) -> Result<Mixture> {
        let slot = |slot| Slot::Layer(index, slot);
        let expert = |expert: usize| {
            let [gate, up, down] = ExpertSlot::ALL.map(|slot| Slot::Expert(index, expert, slot));
            self.dense(spec.hidden_act, spec.gated.then_some(gate), up, down)
        };
        let shared = |shared: SharedExpertSpec| -> Result<SharedExpert> {
            let [gate, up, down] =
                [LayerSlot::SharedGateProj, LayerSlot::SharedUpProj, LayerSlot::SharedDownProj].map(slot);
            let network = self.dense(spec.hidden_act, spec.gated.then_some(gate), up, down)?;
            let gate = shared.gated.then(|| self.linear(slot(LayerSlot::SharedExpertGate))).transpose()?;
            Ok(SharedExpert { network, gate })
        };
        let correction = self.vector(slot(LayerSlot::RouterCorrection), Param::Bias)?;
        Ok(Mixture {
            spec,
            router: self.linear(slot(LayerSlot::Router))?,
            correction: correction.map(|correction| correction.to_vec1()).transpose()?,
            experts: (0..spec.num_experts).map(expert).collect::<Result<_>>()?,
            shared_expert: spec.shared_expert.map(shared).transpose()?,
            router_norm: spec.router.norm_multiplier.map(|factor| self.router_norm(index, factor)).transpose()?,
            per_expert_scale: match self.vector(slot(LayerSlot::PerExpertScale), Param::Weight)? {
                Some(scale) => Some(scale.to_vec1()?),
                None => None,
            },
            branch_norms: match spec.branch_norms {
                true => Some(BranchNorms::load(index, |slot| self.required_norm(slot, &self.spec.norm))?),
                false => None,
            },
        })
    }

    fn router_norm(&self, index: usize, factor: f64) -> Result<Norm> {
        let norm = NormSpec { weight_offset: 0.0, ..self.spec.norm };
        self.required_norm(Slot::Layer(index, LayerSlot::RouterNorm), &norm)?.times(factor)
    }

    /// The norm in `slot`, or `None` if the architecture has none there.
    pub(super) fn norm(&self, slot: Slot, spec: &NormSpec) -> Result<Option<Norm>> {
        let Some(weight) = self.vector(slot, Param::Weight)? else { return Ok(None) };
        Norm::new(spec, &weight, self.vector(slot, Param::Bias)?).map(Some)
    }

    /// The norm in `slot`, which the architecture has.
    fn required_norm(&self, slot: Slot, spec: &NormSpec) -> Result<Norm> {
        self.norm(slot, spec)?.ok_or_else(|| self.absent(slot))
    }

    fn final_norm(&self) -> Result<Norm> {
        self.required_norm(Slot::FinalNorm, &self.spec.norm)
    }

    pub(super) fn linear(&self, slot: Slot) -> Result<Linear> {
        let observer = self.inputs.map(|squares| InputObserver { slot, squares: Arc::clone(squares) });
        let bias = self.vector(slot, Param::Bias)?;
        Ok(Linear::new(slot, self.matrix(slot)?, bias, self.adapter).observed_by(observer))
    }

    /// A matrix in the compute type, or in the data type of the checkpoint if that is smaller.
    pub(super) fn matrix(&self, slot: Slot) -> Result<Matrix> {
        let view = self.weights.get(slot, Param::Weight).ok_or_else(|| self.absent(slot))?;
        let shape = view.shape.clone();
        let stored = |blocks| Matrix::Stored(StoredMatrix::new(view.dtype, shape[0], shape[1], blocks));
        let (dtype, quantized_weights) = match self.matrices {
            Matrices::Loaded(dtype, quantized_weights) => (dtype, quantized_weights),
            Matrices::InFile => {
                return self.weights.bytes(slot, Param::Weight).map(stored).ok_or_else(|| self.absent(slot));
            }
        };
        if quantized_weights == QuantizedWeights::Keep && view.dtype.is_quantized() && self.device.is_cpu() {
            view.check()?;
            let blocks = match self.weights.replaced(slot, Param::Weight) {
                Some(blocks) => blocks,
                None => view.data.to_shared()?.into(),
            };
            return Ok(stored(blocks));
        }
        let tensor = match dtype {
            ComputeDtype::F32 => Tensor::from_vec(view.read::<f32>()?, shape, self.device),
            ComputeDtype::BF16 => Tensor::from_vec(view.read::<bf16>()?, shape, self.device),
            ComputeDtype::F16 => Tensor::from_vec(view.read::<f16>()?, shape, self.device),
        }?;
        Ok(Matrix::Dense(tensor))
    }

    /// A vector, or the vectors of a norm of each head, in f32, or `None` if the architecture has none there.
    pub(super) fn vector(&self, slot: Slot, param: Param) -> Result<Option<Tensor>> {
        let Some(view) = self.weights.get(slot, param) else { return Ok(None) };
        Ok(Some(Tensor::from_vec(view.read::<f32>()?, view.shape.clone(), self.device)?))
    }

    fn absent(&self, slot: Slot) -> Error {
        Error::Internal(format!("the architecture calls for {slot:?}, which the weights lack"))
    }
}
