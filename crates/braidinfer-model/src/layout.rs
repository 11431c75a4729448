//! The parameters that a [`DecoderSpec`] needs, their shapes, and their tensor names in checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use crate::spec::{
    ActivationFunction, AttentionSpec, DecoderSpec, DeltaNetProjections, DeltaNetSpec, ExpertsSpec, FeedForward,
    LatentSpec, LayerSpec, Mamba2Spec, Mixer, NormSpec, QkNormExtent, ShortConvSpec,
};

/// A module that holds parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// Token embedding.
    EmbedTokens,
    /// Token embedding for the inputs of every layer, `[vocab_size_per_layer_input, layers * p]`.
    EmbedTokensPerLayer,
    /// Projection of the token embedding to the inputs of every layer, `[layers * p, h]`.
    PerLayerModelProjection,
    /// Norm of that projection, over one layer's input.
    PerLayerProjectionNorm,
    /// Projection of the embedding to a further residual stream, counted from 0.
    StreamProjection(usize),
    /// Projection of a further residual stream to what the output head reads, counted from 0.
    StreamUnembedding(usize),
    /// Norm before the output head.
    FinalNorm,
    /// Output head.
    LmHead,
    /// A module of one layer.
    Layer(usize, LayerSlot),
    /// A projection of one of a layer's experts: layer, expert, projection.
    Expert(usize, usize, ExpertSlot),
}

/// A projection of an expert, in the order in which a checkpoint stacks them in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExpertSlot {
    /// Gate projection.
    GateProj,
    /// Up projection.
    UpProj,
    /// Down projection.
    DownProj,
}

impl ExpertSlot {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::GateProj, Self::UpProj, Self::DownProj];
}

/// A module inside a layer. The order of the variants is the order in which a checkpoint stacks modules in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerSlot {
    /// Norm before attention.
    InputNorm,
    /// Query projection.
    QProj,
    /// Key projection.
    KProj,
    /// Value projection.
    VProj,
    /// Projection to the narrower vector that queries are computed from.
    QAProj,
    /// Norm of that vector.
    QANorm,
    /// Projection from it to the queries.
    QBProj,
    /// Projection to the narrower vector that keys and values are computed from, and to the rotated part of the keys.
    KvAProj,
    /// Norm of that vector.
    KvANorm,
    /// Projection from it to the rest of the keys, and to the values.
    KvBProj,
    /// Attention output projection.
    OProj,
    /// Query norm.
    QNorm,
    /// Key norm.
    KNorm,
    /// Scores without keys, one per query head.
    Sinks,
    /// Queries, keys and values of a delta net.
    InProjQkv,
    /// Gate of a delta net's output.
    InProjZ,
    /// Strength of a delta net's updates, one per value head.
    InProjB,
    /// Decay of a delta net's state, one per value head.
    InProjA,
    /// Queries, keys, values and gate of a delta net, by key head.
    InProjQkvz,
    /// Strength and decay of a delta net, by key head.
    InProjBa,
    /// The two gates of a short convolution, and what it convolves: `B`, `C` and `x`.
    InProjBcx,
    /// Gate, inputs, `B`, `C` and steps of Mamba-2, in this order.
    InProjZxbcdt,
    /// Convolution over channels, `[channels, 1, kernel]`.
    Conv1d,
    /// Bias of a delta net's decay, one per value head, or of Mamba-2's steps, one per head.
    DtBias,
    /// Logarithm of the rate of decay of a delta net or of Mamba-2, or the negative rate, one per (value) head.
    ALog,
    /// Factor of the inputs of Mamba-2 in its outputs, one per head.
    SkipD,
    /// Norm of the outputs of Mamba-2, over the heads of a group; its weight is that of all groups.
    MambaNorm,
    /// Norm of a delta net's output, over one value head.
    DeltaNorm,
    /// Output projection of a delta net, a short convolution or Mamba-2.
    OutProj,
    /// Norm of the attention output.
    AttentionOutputNorm,
    /// Norm before the feed-forward network.
    FeedForwardNorm,
    /// Norm before the routed experts, beside the one before the expert that serves every token.
    ExpertsNorm,
    /// Norm of the output of the expert that serves every token.
    SharedExpertOutputNorm,
    /// Norm of the sum of the routed experts.
    ExpertsOutputNorm,
    /// Gate projection.
    GateProj,
    /// Up projection.
    UpProj,
    /// Parameters of the activation function.
    Activation,
    /// Down projection.
    DownProj,
    /// Router of a mixture of experts, `[E, h]`.
    Router,
    /// Norm of a router's input.
    RouterNorm,
    /// What is added to the router's scores for the choice of experts: a bias `[E]` without a weight.
    RouterCorrection,
    /// Factor of the weight of every expert, `[E]`.
    PerExpertScale,
    /// Gate projection of the expert that serves every token.
    SharedGateProj,
    /// Up projection of the expert that serves every token.
    SharedUpProj,
    /// Down projection of the expert that serves every token.
    SharedDownProj,
    /// Gate of the expert that serves every token, `[1, h]`.
    SharedExpertGate,
    /// Norm of the feed-forward network's output.
    FeedForwardOutputNorm,
    /// Projection to the gate of each head's output, `[H, h]`.
    HeadGate,
    /// Norm of what the router of residual streams reads.
    StreamRouterNorm,
    /// Router of residual streams, `[K, h]`.
    StreamRouter,
    /// Coefficients of the predicted residual streams, `[K * K, K]`.
    PredictionCoefs,
    /// Coefficients of the corrected residual streams, `[K, K]`.
    CorrectionCoefs,
    /// Factor of the corrected active stream where it gates the layer's further input, `[h]`.
    CorrectOutputScale,
    /// First matrix of a low-rank branch, `[rank, h]`.
    LaurelLeft,
    /// Second matrix of a low-rank branch, `[h, rank]`.
    LaurelRight,
    /// Norm of the output of a low-rank branch.
    LaurelNorm,
    /// Projection of the residual stream to the gate of the layer's further input, `[p, h]`.
    PerLayerInputGate,
    /// Projection of the gated further input to the residual stream, `[h, p]`.
    PerLayerProjection,
    /// Norm of that projection's output.
    PostPerLayerInputNorm,
    /// Factor of the residual stream at the end of the layer, `[1]`.
    LayerScalar,
}

/// A kind of parameter of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Param {
    /// The matrix, or the scale of a norm.
    Weight,
    /// The bias vector.
    Bias,
    /// A parameter of an activation function for positive values.
    AlphaP,
    /// A parameter of an activation function for negative values.
    AlphaN,
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::AlphaP => "alpha_p",
            Self::AlphaN => "alpha_n",
        })
    }
}

/// A parameter that a spec needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its module.
    pub slot: Slot,
    /// Which of the module's parameters.
    pub param: Param,
    /// `[out, in]`, `[width]`, or `[heads, width]` of a norm with a weight for each head.
    pub shape: Vec<usize>,
}

/// All parameters of `spec`, including a tied output head.
pub fn parameters(spec: &DecoderSpec) -> Vec<Parameter> {
    let mut list = ParameterList(Vec::new());
    let (hidden, vocab) = (spec.hidden_size, spec.vocab_size);
    list.weight(Slot::EmbedTokens, &[vocab, hidden]);
    if let Some(inputs) = &spec.per_layer_inputs {
        let width = spec.layers.len().saturating_mul(inputs.hidden_size_per_layer_input);
        list.weight(Slot::EmbedTokensPerLayer, &[inputs.vocab_size_per_layer_input, width]);
        list.linear(Slot::PerLayerModelProjection, width, hidden, false);
        list.norm(Slot::PerLayerProjectionNorm, &spec.norm, &[inputs.hidden_size_per_layer_input]);
    }
    for stream in 0..spec.streams() - 1 {
        list.linear(Slot::StreamProjection(stream), hidden, hidden, false);
        list.linear(Slot::StreamUnembedding(stream), hidden, hidden, false);
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        list.streams(spec, index);
        list.mixer(spec, index, layer);
        list.feed_forward(spec, index, layer);
        list.layer_end(spec, index);
    }
    list.norm(Slot::FinalNorm, &spec.norm, &[hidden]);
    list.linear(Slot::LmHead, vocab, hidden, spec.lm_head_bias);
    list.0
}

impl AttentionSpec {
    /// The projection of the residual stream to queries, or to the narrower vector that they are computed from.
    pub fn query_slot(&self) -> LayerSlot {
        match self.latent.and_then(|latent| latent.q_lora_rank) {
            Some(_) => LayerSlot::QAProj,
            None => LayerSlot::QProj,
        }
    }

    /// The projection of the residual stream to keys, or to the narrower vector that they are computed from.
    pub fn key_slot(&self) -> LayerSlot {
        if self.latent.is_some() { LayerSlot::KvAProj } else { LayerSlot::KProj }
    }

    /// The projection to values, unless they are computed from the output of that of keys.
    pub fn value_slot(&self) -> Option<LayerSlot> {
        (self.latent.is_none() && !self.attention_k_eq_v).then_some(LayerSlot::VProj)
    }
}

struct ParameterList(Vec<Parameter>);

impl ParameterList {
    fn weight(&mut self, slot: Slot, shape: &[usize]) {
        self.0.push(Parameter { slot, param: Param::Weight, shape: shape.to_vec() });
    }

    fn bias(&mut self, slot: Slot, width: usize) {
        self.0.push(Parameter { slot, param: Param::Bias, shape: vec![width] });
    }

    fn linear(&mut self, slot: Slot, out: usize, input: usize, bias: bool) {
        self.weight(slot, &[out, input]);
        if bias {
            self.bias(slot, out);
        }
    }

    fn norm(&mut self, slot: Slot, norm: &NormSpec, shape: &[usize]) {
        self.weight(slot, shape);
        if norm.bias {
            self.0.push(Parameter { slot, param: Param::Bias, shape: shape.to_vec() });
        }
    }

    fn mixer(&mut self, spec: &DecoderSpec, index: usize, layer: &LayerSpec) {
        let (block, hidden) = (&spec.block, spec.hidden_size);
        if block.input_norm && layer.mixer != Mixer::None {
            self.norm(Slot::Layer(index, LayerSlot::InputNorm), &spec.norm, &[hidden]);
        }
        match layer.mixer {
            Mixer::Attention { attention, kv_shared_with, .. } => {
                self.attention(&spec.attentions[attention], index, hidden, kv_shared_with.is_none());
            }
            Mixer::DeltaNet { delta_net } => self.delta_net(&spec.delta_nets[delta_net], index, hidden),
            Mixer::ShortConv { short_conv } => self.short_conv(&spec.short_convs[short_conv], index, hidden),
            Mixer::Mamba2 { .. } | Mixer::None => {}
        }
        if let Some(mamba2) = spec.mamba2(index) {
            self.mamba2(mamba2, index, hidden);
        }
        if block.attention_output_norm && layer.mixer != Mixer::None {
            self.norm(Slot::Layer(index, LayerSlot::AttentionOutputNorm), &spec.norm, &[hidden]);
        }
        if let Some(laurel) = spec.laurel.filter(|_| layer.mixer != Mixer::None) {
            self.linear(Slot::Layer(index, LayerSlot::LaurelLeft), laurel.laurel_rank, hidden, false);
            self.linear(Slot::Layer(index, LayerSlot::LaurelRight), hidden, laurel.laurel_rank, false);
            self.norm(Slot::Layer(index, LayerSlot::LaurelNorm), &spec.norm, &[hidden]);
        }
    }

    /// What predicts and corrects the residual streams around a layer.
    fn streams(&mut self, spec: &DecoderSpec, index: usize) {
        let Some(altup) = &spec.altup else { return };
        let (slot, hidden) = (|slot| Slot::Layer(index, slot), spec.hidden_size);
        let inputs = altup.altup_num_inputs;
        self.norm(slot(LayerSlot::StreamRouterNorm), &spec.norm, &[hidden]);
        self.linear(slot(LayerSlot::StreamRouter), inputs, hidden, false);
        self.weight(slot(LayerSlot::PredictionCoefs), &[inputs * inputs, inputs]);
        self.weight(slot(LayerSlot::CorrectionCoefs), &[inputs, inputs]);
        if altup.altup_correct_scale {
            self.weight(slot(LayerSlot::CorrectOutputScale), &[hidden]);
        }
    }

    fn delta_net(&mut self, delta_net: &DeltaNetSpec, index: usize, hidden: usize) {
        let slot = |slot| Slot::Layer(index, slot);
        let (values, heads) = (delta_net.value_width(), delta_net.linear_num_value_heads);
        match delta_net.projections {
            DeltaNetProjections::ByKind => {
                self.linear(slot(LayerSlot::InProjQkv), delta_net.conv_width(), hidden, false);
                self.linear(slot(LayerSlot::InProjZ), values, hidden, false);
                self.linear(slot(LayerSlot::InProjB), heads, hidden, false);
                self.linear(slot(LayerSlot::InProjA), heads, hidden, false);
            }
            DeltaNetProjections::ByKeyHead => {
                self.linear(slot(LayerSlot::InProjQkvz), delta_net.conv_width() + values, hidden, false);
                self.linear(slot(LayerSlot::InProjBa), 2 * heads, hidden, false);
            }
            DeltaNetProjections::StrengthByKeyHead => {
                self.linear(slot(LayerSlot::InProjQkv), delta_net.conv_width(), hidden, false);
                self.linear(slot(LayerSlot::InProjZ), values, hidden, false);
                self.linear(slot(LayerSlot::InProjBa), 2 * heads, hidden, false);
            }
        }
        self.weight(slot(LayerSlot::Conv1d), &[delta_net.conv_width(), 1, delta_net.linear_conv_kernel_dim]);
        self.weight(slot(LayerSlot::DtBias), &[heads]);
        self.weight(slot(LayerSlot::ALog), &[heads]);
        self.norm(slot(LayerSlot::DeltaNorm), &delta_net.norm, &[delta_net.linear_value_head_dim]);
        self.linear(slot(LayerSlot::OutProj), hidden, values, false);
    }

    fn short_conv(&mut self, spec: &ShortConvSpec, index: usize, hidden: usize) {
        let slot = |slot| Slot::Layer(index, slot);
        self.linear(slot(LayerSlot::InProjBcx), 3 * hidden, hidden, spec.conv_bias);
        self.weight(slot(LayerSlot::Conv1d), &[hidden, 1, spec.conv_l_cache]);
        if spec.conv_bias {
            self.bias(slot(LayerSlot::Conv1d), hidden);
        }
        self.linear(slot(LayerSlot::OutProj), hidden, hidden, spec.conv_bias);
    }

    fn mamba2(&mut self, spec: &Mamba2Spec, index: usize, hidden: usize) {
        let slot = |slot| Slot::Layer(index, slot);
        self.linear(slot(LayerSlot::InProjZxbcdt), spec.input_rows(), hidden, spec.input_bias);
        self.weight(slot(LayerSlot::Conv1d), &[spec.conv_width(), 1, spec.mamba_d_conv]);
        if spec.conv_bias {
            self.bias(slot(LayerSlot::Conv1d), spec.conv_width());
        }
        for name in [LayerSlot::DtBias, LayerSlot::ALog, LayerSlot::SkipD] {
            self.weight(slot(name), &[spec.mamba_n_heads]);
        }
        if let Some(norm) = &spec.norm {
            self.norm(slot(LayerSlot::MambaNorm), &norm.norm, &[spec.inner_width()]);
        }
        self.linear(slot(LayerSlot::OutProj), hidden, spec.inner_width(), spec.output_bias);
    }

    fn attention(&mut self, attention: &AttentionSpec, index: usize, hidden: usize, has_keys: bool) {
        let (q, kv) = (attention.query_width(), attention.key_value_width());
        let slot = |slot| Slot::Layer(index, slot);
        match &attention.latent {
            Some(latent) => self.latent(attention, latent, index, hidden),
            None => {
                self.linear(slot(LayerSlot::QProj), attention.query_rows(), hidden, attention.qkv_bias);
                let keys = [Some(attention.key_slot()), attention.value_slot()];
                for name in keys.into_iter().flatten().filter(|_| has_keys) {
                    self.linear(slot(name), kv, hidden, attention.qkv_bias);
                }
            }
        }
        self.linear(slot(LayerSlot::OProj), hidden, attention.output_width(), attention.output_bias);
        if let Some(qk_norm) = &attention.qk_norm {
            let (heads, kv_heads, width) =
                (attention.num_attention_heads, attention.num_key_value_heads, attention.head_dim);
            let (q, kv) = match qk_norm.extent {
                QkNormExtent::Head => (vec![width], vec![width]),
                QkNormExtent::EachHead => (vec![heads, width], vec![kv_heads, width]),
                QkNormExtent::Projection => (vec![q], vec![kv]),
            };
            self.norm(slot(LayerSlot::QNorm), &qk_norm.norm, &q);
            if has_keys {
                self.norm(slot(LayerSlot::KNorm), &qk_norm.norm, &kv);
            }
        }
        if attention.head_gate {
            self.linear(slot(LayerSlot::HeadGate), attention.num_attention_heads, hidden, false);
        }
        if attention.sinks {
            self.weight(slot(LayerSlot::Sinks), &[attention.num_attention_heads]);
        }
    }

    fn latent(&mut self, attention: &AttentionSpec, latent: &LatentSpec, index: usize, hidden: usize) {
        let slot = |slot| Slot::Layer(index, slot);
        match latent.q_lora_rank {
            None => self.linear(slot(LayerSlot::QProj), attention.query_rows(), hidden, false),
            Some(rank) => {
                self.linear(slot(LayerSlot::QAProj), rank, hidden, attention.qkv_bias);
                self.norm(slot(LayerSlot::QANorm), &latent.norm, &[rank]);
                self.linear(slot(LayerSlot::QBProj), attention.query_rows(), rank, false);
            }
        }
        self.linear(slot(LayerSlot::KvAProj), latent.compressed_rows(), hidden, attention.qkv_bias);
        self.norm(slot(LayerSlot::KvANorm), &latent.norm, &[latent.kv_lora_rank]);
        let rows = attention.num_key_value_heads * latent.expanded_head_rows();
        self.linear(slot(LayerSlot::KvBProj), rows, latent.kv_lora_rank, false);
    }

    fn feed_forward(&mut self, spec: &DecoderSpec, index: usize, layer: &LayerSpec) {
        let (hidden, block) = (spec.hidden_size, &spec.block);
        let slot = |slot| Slot::Layer(index, slot);
        let is_there = layer.feed_forward != FeedForward::None;
        if block.feed_forward_norm && is_there {
            self.norm(slot(LayerSlot::FeedForwardNorm), &spec.norm, &[hidden]);
        }
        match &layer.feed_forward {
            FeedForward::Dense { intermediate_size, gated, bias, hidden_act, .. } => {
                if *gated {
                    self.linear(slot(LayerSlot::GateProj), *intermediate_size, hidden, *bias);
                }
                self.linear(slot(LayerSlot::UpProj), *intermediate_size, hidden, *bias);
                if *hidden_act == ActivationFunction::Xielu {
                    for param in [Param::AlphaP, Param::AlphaN] {
                        self.0.push(Parameter { slot: slot(LayerSlot::Activation), param, shape: vec![1] });
                    }
                }
                self.linear(slot(LayerSlot::DownProj), hidden, *intermediate_size, *bias);
            }
            FeedForward::Experts(experts) => {
                self.experts(experts, index, hidden);
                self.expert_norms(spec, experts, index);
            }
            FeedForward::None => {}
        }
        if block.feed_forward_output_norm && is_there {
            self.norm(slot(LayerSlot::FeedForwardOutputNorm), &spec.norm, &[hidden]);
        }
    }

    /// Norms and factors that only some mixtures have.
    fn expert_norms(&mut self, spec: &DecoderSpec, experts: &ExpertsSpec, index: usize) {
        let (slot, hidden) = (|slot| Slot::Layer(index, slot), spec.hidden_size);
        if experts.branch_norms {
            for name in [LayerSlot::ExpertsNorm, LayerSlot::SharedExpertOutputNorm, LayerSlot::ExpertsOutputNorm] {
                self.norm(slot(name), &spec.norm, &[hidden]);
            }
        }
        if experts.router.norm_multiplier.is_some() {
            self.weight(slot(LayerSlot::RouterNorm), &[hidden]);
        }
        if experts.router.per_expert_scale {
            self.weight(slot(LayerSlot::PerExpertScale), &[experts.num_experts]);
        }
    }

    /// What follows the feed-forward part.
    fn layer_end(&mut self, spec: &DecoderSpec, index: usize) {
        let (slot, hidden) = (|slot| Slot::Layer(index, slot), spec.hidden_size);
        if let Some(inputs) = &spec.per_layer_inputs {
            let width = inputs.hidden_size_per_layer_input;
            self.linear(slot(LayerSlot::PerLayerInputGate), width, hidden, false);
            self.linear(slot(LayerSlot::PerLayerProjection), hidden, width, false);
            self.norm(slot(LayerSlot::PostPerLayerInputNorm), &spec.norm, &[hidden]);
        }
        if spec.layer_scalar {
            self.weight(slot(LayerSlot::LayerScalar), &[1]);
        }
    }

    fn experts(&mut self, experts: &ExpertsSpec, index: usize, hidden: usize) {
        let slot = |slot| Slot::Layer(index, slot);
        let ExpertsSpec { num_experts, intermediate_size, bias, gated, router, shared_expert, .. } = experts;
        self.linear(slot(LayerSlot::Router), *num_experts, hidden, router.bias);
        if router.correction_bias {
            self.bias(slot(LayerSlot::RouterCorrection), *num_experts);
        }
        if let Some(shared) = shared_expert {
            if *gated {
                self.linear(slot(LayerSlot::SharedGateProj), shared.intermediate_size, hidden, shared.bias);
            }
            self.linear(slot(LayerSlot::SharedUpProj), shared.intermediate_size, hidden, shared.bias);
            self.linear(slot(LayerSlot::SharedDownProj), hidden, shared.intermediate_size, shared.bias);
            if shared.gated {
                self.linear(slot(LayerSlot::SharedExpertGate), 1, hidden, false);
            }
        }
        for expert in 0..*num_experts {
            if *gated {
                self.linear(Slot::Expert(index, expert, ExpertSlot::GateProj), *intermediate_size, hidden, *bias);
            }
            self.linear(Slot::Expert(index, expert, ExpertSlot::UpProj), *intermediate_size, hidden, *bias);
            self.linear(Slot::Expert(index, expert, ExpertSlot::DownProj), hidden, *intermediate_size, *bias);
        }
    }
}

impl Slot {
    /// The same slot of a model that has only some consecutive layers of this one, numbered from 0, and what belongs to no layer
    /// only if `with_ends`; `None` if it lacks this slot.
    pub fn of_layers(self, layers: &Range<usize>, with_ends: bool) -> Option<Self> {
        let own = |layer: usize| layers.contains(&layer).then(|| layer - layers.start);
        match self {
            Self::Layer(layer, slot) => own(layer).map(|layer| Self::Layer(layer, slot)),
            Self::Expert(layer, expert, slot) => own(layer).map(|layer| Self::Expert(layer, expert, slot)),
            _ => with_ends.then_some(self),
        }
    }

    /// Whether the module is a norm.
    pub fn is_norm(self) -> bool {
        use LayerSlot::*;
        match self {
            Self::EmbedTokens | Self::LmHead | Self::Expert(..) => false,
            Self::EmbedTokensPerLayer | Self::PerLayerModelProjection => false,
            Self::StreamProjection(_) | Self::StreamUnembedding(_) => false,
            Self::FinalNorm | Self::PerLayerProjectionNorm => true,
            Self::Layer(_, slot) => matches!(
                slot,
                InputNorm
                    | QNorm
                    | KNorm
                    | QANorm
                    | KvANorm
                    | DeltaNorm
                    | MambaNorm
                    | AttentionOutputNorm
                    | FeedForwardNorm
                    | FeedForwardOutputNorm
                    | ExpertsNorm
                    | SharedExpertOutputNorm
                    | ExpertsOutputNorm
                    | RouterNorm
                    | PostPerLayerInputNorm
                    | StreamRouterNorm
                    | LaurelNorm
            ),
        }
    }
}

/// A tensor and the parameters whose rows are stacked in it, usually only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// The tensor's name.
    pub tensor: String,
    /// The parameters in the order of their rows, which is slot order; never empty.
    pub parameters: Vec<Parameter>,
}

impl Stack {
    /// The tensor's shape. Tensors with several experts, or with matrices of several residual streams, have one more
    /// dimension, the outermost.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.parameters[0].shape.clone();
        shape[0] = self.parameters.iter().map(|parameter| parameter.shape[0]).sum();
        let outer = |slot: Slot| match slot {
            Slot::Expert(_, index, _) | Slot::StreamProjection(index) | Slot::StreamUnembedding(index) => Some(index),
            _ => None,
        };
        let outer: BTreeSet<usize> = self.parameters.iter().filter_map(|parameter| outer(parameter.slot)).collect();
        if outer.len() > 1 {
            shape[0] /= outer.len();
            shape.insert(0, outer.len());
        }
        shape
    }
}

/// The parameters of `spec`, grouped by the tensor name that `name` returns. If `head_is_embedding`, the output head's
/// weight is not stored.
pub fn stacks(spec: &DecoderSpec, head_is_embedding: bool, name: impl Fn(Slot, Param) -> String) -> Vec<Stack> {
    let head = (Slot::LmHead, Param::Weight);
    let stored = |parameter: &Parameter| !(head_is_embedding && (parameter.slot, parameter.param) == head);
    let mut stacks: BTreeMap<String, Vec<Parameter>> = BTreeMap::new();
    for parameter in parameters(spec).into_iter().filter(stored) {
        stacks.entry(name(parameter.slot, parameter.param)).or_default().push(parameter);
    }
    let sorted = |(tensor, mut parameters): (String, Vec<Parameter>)| {
        parameters.sort_by_key(|parameter| parameter.slot);
        Stack { tensor, parameters }
    };
    stacks.into_iter().map(sorted).collect()
}

/// Tensor names of modules in a checkpoint, relative to their prefixes.
///
/// Two slots with the same name share a tensor: their rows are stacked in slot order.
#[derive(Debug, Clone)]
pub struct TensorNames {
    embed_tokens: &'static str,
    /// Embedding, projection and norm of per-layer inputs.
    per_layer: [&'static str; 3],
    final_norm: &'static str,
    lm_head: &'static str,
    layers: &'static str,
    layer: BTreeMap<LayerSlot, &'static str>,
    /// Modules whose bias has another name than their weight.
    layer_bias: BTreeMap<LayerSlot, &'static str>,
    /// Modules with a single parameter whose tensor has this name, without the parameter's.
    layer_tensor: BTreeMap<LayerSlot, &'static str>,
    /// How experts may be named; the first one is used.
    experts: Vec<ExpertNames>,
    /// Projections from the embedding to further residual streams, and from these to what the output head reads.
    streams: [&'static str; 2],
    /// Whether those of all streams are stacked in one tensor.
    stacked_streams: bool,
}

/// How a checkpoint names the projections of the experts of a layer. Names are relative to the layer's prefix, and in
/// the order of [`ExpertSlot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNames {
    /// Each projection of each expert is a tensor: `{experts}.{index}.{name}.weight`.
    Separate {
        /// The module that holds the experts.
        experts: &'static str,
        /// Modules within an expert.
        names: [&'static str; 3],
    },
    /// A tensor `[E, out, in]` holds all experts, `{name}.weight`; projections of the same name are stacked in it.
    Stacked {
        /// Modules.
        names: [&'static str; 3],
    },
    /// Each projection of each expert is a tensor: `{name}.{index}.weight`.
    Indexed {
        /// Modules.
        names: [&'static str; 3],
    },
    /// As with [`ExpertNames::Stacked`], but tensors have the names as they are, and biases have `_bias` after them.
    Bare {
        /// Tensors.
        names: [&'static str; 3],
    },
    /// As with [`ExpertNames::Bare`], with `suffix` after the names of matrices, and with rows of the gate and the up
    /// projection in turn where they share a tensor.
    Alternating {
        /// Tensors.
        names: [&'static str; 3],
        /// Further part of the names of matrices.
        suffix: &'static str,
        /// Whether matrices are stored as `[E, in, out]`.
        transposed: bool,
    },
}

/// The order of the values of several parameters in one tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ValueOrder {
    /// Whether rows of gate and up projections of an expert alternate, instead of lying one projection after the other.
    pub alternating: bool,
    /// Whether the rows of an expert's matrix are stored as columns.
    pub transposed: bool,
}

impl ExpertNames {
    /// As most checkpoints name them.
    pub const LLAMA: Self = Self::Separate { experts: "mlp.experts", names: ["gate_proj", "up_proj", "down_proj"] };
    /// As `transformers` 5 keeps them in memory.
    pub const FUSED: Self =
        Self::Bare { names: ["mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"] };

    /// The name of a tensor, relative to the layer's prefix.
    fn tensor(self, expert: usize, slot: ExpertSlot, param: Param) -> String {
        match self {
            Self::Separate { experts, names } => format!("{experts}.{expert}.{}.{param}", names[slot as usize]),
            Self::Stacked { names } => format!("{}.{param}", names[slot as usize]),
            Self::Indexed { names } => format!("{}.{expert}.{param}", names[slot as usize]),
            Self::Bare { names } => match param {
                Param::Weight => names[slot as usize].to_owned(),
                other => format!("{}_{other}", names[slot as usize]),
            },
            Self::Alternating { names, suffix, .. } => match param {
                Param::Weight => format!("{}{suffix}", names[slot as usize]),
                other => format!("{}_{other}", names[slot as usize]),
            },
        }
    }

    fn order(self, slot: ExpertSlot, param: Param) -> ValueOrder {
        match self {
            Self::Alternating { names, transposed, .. } => ValueOrder {
                alternating: slot != ExpertSlot::DownProj && names[0] == names[1],
                transposed: transposed && param == Param::Weight,
            },
            Self::Separate { .. } | Self::Stacked { .. } | Self::Indexed { .. } | Self::Bare { .. } => {
                ValueOrder::default()
            }
        }
    }
}

impl Default for TensorNames {
    /// The names of the llama family.
    fn default() -> Self {
        use LayerSlot::*;
        Self {
            embed_tokens: "embed_tokens",
            per_layer: ["embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm"],
            final_norm: "norm",
            lm_head: "lm_head",
            layers: "layers",
            layer: BTreeMap::from([
                (InputNorm, "input_layernorm"),
                (QProj, "self_attn.q_proj"),
                (KProj, "self_attn.k_proj"),
                (VProj, "self_attn.v_proj"),
                (QAProj, "self_attn.q_a_proj"),
                (QANorm, "self_attn.q_a_layernorm"),
                (QBProj, "self_attn.q_b_proj"),
                (KvAProj, "self_attn.kv_a_proj_with_mqa"),
                (KvANorm, "self_attn.kv_a_layernorm"),
                (KvBProj, "self_attn.kv_b_proj"),
                (OProj, "self_attn.o_proj"),
                (HeadGate, "self_attn.gate_proj"),
                (QNorm, "self_attn.q_norm"),
                (KNorm, "self_attn.k_norm"),
                (AttentionOutputNorm, "post_attention_layernorm"),
                (FeedForwardNorm, "post_attention_layernorm"),
                (GateProj, "mlp.gate_proj"),
                (UpProj, "mlp.up_proj"),
                (Activation, "mlp.act_fn"),
                (DownProj, "mlp.down_proj"),
                (Router, "mlp.gate"),
                (SharedGateProj, "mlp.shared_experts.gate_proj"),
                (SharedUpProj, "mlp.shared_experts.up_proj"),
                (SharedDownProj, "mlp.shared_experts.down_proj"),
                (SharedExpertGate, "mlp.shared_expert_gate"),
                (FeedForwardOutputNorm, "post_feedforward_layernorm"),
                (ExpertsNorm, "pre_feedforward_layernorm_2"),
                (SharedExpertOutputNorm, "post_feedforward_layernorm_1"),
                (ExpertsOutputNorm, "post_feedforward_layernorm_2"),
                (StreamRouterNorm, "altup.router_norm"),
                (StreamRouter, "altup.modality_router"),
                (PredictionCoefs, "altup.prediction_coefs"),
                (CorrectionCoefs, "altup.correction_coefs"),
                (LaurelLeft, "laurel.linear_left"),
                (LaurelRight, "laurel.linear_right"),
                (LaurelNorm, "laurel.post_laurel_norm"),
                (PerLayerInputGate, "per_layer_input_gate"),
                (PerLayerProjection, "per_layer_projection"),
                (PostPerLayerInputNorm, "post_per_layer_input_norm"),
                (InProjQkv, "linear_attn.in_proj_qkv"),
                (InProjZ, "linear_attn.in_proj_z"),
                (InProjB, "linear_attn.in_proj_b"),
                (InProjA, "linear_attn.in_proj_a"),
                (InProjQkvz, "linear_attn.in_proj_qkvz"),
                (InProjBa, "linear_attn.in_proj_ba"),
                (InProjBcx, "conv.in_proj"),
                (InProjZxbcdt, "mamba.in_proj"),
                (MambaNorm, "mamba.norm"),
                (Conv1d, "linear_attn.conv1d"),
                (DeltaNorm, "linear_attn.norm"),
                (OutProj, "linear_attn.out_proj"),
            ]),
            layer_bias: BTreeMap::new(),
            layer_tensor: BTreeMap::from([
                (RouterCorrection, "mlp.gate.e_score_correction_bias"),
                (RouterNorm, "router.scale"),
                (PerExpertScale, "router.per_expert_scale"),
                (LayerScalar, "layer_scalar"),
                (CorrectOutputScale, "altup.correct_output_scale"),
                (DtBias, "linear_attn.dt_bias"),
                (ALog, "linear_attn.A_log"),
                (SkipD, "mamba.D"),
                (Sinks, "self_attn.sinks"),
            ]),
            experts: vec![ExpertNames::LLAMA, ExpertNames::FUSED],
            streams: ["altup_projections", "altup_unembed_projections"],
            stacked_streams: false,
        }
    }
}

impl TensorNames {
    /// The names in GGUF files, with these names of layer modules and experts.
    pub fn gguf(layer: &[(LayerSlot, &'static str)], experts: &[ExpertNames]) -> Self {
        Self {
            embed_tokens: "token_embd",
            per_layer: ["per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm"],
            final_norm: "output_norm",
            lm_head: "output",
            layers: "blk",
            layer: layer.iter().copied().collect(),
            layer_bias: BTreeMap::new(),
            layer_tensor: BTreeMap::new(),
            experts: experts.to_vec(),
            streams: ["altup_proj", "altup_unembd_proj"],
            stacked_streams: true,
        }
    }

    /// Replaces the names of some layer modules.
    pub fn with(mut self, names: &[(LayerSlot, &'static str)]) -> Self {
        self.layer.extend(names.iter().copied());
        self
    }

    /// Replaces the names of the biases of some layer modules.
    pub fn with_bias(mut self, names: &[(LayerSlot, &'static str)]) -> Self {
        self.layer_bias.extend(names.iter().copied());
        self
    }

    /// Replaces the tensor names of layer modules with a single parameter.
    pub fn with_tensor(mut self, names: &[(LayerSlot, &'static str)]) -> Self {
        self.layer_tensor.extend(names.iter().copied());
        self
    }

    /// Replaces the ways in which experts may be named.
    pub fn with_experts(mut self, experts: &[ExpertNames]) -> Self {
        self.experts = experts.to_vec();
        self
    }

    /// These names, with the way of naming the experts of `spec` for which `is_stored` finds a tensor.
    pub(crate) fn with_stored_experts(
        &self,
        spec: &DecoderSpec,
        mut is_stored: impl FnMut(&Self, Slot) -> bool,
    ) -> Self {
        let layer = (0..spec.layers.len()).find(|layer| spec.experts(*layer).is_some());
        let found = layer.and_then(|layer| {
            let mut ways = self.experts.iter().map(|way| Self { experts: vec![*way], ..self.clone() });
            // Ways may differ in one of them only.
            let slots = [ExpertSlot::UpProj, ExpertSlot::DownProj].map(|slot| Slot::Expert(layer, 0, slot));
            ways.find(|names| slots.iter().all(|slot| is_stored(names, *slot)))
        });
        found.unwrap_or_else(|| self.clone())
    }

    /// Replaces the name of the final norm.
    pub fn with_final_norm(mut self, name: &'static str) -> Self {
        self.final_norm = name;
        self
    }

    /// Replaces the name of the token embedding.
    pub fn with_embed_tokens(mut self, name: &'static str) -> Self {
        self.embed_tokens = name;
        self
    }

    /// The ways in which experts may be named.
    pub(crate) fn expert_ways(&self) -> &[ExpertNames] {
        &self.experts
    }

    fn expert_names(&self) -> ExpertNames {
        self.experts.first().copied().unwrap_or(ExpertNames::LLAMA)
    }

    /// The order of the values of a parameter and of those that share its tensor.
    pub fn order(&self, slot: Slot, param: Param) -> ValueOrder {
        match slot {
            Slot::Expert(_, _, slot) => self.expert_names().order(slot, param),
            _ => ValueOrder::default(),
        }
    }

    /// The name of a layer's module, or of its only tensor, relative to the layer's prefix.
    pub fn layer_module(&self, slot: LayerSlot) -> &'static str {
        self.layer_tensor.get(&slot).or_else(|| self.layer.get(&slot)).copied().unwrap_or("no such module")
    }

    /// The module of a projection of a further residual stream.
    fn of_stream(&self, projection: usize, stream: usize) -> String {
        let name = self.streams[projection];
        if self.stacked_streams { name.to_owned() } else { format!("{name}.{stream}") }
    }

    /// The name of a parameter's tensor. `prefix` precedes `embed_tokens` and `layers` (often `model.`); the output head is
    /// outside the decoder, with prefix `head_prefix`.
    pub fn tensor(&self, slot: Slot, param: Param, prefix: &str, head_prefix: &str) -> String {
        let in_layer = |index: usize, name: &str| format!("{prefix}{}.{index}.{name}", self.layers);
        match slot {
            Slot::Layer(index, slot) => {
                let bias = self.layer_bias.get(&slot).filter(|_| param == Param::Bias);
                let module = || bias.copied().unwrap_or_else(|| self.layer_module(slot));
                let tensor = self.layer_tensor.get(&slot);
                tensor.map_or_else(|| in_layer(index, &format!("{}.{param}", module())), |name| in_layer(index, name))
            }
            Slot::Expert(index, expert, slot) => in_layer(index, &self.expert_names().tensor(expert, slot, param)),
            Slot::EmbedTokens => format!("{prefix}{}.{param}", self.embed_tokens),
            Slot::EmbedTokensPerLayer => format!("{prefix}{}.{param}", self.per_layer[0]),
            Slot::PerLayerModelProjection => format!("{prefix}{}.{param}", self.per_layer[1]),
            Slot::PerLayerProjectionNorm => format!("{prefix}{}.{param}", self.per_layer[2]),
            Slot::StreamProjection(stream) => format!("{prefix}{}.{param}", self.of_stream(0, stream)),
            Slot::StreamUnembedding(stream) => format!("{prefix}{}.{param}", self.of_stream(1, stream)),
            Slot::FinalNorm => format!("{prefix}{}.{param}", self.final_norm),
            Slot::LmHead => format!("{head_prefix}{}.{param}", self.lm_head),
        }
    }
}
