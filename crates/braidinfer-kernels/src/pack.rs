//! Packing the quantized blocks of a file into panels, without changing any value. [`crate::format`] has the layout of
//! panels.
//!
//! All rows of a panel are packed one chunk at a time, so that the vectors that they share stay in the CPU cache.

mod blocks;
mod floats;
mod grid_layouts;
// The one table that `braidinfer-model` and this crate share, neither of which uses the other.
#[path = "../../braidinfer-model/src/quantization/iq_grids.rs"]
mod iq_grids;
mod layouts;
mod small_layouts;
#[cfg(test)]
mod tests;

use crate::LANES;
use crate::format::{PanelFormat, WeightType, panel_bytes};
use blocks::pack_blocks;
use floats::{Exponents, pack_floats};
use grid_layouts::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use layouts::{Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use small_layouts::{Mxfp4, Nvfp4, Tq1_0, Tq2_0};

/// Position of the first non-finite value, in row-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite {
    /// Row within the panel.
    pub row: usize,
    /// Column; for a scale or minimum that is not finite or makes values that are not, the first column of its block.
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
        WeightType::Iq4Nl => pack_blocks::<Iq4Nl, 18, 4>(rows, cols, panel),
        WeightType::Iq4Xs => pack_blocks::<Iq4Xs, 136, 4>(rows, cols, panel),
        WeightType::Iq1S => pack_blocks::<Iq1S, 50, 4>(rows, cols, panel),
        WeightType::Iq1M => pack_blocks::<Iq1M, 56, 4>(rows, cols, panel),
        WeightType::Iq2Xxs => pack_blocks::<Iq2Xxs, 66, 4>(rows, cols, panel),
        WeightType::Iq2Xs => pack_blocks::<Iq2Xs, 74, 4>(rows, cols, panel),
        WeightType::Iq2S => pack_blocks::<Iq2S, 82, 4>(rows, cols, panel),
        WeightType::Iq3Xxs => pack_blocks::<Iq3Xxs, 98, 4>(rows, cols, panel),
        WeightType::Iq3S => pack_blocks::<Iq3S, 110, 4>(rows, cols, panel),
        WeightType::Tq1_0 => pack_blocks::<Tq1_0, 54, 4>(rows, cols, panel),
        WeightType::Tq2_0 => pack_blocks::<Tq2_0, 66, 4>(rows, cols, panel),
        WeightType::Mxfp4 => pack_blocks::<Mxfp4, 17, 4>(rows, cols, panel),
        WeightType::Nvfp4 => pack_blocks::<Nvfp4, 36, 4>(rows, cols, panel),
    }
}
