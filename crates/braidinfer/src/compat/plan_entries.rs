//! Converting kernel plans to report entries and back.

use std::collections::{BTreeMap, BTreeSet};

use braidinfer_kernels::NumericLevel;
use braidinfer_model::{ExpertSlot, LayerSlot, Slot};

use super::report::PlanEntry;
use crate::executor::{ActiveKernels, KernelPlan, KvDtype};

/// The parts of the model that use standard kernels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Computed<'a> {
    /// The whole model.
    All,
    /// These layers, possibly none.
    Some(&'a BTreeSet<usize>),
}

/// One entry per layer, and one for the output head.
pub(super) fn entries(plan: &KernelPlan, standard: Computed) -> Vec<PlanEntry> {
    let is_standard = |layer: Option<usize>| match standard {
        Computed::All => true,
        Computed::Some(layers) => layer.is_some_and(|layer| layers.contains(&layer)),
    };
    let levels = |wanted: Option<usize>| -> BTreeMap<String, String> {
        let planned = plan.projections.iter().filter(|planned| planned.layer() == wanted);
        planned.map(|planned| (name(planned.slot).to_owned(), planned.level.name().to_owned())).collect()
    };
    let entry = |layer: Option<usize>, kv: Option<&KvDtype>| {
        let standard = is_standard(layer);
        let kv = kv.map(|kv| if standard { KvDtype::F32 } else { *kv });
        PlanEntry {
            layer,
            kernels: if standard { ActiveKernels::Standard } else { ActiveKernels::Fused }.as_str().to_owned(),
            kv: kv.map(|kv| kv.name().to_owned()),
            levels: if standard { BTreeMap::new() } else { levels(layer) },
        }
    };
    let layers = plan.kv_dtypes.iter().zip(&plan.kv_widths).enumerate();
    let layers = layers.map(|(layer, (kv, width))| entry(Some(layer), Some(kv).filter(|_| *width > 0)));
    layers.chain([entry(None, None)]).collect()
}

/// `plan` with the levels and KV data types of `entries` for fused kernels, or `None` if `entries` has other
/// projections.
pub(super) fn planned(plan: &KernelPlan, entries: &[PlanEntry]) -> Option<KernelPlan> {
    let mut plan = plan.clone();
    if entries.len() != plan.kv_dtypes.len() + 1 {
        return None;
    }
    let of = |layer: Option<usize>| entries.iter().find(|entry| entry.layer == layer);
    for planned in &mut plan.projections {
        let entry = of(planned.layer())?;
        if entry.is_standard() {
            continue;
        }
        let level = entry.levels.get(name(planned.slot))?;
        planned.level = NumericLevel::ALL.into_iter().find(|known| known.name() == level)?;
    }
    let with_keys = plan.kv_dtypes.iter_mut().zip(&plan.kv_widths).enumerate().filter(|(_, (_, width))| **width > 0);
    for (layer, (kv, _)) in with_keys {
        let named = of(Some(layer))?.kv.as_deref()?;
        *kv = KvDtype::ALL.into_iter().find(|known| known.name() == named)?;
    }
    Some(plan)
}

/// The projection's name in Hugging Face checkpoints.
fn name(slot: Slot) -> &'static str {
    match slot {
        Slot::Layer(_, LayerSlot::QProj) => "q_proj",
        Slot::Layer(_, LayerSlot::KProj) => "k_proj",
        Slot::Layer(_, LayerSlot::VProj) => "v_proj",
        Slot::Layer(_, LayerSlot::QAProj) => "q_a_proj",
        Slot::Layer(_, LayerSlot::QBProj) => "q_b_proj",
        Slot::Layer(_, LayerSlot::KvAProj) => "kv_a_proj_with_mqa",
        Slot::Layer(_, LayerSlot::KvBProj) => "kv_b_proj",
        Slot::Layer(_, LayerSlot::OProj) => "o_proj",
        Slot::Layer(_, LayerSlot::HeadGate) => "self_attn.gate_proj",
        Slot::Layer(_, LayerSlot::InProjQkv) => "in_proj_qkv",
        Slot::Layer(_, LayerSlot::InProjZ) => "in_proj_z",
        Slot::Layer(_, LayerSlot::InProjB) => "in_proj_b",
        Slot::Layer(_, LayerSlot::InProjA) => "in_proj_a",
        Slot::Layer(_, LayerSlot::InProjQkvz) => "in_proj_qkvz",
        Slot::Layer(_, LayerSlot::InProjBa) => "in_proj_ba",
        Slot::Layer(_, LayerSlot::OutProj) => "out_proj",
        Slot::Layer(_, LayerSlot::GateProj) => "gate_proj",
        Slot::Layer(_, LayerSlot::UpProj) => "up_proj",
        Slot::Layer(_, LayerSlot::DownProj) => "down_proj",
        Slot::Layer(_, LayerSlot::Router) => "router",
        Slot::Layer(_, LayerSlot::SharedGateProj) => "shared_expert.gate_proj",
        Slot::Layer(_, LayerSlot::SharedUpProj) => "shared_expert.up_proj",
        Slot::Layer(_, LayerSlot::SharedDownProj) => "shared_expert.down_proj",
        Slot::Layer(_, LayerSlot::SharedExpertGate) => "shared_expert_gate",
        Slot::Expert(.., ExpertSlot::GateProj) => "experts.gate_proj",
        Slot::Expert(.., ExpertSlot::UpProj) => "experts.up_proj",
        Slot::Expert(.., ExpertSlot::DownProj) => "experts.down_proj",
        Slot::Layer(_, LayerSlot::PerLayerInputGate) => "per_layer_input_gate",
        Slot::Layer(_, LayerSlot::PerLayerProjection) => "per_layer_projection",
        Slot::Layer(_, LayerSlot::StreamRouter) => "altup.modality_router",
        Slot::Layer(_, LayerSlot::LaurelLeft) => "laurel.linear_left",
        Slot::Layer(_, LayerSlot::LaurelRight) => "laurel.linear_right",
        Slot::PerLayerModelProjection => "per_layer_model_projection",
        Slot::StreamProjection(_) => "altup_projections",
        Slot::StreamUnembedding(_) => "altup_unembed_projections",
        Slot::LmHead => "lm_head",
        Slot::Layer(..) | Slot::EmbedTokens | Slot::FinalNorm => "no projection",
        Slot::EmbedTokensPerLayer | Slot::PerLayerProjectionNorm => "no projection",
    }
}
