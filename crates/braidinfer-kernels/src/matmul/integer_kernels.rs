//! The instantiated kernels for integer weights.

use super::{Kernel, integer};
use crate::activations::NumericLevel;
use crate::format::{CodeBits, GroupLen, IntFormat, Levels};

/// The kernel that multiplies codes of `format`, unpacked to `bits` bits, by activations at `level`.
pub(super) fn kernel(format: IntFormat, bits: CodeBits, level: NumericLevel) -> Option<Kernel> {
    let of = match (level, bits) {
        (NumericLevel::Int8, CodeBits::Four) if format.levels == Levels::Iq4 => return Some(iq4::int8),
        (NumericLevel::Int16, CodeBits::Four) if format.levels == Levels::Iq4 => return Some(iq4::int16),
        (NumericLevel::Int8, CodeBits::Four) if format.levels != Levels::Even => int8_table::of,
        (NumericLevel::Int16, CodeBits::Four) if format.levels != Levels::Even => int16_table::of,
        (NumericLevel::F32, CodeBits::Eight) => f32_8::of,
        (NumericLevel::Int8, CodeBits::Eight) => int8_8::of,
        (NumericLevel::Int8, CodeBits::Six) => int8_6::of,
        (NumericLevel::Int8, CodeBits::Four) => int8_4::of,
        (NumericLevel::Int16, CodeBits::Eight) => int16_8::of,
        (NumericLevel::Int16, CodeBits::Six) => int16_6::of,
        (NumericLevel::Int16, CodeBits::Four) => int16_4::of,
        _ => return None,
    };
    Some(of(format))
}

/// Defines a module of kernels for each number of bytes per activation and bits per code. Without bytes nothing is
/// [`crate::isa::dispatched_products`].
macro_rules! modules {
    ($($module:ident: $dispatched:ident, $bytes:literal, $bits:literal;)*) => {
        $(mod $module {
            use super::{GroupLen, IntFormat, Kernel, integer};

            kernels! { $dispatched:
                plain = integer::multiply::<_, $bits, $bytes, false, false, $bits>;
                by_16 = integer::multiply::<_, $bits, $bytes, false, true, $bits>;
                with_mins = integer::multiply::<_, $bits, $bytes, true, false, $bits>;
                with_mins_by_16 = integer::multiply::<_, $bits, $bytes, true, true, $bits>;
            }

            pub(super) fn of(format: IntFormat) -> Kernel {
                match (format.has_mins(), format.group) {
                    (false, GroupLen::ThirtyTwo) => plain,
                    (false, GroupLen::Sixteen) => by_16,
                    (true, GroupLen::ThirtyTwo) => with_mins,
                    (true, GroupLen::Sixteen) => with_mins_by_16,
                }
            }
        })*
    };
}

modules! {
    f32_8: dispatched, 0, 8;
    int8_8: dispatched_products, 1, 8;
    int8_6: dispatched_products, 1, 6;
    int8_4: dispatched_products, 1, 4;
    int16_8: dispatched_products, 2, 8;
    int16_6: dispatched_products, 2, 6;
    int16_4: dispatched_products, 2, 4;
}

/// Defines a module of kernels for 4-bit codes that stand for levels of 7 bits, for each number of bytes per
/// activation.
macro_rules! table_modules {
    ($($module:ident: $bytes:literal;)*) => {
        $(mod $module {
            use super::{GroupLen, IntFormat, Kernel, integer};

            kernels! { dispatched_products:
                plain = integer::multiply::<_, 4, $bytes, false, false, 7>;
                by_16 = integer::multiply::<_, 4, $bytes, false, true, 7>;
            }

            pub(super) fn of(format: IntFormat) -> Kernel {
                match format.group {
                    GroupLen::ThirtyTwo => plain,
                    GroupLen::Sixteen => by_16,
                }
            }
        })*
    };
}

table_modules! {
    int8_table: 1;
    int16_table: 2;
}

/// Kernels for 4-bit codes that stand for levels of 8 bits, which have groups of 32 columns.
mod iq4 {
    use super::integer;

    kernels! { dispatched_products:
        int8 = integer::multiply::<_, 4, 1, false, false, 8>;
        int16 = integer::multiply::<_, 4, 2, false, false, 8>;
    }
}
