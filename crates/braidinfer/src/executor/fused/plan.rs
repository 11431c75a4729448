//! Which numeric level multiplies each projection.

use braidinfer_kernels::NumericLevel;
use braidinfer_model::{Dtype, LayerSlot, Param, Slot, Weights};
use serde::Serialize;

use crate::executor::KvDtype;

/// One projection and the level it is multiplied at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedProjection {
    /// The module.
    pub slot: Slot,
    /// How its weights are stored.
    pub dtype: Dtype,
    /// How activations are rounded for it.
    pub level: NumericLevel,
}

impl PlannedProjection {
    /// Whether weights of this type can be multiplied at this level.
    pub(super) fn is_possible(&self) -> bool {
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
}

impl KernelPlan {
    /// The fastest level for every projection of `layers` layers and the output head that is no coarser than `coarsest`.
    pub fn fastest(weights: &Weights, layers: usize, coarsest: NumericLevel, kv_dtype: KvDtype) -> Self {
        let projection = |(slot, param, dtype): (Slot, Param, Dtype)| {
            let is_matrix = param == Param::Weight && is_projection(slot);
            is_matrix.then(|| PlannedProjection { slot, dtype, level: fastest_level(dtype, coarsest) })
        };
        let parameters = weights.iter().map(|(slot, param, view)| (slot, param, view.dtype));
        Self { projections: parameters.filter_map(projection).collect(), kv_dtypes: vec![kv_dtype; layers] }
    }

    /// The same with nothing rounded but sums.
    pub fn exact(&self) -> Self {
        let exact = |planned: &PlannedProjection| PlannedProjection { level: NumericLevel::F32, ..*planned };
        Self {
            projections: self.projections.iter().map(exact).collect(),
            kv_dtypes: vec![KvDtype::F32; self.kv_dtypes.len()],
        }
    }

    /// Has some projections of a layer multiply activations as they are.
    pub fn raise_levels(&mut self, layer: usize, which: impl Fn(LayerSlot) -> bool) {
        for planned in &mut self.projections {
            if matches!(planned.slot, Slot::Layer(index, slot) if index == layer && which(slot)) {
                planned.level = NumericLevel::F32;
            }
        }
    }

    /// Has the output head multiply activations as they are.
    pub fn raise_head(&mut self) {
        let head = self.projections.iter_mut().filter(|planned| planned.slot == Slot::LmHead);
        head.for_each(|planned| planned.level = NumericLevel::F32);
    }

    /// Whether a layer is computed and stored as in another plan.
    pub fn same_layer(&self, other: &Self, layer: usize) -> bool {
        let of = |plan: &Self| -> Vec<PlannedProjection> {
            let in_layer =
                |planned: &&PlannedProjection| matches!(planned.slot, Slot::Layer(index, _) if index == layer);
            plan.projections.iter().filter(in_layer).copied().collect()
        };
        self.kv_dtypes.get(layer) == other.kv_dtypes.get(layer) && of(self) == of(other)
    }

    /// The level of a projection; the exact one if the plan does not know it.
    pub fn level(&self, slot: Slot) -> NumericLevel {
        let planned = self.projections.iter().find(|projection| projection.slot == slot);
        planned.map_or(NumericLevel::F32, |projection| projection.level)
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
    let allowed = |level: &&NumericLevel| **level as usize <= coarsest as usize;
    levels(dtype).iter().rfind(allowed).copied().unwrap_or(NumericLevel::F32)
}
