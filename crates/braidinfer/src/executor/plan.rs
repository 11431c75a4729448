//! Which numeric level multiplies each projection.

use braidinfer_kernels::NumericLevel;
use braidinfer_model::spec::AttentionSpec;
use braidinfer_model::{DecoderSpec, Dtype, LayerSlot, Param, Slot, Weights};
use serde::Serialize;

use super::KvDtype;
use crate::{Error, Result};

/// One projection and the level it is multiplied at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedProjection {
    /// The module.
    pub slot: Slot,
    /// How its weights are stored.
    pub dtype: Dtype,
    /// Bytes of its weights in their file.
    pub bytes: usize,
    /// How activations are rounded for it.
    pub level: NumericLevel,
}

impl PlannedProjection {
    /// The layer it belongs to; `None` for the output head.
    pub fn layer(&self) -> Option<usize> {
        match self.slot {
            Slot::Layer(layer, _) => Some(layer),
            Slot::EmbedTokens | Slot::FinalNorm | Slot::LmHead => None,
        }
    }

    /// Whether weights of this type can be multiplied at this level.
    fn is_possible(&self) -> bool {
        levels(self.dtype).contains(&self.level)
    }
}

/// A level for every projection, and how each layer stores keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPlan {
    /// In slot order.
    pub projections: Vec<PlannedProjection>,
    /// One for each layer.
    pub kv_dtypes: Vec<KvDtype>,
    /// Values of a token's keys in each layer, over all heads.
    pub kv_widths: Vec<usize>,
}

impl KernelPlan {
    /// The fastest level for every projection that is no coarser than `coarsest`.
    pub fn fastest(spec: &DecoderSpec, weights: &Weights, coarsest: NumericLevel, kv_dtype: KvDtype) -> Self {
        let projection = |(slot, param, dtype, bytes): (Slot, Param, Dtype, usize)| {
            let is_matrix = param == Param::Weight && is_projection(slot);
            is_matrix.then(|| PlannedProjection { slot, dtype, bytes, level: fastest_level(dtype, coarsest) })
        };
        let parameters = weights.iter().map(|(slot, param, view)| (slot, param, view.dtype, view.data.len()));
        Self {
            projections: parameters.filter_map(projection).collect(),
            kv_dtypes: vec![kv_dtype; spec.layers.len()],
            kv_widths: spec.layer_attentions().map(AttentionSpec::key_value_width).collect(),
        }
    }

    /// The same with nothing rounded but sums.
    pub fn exact(&self) -> Self {
        self.no_coarser(NumericLevel::F32, KvDtype::F32)
    }

    /// Ever more exact plans, from this one to the exact one: activations in 16 bits where weights are blocks of codes, and
    /// as they are elsewhere; then keys and values in f32; then all activations as they are.
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

    /// Levels and storage no coarser than these.
    fn no_coarser(&self, level: NumericLevel, kv_dtype: KvDtype) -> Self {
        let mut plan = self.clone();
        for planned in &mut plan.projections {
            planned.level =
                fastest_level(planned.dtype, if planned.level.is_coarser(level) { level } else { planned.level });
        }
        if kv_dtype == KvDtype::F32 {
            plan.kv_dtypes.fill(KvDtype::F32);
        }
        plan
    }

    /// Whether any projection multiplies activations that were rounded to 8 bits or bf16.
    pub fn rounds_activations(&self) -> bool {
        self.projections.iter().any(|planned| planned.level.is_coarser(NumericLevel::Int16))
    }

    /// Whether this is a plan for a model with `projections`, whose levels are all possible.
    ///
    /// Fails otherwise, and says which projection is in the way.
    pub(super) fn check(&self, projections: &[(Slot, Dtype)], layers: usize) -> Result<()> {
        let own = self.projections.iter().map(|planned| (planned.slot, planned.dtype));
        if !own.eq(projections.iter().copied()) || self.kv_dtypes.len() != layers {
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

    /// The projection in a slot, by its index in [`KernelPlan::projections`].
    pub(super) fn index_of(&self, slot: Slot) -> Option<usize> {
        self.projections.iter().position(|planned| planned.slot == slot)
    }

    /// The level that multiplies most of the bytes.
    pub(super) fn main_level(&self) -> NumericLevel {
        let bytes = |level: &NumericLevel| -> usize {
            let of_level = self.projections.iter().filter(|planned| planned.level == *level);
            of_level.map(|planned| planned.bytes).sum()
        };
        NumericLevel::ALL.into_iter().max_by_key(bytes).unwrap_or(NumericLevel::F32)
    }

    /// Whether a layer is computed and stored as in another plan.
    pub fn same_layer(&self, other: &Self, layer: usize) -> bool {
        let of = |plan: &Self| -> Vec<PlannedProjection> {
            let in_layer = |planned: &&PlannedProjection| planned.layer() == Some(layer);
            plan.projections.iter().filter(in_layer).copied().collect()
        };
        self.kv_dtypes.get(layer) == other.kv_dtypes.get(layer) && of(self) == of(other)
    }

    /// How many projections run at each level, coarsest first; levels without any are left out.
    pub fn summary(&self) -> Vec<LevelCount> {
        let count = |level: NumericLevel| {
            let projections = self.projections.iter().filter(|projection| projection.level == level).count();
            LevelCount { level: level.name(), projections }
        };
        let counts = NumericLevel::ALL.map(count);
        counts.into_iter().rev().filter(|count| count.projections > 0).collect()
    }
}

/// Projections at one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LevelCount {
    /// The level's name.
    pub level: &'static str,
    /// How many.
    pub projections: usize,
}

fn is_projection(slot: Slot) -> bool {
    use LayerSlot::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
    match slot {
        Slot::LmHead => true,
        Slot::EmbedTokens | Slot::FinalNorm => false,
        Slot::Layer(_, slot) => matches!(slot, QProj | KProj | VProj | OProj | GateProj | UpProj | DownProj),
    }
}

/// What weights of a type can be multiplied at, exact levels first: blocks of codes with activations in 8 and 16 bits, bf16
/// weights with bf16 ones, and everything with f32.
fn levels(dtype: Dtype) -> &'static [NumericLevel] {
    match dtype {
        dtype if dtype.is_quantized() => &[NumericLevel::F32, NumericLevel::Int16, NumericLevel::Int8],
        Dtype::BF16 => &[NumericLevel::F32, NumericLevel::Bf16],
        _ => &[NumericLevel::F32],
    }
}

/// The coarsest level that is no coarser than `coarsest`.
fn fastest_level(dtype: Dtype, coarsest: NumericLevel) -> NumericLevel {
    let allowed = |level: &&NumericLevel| !level.is_coarser(coarsest);
    levels(dtype).iter().rfind(allowed).copied().unwrap_or(NumericLevel::F32)
}
