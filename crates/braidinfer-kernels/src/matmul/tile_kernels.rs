//! The instantiated kernels for integer weights on units that multiply tiles.

use super::{Kernel, tiles};
use crate::activations::NumericLevel;
use crate::format::{GroupLen, IntFormat};

/// The kernel for codes of `format` and activations of one or two bytes.
pub(super) fn kernel(format: IntFormat, level: NumericLevel) -> Kernel {
    match (level, format.has_mins(), format.group) {
        (NumericLevel::Int16, false, GroupLen::ThirtyTwo) => int16,
        (NumericLevel::Int16, false, GroupLen::Sixteen) => int16_by_16,
        (NumericLevel::Int16, true, GroupLen::ThirtyTwo) => int16_with_mins,
        (NumericLevel::Int16, true, GroupLen::Sixteen) => int16_with_mins_by_16,
        (_, false, GroupLen::ThirtyTwo) => int8,
        (_, false, GroupLen::Sixteen) => int8_by_16,
        (_, true, GroupLen::ThirtyTwo) => int8_with_mins,
        (_, true, GroupLen::Sixteen) => int8_with_mins_by_16,
    }
}

kernels! { dispatched:
    int8 = tiles::multiply::<_, 1, false, false>;
    int8_by_16 = tiles::multiply::<_, 1, false, true>;
    int8_with_mins = tiles::multiply::<_, 1, true, false>;
    int8_with_mins_by_16 = tiles::multiply::<_, 1, true, true>;
    int16 = tiles::multiply::<_, 2, false, false>;
    int16_by_16 = tiles::multiply::<_, 2, false, true>;
    int16_with_mins = tiles::multiply::<_, 2, true, false>;
    int16_with_mins_by_16 = tiles::multiply::<_, 2, true, true>;
}
