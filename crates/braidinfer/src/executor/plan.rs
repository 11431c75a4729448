//! The numeric level of each projection and the KV data type of each layer.

use std::ops::Range;

use braidinfer_kernels::NumericLevel;
use braidinfer_model::{DecoderSpec, Dtype, LayerSlot, Param, Slot, Weights};
use serde::Serialize;

use super::KvDtype;
use crate::{Error, Result};

/// A projection and the numeric level at which it is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedProjection {
    /// The module that the weights belong to; the first expert stands for all experts of its layer.
    pub slot: Slot,
    /// Data type of its weights.
    pub dtype: Dtype,
    /// Size of its weights in the checkpoint, in bytes.
    pub bytes: usize,
    /// How activations are rounded before the multiplication.
    pub level: NumericLevel,
}

impl PlannedProjection {
    /// Index of its layer; `None` for the output head, and for what all layers share.
    pub fn layer(&self) -> Option<usize> {
        match self.slot {
            Slot::Layer(layer, _) | Slot::Expert(layer, ..) => Some(layer),
            Slot::EmbedTokens | Slot::FinalNorm | Slot::LmHead => None,
            Slot::EmbedTokensPerLayer | Slot::PerLayerModelProjection | Slot::PerLayerProjectionNorm => None,
            Slot::StreamProjection(_) | Slot::StreamUnembedding(_) => None,
        }
    }

    /// Whether weights of this type can be multiplied at this level.
    fn is_possible(&self) -> bool {
        levels(self.slot, self.dtype).contains(&self.level)
    }
}

/// A numeric level for every projection, and the data type of keys and values in each layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPlan {
    /// The projections, in the order of their slots.
    pub projections: Vec<PlannedProjection>,
    /// KV data type of each layer; f32 for layers without keys and values.
    pub kv_dtypes: Vec<KvDtype>,
    /// Width of a token's keys in each layer, over all heads; 0 for layers without.
    pub kv_widths: Vec<usize>,
}

impl KernelPlan {
    /// The plan with the fastest level for every projection that is not coarser than `coarsest`.
    pub fn fastest(spec: &DecoderSpec, weights: &Weights, coarsest: NumericLevel, kv_dtype: KvDtype) -> Self {
        let projection = |(slot, param, dtype, bytes): (Slot, Param, Dtype, usize)| {
            let planned = param == Param::Weight && is_projection(slot) && planned_slot(slot) == slot;
            let bytes = bytes.saturating_mul(matrices_at(spec, slot));
            planned.then(|| PlannedProjection { slot, dtype, bytes, level: fastest_level(slot, dtype, coarsest) })
        };
        let parameters = weights.iter().map(|(slot, param, view)| (slot, param, view.dtype, view.data.len()));
        let kv_widths: Vec<usize> = (0..spec.layers.len()).map(|layer| spec.key_value_width(layer)).collect();
        // Layers without keys and values have no choice of a type that would have to be measured.
        let kv_dtype = |width: &usize| if *width == 0 { KvDtype::F32 } else { kv_dtype };
        Self {
            projections: parameters.filter_map(projection).collect(),
            kv_dtypes: kv_widths.iter().map(kv_dtype).collect(),
            kv_widths,
        }
    }

    /// This plan with f32 activations, keys and values: only sums are rounded.
    pub fn exact(&self) -> Self {
        self.no_coarser(NumericLevel::F32, KvDtype::F32)
    }

    /// Whether any layer stores keys and values in 8 or 4 bits.
    pub(crate) fn stores_quantized(&self) -> bool {
        self.kv_dtypes.iter().any(|kv| kv.is_quantized())
    }

    /// This plan with keys and values in f16 where they are quantized.
    pub(crate) fn without_quantized_kv(&self) -> Self {
        let kv_dtypes = self.kv_dtypes.iter().map(|kv| (*kv).min(KvDtype::F16)).collect();
        Self { kv_dtypes, ..self.clone() }
    }

    /// This plan with the quantized keys and values of another.
    pub(crate) fn with_kv_of(&self, other: &Self) -> Self {
        let pairs = self.kv_dtypes.iter().zip(&other.kv_dtypes);
        let kv_dtypes = pairs.map(|(own, other)| if other.is_quantized() { *other } else { *own }).collect();
        Self { kv_dtypes, ..self.clone() }
    }

    /// This plan with f32 activations in the layers of which `exact` says so, and in what belongs to no layer.
    #[cfg(feature = "gpu")]
    pub(super) fn exact_in(mut self, exact: &[bool]) -> Self {
        for planned in &mut self.projections {
            if planned.layer().is_none_or(|layer| exact[layer]) {
                planned.level = NumericLevel::F32;
            }
        }
        self
    }

    /// Plans of increasing precision, from this one to the exact one: first 16-bit activations for block-quantized
    /// weights and f32 activations for others, then also f32 keys and values, then f32 activations everywhere.
    pub fn ladder(&self) -> Vec<Self> {
        let mut plans = vec![self.clone()];
        for (level, kv_dtype) in [
            (NumericLevel::Int16, KvDtype::F16),
            (NumericLevel::Int16, KvDtype::F32),
            (NumericLevel::F32, KvDtype::F32),
        ] {
            plans.push(self.no_coarser(level, kv_dtype));
        }
        plans.dedup();
        plans
    }

    /// This plan, with every level and KV data type at least as precise as the given ones.
    fn no_coarser(&self, level: NumericLevel, kv_dtype: KvDtype) -> Self {
        let mut plan = self.clone();
        for planned in &mut plan.projections {
            planned.level = fastest_level(
                planned.slot,
                planned.dtype,
                if planned.level.is_coarser(level) { level } else { planned.level },
            );
        }
        for kv in &mut plan.kv_dtypes {
            *kv = (*kv).min(kv_dtype);
        }
        plan
    }

    /// Whether any projection rounds its activations to 8 bits or bf16.
    pub fn rounds_activations(&self) -> bool {
        self.projections.iter().any(|planned| planned.level.is_coarser(NumericLevel::Int16))
    }

    /// Checks that this plan is for a model with these `projections`, and that every level is possible.
    ///
    /// Fails otherwise, naming the projection.
    pub(super) fn check(&self, projections: &[(Slot, Dtype)], layers: usize) -> Result<()> {
        let own = self.projections.iter().map(|planned| (planned.slot, planned.dtype));
        if !own.eq(projections.iter().copied()) || [self.kv_dtypes.len(), self.kv_widths.len()] != [layers; 2] {
            return Err(Error::bad_request("kernel_plan", "one for this model", "one for another"));
        }
        match self.projections.iter().find(|planned| !planned.is_possible()) {
            None => Ok(()),
            Some(planned) => {
                let found = format!("{} for {} weights in {:?}", planned.level.name(), planned.dtype, planned.slot);
                Err(Error::bad_request("kernel_plan", "a level that its weights can be multiplied at", found))
            }
        }
    }

    /// The index in [`KernelPlan::projections`] of the projection in a slot.
    pub(super) fn index_of(&self, slot: Slot) -> Option<usize> {
        let slot = planned_slot(slot);
        self.projections.iter().position(|planned| planned.slot == slot)
    }

    /// The level of the projections that hold most of the weight bytes.
    pub(super) fn main_level(&self) -> NumericLevel {
        let bytes = |level: &NumericLevel| -> usize {
            let of_level = self.projections.iter().filter(|planned| planned.level == *level);
            of_level.map(|planned| planned.bytes).sum()
        };
        NumericLevel::ALL.into_iter().max_by_key(bytes).unwrap_or(NumericLevel::F32)
    }

    /// The plan of some consecutive layers, which are numbered from 0 in it; if `with_ends`, with what belongs to no layer.
    pub(crate) fn of_layers(&self, layers: &Range<usize>, with_ends: bool) -> Self {
        let part = |planned: &PlannedProjection| {
            Some(PlannedProjection { slot: planned.slot.of_layers(layers, with_ends)?, ..*planned })
        };
        Self {
            projections: self.projections.iter().filter_map(part).collect(),
            kv_dtypes: self.kv_dtypes[layers.clone()].to_vec(),
            kv_widths: self.kv_widths[layers.clone()].to_vec(),
        }
    }

    /// Whether a layer has the same levels and KV data type in another plan.
    pub fn same_layer(&self, other: &Self, layer: usize) -> bool {
        let of = |plan: &Self| -> Vec<PlannedProjection> {
            let in_layer = |planned: &&PlannedProjection| planned.layer() == Some(layer);
            plan.projections.iter().filter(in_layer).copied().collect()
        };
        self.kv_dtypes.get(layer) == other.kv_dtypes.get(layer) && of(self) == of(other)
    }

    /// Number of projections per level, coarsest first, without unused levels.
    pub fn summary(&self) -> Vec<LevelCount> {
        let count = |level: NumericLevel| {
            let projections = self.projections.iter().filter(|projection| projection.level == level).count();
            LevelCount { level: level.name(), projections }
        };
        let counts = NumericLevel::ALL.map(count);
        counts.into_iter().rev().filter(|count| count.projections > 0).collect()
    }
}

/// The number of projections at one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LevelCount {
    /// The level's name.
    pub level: &'static str,
    /// Number of projections.
    pub projections: usize,
}

/// Whether the weight in a slot is the matrix of a projection.
pub(super) fn is_projection(slot: Slot) -> bool {
    use LayerSlot::*;
    match slot {
        Slot::LmHead | Slot::Expert(..) | Slot::PerLayerModelProjection => true,
        Slot::StreamProjection(_) | Slot::StreamUnembedding(_) => true,
        Slot::EmbedTokens | Slot::FinalNorm | Slot::EmbedTokensPerLayer | Slot::PerLayerProjectionNorm => false,
        Slot::Layer(_, slot) => match slot {
            QAProj | QBProj | KvAProj | KvBProj => true,
            QProj | KProj | VProj | OProj | HeadGate | GateProj | UpProj | DownProj => true,
            InProjQkv | InProjZ | InProjB | InProjA | InProjQkvz | InProjBa | InProjBcx | OutProj => true,
            InProjZxbcdt => true,
            Router | SharedGateProj | SharedUpProj | SharedDownProj | SharedExpertGate => true,
            PerLayerInputGate | PerLayerProjection => true,
            StreamRouter | LaurelLeft | LaurelRight => true,
            StreamRouterNorm | PredictionCoefs | CorrectionCoefs | CorrectOutputScale | LaurelNorm => false,
            ExpertsNorm | SharedExpertOutputNorm | ExpertsOutputNorm | RouterNorm | PerExpertScale => false,
            PostPerLayerInputNorm | LayerScalar => false,
            InputNorm | QNorm | KNorm | QANorm | KvANorm | Sinks | AttentionOutputNorm => false,
            FeedForwardNorm | Activation | RouterCorrection | FeedForwardOutputNorm => false,
            Conv1d | DtBias | ALog | DeltaNorm | SkipD | MambaNorm => false,
        },
    }
}

/// The slot that stands for a projection in plans: all experts of a layer have one level.
fn planned_slot(slot: Slot) -> Slot {
    match slot {
        Slot::Expert(layer, _, projection) => Slot::Expert(layer, 0, projection),
        slot => slot,
    }
}

/// Number of matrices that a planned slot stands for.
fn matrices_at(spec: &DecoderSpec, slot: Slot) -> usize {
    match slot {
        Slot::Expert(layer, ..) => spec.experts(layer).map_or(1, |experts| experts.num_experts),
        _ => 1,
    }
}

/// The levels at which weights of a type can be multiplied, most precise first: block-quantized weights with 8-bit and
/// 16-bit activations, bf16 weights with bf16 activations, and all weights with f32 activations. Routers always get f32
/// activations: they are small, and decide which experts run, or how residual streams are mixed. So do
/// gates of heads, the further inputs of all layers, and the projections between residual streams, which every plan then has in common.
fn levels(slot: Slot, dtype: Dtype) -> &'static [NumericLevel] {
    match dtype {
        _ if matches!(slot, Slot::Layer(_, LayerSlot::Router | LayerSlot::SharedExpertGate)) => &[NumericLevel::F32],
        _ if matches!(slot, Slot::Layer(_, LayerSlot::StreamRouter | LayerSlot::HeadGate)) => &[NumericLevel::F32],
        _ if matches!(slot, Slot::StreamProjection(_) | Slot::StreamUnembedding(_)) => &[NumericLevel::F32],
        _ if slot == Slot::PerLayerModelProjection => &[NumericLevel::F32],
        dtype if dtype.is_quantized() => &[NumericLevel::F32, NumericLevel::Int16, NumericLevel::Int8],
        Dtype::BF16 => &[NumericLevel::F32, NumericLevel::Bf16],
        _ => &[NumericLevel::F32],
    }
}

/// The fastest level for weights of a type that is not coarser than `coarsest`.
fn fastest_level(slot: Slot, dtype: Dtype, coarsest: NumericLevel) -> NumericLevel {
    let allowed = |level: &&NumericLevel| !level.is_coarser(coarsest);
    levels(slot, dtype).iter().rfind(allowed).copied().unwrap_or(NumericLevel::F32)
}
