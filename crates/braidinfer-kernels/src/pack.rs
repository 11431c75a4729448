//! Packing the quantized blocks of a file into panels, without changing any value. [`crate::format`] has the layout of
//! panels.
//!
//! All rows of a panel are packed one chunk at a time, so that the vectors that they share stay in the CPU cache.

mod blocks;
mod floats;
mod layouts;
#[cfg(test)]
mod tests;

use crate::LANES;
use crate::format::{PanelFormat, WeightType, panel_bytes};
use blocks::pack_blocks;
use floats::{Exponents, pack_floats};
use layouts::{Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

/// Position of the first non-finite value, in row-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite {
    /// Row within the panel.
    pub row: usize,
    /// Column; for a non-finite scale or minimum, the first column of its block.
    pub column: usize,
}

/// Packs `rows`, 1 to 16 whole rows of `cols` values in the file's blocks, into a panel of
/// `panel_bytes(PanelFormat::of(weight_type), cols)` bytes. Missing rows are filled with zeros.
///
/// Returns the position of a non-finite value, if there is one; the content of the panel is then unspecified.
pub fn pack_panel(weight_type: WeightType, rows: &[u8], cols: usize, panel: &mut [u8]) -> Option<NotFinite> {
    let row_bytes = weight_type.row_bytes(cols);
    assert!(cols > 0 && rows.len().is_multiple_of(row_bytes), "{} bytes of rows of {row_bytes} each", rows.len());
    let count = rows.len() / row_bytes;
    assert!((1..=LANES).contains(&count), "{count} rows in a panel");
    assert_eq!(panel.len(), panel_bytes(PanelFormat::of(weight_type), cols), "bytes of a panel of {weight_type:?}");
    if count < LANES {
        panel.fill(0);
    }
    match weight_type {
        WeightType::F32 => pack_floats::<4, 128>(Exponents::F32, rows, cols, panel),
        WeightType::F16 => pack_floats::<2, 64>(Exponents::F16, rows, cols, panel),
        WeightType::Bf16 => pack_floats::<4, 64>(Exponents::BF16, rows, cols, panel),
        WeightType::Q4_0 => pack_blocks::<Q4_0, 18, 4>(rows, cols, panel),
        WeightType::Q4_1 => pack_blocks::<Q4_1, 20, 4>(rows, cols, panel),
        WeightType::Q5_0 => pack_blocks::<Q5_0, 22, 6>(rows, cols, panel),
        WeightType::Q5_1 => pack_blocks::<Q5_1, 24, 6>(rows, cols, panel),
        WeightType::Q8_0 => pack_blocks::<Q8_0, 34, 8>(rows, cols, panel),
        WeightType::Q2K => pack_blocks::<Q2K, 84, 4>(rows, cols, panel),
        WeightType::Q3K => pack_blocks::<Q3K, 110, 4>(rows, cols, panel),
        WeightType::Q4K => pack_blocks::<Q4K, 144, 4>(rows, cols, panel),
        WeightType::Q5K => pack_blocks::<Q5K, 176, 6>(rows, cols, panel),
        WeightType::Q6K => pack_blocks::<Q6K, 210, 6>(rows, cols, panel),
        WeightType::Iq4Nl => pack_blocks::<Iq4Nl, 18, 8>(rows, cols, panel),
        WeightType::Iq4Xs => pack_blocks::<Iq4Xs, 136, 8>(rows, cols, panel),
    }
}
