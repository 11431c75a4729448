//! Matrices whose values are computed from several tensors.

use super::checkpoint::Checkpoint;
use super::quantized::{Columns, Fp8, Mxfp4, Nvfp4, PackedRows};
use super::split_heads::SplitHeads;
use crate::rearranged::MatrixId;
use crate::tensor_data::TensorData;

/// Where the parts of a matrix are.
#[derive(Debug)]
pub(super) enum Assembled {
    Mxfp4(Mxfp4),
    Nvfp4(Nvfp4),
    Fp8(Fp8),
    PackedRows(PackedRows),
    Columns(Columns),
    SplitHeads(SplitHeads),
}

impl Assembled {
    /// The bytes of the values, of the type that was chosen for them.
    pub(super) fn data<'a>(&'a self, checkpoint: &'a Checkpoint, id: MatrixId) -> TensorData<'a> {
        match self {
            Self::Mxfp4(matrix) => matrix.data(checkpoint),
            Self::Nvfp4(matrix) => matrix.data(checkpoint),
            Self::Fp8(matrix) => matrix.data(checkpoint),
            Self::PackedRows(matrix) => matrix.data(checkpoint),
            Self::Columns(matrix) => matrix.data(checkpoint, id),
            Self::SplitHeads(matrix) => matrix.data(checkpoint, id),
        }
    }
}
