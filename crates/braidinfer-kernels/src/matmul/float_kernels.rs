//! The kernels of weights that are floats.

use super::{Panels, float};
use crate::activations::Activations;
use crate::isa::dispatched;

dispatched! {
    pub(super) fn bf16_dot(panels: Panels<'_>, x: &Activations<'_>, out: &mut [f32]) =
        float::multiply::<_, float::Bf16Dot>;
}
dispatched! {
    pub(super) fn bf16(panels: Panels<'_>, x: &Activations<'_>, out: &mut [f32]) = float::multiply::<_, float::Bf16>;
}
dispatched! {
    pub(super) fn f16(panels: Panels<'_>, x: &Activations<'_>, out: &mut [f32]) = float::multiply::<_, float::F16>;
}
dispatched! {
    pub(super) fn f32(panels: Panels<'_>, x: &Activations<'_>, out: &mut [f32]) = float::multiply::<_, float::F32>;
}
