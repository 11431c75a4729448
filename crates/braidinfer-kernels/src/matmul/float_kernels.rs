//! The instantiated kernels for float weights.

use super::float;

kernels! { dispatched:
    bf16_dot = float::multiply::<_, float::Bf16Dot>;
    bf16 = float::multiply::<_, float::Bf16>;
    f16 = float::multiply::<_, float::F16>;
    f32 = float::multiply::<_, float::F32>;
}
