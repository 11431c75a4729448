//! MXFP4: a tensor with the codes of blocks of 32 values, and one with their scales. They are called `NAME_blocks`
//! `[.., blocks, 16]` and `NAME_scales` `[.., blocks]`, or in compressed-tensors `NAME.weight_packed` `[rows, bytes]` and
//! `NAME.weight_scale` `[rows, blocks]`.
//!
//! A block is 16 bytes, each with the code of an even value in its lower half and of the next one in its upper half. Its
//! scale is the exponent of a power of two, plus 127. GGUF has the same codes in another order, each block after its
//! scale, which is how they are read here.

use std::ops::Range;

use super::super::assembled::Assembled;
use super::super::checkpoint::{Checkpoint, Place};
use super::{Found, code_at, row_range};
use crate::Result;
use crate::dtype::Dtype;
use crate::quantization::packed_nibbles;
use crate::tensor_data::{Computed, TensorData};

/// Endings of the names of codes and scales, and of the matrix.
const NAMES: [(&str, &str, &str); 2] =
    [("_blocks", "_scales", "_blocks"), (".weight_packed", ".weight_scale", ".weight")];

/// Bytes of the codes of a block.
const CODE_BYTES: usize = 16;
/// Bytes of a block with its scale.
const BLOCK_BYTES: usize = Dtype::Mxfp4.block_size();

/// Where codes and scales are.
#[derive(Debug)]
pub(in crate::format) struct Mxfp4 {
    codes: Place,
    scales: Place,
}

pub(super) fn find(checkpoint: &Checkpoint, name: &str) -> Result<Option<Found>> {
    let Some((ends, module)) = NAMES.iter().find_map(|ends| Some((ends, name.strip_suffix(ends.0)?))) else {
        return Ok(None);
    };
    let scales_name = format!("{module}{}", ends.1);
    let (Some(codes), Some(scales)) = (checkpoint.part(name), checkpoint.part(&scales_name)) else { return Ok(None) };
    let bytes = codes.type_name == "U8" && ["U8", "F8_E8M0"].contains(&scales.type_name);
    let Some(shape) = shape(codes.shape, scales.shape).filter(|_| bytes) else { return Ok(None) };
    let matrix = Assembled::Mxfp4(Mxfp4 { codes: codes.place, scales: scales.place });
    let parts = [name.to_owned(), scales_name, format!("{module}.weight_shape")];
    let parts = parts.into_iter().filter(|part| checkpoint.contains(part)).collect();
    Ok(Some(Found { name: format!("{module}{}", ends.2), parts, dtype: Dtype::Mxfp4, shape, matrix }))
}

/// The shape of the values, if tensors of these shapes are codes and scales.
fn shape(codes: &[usize], scales: &[usize]) -> Option<Vec<usize>> {
    let (blocks, outer) = scales.split_last()?;
    let width = blocks.checked_mul(Dtype::Mxfp4.block_len())?;
    let apart = codes.split_last().is_some_and(|(last, rest)| *last == CODE_BYTES && rest == scales);
    let together = codes.split_last().is_some_and(|(last, rest)| *last == width / 2 && rest == outer);
    (apart || together).then(|| [outer, &[width]].concat())
}

impl Mxfp4 {
    pub(in crate::format) fn data<'a>(&self, checkpoint: &'a Checkpoint) -> TensorData<'a> {
        TensorData::computed(Blocks { codes: checkpoint.data(&self.codes), scales: checkpoint.data(&self.scales) })
    }
}

/// Blocks of [`Dtype::Mxfp4`], each a row.
#[derive(Debug)]
struct Blocks<'a> {
    codes: TensorData<'a>,
    scales: TensorData<'a>,
}

impl Computed for Blocks<'_> {
    fn rows(&self) -> usize {
        self.scales.len()
    }

    fn row_bytes(&self) -> usize {
        BLOCK_BYTES
    }

    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let codes = self.codes.read_part(row_range(&rows, CODE_BYTES))?;
        let scales = self.scales.read_part(rows.clone())?;
        let mut bytes = Vec::with_capacity(rows.len() * BLOCK_BYTES);
        for (codes, scale) in codes.as_chunks::<CODE_BYTES>().0.iter().zip(&*scales) {
            bytes.push(*scale);
            bytes.extend(packed_nibbles(&std::array::from_fn(|value| code_at(codes, 4, value))));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::TensorView;

    #[test]
    fn values_are_those_of_codes_times_scales() {
        const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let code = |index: usize| (index * 7 + index / 32 * 3) as u8 % 16;
        let codes: Vec<u8> = (0..48).map(|byte| code(2 * byte) | code(2 * byte + 1) << 4).collect();
        let scales = [127_u8, 120, 130];
        let blocks = Blocks { codes: codes[..].into(), scales: scales[..].into() };
        let view = TensorView {
            name: "codes",
            path: "file",
            dtype: Dtype::Mxfp4,
            shape: vec![3, 32],
            data: TensorData::computed(blocks),
        };
        for (index, value) in view.read::<f32>().expect("in memory").into_iter().enumerate() {
            let (code, scale) = (code(index), scales[index / 32]);
            let sign = if code >= 8 { -1.0 } else { 1.0 };
            assert_eq!(value, sign * VALUES[usize::from(code % 8)] * (f32::from(scale) - 127.0).exp2());
        }
    }

    #[test]
    fn any_part_is_that_of_the_whole() {
        let codes: Vec<u8> = (0..64).map(|byte: u8| byte.wrapping_mul(37)).collect();
        let data = TensorData::computed(Blocks { codes: codes[..].into(), scales: [1, 2, 3, 4][..].into() });
        let whole = data.read().expect("in memory").into_owned();
        for start in 0..=whole.len() {
            for end in start..=whole.len() {
                assert_eq!(*data.read_part(start..end).expect("in memory"), whole[start..end]);
            }
        }
    }

    #[test]
    fn shapes_have_to_match() {
        assert_eq!(shape(&[2, 6, 3, 16], &[2, 6, 3]), Some(vec![2, 6, 96]));
        assert_eq!(shape(&[2, 6, 3, 16], &[2, 6, 4]), None);
        assert_eq!(shape(&[2, 6, 3, 8], &[2, 6, 3]), None);
        assert_eq!(shape(&[16], &[]), None);
        assert_eq!(shape(&[], &[]), None);
        assert_eq!(shape(&[6, 48], &[6, 3]), Some(vec![6, 96]));
        assert_eq!(shape(&[6, 40], &[6, 3]), None);
    }
}
