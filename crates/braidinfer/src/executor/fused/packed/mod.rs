//! The parameters of a decoder in the kernels' layout: every matrix is repacked once, into one contiguous buffer or file.

mod packer;

use std::ops::Range;

use braidinfer_kernels::norm::NormKind;
use braidinfer_kernels::router::Routing;
use braidinfer_kernels::{
    ActivationFunction as Activation, LANES, Pages, PanelFormat, Panels, Pool, WeightType, panel_bytes, read_row,
};
use braidinfer_model::quantization::dequantize;
use braidinfer_model::spec::{AttentionSpec, DeltaNetSpec, Mamba2Spec, PerLayerInputSpec, ValueHeadOrder};
use braidinfer_model::{DecoderSpec, Dtype, Param, Slot, TensorView, Weights};

use self::packer::Packer;
use super::encode::Source;
use super::packing::Destination;
use super::recurrent_state::StateShape;
use super::weight_memory::{Sections, WeightMemory};
use crate::executor::KernelPlan;
use crate::executor::branch_norms::BranchNorms;
use crate::executor::keys::Keys;
use crate::executor::latent::Latent;
use crate::executor::plan::is_projection;
use crate::executor::standard::LoadProgress;
use crate::{Error, Result, memory};

/// Matrices start at cache line boundaries.
const ALIGNMENT: usize = 64;

/// All parameters of a decoder.
#[derive(Debug)]
pub(super) struct PackedDecoder {
    memory: WeightMemory,
    /// Size of all panels, and where they lie.
    panel_bytes: usize,
    sections: Sections,
    /// For each layer, where its matrices lie that are not of experts.
    layer_panels: Vec<Range<usize>>,
    /// `None` if these are some layers of a decoder, whose ends are elsewhere.
    ends: Option<Ends>,
    pub(super) per_layer_inputs: Option<PackedPerLayerInputs>,
    pub(super) stream_projections: Option<PackedStreamProjections>,
    pub(super) layers: Vec<PackedLayer>,
}

/// What comes before the first layer, and after the last one.
#[derive(Debug)]
pub(super) struct Ends {
    embedding: Embedding,
    pub(super) final_norm: PackedNorm,
    pub(super) lm_head: PackedLinear,
}

#[derive(Debug)]
enum Embedding {
    Stored(StoredRows),
    /// Shares the panels of the output head.
    Head,
}

/// Rows of an embedding in the data type of the checkpoint.
#[derive(Debug)]
pub(super) struct StoredRows {
    dtype: Dtype,
    start: usize,
    row_bytes: usize,
}

/// The parameters of the inputs of all layers besides the residual stream.
#[derive(Debug)]
pub(super) struct PackedPerLayerInputs {
    pub(super) spec: PerLayerInputSpec,
    pub(super) embedding: StoredRows,
    pub(super) projection: PackedLinear,
    /// Over the input of one layer.
    pub(super) norm: PackedNorm,
}

/// Projections between the embedding, several residual streams, and what the output head reads.
#[derive(Debug)]
pub(super) struct PackedStreamProjections {
    /// From the embedding to each stream but the first.
    pub(super) spread: Vec<PackedLinear>,
    /// From each stream but the first to what the head reads.
    pub(super) merge: Vec<PackedLinear>,
    /// The least mean square by which their outputs are divided.
    pub(super) least_mean_square: f32,
}

/// What predicts several residual streams before a layer and corrects them after it.
#[derive(Debug)]
pub(super) struct PackedAltUp {
    /// Number of streams, `K`, and index of the active one.
    pub(super) count: usize,
    pub(super) active: usize,
    /// With the factor of the router's input in its weight.
    pub(super) router_norm: PackedNorm,
    pub(super) router: PackedLinear,
    /// `[K * K, K]`.
    pub(super) prediction_coefs: Vec<f32>,
    /// `[K, K]`.
    pub(super) correction_coefs: Vec<f32>,
    /// `[h]`, padded.
    pub(super) output_scale: Option<Vec<f32>>,
}

/// A branch of low rank beside attention.
#[derive(Debug)]
pub(super) struct PackedLaurel {
    pub(super) left: PackedLinear,
    pub(super) right: PackedLinear,
    pub(super) norm: PackedNorm,
    /// Factor of the sum.
    pub(super) sum_multiplier: f32,
}

/// How a layer uses its further input.
#[derive(Debug)]
pub(super) struct PackedPerLayerInput {
    pub(super) hidden_act: braidinfer_kernels::ActivationFunction,
    pub(super) gate: PackedLinear,
    pub(super) projection: PackedLinear,
    pub(super) norm: PackedNorm,
}

/// The parameters of one layer. Norms that the architecture lacks are `None`.
#[derive(Debug)]
pub(super) struct PackedLayer {
    pub(super) altup: Option<Box<PackedAltUp>>,
    pub(super) input_norm: Option<PackedNorm>,
    /// How positions are mixed: by several mixers side by side, by one, or not at all.
    pub(super) mixers: Vec<PackedMixer>,
    pub(super) attention_output_norm: Option<PackedNorm>,
    pub(super) laurel: Option<Box<PackedLaurel>>,
    pub(super) feed_forward_norm: Option<PackedNorm>,
    pub(super) feed_forward: PackedFeedForward,
    pub(super) feed_forward_output_norm: Option<PackedNorm>,
    pub(super) per_layer_input: Option<Box<PackedPerLayerInput>>,
    /// Factor of the residual stream at the end.
    pub(super) scalar: Option<f32>,
}

/// The feed-forward part of a layer.
#[derive(Debug)]
pub(super) enum PackedFeedForward {
    Dense(Box<PackedNetwork>),
    Experts(Box<PackedMixture>),
    None,
}

/// `down(act(gate x) * up x)`, or `down(act(up x))` without a gate.
#[derive(Debug)]
pub(super) struct PackedNetwork {
    pub(super) hidden_act: Activation,
    pub(super) gate_proj: Option<PackedLinear>,
    /// Which of the gate's values take part, see [`FeedForward::Dense`].
    pub(super) gate_cutoff: Option<f32>,
    pub(super) up_proj: PackedLinear,
    pub(super) down_proj: PackedLinear,
}

/// A mixture of experts.
#[derive(Debug)]
pub(super) struct PackedMixture {
    pub(super) routing: Routing,
    /// Number of experts chosen for each token.
    pub(super) chosen: usize,
    pub(super) router: PackedLinear,
    /// Added to the scores for the choice, `[E]`.
    pub(super) correction: Option<Vec<f32>>,
    /// The experts, and after them the one that serves every token, if there is one.
    pub(super) networks: Vec<PackedNetwork>,
    pub(super) experts: usize,
    /// Gate of the expert that serves every token, with one output.
    pub(super) shared_gate: Option<PackedLinear>,
    /// Norm of the router's input, if that is not what the experts read.
    pub(super) router_norm: Option<PackedNorm>,
    /// Factor of the weight of every expert, `[E]`.
    pub(super) per_expert_scale: Option<Vec<f32>>,
    pub(super) branch_norms: Option<BranchNorms<PackedNorm>>,
}

impl PackedFeedForward {
    /// The projections that read the normed residual stream of all tokens.
    pub(super) fn readers(&self) -> [Option<&PackedLinear>; 2] {
        match self {
            Self::Dense(network) => network.inputs().map(Some),
            Self::Experts(mixture) => [Some(&mixture.router), mixture.shared_gate.as_ref()],
            Self::None => [None, None],
        }
    }
}

impl PackedLayer {
    pub(super) fn attention(&self) -> Option<&PackedAttention> {
        self.mixers
            .iter()
            .find_map(|mixer| if let PackedMixer::Attention(layer) = mixer { Some(&**layer) } else { None })
    }

    pub(super) fn delta_net(&self) -> Option<&PackedDeltaNet> {
        self.mixers
            .iter()
            .find_map(|mixer| if let PackedMixer::DeltaNet(layer) = mixer { Some(&**layer) } else { None })
    }

    pub(super) fn short_conv(&self) -> Option<&PackedShortConv> {
        self.mixers
            .iter()
            .find_map(|mixer| if let PackedMixer::ShortConv(layer) = mixer { Some(&**layer) } else { None })
    }

    pub(super) fn mamba2(&self) -> Option<&PackedMamba2> {
        self.mixers.iter().find_map(|mixer| if let PackedMixer::Mamba2(layer) = mixer { Some(&**layer) } else { None })
    }

    /// The norm of what the feed-forward part's projections of all tokens read.
    pub(super) fn readers_norm(&self) -> Option<&PackedNorm> {
        let router_norm = match &self.feed_forward {
            PackedFeedForward::Dense(_) | PackedFeedForward::None => None,
            PackedFeedForward::Experts(mixture) => mixture.router_norm.as_ref(),
        };
        router_norm.or(self.feed_forward_norm.as_ref())
    }
}

impl PackedNetwork {
    /// The projections that read the network's input; without a gate, the same one twice.
    pub(super) fn inputs(&self) -> [&PackedLinear; 2] {
        [self.gate_proj.as_ref().unwrap_or(&self.up_proj), &self.up_proj]
    }
}

/// How a layer mixes positions.
#[derive(Debug)]
pub(super) enum PackedMixer {
    Attention(Box<PackedAttention>),
    DeltaNet(Box<PackedDeltaNet>),
    ShortConv(Box<PackedShortConv>),
    Mamba2(Box<PackedMamba2>),
}

/// The parameters of attention.
#[derive(Debug)]
pub(super) struct PackedAttention {
    pub(super) attention: AttentionSpec,
    /// Index of the attention spec in the decoder spec.
    pub(super) attention_index: usize,
    pub(super) sliding_window: Option<usize>,
    /// Index of the rotary table in the decoder spec.
    pub(super) rope: Option<usize>,
    /// With latent attention, to the narrower vector that queries are computed from, if there is one.
    pub(super) q_proj: PackedLinear,
    pub(super) keys: Keys<PackedLinear, PackedNorm>,
    pub(super) latent: Option<Box<Latent<PackedLinear, PackedNorm>>>,
    pub(super) o_proj: PackedLinear,
    pub(super) q_norm: Option<PackedNorm>,
    /// To a gate for each head's output.
    pub(super) head_gate: Option<PackedLinear>,
    /// One score per query head, padded.
    pub(super) sinks: Option<Vec<f32>>,
}

/// The parameters of a gated delta net.
#[derive(Debug)]
pub(super) struct PackedDeltaNet {
    pub(super) spec: DeltaNetSpec,
    /// The input projections, in the order of their slots.
    pub(super) inputs: Vec<PackedLinear>,
    pub(super) out_proj: PackedLinear,
    /// For each key head, the weights of its query, key and values, each padded to a multiple of 16: `[kernel][width]`.
    pub(super) conv1d: Vec<Vec<f32>>,
    /// `[value heads]`, padded.
    pub(super) dt_bias: Vec<f32>,
    /// `-exp(A_log)`, `[value heads]`, padded.
    pub(super) rates: Vec<f32>,
    pub(super) norm: PackedNorm,
}

/// The parameters of a gated short convolution.
#[derive(Debug)]
pub(super) struct PackedShortConv {
    pub(super) shape: StateShape,
    /// Number of channels in a group.
    pub(super) width: usize,
    /// To the two gates and what is convolved.
    pub(super) in_proj: PackedLinear,
    pub(super) out_proj: PackedLinear,
    /// For each group, `[kernel][width]`, padded to a multiple of 16.
    pub(super) conv: Vec<Vec<f32>>,
    /// For each group, `[width]`, padded; zeros if there is none.
    pub(super) bias: Vec<Vec<f32>>,
}

/// The parameters of Mamba-2. What there is for each head is padded.
#[derive(Debug)]
pub(super) struct PackedMamba2 {
    pub(super) spec: Mamba2Spec,
    /// Its groups are parts of those of the spec.
    pub(super) shape: StateShape,
    pub(super) in_proj: PackedLinear,
    pub(super) out_proj: PackedLinear,
    /// For each part, the weights of `C`, `B` and the inputs of its heads, each padded to a multiple of 16:
    /// `[kernel][width]`.
    pub(super) conv: Vec<Vec<f32>>,
    /// For each part, in the same order, `[width]`; zeros if there is none.
    pub(super) conv_bias: Vec<Vec<f32>>,
    pub(super) dt_bias: Vec<f32>,
    /// `-exp(A_log)`.
    pub(super) rates: Vec<f32>,
    /// `D`.
    pub(super) skip: Vec<f32>,
    /// Over the heads of a group; the weight is that of all groups.
    pub(super) norm: Option<PackedNorm>,
}

impl PackedMixer {
    /// The projections of the normed residual stream.
    pub(super) fn inputs(&self) -> Vec<&PackedLinear> {
        match self {
            Self::Attention(attention) => {
                let own = attention.keys.own();
                let keys = own.into_iter().flat_map(|own| [&own.k_proj].into_iter().chain(&own.v_proj));
                [&attention.q_proj].into_iter().chain(keys).chain(&attention.head_gate).collect()
            }
            Self::DeltaNet(delta_net) => delta_net.inputs.iter().collect(),
            Self::ShortConv(conv) => vec![&conv.in_proj],
            Self::Mamba2(mamba2) => vec![&mamba2.in_proj],
        }
    }

    /// The projection to the residual stream.
    pub(super) fn output(&self) -> &PackedLinear {
        match self {
            Self::Attention(attention) => &attention.o_proj,
            Self::DeltaNet(delta_net) => &delta_net.out_proj,
            Self::ShortConv(conv) => &conv.out_proj,
            Self::Mamba2(mamba2) => &mamba2.out_proj,
        }
    }

    /// Number of groups of heads whose outputs lie side by side.
    pub(super) fn groups(&self) -> usize {
        match self {
            Self::Attention(attention) => attention.attention.num_key_value_heads,
            Self::DeltaNet(delta_net) => delta_net.spec.linear_num_key_heads,
            Self::ShortConv(conv) => conv.shape.groups,
            Self::Mamba2(mamba2) => mamba2.shape.groups,
        }
    }

    /// Number of parts of each group: the outputs' order is that of the first parts of all groups, then the second ones.
    pub(super) fn tiles(&self) -> usize {
        match self {
            Self::DeltaNet(delta_net) if delta_net.spec.value_heads == ValueHeadOrder::Tiled => {
                delta_net.spec.values_per_key()
            }
            Self::Attention(_) | Self::DeltaNet(_) | Self::ShortConv(_) | Self::Mamba2(_) => 1,
        }
    }

    /// Number of values between the outputs of a group for one token and for the next.
    pub(super) fn group_stride(&self) -> usize {
        match self {
            // Values are as wide as keys there, and those of latent attention end in zeros.
            Self::Attention(attention) => attention.attention.query_width() / self.groups(),
            Self::DeltaNet(_) | Self::ShortConv(_) | Self::Mamba2(_) => self.output().columns / self.groups(),
        }
    }

    /// The outputs of its heads as the input of the output projection.
    pub(super) fn grouped<'a>(&self, heads: &'a [f32]) -> Source<'a> {
        Source::Groups { data: heads, groups: self.groups(), tiles: self.tiles(), stride: self.group_stride() }
    }

    /// The names of its activations: of the heads, of the gated ones, and of the output.
    pub(super) fn names(&self) -> [&'static str; 3] {
        match self {
            Self::Attention(_) => ["attn.heads", "attn.gated", "attn.out"],
            Self::DeltaNet(_) => ["delta.heads", "delta.gated", "delta.out"],
            Self::ShortConv(_) => ["conv.convolved", "conv.gated", "conv.out"],
            Self::Mamba2(_) => ["mamba.heads", "mamba.gated", "mamba.out"],
        }
    }
}

/// A norm, with the weight offset already added; vectors are padded to a multiple of 16.
#[derive(Debug)]
pub(super) struct PackedNorm {
    pub(super) kind: NormKind,
    pub(super) eps: f32,
    pub(super) weight: Vec<f32>,
    pub(super) bias: Option<Vec<f32>>,
}

impl PackedNorm {
    /// A norm of `width` values without a weight of its own.
    fn plain(eps: f64, width: usize) -> Self {
        let weight = vec![1.0; width.next_multiple_of(LANES)];
        Self { kind: NormKind::Rms, eps: eps as f32, weight, bias: None }
    }
}

/// A matrix in panels, and a bias padded to a multiple of 16.
#[derive(Debug)]
pub(super) struct PackedLinear {
    pub(super) slot: Slot,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) format: PanelFormat,
    /// Its index in [`KernelPlan::projections`], which has its numeric level.
    pub(super) planned: usize,
    pub(super) bias: Option<Vec<f32>>,
    data: Range<usize>,
}

impl PackedLinear {
    /// Number of 16-row panels.
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }
}

impl PackedDecoder {
    /// Size of all panels in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.panel_bytes
    }

    /// All panels, in the parts in which they lie side by side.
    pub(super) fn all_panels(&self) -> [&[u8]; 2] {
        let [panels, _, experts] = self.sections.ranges();
        [panels, experts].map(|range| self.memory.bytes(range))
    }

    /// The decoder with the bytes of its parameters.
    pub(super) fn with_memory(self, memory: WeightMemory) -> Self {
        Self { memory, ..self }
    }

    /// Asks for the matrices of a layer, or of the head after the last one, if they may have to be read from the disk.
    pub(super) fn read_ahead(&self, layer: usize) {
        let head = self.ends.as_ref().map(|ends| &ends.lm_head.data);
        if let Some(panels) = self.layer_panels.get(layer).or(head) {
            self.memory.read_ahead(panels.clone());
        }
    }

    /// Asks for the matrices of a network, if they may have to be read from the disk.
    pub(super) fn read_ahead_network(&self, network: &PackedNetwork) {
        self.memory.read_ahead(network.inputs()[0].data.start..network.down_proj.data.end);
    }

    /// Before a step: copies some of the weights that were used from the file to memory that is read faster.
    pub(super) fn begin_step(&mut self, pool: &mut Pool) {
        self.memory.begin_step(pool);
    }

    /// Copies some more of them. Returns whether there were any.
    pub(super) fn copy_some(&mut self, pool: &mut Pool) -> bool {
        self.memory.copy_some(pool)
    }

    /// Fails if weights were used that are not those that were packed.
    pub(super) fn check(&self) -> Result<()> {
        self.memory.check()
    }

    /// Some panels of a matrix; panel `next` of `following` is named as the place from which to prefetch.
    pub(super) fn panels(
        &self,
        linear: &PackedLinear,
        panels: Range<usize>,
        (following, next): (&PackedLinear, usize),
    ) -> Panels<'_> {
        let at = |linear: &PackedLinear, panel| linear.data.start + panel * panel_bytes(linear.format, linear.columns);
        let data = self.memory.bytes(at(linear, panels.start)..at(linear, panels.end));
        // Matrices are stored in order of use, so the bytes after a matrix belong to the next one.
        let ahead = self.memory.ahead(at(following, next));
        Panels { format: linear.format, columns: linear.columns, data, ahead }
    }

    /// Embedding and output head. Fails if only layers were packed.
    pub(super) fn ends(&self) -> Result<&Ends> {
        self.ends.as_ref().ok_or_else(|| Error::Internal("embedding and output head are computed elsewhere".into()))
    }

    /// The embedding of a token, `[hidden_size]`.
    pub(super) fn embed(&self, ends: &Ends, token: u32, out: &mut [f32]) {
        let token = token as usize;
        match &ends.embedding {
            Embedding::Stored(rows) => self.read_stored(rows, token, out),
            Embedding::Head => {
                let panel = token / LANES;
                let panel = self.panels(&ends.lm_head, panel..panel + 1, (&ends.lm_head, panel + 1));
                read_row(panel.format, panel.data, panel.columns, token % LANES, out);
            }
        }
    }

    /// A row of an embedding.
    pub(super) fn read_stored(&self, rows: &StoredRows, row: usize, out: &mut [f32]) {
        let start = rows.start + row * rows.row_bytes;
        dequantize(rows.dtype, self.memory.bytes(start..start + rows.row_bytes), out);
    }

    /// Packs the weights into memory, several panels in parallel, each read from the checkpoint when it is packed.
    ///
    /// Fails on a non-finite weight, naming tensor and index.
    pub(super) fn load(
        spec: &DecoderSpec,
        weights: &Weights,
        plan: &KernelPlan,
        pool: &mut Pool,
        progress: LoadProgress,
    ) -> Result<Self> {
        let bytes = sections(weights).bytes();
        let pages = Pages::zeroed(bytes).map_err(|_| memory::exhausted(bytes, "packed weights".into()))?;
        let (decoder, packed) = Self::pack(spec, weights, plan, Destination::Own(pages), pool, progress)?;
        match packed {
            Destination::Own(pages) => Ok(decoder.with_memory(WeightMemory::own(pages))),
            _ => Err(packed_elsewhere()),
        }
    }

    /// Packs the weights to a destination, and returns it with a decoder that lacks their memory.
    pub(super) fn pack<'a>(
        spec: &'a DecoderSpec,
        weights: &'a Weights,
        plan: &'a KernelPlan,
        to: Destination<'a>,
        pool: &mut Pool,
        progress: LoadProgress,
    ) -> Result<(Self, Destination<'a>)> {
        let sections = sections(weights);
        let mut packer = Packer { spec, weights, plan, to, packed: sections.ranges().map(|range| range.start) };
        let per_layer_inputs = packer.per_layer_inputs(pool)?;
        let spread = packer.of_streams(Slot::StreamProjection, pool)?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        let mut layer_panels = Vec::with_capacity(spec.layers.len());
        for index in 0..spec.layers.len() {
            let start = packer.packed[0];
            layers.push(packer.layer(index, pool)?);
            layer_panels.push(start..packer.packed[0]);
            progress(index + 1, spec.layers.len());
        }
        let merge = packer.of_streams(Slot::StreamUnembedding, pool)?;
        let stream_projections = spec.altup.map(|altup| PackedStreamProjections {
            spread,
            merge,
            least_mean_square: altup.least_mean_square as f32,
        });
        let ends = match weights.get(Slot::LmHead, Param::Weight) {
            Some(_) => Some(packer.ends(pool)?),
            None => None,
        };
        let [panels, _, experts] = sections.ranges();
        let panel_bytes = packer.packed[0] - panels.start + packer.packed[2] - experts.start;
        let decoder = Self {
            memory: WeightMemory::default(),
            panel_bytes,
            sections,
            layer_panels,
            ends,
            per_layer_inputs,
            stream_projections,
            layers,
        };
        Ok((decoder, packer.to))
    }
}

/// [`PackedDecoder::pack`] returned another destination than it was given.
pub(super) fn packed_elsewhere() -> Error {
    Error::Internal("weights were packed elsewhere".into())
}

fn absent(slot: Slot) -> Error {
    Error::Internal(format!("the architecture calls for {slot:?}, which the weights lack"))
}

pub(super) fn weight_type(dtype: Dtype) -> WeightType {
    match dtype {
        Dtype::F32 => WeightType::F32,
        Dtype::F16 => WeightType::F16,
        Dtype::BF16 => WeightType::Bf16,
        Dtype::Q4_0 => WeightType::Q4_0,
        Dtype::Q4_1 => WeightType::Q4_1,
        Dtype::Q5_0 => WeightType::Q5_0,
        Dtype::Q5_1 => WeightType::Q5_1,
        Dtype::Q8_0 => WeightType::Q8_0,
        Dtype::Q2K => WeightType::Q2K,
        Dtype::Q3K => WeightType::Q3K,
        Dtype::Q4K => WeightType::Q4K,
        Dtype::Q5K => WeightType::Q5K,
        Dtype::Q6K => WeightType::Q6K,
        Dtype::Iq4Nl => WeightType::Iq4Nl,
        Dtype::Iq4Xs => WeightType::Iq4Xs,
        Dtype::Iq1S => WeightType::Iq1S,
        Dtype::Iq1M => WeightType::Iq1M,
        Dtype::Iq2Xxs => WeightType::Iq2Xxs,
        Dtype::Iq2Xs => WeightType::Iq2Xs,
        Dtype::Iq2S => WeightType::Iq2S,
        Dtype::Iq3Xxs => WeightType::Iq3Xxs,
        Dtype::Iq3S => WeightType::Iq3S,
        Dtype::Tq1_0 => WeightType::Tq1_0,
        Dtype::Tq2_0 => WeightType::Tq2_0,
        Dtype::Mxfp4 => WeightType::Mxfp4,
        Dtype::Nvfp4 => WeightType::Nvfp4,
    }
}

/// Size of a matrix in panels, in bytes.
fn matrix_bytes(view: &TensorView<'_>) -> usize {
    let format = PanelFormat::of(weight_type(view.dtype));
    (view.shape[0].div_ceil(LANES) * panel_bytes(format, view.shape[1])).next_multiple_of(ALIGNMENT)
}

/// Size of all parameters once they are packed, in bytes.
pub(super) fn weight_bytes(weights: &Weights) -> usize {
    let tied = weights.head_is_embedding();
    let bytes = weights.iter().map(|(slot, param, view)| match (slot, param, view.shape.len()) {
        (Slot::EmbedTokens, Param::Weight, _) if tied => 0,
        (Slot::EmbedTokens | Slot::EmbedTokensPerLayer, Param::Weight, _) => view.data.len(),
        (_, Param::Weight, 2) => matrix_bytes(&view),
        _ => view.len().next_multiple_of(LANES) * size_of::<f32>(),
    });
    bytes.fold(0, usize::saturating_add)
}

/// Sizes of the parts of the packed weights.
pub(super) fn sections(weights: &Weights) -> Sections {
    let tied = weights.head_is_embedding();
    let mut bytes = [0usize; 3];
    for (slot, _, view) in weights.iter().filter(|(_, param, _)| *param == Param::Weight) {
        let (section, size) = match slot {
            Slot::EmbedTokens if tied => continue,
            Slot::EmbedTokens | Slot::EmbedTokensPerLayer => (1, view.data.len().next_multiple_of(ALIGNMENT)),
            _ if !is_projection(slot) => continue,
            _ => (section(slot), matrix_bytes(&view)),
        };
        bytes[section] += size;
    }
    Sections::holding(bytes)
}

/// Which part of the packed weights a matrix lies in.
fn section(slot: Slot) -> usize {
    if matches!(slot, Slot::Expert(..)) { 2 } else { 0 }
}
