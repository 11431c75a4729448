//! The instantiated kernels for float weights.

use super::float;

kernels! { dispatched_bf16:
    bf16_dot = float::multiply::<_, float::Bf16Dot>;
}
kernels! { dispatched:
    bf16 = float::multiply::<_, float::Bf16>;
    f16 = float::multiply::<_, float::F16>;
    f32 = float::multiply::<_, float::F32>;
}
