//! Short descriptions of kernel plans.

use braidinfer_kernels::NumericLevel;

use crate::executor::KernelPlan;

/// Levels and KV data type of a plan: "16-bit activations, K/V f16".
pub(super) fn plan_in_words(plan: &KernelPlan) -> String {
    let with_keys = plan.kv_dtypes.iter().zip(&plan.kv_widths).filter(|(_, width)| **width > 0);
    let mut storage: Vec<&str> = with_keys.map(|(kv, _)| kv.name()).collect();
    storage.sort_unstable();
    storage.dedup();
    let levels = levels_in_words(plan, |_| true);
    if storage.is_empty() { levels } else { format!("{levels}, K/V {}", storage.join(" and ")) }
}

/// The same for a single layer.
pub(super) fn layer_in_words(plan: &KernelPlan, layer: usize) -> String {
    let levels = levels_in_words(plan, |of| of == Some(layer));
    if plan.kv_widths[layer] == 0 { levels } else { format!("{levels}, K/V {}", plan.kv_dtypes[layer].name()) }
}

/// Each level in use once, coarsest first.
fn levels_in_words(plan: &KernelPlan, wanted: impl Fn(Option<usize>) -> bool) -> String {
    let has = |level: &NumericLevel| plan.projections.iter().any(|p| p.level == *level && wanted(p.layer()));
    let levels: Vec<&str> = NumericLevel::ALL.into_iter().rev().filter(has).map(bits).collect();
    format!("{} activations", levels.join(" and "))
}

fn bits(level: NumericLevel) -> &'static str {
    match level {
        NumericLevel::F32 => "f32",
        NumericLevel::Int16 => "16-bit",
        NumericLevel::Bf16 => "bf16",
        NumericLevel::Int8 => "8-bit",
    }
}
